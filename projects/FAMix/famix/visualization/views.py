"""The ways to look at a prediction, as pictures and as files."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from famix.data.panoptic.segments import encode_ids
from famix.inference.images import RGBImage
from famix.inference.prediction import Prediction
from famix.io.atomic import whole_file
from famix.utils.errors import ConfigError
from famix.visualization.figure import draw_legend
from famix.visualization.overlay import side_by_side

__all__ = [
    "ALL_VIEWS",
    "CITYSCAPES_IDS",
    "COLOR",
    "ID_VIEWS",
    "LABELS",
    "OVERLAY",
    "SIDE_BY_SIDE",
    "VIEWS",
    "Files",
    "Look",
    "draw_view",
    "segment_files",
    "write_image",
    "write_views",
]

OVERLAY, SIDE_BY_SIDE, LABELS, COLOR = "overlay", "side-by-side", "labels", "color"

CITYSCAPES_IDS = "cityscapes-ids"

_ENDINGS = {OVERLAY: "_overlay.jpg", SIDE_BY_SIDE: "_side-by-side.jpg", LABELS: "_labels.png", COLOR: "_color.png"}
ALL_VIEWS = tuple(_ENDINGS)
"""What "all" stands for: the views that every network has."""

VIEWS = {**_ENDINGS, CITYSCAPES_IDS: ".png"}
"""View -> ending of its file."""

ID_VIEWS = (LABELS, CITYSCAPES_IDS)
"""Views that are ids for programs, in PNGs, and no pictures."""

Files = dict[str, Path]  # view -> where it goes

_JPEG = {".jpg", ".jpeg"}
_JPEG_QUALITY = [cv2.IMWRITE_JPEG_QUALITY, 95]


@dataclass(frozen=True)
class Look:
    """How pictures are drawn.

    Attributes:
        alpha: weight of the colours in an overlay, 0-1.
        legend: whether a strip below says what the colours mean.
    """

    alpha: float = 0.5
    legend: bool = False


def draw_view(
    view: str, image: RGBImage, prediction: Prediction, look: Look, in_legend: Sequence[int] = ()
) -> RGBImage:
    """Draw a view.

    Args:
        view: overlay, side-by-side (the image, and the overlay) or color.
        image: that was predicted.
        prediction: of it.
        look: how it is drawn.
        in_legend: train ids that the legend shows; none stands for those of the image.

    Returns:
        (H, W, 3) uint8, RGB; wider for side-by-side, and higher with a legend.
    """
    if view == COLOR:
        picture = prediction.color_image()
    else:
        picture = prediction.overlay(image, look.alpha)
    if view == SIDE_BY_SIDE:
        picture = side_by_side(image, picture)
    if not look.legend:
        return picture
    classes = prediction.classes
    entries = [(classes.names[i], classes.colors[i]) for i in in_legend or prediction.visible_classes()]
    return np.concatenate([picture, draw_legend(entries, picture.shape[1])])


def write_views(files: Files, image: RGBImage, prediction: Prediction, look: Look) -> None:
    """Write views of an image, each file whole or not at all.

    The labels of a panoptic prediction are three files: train ids, and COCO's panoptic PNG of segments with a JSON file
    that says what they are. Cityscapes' label ids are one file.

    Args:
        files: view -> path.
        image: that was predicted.
        prediction: of it.
        look: how pictures are drawn.

    Raises:
        ConfigError: a file cannot be written, or the classes are not Cityscapes'.
    """
    for view, path in files.items():
        if view == LABELS:
            write_image(path, prediction.labels)
            _write_segments(path, prediction)
        elif view == CITYSCAPES_IDS:
            write_image(path, prediction.classes.cityscapes_label_ids()[prediction.labels])
        else:
            write_image(path, draw_view(view, image, prediction, look))


def segment_files(labels: Path) -> tuple[Path, Path]:
    """The PNG and the JSON file that lie beside the labels of a panoptic prediction."""
    stem = str(labels.with_suffix("")).removesuffix("_labels")
    return Path(f"{stem}_segments.png"), Path(f"{stem}_segments.json")


def write_image(path: Path, pixels: NDArray[Any]) -> None:
    """Write (H, W, 3) uint8, RGB, or (H, W) uint8 or uint16, in the format that the suffix names.

    Raises:
        ConfigError: the file cannot be written.
    """
    quality = _JPEG_QUALITY if path.suffix.lower() in _JPEG else []
    stored = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    try:
        with whole_file(path) as part:
            encoded, content = cv2.imencode(path.suffix, stored, quality)  # its imwrite does not notice a full disk
            if not encoded:
                raise OSError(f"OpenCV could not encode {pixels.shape[1]} x {pixels.shape[0]} pixels")
            part.write_bytes(content.tobytes())
    except (OSError, cv2.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{path} cannot be written ({reason}); make room, or choose another --output") from error


def _write_segments(labels: Path, prediction: Prediction) -> None:
    if prediction.segment_ids is None:
        return
    png, description = segment_files(labels)
    write_image(png, encode_ids(prediction.segment_ids))
    with whole_file(description) as part:
        part.write_text(json.dumps([asdict(segment) for segment in prediction.segments], indent=1))
