"""Dataset definitions: location and classes of a dataset, its splits, and the meaning of its labels.

A definition describes semantic labels (`images`, `labels`, `label_ids`, ...) or, if it has the keys `panoptic_root` and
`panoptic_json`, labels in COCO's panoptic format.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from famix.data.classes import CITYSCAPES_CLASSES, ClassDefinition
from famix.utils.errors import DatasetError
from famix.utils.paths import as_on_disk, local_path

__all__ = [
    "CITYSCAPES_THINGS",
    "DATASETS_VARIABLE",
    "DatasetDefinition",
    "LabelEncoding",
    "Layout",
    "PanopticDefinition",
    "SplitDefinition",
]

DATASETS_VARIABLE = "DETECTRON2_DATASETS"
"""Environment variable with the folder that relative roots start from, as in Detectron2; default "datasets"."""

CITYSCAPES_THINGS = tuple(range(11, 19))
"""Train ids of Cityscapes' classes with instances: person to bicycle."""


@dataclass(frozen=True)
class SplitDefinition:
    """A split of a dataset.

    Attributes:
        name: e.g. "train".
        folder: value of {split} in the path templates; may be empty or several folders deep.
        keys: file with one key per line, relative to the root, that limits the split; None includes all images.
        skip: keys to leave out.
        domain: domain of the images, e.g. "gta5" or "acdc_night"; None derives it from the name.
    """

    name: str
    folder: str
    keys: str | None = None
    skip: frozenset[str] = frozenset()
    domain: str | None = None


@dataclass(frozen=True)
class LabelEncoding:
    """The meaning of the ids in label files.

    Attributes:
        label_ids: id in the files -> train id, or the ignore label; empty if `names_file` defines the ids.
        other_ids_ignored: ids without a class are ignored; otherwise they are an error.
        highest_id: higher ids are an error in any case; None sets no limit.
        channel: 0, 1, 2 (red, green, blue) or 3 (alpha) of multi-channel files; None for files with one channel.
        bits: 8 or 16 per channel; files of another depth are an error. None accepts both.
        names_file: JSON file below the root that names the ids; None if `label_ids` lists them.
        label_names: name in `names_file` -> train id, or the ignore label.
        is_panoptic: the files are COCO's panoptic PNGs, and `names_file` lists their segments.
    """

    label_ids: Mapping[int, int] = field(default_factory=dict)
    other_ids_ignored: bool = False
    highest_id: int | None = None
    channel: int | None = None
    bits: int | None = None
    names_file: str | None = None
    label_names: Mapping[str, int] = field(default_factory=dict)
    is_panoptic: bool = False

    @property
    def is_identity(self) -> bool:
        """Whether the files have one channel of train ids, and other ids are an error."""
        is_listed = self.names_file is None and self.channel is None and not self.other_ids_ignored
        return is_listed and all(label_id == train_id for label_id, train_id in self.label_ids.items())


@dataclass(frozen=True)
class Layout:
    """One arrangement of the files of a dataset, such as the published one or that of some program.

    Attributes:
        images, labels: path templates below the root with {key} and perhaps {split}.
        encoding: of the labels.
        keys: path template of the lists that define the splits; None if folders define them.
        folders: name of a split -> value of {split}, if it differs from the split's own folder.
        splits: names of the splits with this layout; None for all.
    """

    images: str
    labels: str
    encoding: LabelEncoding
    keys: str | None = None
    folders: Mapping[str, str] = field(default_factory=dict)
    splits: frozenset[str] | None = None

    def holds(self, split_name: str) -> bool:
        """Whether a split may have this layout."""
        return self.splits is None or split_name in self.splits


@dataclass(frozen=True, kw_only=True)
class DatasetDefinition:
    """A complete and checked definition of a dataset.

    Attributes:
        name: the split "train" is registered as <name>_train.
        root: folder of the dataset as written, see `root_folder`.
        classes: the index in the tuple is the train id.
        ignore_label: value of pixels that count neither in the loss nor in the score, 0-255.
        splits: in the order of the file.
        source: the definition file, named in errors.
        layouts: in order of precedence, at least one for semantic labels.
        skips_unpaired: leave out images without a label; otherwise they are an error.
    """

    name: str
    root: str
    classes: tuple[ClassDefinition, ...] = CITYSCAPES_CLASSES
    ignore_label: int = 255
    splits: tuple[SplitDefinition, ...]
    source: str = field(compare=False)
    layouts: tuple[Layout, ...] = ()
    skips_unpaired: bool = False

    def dataset_name(self, split: SplitDefinition) -> str:
        """Name under which a split is registered."""
        return f"{self.name}_{split.name}"

    def root_folder(self) -> str:
        """Absolute folder of the dataset, from the current environment variables.

        Raises:
            DatasetError: if the root refers to an environment variable that is not set.
        """
        folder = local_path(self.root, f"{self.source}: 'root'", DatasetError)
        if not os.path.isabs(folder):
            start = local_path(os.environ.get(DATASETS_VARIABLE, "datasets"), f"${DATASETS_VARIABLE}", DatasetError)
            folder = os.path.join(start, folder)
        return as_on_disk(os.path.abspath(folder))


@dataclass(frozen=True, kw_only=True)
class PanopticDefinition(DatasetDefinition):
    """A dataset in COCO's panoptic format: PNGs of segments, and JSON files with the category of each segment.

    The split "train" is registered as <name>_train_panoptic.

    Attributes:
        images: path template of the images below the root, with {key} and perhaps {split}.
        panoptic_root: path template of the folder of the PNGs.
        panoptic_json: path template of the JSON file.
        things: train ids of the classes with instances, ascending.
        categories: id or name of a category in the JSON files -> train id, or the ignore label; empty maps a category
            to the class with its name.
        other_categories_ignored: segments of other categories count as unlabelled; otherwise they are an error.
    """

    images: str
    panoptic_root: str
    panoptic_json: str
    things: tuple[int, ...] = CITYSCAPES_THINGS
    categories: Mapping[int | str, int] = field(default_factory=dict)
    other_categories_ignored: bool = False

    def dataset_name(self, split: SplitDefinition) -> str:
        """Name under which a split is registered."""
        return f"{self.name}_{split.name}_panoptic"

    @property
    def stuff(self) -> tuple[int, ...]:
        """Train ids of the classes without instances, ascending."""
        return tuple(train_id for train_id in range(len(self.classes)) if train_id not in self.things)
