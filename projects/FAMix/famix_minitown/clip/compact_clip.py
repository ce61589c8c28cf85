"""The town's CLIPs, small ones with only the tokens of its captions, and their zero-shot accuracy."""

from collections.abc import Mapping, Sequence
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from famix.clip.architecture import CLIPArchitecture
from famix.clip.export import CONTEXT_LENGTH, random_clip
from famix.clip.files import full_embedding
from famix.clip.open_clip.models import find_model
from famix.clip.openai import CLIP, VOCAB_SIZE, tokenize
from famix.utils.errors import ConfigError
from famix_minitown.clip.captions import PLAIN_PHRASES, TEMPLATES
from famix_minitown.clip.crops import CROP_SIDE
from famix_minitown.datasets import CLIP_ARCHITECTURES
from famix_minitown.rendering.looks import LOOKS

IMAGE_LAYERS = (2, 2, 2, 2)
EMBED_DIM, TEXT_WIDTH, TEXT_LAYERS = 128, 128, 4
PIXEL_MEAN = (122.7709383, 116.7460125, 104.09373615)  # CLIP's values, for pixels in [0, 255]
PIXEL_STD = (68.5005327, 66.6321579, 70.32316305)
_CHUNK = 256  # number of images or texts encoded at a time


class CompactCLIP(nn.Module):
    """CLIP with embeddings for a subset of the tokens.

    Shapes: N images, M texts, L tokens, D embedding channels.

    Args:
        width: number of channels of the ResNet's stem; the other families have a fixed size.
        token_ids: sorted ids of the tokens with an embedding, excluding 0.
        seed: seed of the initial weights.
        family: one of CLIP_ARCHITECTURES.
    """

    def __init__(self, width: int, token_ids: Sequence[int], seed: int, family: str = "resnet") -> None:
        super().__init__()
        self.width, self.family = width, family
        architecture = CLIPArchitecture(IMAGE_LAYERS, width, EMBED_DIM, CROP_SIDE)
        self.clip: CLIP = random_clip(architecture, seed=seed, text_width=TEXT_WIDTH, text_layers=TEXT_LAYERS)
        self.token_ids = tuple(token_ids)
        model = find_model(CLIP_ARCHITECTURES[family])
        if model is not None:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed GPUs
                self.clip.visual = model.build_image_tower()
        # Row 0 is padding. The order keeps the end token's id the highest, which is how CLIP finds it.
        kept = self.clip.token_embedding.weight.detach()[[0, *self.token_ids]].clone()
        self.clip.token_embedding = nn.Embedding.from_pretrained(kept, freeze=False)
        self._places = {token: place for place, token in enumerate((0, *self.token_ids))}

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.clip.logit_scale.device

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Return tokens (M, L) in compact numbering, padded to the longest text.

        Raises:
            ConfigError: a text has a token without an embedding.
        """
        tokens = tokenize(list(texts))
        tokens = tokens[:, : int(tokens.argmax(dim=1).max()) + 1]
        try:
            return torch.tensor([[self._places[token] for token in row] for row in tokens.tolist()])
        except KeyError as error:
            raise ConfigError(
                f"Texts must contain only tokens of captions, got token {error}. Use words from the captions."
            ) from error

    def encode_image(self, images: Tensor) -> Tensor:
        """Encode normalized images (N, 3, 64, 64) as unit vectors (N, D)."""
        return F.normalize(self.clip.visual(images), dim=1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Encode compact tokens (M, L) as unit vectors (M, D)."""
        clip = self.clip
        features = clip.token_embedding(tokens) + clip.positional_embedding[: tokens.shape[1]]
        features = clip.transformer(features.transpose(0, 1)).transpose(0, 1)
        last = features[torch.arange(len(tokens), device=tokens.device), tokens.argmax(dim=1)]
        return F.normalize(clip.ln_final(last) @ clip.text_projection, dim=1)

    def full_state_dict(self) -> dict[str, Tensor]:
        """Return float32 weights on the CPU, named as in OpenAI's files, with zeros for tokens without an embedding."""
        weights = {name: tensor.detach().cpu().clone() for name, tensor in self.clip.state_dict().items()}
        weights = {name: tensor.contiguous() for name, tensor in weights.items() if tensor.is_floating_point()}
        rows = weights["token_embedding.weight"][1:]
        return {**weights, "token_embedding.weight": full_embedding(rows, self.token_ids)}

    def load_full_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load weights returned by `full_state_dict`.

        Raises:
            ConfigError: the weights of a ResNet have different sizes.
        """
        if self.family == "resnet":
            require_same_sizes(state_dict, self.width)
        rows = state_dict["token_embedding.weight"][[0, *self.token_ids]]
        self.clip.load_state_dict({**self.clip.state_dict(), **state_dict, "token_embedding.weight": rows})


def require_same_sizes(state_dict: Mapping[str, Tensor], width: int) -> None:
    """Check that the weights of a CLIP ResNet fit a CompactCLIP.

    Args:
        state_dict: weights returned by `famix.clip.load_clip_state_dict`.
        width: number of channels of the stem.

    Raises:
        ConfigError: the weights have different sizes.
        WeightsError: the weights are not those of a CLIP.
    """

    def describe(image: CLIPArchitecture, layers: int, context: int, channels: int, tokens: int) -> str:
        return (
            f"width {image.width} with {image.layers} blocks for {image.input_resolution} pixels, embedding "
            f"{image.embed_dim} (text: width {channels}, {layers} blocks, {context} of {tokens} tokens)"
        )

    blocks = {name.split(".")[2] for name in state_dict if name.startswith("transformer.resblocks.")}
    expected = describe(
        CLIPArchitecture(IMAGE_LAYERS, width, EMBED_DIM, CROP_SIDE), TEXT_LAYERS, CONTEXT_LENGTH, TEXT_WIDTH, VOCAB_SIZE
    )
    (context, channels), tokens = state_dict["positional_embedding"].shape, len(state_dict["token_embedding.weight"])
    got = describe(CLIPArchitecture.from_state_dict(state_dict), len(blocks), context, channels, tokens)
    if got != expected:
        raise ConfigError(
            f"The CLIP must have {expected}, got {got}. Start from a CLIP that train_mini_clip.py trained with the same width."
        )


def usable_device(name: str | torch.device) -> torch.device:
    """Return a torch device after checking that it can compute.

    Raises:
        ConfigError: torch does not know the device, or cannot compute on it.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # a "meta" tensor has no values
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = shorten(str(error), 160)  # torch lists all of its backends
        raise ConfigError(
            f"--device must be usable here, got {str(name)!r} ({reason}). Use cpu, or a GPU such as cuda."
        ) from error
    return device


