"""Sizes of CLIP ResNets, published or inferred from a state_dict."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from famix.clip.openai import CLIP
from famix.utils.errors import WeightsError

HEAD_CHANNELS = 64  # channels per attention head in all CLIPs
CLIP_STRIDE = 32  # stride of the attention pool's input
# Upper bounds, checked before a file's sizes are allocated. RN50x64 has 36 blocks per layer and 4096 channels.
_MAX_BLOCKS = 100  # per layer
_MAX_CHANNELS = 1 << 14
_MAX_TEXT = 1000  # blocks of a text tower and tokens of a text; published CLIPs have 16 and 77


@dataclass(frozen=True)
class CLIPArchitecture:
    """Sizes of a CLIP ResNet.

    Attributes:
        layers: number of bottlenecks in layer1 .. layer4.
        width: channels after the stem; layer1 .. layer4 have 4, 8, 16 and 32 times as many.
        embed_dim: number of channels D of the image and text embeddings.
        input_resolution: side of the square training images in pixels, a multiple of 32.
    """

    layers: tuple[int, ...]
    width: int
    embed_dim: int
    input_resolution: int

    @property
    def heads(self) -> int:
        """Number of heads of the attention pool."""
        return self.width * 32 // HEAD_CHANNELS

    def build_clip(
        self, context_length: int, vocab_size: int, text_width: int, text_heads: int, text_layers: int
    ) -> CLIP:
        """Build OpenAI's module with random weights and a text tower of the given sizes."""
        return CLIP(
            embed_dim=self.embed_dim,
            image_resolution=self.input_resolution,
            vision_layers=self.layers,
            vision_width=self.width,
            vision_patch_size=None,
            context_length=context_length,
            vocab_size=vocab_size,
            transformer_width=text_width,
            transformer_heads=text_heads,
            transformer_layers=text_layers,
        )

    def channels(self, stage: int) -> int:
        """Return the output channels of a layer; `stage` is 0 for layer1."""
        return self.width * 4 * 2**stage

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Tensor], with_embedding: bool = True) -> "CLIPArchitecture":
        """Infer the sizes from the shapes of "visual.*".

        Args:
            state_dict: a CLIP state_dict.
            with_embedding: False for a backbone without attention pool; sets embed_dim to 1 and input_resolution to 224.

        Raises:
            WeightsError: a tensor is missing or a size is out of range.
        """
        try:
            embed_dim, resolution = 1, 224
            if with_embedding:
                embed_dim = state_dict["visual.attnpool.c_proj.weight"].shape[0]
                positions = state_dict["visual.attnpool.positional_embedding"].shape[0]
                resolution = CLIP_STRIDE * round(max(0, positions - 1) ** 0.5)
            width = state_dict["visual.layer1.0.conv1.weight"].shape[0]
        except (KeyError, IndexError) as error:
            raise WeightsError(
                f"CLIP weights must have a ResNet image tower with an attention pool, got {len(state_dict)} tensors without "
                f"{error}. Use one of OpenAI's ResNet models, e.g. RN50, or its state_dict."
            ) from error
        layers = tuple(
            len({name.split(".")[2] for name in state_dict if name.startswith(f"visual.layer{layer}.")})
            for layer in range(1, 5)
        )
        sizes = (width, embed_dim, resolution)
        if min(*layers, *sizes) < 1 or max(layers) > _MAX_BLOCKS or max(sizes) > _MAX_CHANNELS:
            raise WeightsError(
                f"CLIP weights must have sizes close to those of OpenAI's models, got layers {layers}, width {width}, embedding "
                f"length {embed_dim} and resolution {resolution}. Use e.g. RN50."
            )
        return cls(layers, width, embed_dim, resolution)


ARCHITECTURES: dict[str, CLIPArchitecture] = {
    "RN50": CLIPArchitecture((3, 4, 6, 3), width=64, embed_dim=1024, input_resolution=224),
    "RN101": CLIPArchitecture((3, 4, 23, 3), width=64, embed_dim=512, input_resolution=224),
    "RN50x4": CLIPArchitecture((4, 6, 10, 6), width=80, embed_dim=640, input_resolution=288),
    "RN50x16": CLIPArchitecture((6, 8, 18, 8), width=96, embed_dim=768, input_resolution=384),
    "RN50x64": CLIPArchitecture((3, 15, 36, 10), width=128, embed_dim=1024, input_resolution=448),
}
"""OpenAI's models; open_clip's ResNets have the same names and sizes."""


def check_layout(state_dict: Mapping[str, Tensor]) -> None:
    """Compare the tensors of a CLIP state_dict with those of the clip package's model of the same sizes.

    Raises:
        WeightsError: names or shapes differ.
    """
    architecture = CLIPArchitecture.from_state_dict(state_dict)
    try:
        context_length, text_width = state_dict["positional_embedding"].shape
        vocab_size = state_dict["token_embedding.weight"].shape[0]
    except (KeyError, IndexError, ValueError) as error:
        raise WeightsError(
            "CLIP weights must contain the text tower (token_embedding.weight, positional_embedding), got only an "
            "image tower. Use the complete CLIP weights."
        ) from error
    blocks = len({name.split(".")[2] for name in state_dict if name.startswith("transformer.resblocks.")})
    if min(context_length, text_width, vocab_size) < 1 or max(blocks, context_length) > _MAX_TEXT:
        raise WeightsError(
            f"CLIP weights must have a text tower of a size close to OpenAI's, got {blocks} blocks with {text_width} "
            f"channels for {context_length} tokens from a vocabulary of {vocab_size}. Use e.g. RN50."
        )
    with torch.device("meta"):
        # The shapes do not depend on the number of heads, and 1 divides every width.
        model = architecture.build_clip(context_length, vocab_size, text_width, text_heads=1, text_layers=blocks)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items() if value.is_floating_point()}
    require_shapes(state_dict, expected, "OpenAI's model of the same size", "Use unmodified CLIP weights")


def require_shapes(
    tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], model: str, remedy: str
) -> None:
    """Raise WeightsError with the first three differences unless tensors have the names and shapes of a model."""
    got = {name: tuple(value.shape) for name, value in tensors.items()}
    wrong = sorted(name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name))
    if wrong:
        shown = "; ".join(
            f"{name}: {got.get(name, 'missing')} instead of {expected.get(name, 'none')}" for name in wrong[:3]
        )
        raise WeightsError(f"CLIP weights must match {model}, but {len(wrong)} tensors differ ({shown}). {remedy}.")
