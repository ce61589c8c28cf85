"""Which classes of a panoptic dataset are things, whose instances count, and which are stuff."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from detectron2.data import DatasetCatalog, MetadataCatalog

from famix.utils.errors import ConfigError

__all__ = ["PanopticClasses", "is_panoptic", "panoptic_classes", "require_same_things"]


@dataclass(frozen=True)
class PanopticClasses:
    """The two kinds of classes, as train ids; together they are all classes of a dataset.

    Attributes:
        things: ascending; the place in the tuple is the class of a box or a mask.
        stuff: ascending; the place in the tuple plus 1 is the class of a stuff head, where 0 stands for all things.
    """

    things: tuple[int, ...]
    stuff: tuple[int, ...]

    def stuff_labels(self) -> dict[int, int]:
        """Train id -> class of a stuff head."""
        return dict.fromkeys(self.things, 0) | {train_id: place for place, train_id in enumerate(self.stuff, 1)}


def is_panoptic(dataset_name: str) -> bool:
    """Whether a name is registered with panoptic labels, by FAMix or by other code in Detectron2's manner."""
    if dataset_name not in DatasetCatalog:
        return False
    metadata = MetadataCatalog.get(dataset_name)
    return all(metadata.get(key) is not None for key in ("panoptic_json", "label_divisor", *_MAPS))


def panoptic_classes(dataset_name: str) -> PanopticClasses:
    """Things and stuff of a dataset.

    Args:
        dataset_name: a registered name.

    Raises:
        ConfigError: it has no panoptic labels, or its train ids are not numbered through over things and stuff.
    """
    if not is_panoptic(dataset_name):
        raise ConfigError(
            f"data set {dataset_name} has no panoptic labels, which a panoptic model needs; take one such as "
            "cityscapes_train_panoptic, or define your own as docs/PANOPTIC.md shows"
        )
    metadata = MetadataCatalog.get(dataset_name)
    things, stuff = (tuple(sorted(set(_values(metadata.get(key))))) for key in _MAPS)
    if sorted((*things, *stuff)) != list(range(len(metadata.stuff_classes))):
        raise ConfigError(
            f"data set {dataset_name} numbers its things {things} and its stuff {stuff}, expected every number from 0 to "
            f"{len(metadata.stuff_classes) - 1} in one of them; define it in a YAML file, see docs/PANOPTIC.md"
        )
    return PanopticClasses(things, stuff)


def require_same_things(names: Sequence[str]) -> PanopticClasses:
    """Raise unless all datasets are panoptic and agree on what is a thing.

    Args:
        names: registered names, at least one.

    Returns:
        The classes of all of them.

    Raises:
        ConfigError: names two that differ, or one that is not panoptic.
    """
    first = panoptic_classes(names[0])
    for name in names[1:]:
        other = panoptic_classes(name)
        if other != first:
            raise ConfigError(
                f"data sets {names[0]} and {name} differ in what is a thing: train ids {list(first.things)} and "
                f"{list(other.things)}; give both the same 'thing: true' in their definitions"
            )
    return first


_MAPS = ("thing_dataset_id_to_contiguous_id", "stuff_dataset_id_to_contiguous_id")


def _values(mapping: Mapping[int, int]) -> list[int]:
    return [int(value) for value in mapping.values()]