def to_input(images: NDArray[np.uint8]) -> Tensor:
    """Normalize images (N, H, W, 3) uint8 RGB to (N, 3, H, W) float32 in channels-last memory."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).float()
    return ((pixels - torch.tensor(PIXEL_MEAN)) / torch.tensor(PIXEL_STD)).permute(0, 3, 1, 2)


@torch.no_grad()
def zero_shot_accuracy(model: CompactCLIP, crops: NDArray[Any], class_names: Sequence[str]) -> dict[str, Any]:
    """Classify crops by their nearest neighbor among all sentences "{look} {class}".

    Args:
        model: model in eval mode, on any device.
        crops: (N,) RECORDs with at most one look each.
        class_names: class names of the labels.

    Returns:
        "look", "class" and "joint" (accuracies), "look_macro" and "class_macro" (means over looks and classes),
        "look_recall" and "class_recall" (name -> recall).
    """
    looks = np.where(crops["looks"][:, 0] < 0, len(LOOKS), crops["looks"][:, 0])
    labels = np.asarray(crops["label"])
    present = [int(label) for label in np.unique(labels)]
    nouns = [class_names[label] for label in present]
    adjectives = [*(look.phrases[0] for look in LOOKS.values()), PLAIN_PHRASES[0]]
    texts = [template.format(f"{first} {noun}") for first in adjectives for noun in nouns for template in TEMPLATES]
    tokens = [model.tokenize(texts[first : first + _CHUNK]).to(model.device) for first in range(0, len(texts), _CHUNK)]
    embeddings = torch.cat([model.encode_text(chunk) for chunk in tokens])
    prompts = F.normalize(
        embeddings.unflatten(0, (-1, len(TEMPLATES))).mean(dim=1), dim=1
    )  # ordered by look, then by noun
    images = [crops["image"][first : first + _CHUNK] for first in range(0, len(crops), _CHUNK)]
    nearest = [(model.encode_image(to_input(chunk).to(model.device)) @ prompts.t()).argmax(dim=1) for chunk in images]
    guesses = torch.cat(nearest).cpu().numpy()
    right = {"look": guesses // len(nouns) == looks, "class": np.array(present)[guesses % len(nouns)] == labels}
    names = {"look": dict(enumerate([*LOOKS, "clear"])), "class": dict(zip(present, nouns, strict=True))}
    accuracy: dict[str, Any] = {}
    for kind, truth in (("look", looks), ("class", labels)):
        found = {name: right[kind][truth == value] for value, name in names[kind].items()}
        recall = {name: round(float(values.mean()), 4) for name, values in found.items() if len(values)}
        accuracy |= {kind: float(right[kind].mean()), f"{kind}_macro": float(np.mean(list(recall.values())))}
        accuracy[f"{kind}_recall"] = recall
    return {**accuracy, "joint": float((right["look"] & right["class"]).mean())}
