"""CLIP's text tower alone: a transformer from tokens to one embedding."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from famix.clip.openai import LayerNorm, Transformer
from famix.utils.errors import ConfigError, WeightsError

__all__ = ["OPENAI_TEXT", "OPEN_CLIP_TEXT", "Activation", "TextDesign", "TextTower"]

Activation = Literal["quick_gelu", "gelu"]

_HEAD_CHANNELS = 64  # of every attention in CLIP


@dataclass(frozen=True)
class TextDesign:
    """Properties of a text tower that the names and shapes of its weights do not show.

    Attributes:
        activation: of the MLPs: "quick_gelu", x * sigmoid(1.702 x), or "gelu"; None if unknown.
        causal: whether a token attends to itself and earlier tokens only; None if unknown.
    """

    activation: Activation | None = None
    causal: bool | None = None

    def __post_init__(self) -> None:
        if self.activation is not None and self.activation not in get_args(Activation):
            raise ConfigError(
                f"activation must be one of {', '.join(get_args(Activation))}, got {self.activation!r}. "
                "Name that of the text tower."
            )
        if self.causal is not None and not isinstance(self.causal, bool):
            raise ConfigError(f"causal must be True or False, got {self.causal!r}. Name the mask of the text tower.")

    @property
    def known(self) -> bool:
        """Whether both properties are known."""
        return self.activation is not None and self.causal is not None

    def or_else(self, other: "TextDesign") -> "TextDesign":
        """Fill unknown properties with those of `other`."""
        return TextDesign(
            other.activation if self.activation is None else self.activation,
            other.causal if self.causal is None else self.causal,
        )

    def __str__(self) -> str:
        mask = {None: "an unknown mask", True: "a causal mask", False: "no causal mask"}[self.causal]
        return f"{self.activation or 'an unknown activation'} and {mask}"


OPENAI_TEXT = TextDesign("quick_gelu", True)
OPEN_CLIP_TEXT = TextDesign("gelu", True)


class TextTower(nn.Module):
    """The text half of a CLIP, in float32 and without gradients of its weights. Make one with `from_state_dict`.

    Shapes: N texts, L tokens, D channels of the embedding that texts share with images.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        context_length: int,
        width: int,
        layers: int,
        embed_dim: int,
        mask: Tensor | None,
        activation: Activation = "quick_gelu",
    ) -> None:
        """Make a tower whose weights are to be loaded.

        Args:
            vocab_size: number of tokens.
            context_length: most tokens of a text.
            width: channels of the transformer, a multiple of 64.
            layers: its depth.
            embed_dim: D.
            mask: (context_length, context_length), see `causal_mask`; None lets every token attend to all.
            activation: of the MLPs.
        """
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.empty(context_length, width))
        self.causal = mask is not None
        self.transformer = Transformer(width, layers, width // _HEAD_CHANNELS, mask)
        if activation == "gelu":
            for block in self.transformer.resblocks:
                block.mlp.gelu = nn.GELU()
        self.ln_final = LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, embed_dim))

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Tensor], design: TextDesign = OPENAI_TEXT) -> "TextTower":
        """Build the tower of a CLIP. float32 tensors are shared with `state_dict`, not copied.

        Args:
            state_dict: a CLIP's; the image tower may be absent.
            design: of the tower, both properties known.

        Raises:
            WeightsError: tensors of the text tower are missing or do not fit together.
        """
        weights = {
            name: tensor.detach().float()
            for name, tensor in state_dict.items()
            if name.startswith(("token_embedding.", "positional_embedding", "transformer.", "ln_final.", "text_proj"))
        }
        try:
            vocab_size, width = weights["token_embedding.weight"].shape
            context_length = weights["positional_embedding"].shape[0]
            mask = causal_mask(context_length) if design.causal else None
            with torch.device("meta"):  # no memory, and no random numbers drawn, for weights that are replaced
                tower = cls(
                    vocab_size=vocab_size,
                    context_length=context_length,
                    width=width,
                    layers=len({name.split(".")[2] for name in weights if name.startswith("transformer.resblocks.")}),
                    embed_dim=weights["text_projection"].shape[1],
                    mask=mask,
                    activation=design.activation or "quick_gelu",
                )
            tower.load_state_dict(weights, assign=True)
        except (KeyError, IndexError, ValueError, AssertionError, ZeroDivisionError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise WeightsError(
                f"Got no complete text tower ({reason}), expected token_embedding, positional_embedding, transformer, "
                "ln_final and text_projection of a CLIP. Use the weights of the whole CLIP."
            ) from error
        return tower.requires_grad_(False).eval()

    @property
    def context_length(self) -> int:
        """Most tokens of a text, the start and end tokens included."""
        return self.positional_embedding.shape[0]

    @property
    def vocab_size(self) -> int:
        """Number of tokens that have an embedding."""
        return self.token_embedding.num_embeddings

    @property
    def embed_dim(self) -> int:
        """D, channels of the embedding."""
        return self.text_projection.shape[1]

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed texts.

        Args:
            tokens: (N, L) int64, L <= context_length: start token, text, end token (the highest id), zeros. With a
                causal mask, zeros after the end token do not change the result and can be cut off. Without one they
                do: CLIPs of that kind were trained with L = context_length.

        Returns:
            (N, D) float32, not normalised.
        """
        features = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        features = self.transformer(features.transpose(0, 1)).transpose(0, 1)
        rows = torch.arange(len(tokens), device=tokens.device)
        return self.ln_final(features[rows, tokens.argmax(dim=1)]) @ self.text_projection


def causal_mask(length: int) -> Tensor:
    """(length, length) float32 to be added to attention weights: -inf where a token would see a later one, else 0."""
    return torch.full((length, length), float("-inf")).triu(1)
