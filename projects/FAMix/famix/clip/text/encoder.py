"""Prompt embeddings, averaged over templates."""

import logging
import string
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from famix.clip.base import find_family
from famix.clip.openai import VOCAB_SIZE
from famix.clip.text.prompts import IMAGENET_TEMPLATES, check_templates, fill_template
from famix.clip.text.tower import OPENAI_TEXT, Activation, TextDesign, TextTower
from famix.utils.errors import ConfigError, WeightsError
from famix.utils.messages import shown


class PromptEncoder:
    """Encoder that embeds prompts with CLIP's text tower and caches the embeddings.

    Shapes: N texts, T templates, D embedding channels.

    Args:
        clip_state_dict: CLIP weights (see `famix.load_clip_state_dict`).
        activation: MLP activation, "quick_gelu" (OpenAI) or "gelu" (most open_clip models). None uses the design that
            `load_clip_state_dict` found in the file; if it is unknown, a warning is logged and OpenAI's design is used.
        causal: whether attention has a causal mask. None has the same meaning as for `activation`.
        device: device of the tower and the embeddings.
        chunk_size: maximum number of sentences per forward pass. It does not affect the result.

    Raises:
        ConfigError: `activation` or `causal` has an invalid value.
        WeightsError: the text tower is incomplete or has a different vocabulary.
    """

    def __init__(
        self,
        clip_state_dict: Mapping[str, Tensor],
        *,
        activation: Activation | None = None,
        causal: bool | None = None,
        device: torch.device | str = "cpu",
        chunk_size: int = 64,
    ) -> None:
        found = getattr(clip_state_dict, "text_design", TextDesign())
        design = TextDesign(activation, causal).or_else(found)
        if not design.known:
            logging.getLogger(__name__).warning(
                "The activation and mask of the text tower are unknown; assuming %s, as in OpenAI's CLIP. For open_clip weights, "
                "pass activation= and causal= to PromptEncoder.",
                design.or_else(OPENAI_TEXT),
            )
        family = find_family(clip_state_dict)
        build = TextTower.from_state_dict if family is None else family.text_tower
        self.tower = build(clip_state_dict, design.or_else(OPENAI_TEXT)).to(device)
        if (
            isinstance(self.tower, TextTower)
            and type(self.tower).tokenize is TextTower.tokenize
            and self.tower.vocab_size != VOCAB_SIZE
        ):
            raise WeightsError(
                f"CLIP weights must use OpenAI's vocabulary of {VOCAB_SIZE} tokens, got {self.tower.vocab_size} tokens. "
                "Use a CLIP with OpenAI's vocabulary."
            )
        self.device = torch.device(device)
        self.chunk_size = chunk_size
        self._embeddings: dict[tuple[str, tuple[str, ...]], Tensor] = {}

    @property
    def num_encoded(self) -> int:
        """Number of cached embeddings."""
        return len(self._embeddings)

    def __call__(self, texts: Sequence[str], templates: Sequence[str] = IMAGENET_TEMPLATES) -> Tensor:
        """Embed texts.

        Args:
            texts: N texts, e.g. "Urban Grit style road".
            templates: T sentences, each with one "{}" for the text; [] uses OpenAI's 80 templates.

        Returns:
            (N, D) float32 of unit length: normalized means of the T sentence embeddings, which are not normalized themselves.

        Raises:
            ConfigError: `texts` is not a list of strings, a sentence is too long, or a template does not contain exactly
                one "{}".
        """
        if (
            not isinstance(texts, Sequence)
            or isinstance(texts, str)
            or not all(isinstance(text, str) for text in texts)
        ):
            raise ConfigError(f"texts must be a list of strings, got {shown(texts)}. Pass e.g. ['road'].")
        sentences = check_templates(templates)
        new = [text for text in dict.fromkeys(texts) if (text, sentences) not in self._embeddings]
        if new:
            embeddings = self._encode([fill_template(template, text) for text in new for template in sentences])
            means = embeddings.unflatten(0, (len(new), len(sentences))).mean(dim=1)
            for text, embedding in zip(new, F.normalize(means, dim=1), strict=True):
                self._embeddings[text, sentences] = embedding
        if not texts:
            return torch.empty(0, self.tower.embed_dim, device=self.device)
        return torch.stack([self._embeddings[text, sentences] for text in texts])

    def unknown_words(self, texts: Sequence[str]) -> list[str]:
        """Return the distinct words in `texts` that contain an untrained token, without punctuation around them.

        The embedding of an untrained token is zero. Small CLIPs trained on few words have such tokens (see `famix.clip.export.save_compact`).
        """
        bare = (word.strip(string.punctuation) for text in texts for word in text.split())
        words = [word for word in dict.fromkeys(bare) if word]
        if not words:
            return []
        return [word for word, row in zip(words, self.tower.tokenize(words), strict=True) if self._untrained[row].any()]

    @cached_property
    def _untrained(self) -> Tensor:
        """(vocabulary,) bool, whether each token is untrained."""
        untrained = ~self.tower.token_embedding.weight.any(dim=1).cpu()
        untrained[0] = False  # the padding
        return untrained

    # Not inference_mode: autograd could not save the result for the backward pass of a loss.
    @torch.no_grad()
    def _encode(self, sentences: list[str]) -> Tensor:
        """Return (len(sentences), D), not normalized."""
        tokens = self.tower.tokenize(sentences)
        lengths = tokens.argmax(dim=1) + 1  # the end token has the highest id
        order = lengths.argsort(stable=True)  # grouping sentences by length saves a fifth of the time
        with torch.autocast(self.device.type, enabled=False):
            chunks = [self.tower(chunk.to(self.device)) for chunk in self._chunks(tokens[order], lengths[order])]
        embeddings = torch.cat(chunks)
        return torch.empty_like(embeddings).index_copy_(0, order.to(self.device), embeddings)

    def _chunks(self, tokens: Tensor, lengths: Tensor) -> Iterator[Tensor]:
        """Split tokens into chunks. For causal towers, cut the padding of each chunk, which saves time."""
        for rows, sizes in zip(tokens.split(self.chunk_size), lengths.split(self.chunk_size), strict=True):
            yield rows[:, : int(sizes.max())] if self.tower.causal else rows
