"""What a definition says about files: where images and labels lie, and what the numbers in the labels mean.

A dataset may be found in several layouts (as published, or rearranged for some program), of which one is used.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["LabelEncoding", "Layout", "mentions_split"]


@dataclass(frozen=True)
class LabelEncoding:
    """What the ids in label files mean.

    Attributes:
        label_ids: id in the files -> train id, or the ignore label; empty where `names_file` tells the ids.
        other_ids_ignored: ids without a class are ignored; otherwise they are an error.
        highest_id: ids above this one are an error in any case; None sets no limit.
        channel: 0, 1, 2 (red, green, blue) or 3 (alpha) of multi-channel files; None for files of one channel.
        bits: 8 or 16, of a channel; files of another depth are an error. None takes both.
        names_file: JSON file below the root that names the ids; None where `label_ids` lists them.
        label_names: name in that file -> train id, or the ignore label.
        is_panoptic: the files are COCO's panoptic PNGs, whose segments `names_file` lists.
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
        """Whether the ids of the files' first and only channel are train ids, and no others may occur."""
        is_listed = self.names_file is None and self.channel is None and not self.other_ids_ignored
        return is_listed and all(label_id == train_id for label_id, train_id in self.label_ids.items())


@dataclass(frozen=True)
class Layout:
    """A way in which the files of a dataset may lie.

    Attributes:
        images, labels: path templates below the root with {key} and perhaps {split}.
        encoding: of the labels.
        keys: path template of the lists that divide the dataset where folders do not; None where none are needed.
        folders: name of a split -> what {split} stands for here, where that differs from the split's own folder.
        splits: names of the splits that may lie so; None for all.
    """

    images: str
    labels: str
    encoding: LabelEncoding
    keys: str | None = None
    folders: Mapping[str, str] = field(default_factory=dict)
    splits: frozenset[str] | None = None

    def holds(self, split_name: str) -> bool:
        """Whether a split may lie in this way."""
        return self.splits is None or split_name in self.splits


def mentions_split(template: str) -> bool:
    """Whether a path template tells the splits apart."""
    return "{split}" in template
