"""Views of predictions: images of labels and segments, and files of ids."""

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
    "ID_VIEWS",
    "LABELS",
    "VIEWS",
    "Files",
    "ViewOptions",
    "draw_view",
    "segment_files",
    "write_image",
    "write_views",
]

LABELS, CITYSCAPES_IDS = "labels", "cityscapes-ids"

VIEWS = {
    "overlay": "_overlay.jpg",
    "side-by-side": "_side-by-side.jpg",
    LABELS: "_labels.png",
    "color": "_color.png",
    CITYSCAPES_IDS: ".png",
}
"""View -> ending of its files."""

ALL_VIEWS = tuple(view for view in VIEWS if view != CITYSCAPES_IDS)
"""Views of the choice "all", which suit the classes of any network."""

ID_VIEWS = (LABELS, CITYSCAPES_IDS)
"""Views that are PNGs of ids for programs; videos would blur them."""

Files = dict[str, Path]  # view -> file

_JPEG_QUALITY = [cv2.IMWRITE_JPEG_QUALITY, 95]


@dataclass(frozen=True)
class ViewOptions:
    """Options of views.

    Attributes:
        alpha: weight of the colours in an overlay, 0 to 1.
        legend: whether a legend is drawn below.
    """

    alpha: float = 0.5
    legend: bool = False


def draw_view(
    view: str, image: RGBImage, prediction: Prediction, options: ViewOptions, legend_ids: Sequence[int] = ()
) -> RGBImage:
    """Draw a view.

    Args:
        view: "overlay", "side-by-side" (image and overlay) or "color".
        image: the predicted image.
        prediction: its prediction.
        options: see `ViewOptions`.
        legend_ids: train ids in the legend; empty for the classes of the prediction.

    Returns:
        (H, W, 3) uint8, RGB; side-by-side is wider, and a legend adds height.
    """
    picture = prediction.color_image() if view == "color" else prediction.overlay(image, options.alpha)
    if view == "side-by-side":
        picture = side_by_side(image, picture)
    if not options.legend:
        return picture
    classes = prediction.classes
    entries = [(classes.names[i], classes.colors[i]) for i in legend_ids or prediction.visible_classes()]
    return np.concatenate([picture, draw_legend(entries, picture.shape[1])])


def write_views(files: Files, image: RGBImage, prediction: Prediction, options: ViewOptions) -> None:
    """Write views of an image, each file atomically.

    Labels of a panoptic prediction are three files: train ids, COCO's panoptic PNG, and a JSON file that describes its
    segments.

    Args:
        files: view -> file.
        image: the predicted image.
        prediction: its prediction.
        options: see `ViewOptions`.

    Raises:
        ConfigError: a file cannot be written, or the classes of cityscapes-ids differ from those of Cityscapes.
    """
    for view, path in files.items():
        if view == CITYSCAPES_IDS:
            write_image(path, prediction.classes.cityscapes_label_ids()[prediction.labels])
            continue
        write_image(path, prediction.labels if view == LABELS else draw_view(view, image, prediction, options))
        if view == LABELS and prediction.segment_ids is not None:
            png, description = segment_files(path)
            write_image(png, encode_ids(prediction.segment_ids))
            with whole_file(description) as part:
                part.write_text(json.dumps([asdict(segment) for segment in prediction.segments], indent=1))


def write_image(path: Path, pixels: NDArray[Any]) -> None:
    """Write (H, W, 3) uint8, RGB, or (H, W) uint8 or uint16, in the format of the suffix.

    Raises:
        ConfigError: the file cannot be written.
    """
    quality = _JPEG_QUALITY if path.suffix.lower() in (".jpg", ".jpeg") else []
    stored = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    try:
        with whole_file(path) as part:
            encoded, content = cv2.imencode(path.suffix, stored, quality)  # its imwrite does not notice a full disk
            if not encoded:
                raise OSError(f"OpenCV cannot encode {pixels.shape[1]} x {pixels.shape[0]} pixels")
            part.write_bytes(content.tobytes())
    except (OSError, cv2.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"{path} cannot be written ({reason}). Free disk space, or choose another --output."
        ) from error


def segment_files(labels: Path) -> tuple[Path, Path]:
    """Return the PNG and the JSON file beside the labels of a panoptic prediction."""
    stem = str(labels.with_suffix("")).removesuffix("_labels")
    return Path(f"{stem}_segments.png"), Path(f"{stem}_segments.json")
