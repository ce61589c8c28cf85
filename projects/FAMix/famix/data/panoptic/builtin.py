"""The panoptic datasets that are known without a definition file, in one table."""

from collections.abc import Mapping

from famix.data.panoptic.definition import CITYSCAPES_CATEGORIES, PanopticDefinition

__all__ = ["BUILTIN_PANOPTIC"]

_ACDC_CONDITIONS = ("fog", "night", "rain", "snow")

# Mapillary Vistas' names, of version 1.2, to Cityscapes' classes: the same choice as for its semantic labels.
_MAPILLARY_CATEGORIES: Mapping[int | str, int] = {
    "Road": 0,
    "Lane Marking - General": 0,
    "Manhole": 0,
    "Curb": 1,
    "Sidewalk": 1,
    "Building": 2,
    "Wall": 3,
    "Fence": 4,
    "Pole": 5,
    "Utility Pole": 5,
    "Traffic Light": 6,
    "Traffic Sign (Front)": 7,
    "Vegetation": 8,
    "Terrain": 9,
    "Sky": 10,
    "Person": 11,
    "Bicyclist": 12,
    "Motorcyclist": 12,
    "Other Rider": 12,
    "Car": 13,
    "Truck": 14,
    "Bus": 15,
    "On Rails": 16,
    "Motorcycle": 17,
    "Bicycle": 18,
}

BUILTIN_PANOPTIC = (
    # As cityscapesscripts.preparation.createPanopticImgs writes it, and Detectron2 reads it.
    PanopticDefinition(
        name="cityscapes",
        root="cityscapes",
        images="leftImg8bit/{split}/{key}_leftImg8bit.png",
        panoptic_root="gtFine/cityscapes_panoptic_{split}",
        panoptic_json="gtFine/cityscapes_panoptic_{split}.json",
        splits={"train": "train", "val": "val"},
        categories=CITYSCAPES_CATEGORIES,
    ),
    # A JSON file and a folder for every condition and part, with Cityscapes' categories.
    PanopticDefinition(
        name="acdc",
        root="acdc",
        images="rgb_anon/{split}/{key}_rgb_anon.png",
        panoptic_root="gt_panoptic/{split}",
        panoptic_json="gt_panoptic/{split}.json",
        splits={f"{name}_{part}": f"{name}/{part}" for name in _ACDC_CONDITIONS for part in ("train", "val")},
        categories=CITYSCAPES_CATEGORIES,
    ),
    # Poles, signs and lights are things in Mapillary's files; as stuff, all of an image are one segment.
    PanopticDefinition(
        name="mapillary",
        root="mapillary",
        images="{split}/images/{key}.jpg",
        panoptic_root="{split}/panoptic",
        panoptic_json="{split}/panoptic/panoptic_2018.json",
        splits={"train": "training", "val": "validation"},
        categories=_MAPILLARY_CATEGORIES,
        other_categories_ignored=True,
    ),
)
