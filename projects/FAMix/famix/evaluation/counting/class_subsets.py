"""Subsets of the classes that a score is the mean over, as the papers on SYNTHIA use them."""

from collections.abc import Sequence

from famix.data.classes import CITYSCAPES_CLASSES
from famix.utils.errors import ConfigError
from famix.utils.messages import did_you_mean

__all__ = ["CLASS_SUBSETS", "class_subset"]

_ALL = "all"
_NINETEEN = tuple(entry.name for entry in CITYSCAPES_CLASSES)
_SIXTEEN = tuple(name for name in _NINETEEN if name not in ("terrain", "truck", "train"))
_THIRTEEN = tuple(name for name in _SIXTEEN if name not in ("wall", "fence", "pole"))
_NAMES = {"16": _SIXTEEN, "13": _THIRTEEN}

CLASS_SUBSETS = (_ALL, "16", "13", "synthia16", "synthia13")
"""Values of TEST.CLASSES; the last two are other names of 16 and 13, which need no quotes on a command line."""


def class_subset(name: str, class_names: Sequence[str]) -> tuple[int, ...]:
    """Which classes of a data set a score is the mean over.

    A subset is about scoring alone: the network keeps all its classes, the IoU of a class is the same in every subset,
    and a pixel of a class outside the subset still counts against the class that it was taken for.

    Args:
        name: of CLASS_SUBSETS.
        class_names: of the data set, in the order of its train ids.

    Returns:
        Train ids, ascending.

    Raises:
        ConfigError: the name is unknown, or the data set lacks a class of the subset.
    """
    if name not in CLASS_SUBSETS:
        raise ConfigError(
            f"TEST.CLASSES is {name!r}, expected one of {', '.join(CLASS_SUBSETS)}.{did_you_mean(name, CLASS_SUBSETS)}"
        )
    if name == _ALL:
        return tuple(range(len(class_names)))
    subset = _NAMES[name.removeprefix("synthia")]
    missing = [wanted for wanted in subset if wanted not in class_names]
    if missing:
        raise ConfigError(
            f"TEST.CLASSES {name} is the mean over {len(subset)} classes of Cityscapes, but the data set's "
            f"{len(class_names)} classes lack {', '.join(missing)}; set TEST.CLASSES all"
        )
    return tuple(train_id for train_id, present in enumerate(class_names) if present in subset)
