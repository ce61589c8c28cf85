"""The sizes of a CLIP with a ResNet image tower: the published ones, a state_dict's own, and random nets of any."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from famix.clip.openai import CLIP, VOCAB_SIZE
from famix.clip.text_tower import OPEN_CLIP_TEXT, OPENAI_TEXT, TextDesign
from famix.utils.errors import ConfigError, WeightsError

__all__ = ["ARCHITECTURES", "CLIPArchitecture", "check_layout", "random_clip", "resnet_architectures", "text_design_of"]

CONTEXT_LENGTH = 77  # tokens of a text, in all published models
_STRIDE = 32  # of the attention pool's input to the image
_HEAD_CHANNELS = 64  # of every attention in CLIP
_MOST_BLOCKS = 100  # of a layer; RN50x64 has 36
_MOST = 1000  # blocks of a text tower, or tokens of a text: a file can claim any number; published are 16 and 77
_MOST_CHANNELS = 1 << 14  # of anything; RN50x64 has 4096


@dataclass(frozen=True)
class CLIPArchitecture:
    """Sizes of CLIP's image tower.

    Attributes:
        layers: number of bottlenecks in layer1 .. layer4.
        width: channels after the stem; layer1 .. layer4 put out 4, 8, 16 and 32 times as many.
        embed_dim: length D of the embedding that images and texts share.
        heads: attention heads of the attention pool.
        input_resolution: side in pixels of the square images CLIP was trained on, a multiple of 32.
    """

    layers: tuple[int, ...]
    width: int
    embed_dim: int
    heads: int
    input_resolution: int

    def channels(self, stage: int) -> int:
        """Channels that layer1 .. layer4, counted from 0, put out."""
        return self.width * 4 * 2**stage

    @classmethod
    def of(cls, layers: tuple[int, ...], width: int, embed_dim: int, input_resolution: int) -> "CLIPArchitecture":
        """The architecture of these sizes with as many heads as CLIP gives it: one for 64 of 32 * width channels."""
        return cls(layers, width, embed_dim, width * 32 // _HEAD_CHANNELS, input_resolution)

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Tensor], with_embedding: bool = True) -> "CLIPArchitecture":
        """Read the sizes from the shapes of "visual.*".

        Args:
            state_dict: names to tensors of a CLIP with a ResNet image tower.
            with_embedding: False for a backbone without attention pool, which leaves embed_dim and input_resolution at 1
                and 224.

        Raises:
            WeightsError: the tensors belong to another network.
        """
        try:
            embed_dim, resolution = 1, 224
            if with_embedding:
                embed_dim = state_dict["visual.attnpool.c_proj.weight"].shape[0]
                positions = state_dict["visual.attnpool.positional_embedding"].shape[0]
                resolution = _STRIDE * round(max(0, positions - 1) ** 0.5)
            found = cls.of(
                layers=tuple(_count_blocks(state_dict, f"visual.layer{stage}.") for stage in range(1, 5)),
                width=state_dict["visual.layer1.0.conv1.weight"].shape[0],
                embed_dim=embed_dim,
                input_resolution=resolution,
            )
            found.require_sensible()
            return found
        except (KeyError, IndexError) as error:
            raise WeightsError(
                f"CLIP weights must have a ResNet image tower with an attention pool, got {len(state_dict)} tensors without "
                f"{error}. Use one of OpenAI's ResNet models, e.g. RN50, or its state_dict."
            ) from error

    def require_sensible(self) -> None:
        """Raise unless a network of these sizes can be thought of: a file can claim any.

        Raises:
            WeightsError: a size is 0, or far beyond those of the published models.
        """
        sizes = (self.width, self.embed_dim, self.input_resolution)
        if not (min(*self.layers, *sizes) > 0 and max(self.layers) <= _MOST_BLOCKS and max(sizes) <= _MOST_CHANNELS):
            raise WeightsError(
                f"Got {self}, expected positive sizes of about those of OpenAI's models. Use one of these."
            )


ARCHITECTURES: dict[str, CLIPArchitecture] = {
    "RN50": CLIPArchitecture.of((3, 4, 6, 3), width=64, embed_dim=1024, input_resolution=224),
    "RN101": CLIPArchitecture.of((3, 4, 23, 3), width=64, embed_dim=512, input_resolution=224),
    "RN50x4": CLIPArchitecture.of((4, 6, 10, 6), width=80, embed_dim=640, input_resolution=288),
    "RN50x16": CLIPArchitecture.of((6, 8, 18, 8), width=96, embed_dim=768, input_resolution=384),
    "RN50x64": CLIPArchitecture.of((3, 15, 36, 10), width=128, embed_dim=1024, input_resolution=448),
}
"""Published by OpenAI. open_clip has networks of the same names and sizes."""

_OPEN_CLIP = "open_clip:"
_QUICK_GELU = "-quickgelu"
_DEFAULT = "RN50"


def resnet_architectures() -> dict[str, CLIPArchitecture]:
    """Return the values of MODEL.CLIP.ARCHITECTURE with their sizes: OpenAI's and open_clip's; "" stands for RN50."""
    named = {"": ARCHITECTURES[_DEFAULT], **ARCHITECTURES}
    for name, sizes in ARCHITECTURES.items():
        named[f"{_OPEN_CLIP}{name}"] = named[f"{_OPEN_CLIP}{name}{_QUICK_GELU}"] = sizes
    return named


def text_design_of(name: str) -> TextDesign:
    """Return the design of the text tower that a value of MODEL.CLIP.ARCHITECTURE stands for; unknown for ""."""
    if not name:
        return TextDesign()
    return OPEN_CLIP_TEXT if name.startswith(_OPEN_CLIP) and not name.endswith(_QUICK_GELU) else OPENAI_TEXT


def random_clip(
    architecture: CLIPArchitecture,
    *,
    seed: int = 0,
    text_width: int | None = None,
    text_layers: int | None = None,
    random_norms: bool = False,
    calibrated_norms: bool = False,
) -> CLIP:
    """Make a CLIP with the clip package's own random initialisation, in eval mode and float32 on the CPU.

    The global random state is the same before and after.

    Args:
        architecture: sizes of the image tower.
        seed: of all random numbers.
        text_width: channels of the text tower, a multiple of 64; None = 8 * width as in the published models, rounded
            down to such a multiple, and at least 64.
        text_layers: depth of the text tower; None = 12 as in the published models, and 2 below width 64.
        random_norms: also draw the batch norms' weights, biases and statistics. Without it the last norm of every
            bottleneck has weight 0, so that the residual branches add nothing: right to start a training from, but
            a test would not see what they compute.
        calibrated_norms: set the image tower's batch norm statistics to those of smooth random images. Without it a
            random network in eval mode lets its features fade from layer to layer, and styles that are mined from
            them do not fit the network in training.

    Returns:
        The model; text of up to 77 tokens out of clip's vocabulary of 49408.

    Raises:
        ConfigError: no CLIP has such sizes.
    """
    _check_sizes(architecture, text_width)
    text_width = text_width or max(architecture.width * 8 // _HEAD_CHANNELS, 1) * _HEAD_CHANNELS
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the GPUs, which are not forked
        model = CLIP(
            embed_dim=architecture.embed_dim,
            image_resolution=architecture.input_resolution,
            vision_layers=architecture.layers,
            vision_width=architecture.width,
            vision_patch_size=None,
            context_length=CONTEXT_LENGTH,
            vocab_size=VOCAB_SIZE,
            transformer_width=text_width,
            transformer_heads=text_width // _HEAD_CHANNELS,
            transformer_layers=text_layers or (12 if architecture.width >= 64 else 2),
        )
    generator = torch.Generator().manual_seed(seed)
    if random_norms:
        _randomize_norms(model, generator)
    if calibrated_norms:
        _calibrate_norms(model, generator)
    return model.eval()


def _check_sizes(architecture: CLIPArchitecture, text_width: int | None) -> None:
    sound = (
        len(architecture.layers) == 4
        and min(*architecture.layers, architecture.width, architecture.embed_dim, architecture.input_resolution) > 0
        and architecture.width % 2 == 0
        and architecture.input_resolution % _STRIDE == 0
        and (text_width is None or (text_width > 0 and text_width % _HEAD_CHANNELS == 0))
    )
    if not sound:
        raise ConfigError(
            f"Got {architecture} with text width {text_width}, expected 4 positive layers, an even width, an input "
            f"resolution that {_STRIDE} divides and a text width that {_HEAD_CHANNELS} divides. Correct these."
        )


@torch.no_grad()
def _randomize_norms(model: nn.Module, generator: torch.Generator) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.weight.uniform_(0.5, 1.5, generator=generator)
            module.bias.normal_(0.0, 0.1, generator=generator)
            module.running_mean.normal_(0.0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)


@torch.no_grad()
def _calibrate_norms(model: CLIP, generator: torch.Generator) -> None:
    norms = [module for module in model.visual.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0  # the statistics of the one batch below
    side = model.visual.input_resolution
    noise = [torch.randn(16, 3, cells, cells, generator=generator) for cells in (2, 4, 8, 16, side)]
    images = sum(functional.interpolate(layer, (side, side), mode="bilinear") for layer in noise) / len(noise) ** 0.5
    model.visual.train()(images)
    for norm in norms:
        norm.momentum = nn.BatchNorm2d(1).momentum


def _count_blocks(state_dict: Mapping[str, Tensor], prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[0] for name in state_dict if name.startswith(prefix)})


def check_layout(state_dict: Mapping[str, Tensor]) -> None:
    """Compare names and shapes with those of the clip package's own model of the same sizes."""
    expected = _expected_shapes(state_dict)
    got = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    problems = [f"{name} is missing" for name in expected.keys() - got.keys()]
    problems += [f"{name} is unknown" for name in got.keys() - expected.keys()]
    problems += [
        f"{name} is {got[name]}, not {shape}" for name, shape in expected.items() if got.get(name, shape) != shape
    ]
    if problems:
        raise WeightsError(
            f"Got a CLIP whose layout differs in {len(problems)} tensors ({'; '.join(sorted(problems)[:3])}), expected "
            "all tensors of OpenAI's model of this size and no others. Use the weights of an unchanged CLIP."
        )


