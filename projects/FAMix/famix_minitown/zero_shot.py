"""How well a small CLIP tells looks and classes of unseen crops by their sentences alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from famix_minitown.captions import PLAIN_PHRASES, TEMPLATES
from famix_minitown.compact_clip import CompactCLIP, to_input
from famix_minitown.looks import LOOKS

__all__ = ["zero_shot_accuracy"]

_CHUNK = 256


@torch.no_grad()
def zero_shot_accuracy(model: CompactCLIP, crops: NDArray[Any], class_names: Sequence[str]) -> dict[str, Any]:
    """Guess look and class of each crop: those of the nearest of all sentences "{look} {class}".

    Args:
        model: in eval mode, on any device.
        crops: (N,) RECORDs with one look each or none.
        class_names: of their labels.

    Returns:
        "look", "class" and "joint" (share of crops guessed right), "look_macro" and "class_macro" (means over looks and
        classes), "look_recall" and "class_recall" (name -> share).
    """
    looks = np.where(crops["looks"][:, 0] < 0, len(LOOKS), crops["looks"][:, 0])
    labels = np.asarray(crops["label"])
    present = [int(label) for label in np.unique(labels)]
    nouns = [class_names[label] for label in present]
    guesses = _guess(model, crops, _embed_prompts(model, nouns))
    look_right = guesses // len(nouns) == looks
    class_right = np.array(present)[guesses % len(nouns)] == labels
    look_recall = {name: look_right[looks == place] for place, name in enumerate([*LOOKS, "clear"])}
    class_recall = {name: class_right[labels == label] for label, name in zip(present, nouns, strict=True)}
    return {
        "look": float(look_right.mean()),
        "look_macro": _macro(look_recall),
        "class": float(class_right.mean()),
        "class_macro": _macro(class_recall),
        "joint": float((look_right & class_right).mean()),
        "look_recall": _shares(look_recall),
        "class_recall": _shares(class_recall),
    }


def _shares(right: dict[str, NDArray[np.bool_]]) -> dict[str, float]:
    return {name: round(float(values.mean()), 4) for name, values in right.items() if len(values)}


def _macro(right: dict[str, NDArray[np.bool_]]) -> float:
    return float(np.mean(list(_shares(right).values())))


def _embed_prompts(model: CompactCLIP, nouns: Sequence[str]) -> Tensor:
    """((looks + 1) * nouns, D) of length 1, looks before nouns, averaged over the templates."""
    adjectives = [*(look.phrases[0] for look in LOOKS.values()), PLAIN_PHRASES[0]]
    texts = [template.format(f"{first} {noun}") for first in adjectives for noun in nouns for template in TEMPLATES]
    chunks = [texts[first : first + _CHUNK] for first in range(0, len(texts), _CHUNK)]
    embeddings = torch.cat([model.encode_text(model.tokenize(chunk).to(model.device)) for chunk in chunks])
    return F.normalize(embeddings.unflatten(0, (-1, len(TEMPLATES))).mean(dim=1), dim=1)


def _guess(model: CompactCLIP, crops: NDArray[Any], prompts: Tensor) -> NDArray[np.int64]:
    """(N,), place of the nearest prompt of each crop."""
    chunks = [crops["image"][first : first + _CHUNK] for first in range(0, len(crops), _CHUNK)]
    images = (to_input(chunk).to(model.device) for chunk in chunks)
    return torch.cat([(model.encode_image(batch) @ prompts.t()).argmax(dim=1) for batch in images]).cpu().numpy()
