"""Contact sheet of a dataset: images beside their label overlays, above a legend."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from numpy.typing import NDArray
from PIL import Image

from famix.data.check import IGNORED, DatasetReport
from famix.data.images import MAX_PIXELS, read_image
from famix.data.labels import LabelReader
from famix.data.layout.split_files import label_file_of
from famix.data.registration import get_label_readers
from famix.utils.errors import DatasetError
from famix.visualization.figure import Pixels, Tile, compose_figure
from famix.visualization.overlay import side_by_side

_COLUMNS = 3
_WIDTH, _GAP = 304, 2  # in pixels: width of an image, and gap to its overlay
_MIN_ASPECT, _MAX_ASPECT = 0.4, 1.1  # limits on height / width of an image in the grid
_DARK = (40, 40, 40)
_COLOR_WEIGHT = 0.6  # weight of the class colors in an overlay
_IGNORED_BRIGHTNESS = 0.3


def draw_contact_sheet(
    report: DatasetReport, records: Sequence[dict[str, Any]], max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Draw images and labels of a registered dataset, with ignored pixels darkened.

    Args:
        report: result of the dataset check, with the dataset's name and class shares.
        records: Detectron2 dataset dicts, at least one. Pairs with a problem are marked with its kind, and files that
            cannot be read are dark.
        max_pixels: limit on the image size, see INPUT.MAX_PIXELS.
    """
    metadata = MetadataCatalog.get(report.name)
    (reader,) = get_label_readers([report.name], max_pixels).values()
    pairs = [_draw_pair(record, reader, metadata.stuff_colors) for record in records]
    aspect = float(np.median([pair.shape[0] / (pair.shape[1] - _GAP) * 2 for pair in pairs]))
    cell = 2 * _WIDTH + _GAP, round(_WIDTH * min(max(aspect, _MIN_ASPECT), _MAX_ASPECT))
    tiles = [
        Tile(pair, subtitle=str(record.get("image_id", "")), note=report.found.bad.get(record["file_name"], ""))
        for pair, record in zip(pairs, records, strict=True)
    ]
    percent = {name: f"  {pixels:.1f} %" for name, (pixels, _) in report.classes.items()}
    classes = [*zip(metadata.stuff_classes, metadata.stuff_colors, strict=True), (IGNORED, _DARK)]
    return compose_figure(
        [tiles[start : start + _COLUMNS] for start in range(0, len(tiles), _COLUMNS)],
        cell,
        heading=f"{report.name}: {len(records)} of {report.num_pairs} images",
        legend=[(f"{name}{percent.get(name, '')}", tuple(color)) for name, color in classes],
        font_size=17,
    )


def overlay_labels(image: Pixels, labels: NDArray[np.uint8], colors: Sequence[Sequence[int]]) -> Pixels:
    """Blend class colors with an image, and separate classes with thin light lines.

    Args:
        image: (H, W, 3) uint8 RGB image.
        labels: (H, W) train ids. Where an id has no color, the image is darkened.
        colors: RGB colors by train id.
    """
    palette = np.zeros((256, 3), np.float32)
    palette[: len(colors)] = colors
    tinted = _COLOR_WEIGHT * palette[labels] + (1 - _COLOR_WEIGHT) * image
    result = np.where((labels < len(colors))[..., None], tinted, _IGNORED_BRIGHTNESS * image)
    edges = np.zeros(labels.shape, bool)
    edges[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edges[1:] |= labels[1:] != labels[:-1]
    result[edges] = 0.5 * result[edges] + 127
    return result.astype(np.uint8)


def _draw_pair(record: dict[str, Any], reader: LabelReader, colors: Sequence[Sequence[int]]) -> Pixels:
    """Draw a downsampled image and its overlay side by side."""
    try:
        image = Image.fromarray(read_image(record["file_name"], max_pixels=reader.max_pixels))
    except DatasetError:
        image = Image.new("RGB", (_WIDTH, _WIDTH // 2), _DARK)
    scale = min(_WIDTH / image.width, _WIDTH * _MAX_ASPECT / image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    image = image.resize(size, Image.Resampling.LANCZOS)
    try:
        ids = reader.read(label_file_of(record))
    except DatasetError:
        ids = np.full((1, 1), 255, np.uint8)  # no class has this id
    labels = Image.fromarray(ids).resize(size, Image.Resampling.NEAREST)
    pixels = np.asarray(image)
    return side_by_side(pixels, overlay_labels(pixels, np.asarray(labels), colors), _GAP)
