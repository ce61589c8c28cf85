"""A CLIP that is trained here: OpenAI's architecture, small, with the tokens of its captions alone."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from famix.clip_package import CLIP, tokenize
from famix.errors import ConfigError
from famix.minitown.crops import CROP_SIDE
from famix.modeling.clip_architecture import CLIPArchitecture, random_clip
from famix.modeling.clip_compact import full_embedding

__all__ = ["CompactCLIP", "to_input"]

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
        architecture = CLIPArchitecture.of((2, 2, 2, 2), width, EMBED_DIM, CROP_SIDE)
        self.clip: CLIP = random_clip(architecture, seed=seed, text_width=TEXT_WIDTH, text_layers=TEXT_LAYERS)
        self.token_ids = tuple(token_ids)
        # Row 0 is the padding's. Sorted, so that the end token stays the highest id, by which CLIP finds it.
        kept = self.clip.token_embedding.weight.detach()[[0, *self.token_ids]].clone()
        self.clip.token_embedding = nn.Embedding.from_pretrained(kept, freeze=False)
        self._places = {token: place for place, token in enumerate((0, *self.token_ids))}

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
        last = features[torch.arange(len(tokens)), tokens.argmax(dim=1)]
        return F.normalize(clip.ln_final(last) @ clip.text_projection, dim=1)

    def full_state_dict(self) -> dict[str, Tensor]:
        """Weights under the names of OpenAI's files, float32, with zeros for tokens that it does not know."""
        state_dict = {name: tensor.detach().clone() for name, tensor in self.clip.state_dict().items()}
        state_dict = {name: tensor for name, tensor in state_dict.items() if tensor.is_floating_point()}
        rows = state_dict["token_embedding.weight"][1:]
        state_dict["token_embedding.weight"] = full_embedding(rows, self.token_ids)
        return {name: tensor.contiguous() for name, tensor in state_dict.items()}

    def load_full_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Take over weights that `full_state_dict` gave."""
        weights = dict(state_dict)
        weights["token_embedding.weight"] = weights["token_embedding.weight"][[0, *self.token_ids]]
        own = self.clip.state_dict()
        self.clip.load_state_dict({**own, **weights})


def to_input(images: NDArray[np.uint8]) -> Tensor:
    """(N, H, W, 3) uint8 RGB to (N, 3, H, W) float32, normalised as CLIP expects it, in channels-last memory."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).float()
    return ((pixels - torch.tensor(PIXEL_MEAN)) / torch.tensor(PIXEL_STD)).permute(0, 3, 1, 2)
