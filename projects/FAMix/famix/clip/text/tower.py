"""CLIP's text tower: tokenizer and transformer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self, get_args

import torch
from torch import Tensor, nn

from famix.clip.openai import LayerNorm, Transformer, tokenize
from famix.utils.errors import ConfigError, WeightsError

Activation = Literal["quick_gelu", "gelu"]

_HEAD_CHANNELS = 64  # channels per attention head in CLIP


@dataclass(frozen=True)
class TextDesign:
    """Properties of a text tower that cannot be inferred from its weights.

    Attributes:
        activation: MLP activation: "quick_gelu", x * sigmoid(1.702 x), or "gelu"; None if unknown.
        causal: whether attention has a causal mask; None if unknown.
    """

    activation: Activation | None = None
    causal: bool | None = None

    def __post_init__(self) -> None:
        if self.activation is not None and self.activation not in get_args(Activation):
            raise ConfigError(
                f"activation must be one of {', '.join(get_args(Activation))}, got {self.activation!r}. "
                "Specify the activation of the text tower."
            )
        if self.causal is not None and not isinstance(self.causal, bool):
            raise ConfigError(
                f"causal must be True or False, got {self.causal!r}. Specify whether the text tower has a causal mask."
            )

    @property
    def known(self) -> bool:
        """Whether both properties are known."""
        return self.activation is not None and self.causal is not None

    def or_else(self, other: "TextDesign") -> "TextDesign":
        """Return a copy with unknown properties taken from `other`."""
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
    """CLIP's text tower in float32, frozen. Use `from_state_dict` to create it.

    Families with a different tokenizer or pooling override `tokenize` or `forward`.

    Shapes: N texts, L tokens, D embedding channels.

    Args:
        vocab_size: number of tokens.
        context_length: maximum number of tokens per text.
        width: number of channels of the transformer, a multiple of 64.
        layers: depth of the transformer.
        embed_dim: number of embedding channels D.
        mask: (context_length, context_length), see `causal_mask`; None for full attention.
        activation: MLP activation.
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
    def from_state_dict(cls, state_dict: Mapping[str, Tensor], design: TextDesign = OPENAI_TEXT) -> Self:
        """Build the tower, which shares float32 tensors with `state_dict`.

        Args:
            state_dict: CLIP weights; the image tower is not used.
            design: activation and mask, both set.

        Raises:
            WeightsError: tensors are missing or inconsistent.
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
            with torch.device("meta"):  # the weights are replaced below
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
                f"CLIP weights contain an incomplete text tower ({reason}). Use complete CLIP weights, with token_embedding, "
                "positional_embedding, transformer, ln_final and text_projection."
            ) from error
        return tower.requires_grad_(False).eval()

    @property
    def context_length(self) -> int:
        """Maximum number of tokens per text, including start and end tokens."""
        return self.positional_embedding.shape[0]

    @property
    def vocab_size(self) -> int:
        """Vocabulary size."""
        return self.token_embedding.num_embeddings

    @property
    def embed_dim(self) -> int:
        """Embedding channels D."""
        return self.text_projection.shape[1]

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Return the tokens of texts: (N, context_length) int64 with start token, text, end token and zeros.

        Raises:
            ConfigError: a text exceeds the context length.
        """
        try:
            return tokenize(list(texts), context_length=self.context_length)
        except RuntimeError as error:
            raise ConfigError(
                f"Prompts must have at most {self.context_length} tokens including the template: {error}. "
                f"Shorten the class name, STYLE_MINING.STYLES or STYLE_MINING.TEMPLATES."
            ) from error

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed texts.

        Args:
            tokens: (N, L) int64 with L <= context_length; the end token has the highest id. Without a causal mask, zeros after
                the end token change the result, so L must be context_length.

        Returns:
            (N, D) float32, not normalized.
        """
        features = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        features = self.transformer(features.transpose(0, 1)).transpose(0, 1)
        rows = torch.arange(len(tokens), device=tokens.device)
        return self.ln_final(features[rows, tokens.argmax(dim=1)]) @ self.text_projection


def causal_mask(length: int) -> Tensor:
    """Return the additive mask (length, length): -inf from each token to later tokens, 0 elsewhere."""
    return torch.full((length, length), float("-inf")).triu(1)
