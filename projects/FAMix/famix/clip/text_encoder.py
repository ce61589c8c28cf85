"""Embeddings of prompts, averaged over sentence templates."""

import logging
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from famix.clip.base import find_family
from famix.clip.openai import VOCAB_SIZE
from famix.clip.prompts import IMAGENET_TEMPLATES, check_templates, fill_template
from famix.clip.text_tower import OPENAI_TEXT, Activation, TextDesign, TextTower
from famix.utils.errors import ConfigError, WeightsError
from famix.utils.messages import shown

__all__ = ["PromptEncoder"]


class PromptEncoder:
    """Encodes prompts with CLIP's text tower, each once.

    Shapes: N texts, T templates, L tokens, D channels of CLIP's embedding.

    Args:
        clip_state_dict: a whole CLIP, see `famix.load_clip_state_dict`.
        activation: activation of the tower's MLPs, "quick_gelu" (OpenAI) or "gelu" (most of open_clip's models). None
            takes the design that `load_clip_state_dict` found in the file; if that is unknown, OpenAI's is assumed and a
            warning is logged.
        causal: whether a token attends only to itself and earlier tokens; None as for `activation`.
        device: device of the tower and of the results.
        chunk_size: maximum number of sentences encoded at a time. It bounds memory and does not change results.

    Raises:
        ConfigError: `activation` or `causal` has an invalid value.
        WeightsError: the text tower is incomplete or made for another vocabulary.
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
                "This CLIP state_dict does not show the activation and mask of its text tower: using %s, as OpenAI does. Pass "
                "activation= and causal= to PromptEncoder if the weights come from open_clip.",
                design.or_else(OPENAI_TEXT),
            )
        family = find_family(clip_state_dict)
        build = TextTower.from_state_dict if family is None else family.text_tower
        self.tower = build(clip_state_dict, design.or_else(OPENAI_TEXT)).to(device)
        if type(self.tower).tokenize is TextTower.tokenize and self.tower.vocab_size != VOCAB_SIZE:
            raise WeightsError(
                f"CLIP weights must have a text tower for the {VOCAB_SIZE} tokens of clip's tokenizer, got one for "
                f"{self.tower.vocab_size}. Use a CLIP with OpenAI's vocabulary."
            )
        self.device = torch.device(device)
        self.chunk_size = chunk_size
        self._embeddings: dict[tuple[str, tuple[str, ...]], Tensor] = {}

    @property
    def num_encoded(self) -> int:
        """Number of distinct pairs of a text and a list of templates that were encoded."""
        return len(self._embeddings)

    def __call__(self, texts: Sequence[str], templates: Sequence[str] = IMAGENET_TEMPLATES) -> Tensor:
        """Embed texts.

        Args:
            texts: N texts, e.g. "Urban Grit style road"; a repeated one is encoded once.
            templates: T sentences with one "{}" each, for the text; [] = OpenAI's 80.

        Returns:
            (N, D) float32 of unit length: the mean of the T sentences' embeddings, which are not normalized before.

        Raises:
            ConfigError: `texts` is not a list of texts, a sentence is too long for the tower, or a template does not contain
                exactly one "{}".
        """
        if (
            not isinstance(texts, Sequence)
            or isinstance(texts, str)
            or not all(isinstance(text, str) for text in texts)
        ):
            raise ConfigError(f"texts must be a list of texts, got {shown(texts)}. Write e.g. ['road'].")
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
        """Return the words with a token that was never trained: all zeros in the token embedding.

        Small CLIPs that were trained on few words have such tokens, see `famix.clip.export.save_compact`.

        Args:
            texts: prompts.

        Returns:
            The words, each once, in the order in which they appear.
        """
        words = list(dict.fromkeys(word for text in texts for word in text.split()))
        if not words:
            return []
        untrained = ~self.tower.token_embedding.weight.any(dim=1).cpu()
        untrained[0] = False  # the padding
        return [word for word, row in zip(words, self.tower.tokenize(words), strict=True) if untrained[row].any()]

    # no_grad instead of inference_mode: the caller's loss must be able to save the result for its backward pass.
    @torch.no_grad()
    def _encode(self, sentences: list[str]) -> Tensor:
        """(len(sentences), D) in the order of `sentences`, not normalized."""
        tokens = self.tower.tokenize(sentences)
        lengths = tokens.argmax(dim=1) + 1  # the end token has the highest id
        order = lengths.argsort(stable=True)  # sentences of similar length in a chunk take a fifth less time
        with torch.autocast(self.device.type, enabled=False):
            chunks = [self.tower(chunk.to(self.device)) for chunk in self._chunks(tokens[order], lengths[order])]
        embeddings = torch.cat(chunks)
        return torch.empty_like(embeddings).index_copy_(0, order.to(self.device), embeddings)

    def _chunks(self, tokens: Tensor, lengths: Tensor) -> Iterator[Tensor]:
        """Rows of tokens; for causal towers cut to the longest sentence of each chunk, which only saves time."""
        for rows, sizes in zip(tokens.split(self.chunk_size), lengths.split(self.chunk_size), strict=True):
            yield rows[:, : int(sizes.max())] if self.tower.causal else rows
