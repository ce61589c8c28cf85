"""Small towns: trees that the town's writer made, as data sets of their own."""

from collections.abc import Sequence
from pathlib import Path

from data_factory import write_definition
from famix.data import CITYSCAPES_CLASSES

__all__ = ["define_town"]


def define_town(folder: Path, name: str, splits: Sequence[str]) -> Path:
    """Write the definition of data sets `<name>_<split>` over what write_tree put into a folder; returns its file."""
    return write_definition(
        folder,
        name=name,
        images="leftImg8bit/{split}/{key}_leftImg8bit.png",
        labels="gtFine/{split}/{key}_gtFine_labelTrainIds.png",
        label_ids={index: entry.name for index, entry in enumerate(CITYSCAPES_CLASSES)} | {255: "ignore"},
        splits={split: {} for split in splits},
    )
