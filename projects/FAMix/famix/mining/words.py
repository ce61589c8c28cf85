"""Diverse style words, selected by their text embeddings alone: no language model, and no image of a target."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from famix.clip import class_prompt
from famix.io import read_text
from famix.utils.errors import ConfigError, CorruptFileError

RANDOM_SETS = 100
_MOST_BYTES = 1 << 22


def read_phrases(path: Path, excluded: Sequence[str] = ()) -> list[str]:
    """Read the distinct phrases of a vocabulary: one per line, with # for comments.

    Args:
        path: text file.
        excluded: words, in any case. Phrases that contain one of them are left out.

    Raises:
        ConfigError: the file cannot be read or contains no phrase.
    """
    try:
        lines = read_text(path, _MOST_BYTES).splitlines()
    except OSError as error:
        raise ConfigError(
            f"--vocabulary must be a readable file, got '{path}' ({error.strerror}). Check the path."
        ) from error
    except (UnicodeDecodeError, CorruptFileError) as error:
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error
        raise ConfigError(
            f"--vocabulary must be a text file, got '{path}' ({reason}). Write one phrase per line."
        ) from error
    phrases = dict.fromkeys(line.split("#")[0].strip() for line in lines)
    banned = {word.lower() for word in excluded}
    kept = [phrase for phrase in phrases if phrase and banned.isdisjoint(re.findall(r"[\w-]+", phrase.lower()))]
    if not kept:
        raise ConfigError(f"--vocabulary must contain phrases, got none in '{path}'. Check the file and --exclude.")
    return kept


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


def random_coverage(embeddings: Tensor, count: int, start: Tensor, seed: int) -> tuple[float, float]:
    """Return the means of both values of `coverage` over `RANDOM_SETS` random selections of `count` embeddings."""
    rng = np.random.default_rng(seed)
    sets = [rng.choice(len(embeddings), count, replace=False).tolist() for _ in range(RANDOM_SETS)]
    mean, largest = np.mean([coverage(embeddings, chosen, start) for chosen in sets], axis=0)
    return float(mean), float(largest)
