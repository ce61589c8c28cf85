"""Texts to unit-length CLIP embeddings, each averaged over sentence templates."""

import logging
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from famix.clip.base import find_family
from famix.clip.openai import VOCAB_SIZE, tokenize
from famix.clip.prompts import check_templates, fill_template
from famix.clip.templates import IMAGENET_TEMPLATES
from famix.clip.text_tower import OPENAI_TEXT, Activation, TextDesign, TextTower
from famix.utils.errors import ConfigError, WeightsError
from famix.utils.messages import shown

__all__ = ["PromptEncoder"]


class PromptEncoder:
    """Encodes texts with CLIP's text tower and remembers the results.

    Shapes: N texts, T templates, L tokens, D channels of CLIP's embedding.
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
        """Take the text tower out of a CLIP.

        Args:
            clip_state_dict: of a whole CLIP, see `famix.modeling.load_clip_state_dict`.
            activation: of the tower's MLPs, "quick_gelu" (OpenAI) or "gelu" (most of open_clip's models). None reads
                it from the mark that `load_clip_state_dict` leaves where the file shows it; without a mark, OpenAI's
                is assumed and a warning is logged.
            causal: whether a token attends to itself and earlier tokens only; None as for `activation`.
            device: on which texts are encoded and results are kept.
            chunk_size: most sentences encoded at a time, which bounds the memory; no influence on the result.

        Raises:
            ConfigError: `activation` or `causal` has another value.
            WeightsError: the text tower is incomplete or made for another vocabulary.
        """
        design = _design_of(clip_state_dict, TextDesign(activation, causal))
        family = find_family(clip_state_dict)
        build = TextTower.from_state_dict if family is None else family.text_tower
        self.tower = build(clip_state_dict, design).to(device)
        if self.tower.vocab_size != VOCAB_SIZE:
            raise WeightsError(
                f"Got a text tower for {self.tower.vocab_size} tokens, expected {VOCAB_SIZE} as clip's tokenizer makes. "
                "Use a CLIP with OpenAI's vocabulary."
            )
        self.device = torch.device(device)
        self.chunk_size = chunk_size
        self._embeddings: dict[tuple[str, tuple[str, ...]], Tensor] = {}

    @property
    def num_encoded(self) -> int:
        """How many distinct pairs of a text and a list of templates went through the tower so far."""
        return len(self._embeddings)

    def __call__(self, texts: Sequence[str], templates: Sequence[str] = IMAGENET_TEMPLATES) -> Tensor:
        """Embed texts.

        Args:
            texts: N texts, e.g. "Urban Grit style road"; a repeated one is encoded once.
            templates: T sentences with one "{}" each, into all of which each text is put; [] = OpenAI's 80.

        Returns:
            (N, D) float32: the means of the T sentences' embeddings, then brought to length 1. The embeddings
            themselves are not brought to length 1 before.

        Raises:
            ConfigError: `texts` is no sequence of texts, a sentence is too long for the tower, or a template has not
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
        """Words that the tower has nothing for: the embedding of one of their tokens is all zeros.

        That happens with small CLIPs that were trained on few words, see `famix.clip.compact`.

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
        return [word for word, row in zip(words, self._tokenize(words), strict=True) if untrained[row].any()]

    # no_grad rather than inference_mode: the caller's loss must be able to save the result for its backward pass.
    @torch.no_grad()
    def _encode(self, sentences: list[str]) -> Tensor:
        """(len(sentences), D) in the order of `sentences`, not normalised."""
        tokens = self._tokenize(sentences)
        lengths = tokens.argmax(dim=1) + 1  # the end token has the highest id
        order = lengths.argsort(stable=True)  # sentences of one length in a chunk: a fifth less time than unsorted
        with torch.autocast(self.device.type, enabled=False):
            chunks = [self.tower(chunk.to(self.device)) for chunk in self._chunks(tokens[order], lengths[order])]
        embeddings = torch.cat(chunks)
        return torch.empty_like(embeddings).index_copy_(0, order.to(self.device), embeddings)

    def _chunks(self, tokens: Tensor, lengths: Tensor) -> Iterator[Tensor]:
        """Rows of tokens, cut to the longest sentence of each chunk if the tower is causal: it saves time only."""
        for rows, sizes in zip(tokens.split(self.chunk_size), lengths.split(self.chunk_size), strict=True):
            yield rows[:, : int(sizes.max())] if self.tower.causal else rows

    def _tokenize(self, sentences: list[str]) -> Tensor:
        """(len(sentences), context_length) int64."""
        try:
            return tokenize(sentences, context_length=self.tower.context_length)
        except RuntimeError as error:
            raise ConfigError(
                f"Got a prompt that cannot be encoded ({error}), expected at most {self.tower.context_length} tokens "
                "with its template. Shorten the class name, STYLE_MINING.STYLES or STYLE_MINING.TEMPLATES."
            ) from error


def _design_of(clip_state_dict: Mapping[str, Tensor], asked: TextDesign) -> TextDesign:
    """Complete the asked design with the state_dict's mark, and what is unknown then with OpenAI's."""
    design = asked.or_else(getattr(clip_state_dict, "text_design", TextDesign()))
    if not design.known:
        logging.getLogger(__name__).warning(
            "This CLIP state_dict does not show its text tower's activation and mask: reading it with %s, as OpenAI's. "
            "Pass activation= and causal= to PromptEncoder if it comes from open_clip.",
            design.or_else(OPENAI_TEXT),
        )
    return design.or_else(OPENAI_TEXT)
