"""Classes of a dataset, and the nineteen that driving datasets share since Cityscapes."""

from dataclasses import dataclass

__all__ = ["CITYSCAPES_CLASSES", "CITYSCAPES_LABEL_IDS", "HIGHEST_LABEL_ID", "ClassDefinition", "cityscapes_label_ids"]


@dataclass(frozen=True)
class ClassDefinition:
    """A class that a network learns.

    Attributes:
        name: unique within the dataset; also the word that style prompts are made of.
        color: (red, green, blue), each 0-255, for drawings.
    """

    name: str
    color: tuple[int, int, int]


CITYSCAPES_CLASSES = (
    ClassDefinition("road", (128, 64, 128)),
    ClassDefinition("sidewalk", (244, 35, 232)),
    ClassDefinition("building", (70, 70, 70)),
    ClassDefinition("wall", (102, 102, 156)),
    ClassDefinition("fence", (190, 153, 153)),
    ClassDefinition("pole", (153, 153, 153)),
    ClassDefinition("traffic light", (250, 170, 30)),
    ClassDefinition("traffic sign", (220, 220, 0)),
    ClassDefinition("vegetation", (107, 142, 35)),
    ClassDefinition("terrain", (152, 251, 152)),
    ClassDefinition("sky", (70, 130, 180)),
    ClassDefinition("person", (220, 20, 60)),
    ClassDefinition("rider", (255, 0, 0)),
    ClassDefinition("car", (0, 0, 142)),
    ClassDefinition("truck", (0, 0, 70)),
    ClassDefinition("bus", (0, 60, 100)),
    ClassDefinition("train", (0, 80, 100)),
    ClassDefinition("motorcycle", (0, 0, 230)),
    ClassDefinition("bicycle", (119, 11, 32)),
)
"""Cityscapes' train classes; the place in the tuple is the train id."""

CITYSCAPES_LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Label ids of these classes in files named labelIds; the place in the tuple is the train id."""

HIGHEST_LABEL_ID = 34
"""The highest of Cityscapes' label ids: 0 to 33, and 34 for GTA5's licence plates."""


def cityscapes_label_ids(ignore_label: int) -> dict[int, int]:
    """What the ids in Cityscapes' files named labelIds mean.

    Args:
        ignore_label: train id of what is not learnt: void classes, licence plates, and 255.

    Returns:
        Label id -> train id.
    """
    ignored = {label_id: ignore_label for label_id in (*range(HIGHEST_LABEL_ID + 1), 255)}
    return ignored | {label_id: train_id for train_id, label_id in enumerate(CITYSCAPES_LABEL_IDS)}
