"""Diverse style words, selected by their text embeddings alone: no language model, and no image of a target."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from famix.clip import class_prompt
from famix.utils.errors import ConfigError


def embed_phrases(
    encode_prompts: Callable[[Sequence[str]], Tensor], phrases: Sequence[str], class_names: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Embed phrases as they are used in prompts, averaged over the classes.

    Args:
        encode_prompts: function that maps N texts to unit-length embeddings (N, D).
        phrases: N phrases, such as "foggy".
        class_names: names of the classes.

    Returns:
        (N, D) normalized means of the embeddings of "{phrase} {class name}", and (D,), the same for the class names alone.
    """
    prompts = [class_prompt(i, phrase, class_names) for phrase in phrases for i in range(len(class_names))]
    embeddings = encode_prompts(prompts).unflatten(0, (len(phrases), len(class_names))).mean(dim=1)
    return F.normalize(embeddings, dim=1), F.normalize(encode_prompts(class_names).mean(dim=0), dim=0)


def select_diverse(embeddings: Tensor, count: int, start: Tensor) -> tuple[list[int], list[float]]:
    """Select embeddings by farthest-point sampling: each next one is the farthest from `start` and those before.

    Args:
        embeddings: (N, D), of unit length.
        count: number of embeddings to select, at most N.
        start: (D,), of unit length.

    Returns:
        Indices in the order of selection, and the cosine distance of each to the nearest one before, in [0, 2].

    Raises:
        ConfigError: `count` is not in [1, N].
    """
    if not 1 <= count <= len(embeddings):
        raise ConfigError(f"count must be from 1 to {len(embeddings)}, the number of phrases, got {count}.")
    distances, selected, found = 1 - embeddings @ start, [], []
    for _ in range(count):
        distance, farthest = distances.max(dim=0)
        selected.append(int(farthest))
        found.append(float(distance))
        distances = torch.minimum(distances, 1 - embeddings @ embeddings[farthest])
        distances[selected] = -torch.inf
    return selected, found


def coverage(embeddings: Tensor, selected: Sequence[int], start: Tensor) -> tuple[float, float]:
    """Return the mean and the largest cosine distance of N embeddings (N, D) to `start` or the nearest selected one."""
    chosen = torch.cat([embeddings[list(selected)], start[None]])
    distances = (1 - embeddings @ chosen.T).amin(dim=1)
    return float(distances.mean()), float(distances.max())
