"""The town's data sets as Detectron2's catalogue calls them."""

from dataclasses import dataclass, replace
from pathlib import Path

from famix.clip import register_clip_weights
from famix.data import register_split
from famix.data.classes import CITYSCAPES_CLASSES
from famix.data.definition import DatasetDefinition, LabelEncoding, Layout, SplitDefinition
from famix.data.records import DatasetRecord
from famix.data.split_files import SplitFiles
from famix.utils.errors import DatasetError
from famix_minitown.cache import generated_folder
from famix_minitown.panoptic import minitown_panoptic_files
from famix_minitown.splits import SPLITS

__all__ = ["CLIP_FILE", "MinitownFiles", "minitown_files", "register"]

CLIP_FILE = Path(__file__).parent / "weights/clip.safetensors"
"""Weights of the town's CLIP, MODEL.CLIP.WEIGHTS minitown."""

_IGNORE_LABEL = 255


@dataclass(frozen=True)
class MinitownFiles(SplitFiles):
    """The files of a data set of the town, which are made when they are first asked for."""

    def __call__(self) -> list[DatasetRecord]:
        """List the pairs of the split, ordered by seed, after making them if needed.

        Returns:
            What `SplitFiles` returns.

        Raises:
            DatasetError: the files cannot be made, or some are gone.
        """
        scenes, name = SPLITS[self.split.name], self.definition.dataset_name(self.split)
        root = generated_folder(name, scenes)
        try:
            records = SplitFiles(replace(self.definition, root=str(root)), self.split)()
        except DatasetError as error:
            raise DatasetError(f"{error} Or delete {root}: it is made anew then.") from error
        if len(records) != scenes.count:
            raise DatasetError(
                f"Dataset '{name}': got {len(records)} images, expected {scenes.count}. Delete {root}: it is made anew "
                "then."
            )
        return records


def register() -> None:
    """Register the town's datasets and its CLIP: the entry point that `famix.utils.plugins.load_plugins` calls.

    Raises:
        DatasetError: a name is taken by another dataset.
    """
    for split_files in (*minitown_files(), *minitown_panoptic_files()):
        register_split(split_files)
    register_clip_weights("minitown", CLIP_FILE)


def minitown_files() -> list[MinitownFiles]:
    """All data sets of the town, to be registered; nothing is made yet."""
    definition = _definition()
    return [MinitownFiles(definition, split) for split in definition.splits]


def _definition() -> DatasetDefinition:
    train_ids = {index: index for index in range(len(CITYSCAPES_CLASSES))} | {_IGNORE_LABEL: _IGNORE_LABEL}
    images, labels = "leftImg8bit/{split}/{key}_leftImg8bit.png", "gtFine/{split}/{key}_gtFine_labelTrainIds.png"
    return DatasetDefinition(
        name="minitown",
        root="minitown",  # represents a folder of the cache, a different one for each split
        layouts=(Layout(images, labels, LabelEncoding(train_ids)),),
        splits=tuple(SplitDefinition(name, scenes.folder) for name, scenes in SPLITS.items()),
        source="FAMix's own minitown",
    )
