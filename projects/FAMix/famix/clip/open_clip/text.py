"""open_clip's text towers, with any activation, mask, pooling and tokenizer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from famix.clip.open_clip.models import OpenClipModel
from famix.clip.open_clip.tokenizers import load_tokenizer
from famix.utils.errors import WeightsError


class OpenClipTextTower(nn.Module):
    """open_clip's text tower in float32, frozen. It has the interface of `famix.clip.TextTower`.

    Args:
        model: open_clip model.
        state_dict: CLIP weights; the image tower is not used.
        tokenizer: folder with the files of a Hugging Face tokenizer, for models such as SigLIP that do not use OpenAI's. ""
            loads them from Hugging Face.

    Raises:
        WeightsError: tensors are missing or inconsistent.
    """

    def __init__(self, model: OpenClipModel, state_dict: Mapping[str, Tensor], tokenizer: str = "") -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.text: Any = model.build_text_tower()
        try:
            self.text.load_state_dict({name: x.float() for name, x in model.text_weights(state_dict).items()})
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise WeightsError(
                f"CLIP weights must contain the text tower of {model.name} ({reason:.300}). Use the complete CLIP weights."
            ) from error
        self.requires_grad_(False).eval()
        self._tokenize: Callable[[list[str]], Tensor] | None = None

    @property
    def context_length(self) -> int:
        """Maximum number of tokens per text."""
        return self.model.config["text_cfg"].get("context_length", 77)

    @property
    def token_embedding(self) -> nn.Embedding:
        """Embedding of the tokens."""
        return self.text.token_embedding

    @property
    def vocab_size(self) -> int:
        """Vocabulary size."""
        return self.token_embedding.num_embeddings

    @property
    def embed_dim(self) -> int:
        """Embedding channels D."""
        return self.model.config["embed_dim"]

    @property
    def causal(self) -> bool:
        """Whether padding after the end token can be cut off without affecting the embedding."""
        pooled = self.model.config["text_cfg"].get("pool_type", "argmax") == "argmax"
        return bool(self.model.text_design.causal) and pooled

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Return the tokens of texts, (N, context_length) int64.

        Raises:
            ConfigError: a text exceeds the context length, or the tokenizer cannot be loaded or has another vocabulary.
        """
        if self._tokenize is None:
            self._tokenize = load_tokenizer(self.model, self.tokenizer)
        return self._tokenize(list(texts))

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed tokens (N, L) int64 as (N, D) float32, not normalized."""
        mask, length = self.text.attn_mask, tokens.shape[1]
        try:
            self.text.attn_mask = None if mask is None else mask[:length, :length]
            return self.text(tokens)
        finally:
            self.text.attn_mask = mask
