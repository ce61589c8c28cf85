"""A CLIP that is trained here: OpenAI's architecture, small, with the tokens of its captions alone."""

from collections.abc import Mapping, Sequence
from textwrap import shorten

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from famix.clip.architecture import CLIPArchitecture
from famix.clip.export import CONTEXT_LENGTH, random_clip
from famix.clip.files import full_embedding
from famix.clip.openai import CLIP, VOCAB_SIZE, tokenize
from famix.utils.errors import ConfigError
from famix_minitown.crops import CROP_SIDE

__all__ = ["CompactCLIP", "require_same_sizes", "to_input", "usable_device"]

IMAGE_LAYERS = (2, 2, 2, 2)
EMBED_DIM, TEXT_WIDTH, TEXT_LAYERS = 128, 128, 4
PIXEL_MEAN = (122.7709383, 116.7460125, 104.09373615)  # of CLIP's own normalisation, in 0..255
PIXEL_STD = (68.5005327, 66.6321579, 70.32316305)


class CompactCLIP(nn.Module):
    """A CLIP that knows only the tokens of its captions.

    Shapes: N images, M texts, L tokens, D channels of the embedding.

    Args:
        width: channels of the image tower's stem.
        token_ids: tokens that it learns, sorted, without 0.
        seed: of the initial weights.
    """

    def __init__(self, width: int, token_ids: Sequence[int], seed: int) -> None:
        super().__init__()
        self.width = width
        architecture = CLIPArchitecture(IMAGE_LAYERS, width, EMBED_DIM, CROP_SIDE)
        self.clip: CLIP = random_clip(architecture, seed=seed, text_width=TEXT_WIDTH, text_layers=TEXT_LAYERS)
        self.token_ids = tuple(token_ids)
        # Row 0 is the padding's. Sorted, so that the end token stays the highest id, by which CLIP finds it.
        kept = self.clip.token_embedding.weight.detach()[[0, *self.token_ids]].clone()
        self.clip.token_embedding = nn.Embedding.from_pretrained(kept, freeze=False)
        self._places = {token: place for place, token in enumerate((0, *self.token_ids))}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.clip.logit_scale.device

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Rows of tokens (M, L) in the compact numbering, L that of the longest text.

        Raises:
            ConfigError: a text has a token that is not learnt.
        """
        tokens = tokenize(list(texts))
        tokens = tokens[:, : int(tokens.argmax(dim=1).max()) + 1]
        try:
            return torch.tensor([[self._places[token] for token in row] for row in tokens.tolist()])
        except KeyError as error:
            raise ConfigError(
                f"Got a text with the token {error}, expected only tokens of captions. Use words of the captions."
            ) from error

    def encode_image(self, images: Tensor) -> Tensor:
        """(N, 3, 64, 64) normalised images to (N, D) of length 1."""
        return F.normalize(self.clip.visual(images), dim=1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """(M, L) compact tokens to (M, D) of length 1."""
        clip = self.clip
        features = clip.token_embedding(tokens) + clip.positional_embedding[: tokens.shape[1]]
        features = clip.transformer(features.transpose(0, 1)).transpose(0, 1)
        last = features[torch.arange(len(tokens), device=tokens.device), tokens.argmax(dim=1)]
        return F.normalize(clip.ln_final(last) @ clip.text_projection, dim=1)

    def full_state_dict(self) -> dict[str, Tensor]:
        """Weights under the names of OpenAI's files, float32, with zeros for tokens that it does not know, on the CPU."""
        state_dict = {name: tensor.detach().cpu().clone() for name, tensor in self.clip.state_dict().items()}
        state_dict = {name: tensor for name, tensor in state_dict.items() if tensor.is_floating_point()}
        rows = state_dict["token_embedding.weight"][1:]
        state_dict["token_embedding.weight"] = full_embedding(rows, self.token_ids)
        return {name: tensor.contiguous() for name, tensor in state_dict.items()}

    def load_full_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Take over weights that `full_state_dict` gave.

        Raises:
            ConfigError: they are those of a CLIP of other sizes.
        """
        require_same_sizes(state_dict, self.width)
        weights = dict(state_dict)
        weights["token_embedding.weight"] = weights["token_embedding.weight"][[0, *self.token_ids]]
        own = self.clip.state_dict()
        self.clip.load_state_dict({**own, **weights})


def require_same_sizes(state_dict: Mapping[str, Tensor], width: int) -> None:
    """Raise unless weights are those of a CompactCLIP.

    Args:
        state_dict: as `famix.modeling.load_clip_state_dict` gives it.
        width: of the CompactCLIP.

    Raises:
        ConfigError: they are those of a CLIP of other sizes.
        WeightsError: they are those of another network.
    """
    found = CLIPArchitecture.from_state_dict(state_dict)
    blocks = {name.split(".")[2] for name in state_dict if name.startswith("transformer.resblocks.")}
    text = (len(blocks), *state_dict["positional_embedding"].shape, len(state_dict["token_embedding.weight"]))
    got = _say_sizes(found, text)
    wanted = CLIPArchitecture(IMAGE_LAYERS, width, EMBED_DIM, CROP_SIDE)
    expected = _say_sizes(wanted, (TEXT_LAYERS, CONTEXT_LENGTH, TEXT_WIDTH, VOCAB_SIZE))
    if got != expected:
        raise ConfigError(
            f"Got a CLIP of {got}, expected one of {expected}. Start from a CLIP that train_mini_clip.py made, with "
            "the same width."
        )


def _say_sizes(image: CLIPArchitecture, text: tuple[int, ...]) -> str:
    layers, context, width, tokens = text
    return (
        f"width {image.width} with {image.layers} blocks for {image.input_resolution} pixels, embedding "
        f"{image.embed_dim} (text: width {width}, {layers} blocks, {context} of {tokens} tokens)"
    )


def usable_device(name: str | torch.device) -> torch.device:
    """A device of torch, tried out.

    Args:
        name: such as "cpu" or "cuda:1".

    Raises:
        ConfigError: torch does not know it, or cannot compute on it here.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # a "meta" tensor can be made, but holds no numbers
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = shorten(str(error), 160)  # torch lists all that it was built with
        raise ConfigError(
            f"Got the device {str(name)!r}, which cannot be used ({reason}), expected one that torch finds here. "
            "Name cpu, or a GPU such as cuda."
        ) from error
    return device


def to_input(images: NDArray[np.uint8]) -> Tensor:
    """(N, H, W, 3) uint8 RGB to (N, 3, H, W) float32, normalised as CLIP expects it, in channels-last memory."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).float()
    return ((pixels - torch.tensor(PIXEL_MEAN)) / torch.tensor(PIXEL_STD)).permute(0, 3, 1, 2)