def _expected_shapes(state_dict: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    architecture = CLIPArchitecture.from_state_dict(state_dict)
    try:
        context_length, text_width = state_dict["positional_embedding"].shape
        vocab_size = state_dict["token_embedding.weight"].shape[0]
    except (KeyError, IndexError, ValueError) as error:
        raise WeightsError(
            "Got a CLIP without its text tower, expected one with token_embedding.weight and positional_embedding. "
            "Use the weights of the whole CLIP, with which styles are mined."
        ) from error
    blocks = {name.split(".")[2] for name in state_dict if name.startswith("transformer.resblocks.")}
    if not (min(context_length, text_width, vocab_size) > 0 and max(len(blocks), context_length) <= _MOST):
        raise WeightsError(
            f"Got a CLIP with a text tower of {len(blocks)} blocks for {context_length} of {vocab_size} tokens in "
            f"{text_width} channels, expected positive sizes of about those of OpenAI's models. Use one of these."
        )
    with torch.device("meta"):
        model = CLIP(
            embed_dim=architecture.embed_dim,
            image_resolution=architecture.input_resolution,
            vision_layers=architecture.layers,
            vision_width=architecture.width,
            vision_patch_size=None,
            context_length=context_length,
            vocab_size=vocab_size,
            transformer_width=text_width,
            transformer_heads=1,  # leaves no trace in the shapes, and 1 divides every width
            transformer_layers=len(blocks),
        )
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
