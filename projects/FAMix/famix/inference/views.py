"""Draw, name and write views of predictions, i.e. visualizations of labels and segments, and id files."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import count
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

LABELS, CITYSCAPES_IDS = "labels", "cityscapes-ids"

VIEWS = {
    "overlay": "_overlay.jpg",
    "side-by-side": "_side-by-side.jpg",
    LABELS: "_labels.png",
    "color": "_color.png",
    CITYSCAPES_IDS: ".png",
}
"""View -> suffix of its files."""

ALL_VIEWS = tuple(view for view in VIEWS if view != CITYSCAPES_IDS)
"""Views selected by "all". They work with the classes of any network."""

ID_VIEWS = (LABELS, CITYSCAPES_IDS)
"""Views that are PNG files of ids, which video compression would corrupt."""

CODECS = {".mp4": "mp4v", ".avi": "MJPG"}
"""Video file suffix -> codec."""

Files = dict[str, Path]  # view -> file

_IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True)
class ViewOptions:
    """Options for drawing views."""

    alpha: float = 0.5  # opacity of the colors in an overlay, in [0, 1]
    legend: bool = False  # draw a legend below the image


def draw_view(
    view: str, image: RGBImage, prediction: Prediction, options: ViewOptions, legend_ids: Sequence[int] = ()
) -> RGBImage:
    """Draw a view of an image and its prediction as an RGB image (H, W, 3), uint8.

    Args:
        view: "overlay", "side-by-side" or "color". "side-by-side" shows the image and the overlay in a wider image.
        image, prediction, options: the image, its prediction and the view options.
        legend_ids: train ids in the legend, which adds height. If empty, the legend shows the predicted classes.
    """
    drawn = prediction.color_image() if view == "color" else prediction.overlay(image, options.alpha)
    if view == "side-by-side":
        drawn = side_by_side(image, drawn)
    if not options.legend:
        return drawn
    classes = prediction.classes
    entries = [(classes.names[i], classes.colors[i]) for i in legend_ids or prediction.visible_classes()]
    return np.concatenate([drawn, draw_legend(entries, drawn.shape[1])])


def write_views(files: Files, image: RGBImage, prediction: Prediction, options: ViewOptions) -> None:
    """Write views of an image, each file atomically.

    For a panoptic prediction, "labels" consists of three files: the train ids, a PNG in COCO panoptic format, and a JSON
    file that describes its segments.

    Raises:
        ConfigError: a file cannot be written, or "cityscapes-ids" is requested for non-Cityscapes classes.
    """
    for view, path in files.items():
        if view == CITYSCAPES_IDS:
            write_image(path, prediction.classes.cityscapes_label_ids()[prediction.labels])
            continue
        write_image(path, prediction.labels if view == LABELS else draw_view(view, image, prediction, options))
        if view == LABELS and prediction.segment_ids is not None:
            png, description = _segment_files(path)
            write_image(png, encode_ids(prediction.segment_ids))
            with whole_file(description) as part:
                part.write_text(json.dumps([asdict(segment) for segment in prediction.segments], indent=1))


def write_image(path: Path, pixels: NDArray[Any]) -> None:
    """Write an image in the format given by the suffix. It is (H, W, 3) uint8 RGB, or (H, W) uint8 or uint16.

    Raises:
        ConfigError: the file cannot be written.
    """
    quality = [cv2.IMWRITE_JPEG_QUALITY, 95] if path.suffix.lower() in (".jpg", ".jpeg") else []
    stored = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    try:
        with whole_file(path) as part:
            encoded, content = cv2.imencode(path.suffix, stored, quality)  # cv2.imwrite ignores a full disk
            if not encoded:
                raise OSError(f"OpenCV cannot encode {pixels.shape[1]} x {pixels.shape[0]} pixels")
            part.write_bytes(content.tobytes())
    except (OSError, cv2.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"'{path}' cannot be written ({reason}). Free disk space, or choose another --output."
        ) from error


def image_files(inputs: Sequence[Path], output: Path, views: Sequence[str]) -> list[Files]:
    """Choose output files for each input that differ from each other and from all inputs.

    In an output folder, files keep the names of the inputs and their paths relative to the inputs' common folder, with
    "_overlay" etc. appended. If two outputs would collide, or an output would replace an input, the name of the later one
    includes the suffix of its input or a number.

    Args:
        inputs: input images.
        output: folder, or image file for a single view of a single image.
        views: keys of `VIEWS`.

    Raises:
        ConfigError: `output` is a file but there are several images or views, or it is an input or a video, or its format
            does not suit the view.
    """
    suffix = output.suffix.lower()
    if suffix in _IMAGE_SUFFIXES and not output.is_dir():
        if len(inputs) > 1 or len(views) > 1:
            raise ConfigError(
                f"--output must be a folder for {len(inputs)} image(s) and {len(views)} view(s), got '{output}'. Pass a "
                "folder."
            )
        _require_distinct(output, inputs[0])
        if views[0] in ID_VIEWS and suffix != ".png":
            raise ConfigError(f"--output must end in .png for --view {views[0]}, got '{output}'. Choose a .png file.")
        return [{views[0]: output}]
    if suffix in CODECS and not output.is_dir():
        raise ConfigError(
            f"--output must be a folder or an image for --input, got '{output}'. Use --video-input for videos."
        )

    absolute = [Path(os.path.abspath(path)) for path in inputs]
    root = os.path.commonpath([path.parent for path in absolute])
    originals = {path.resolve() for path in inputs}
    taken: set[str] = set()
    chosen = []
    for path in (output / path.relative_to(root) for path in absolute):
        full = path.with_name(path.name.replace(".", "_"))
        stems = (full.with_name(f"{full.name}_{n}") if n > 1 else (path.with_suffix(""), full)[n] for n in count())
        for stem in stems:
            files = {view: Path(f"{stem}{VIEWS[view]}") for view in views}
            written = [*files.values(), *(_segment_files(files[LABELS]) if LABELS in files else ())]
            key = str(stem).casefold()  # some file systems ignore case
            if key not in taken and not any(file.resolve() in originals for file in written):
                break
        taken.add(key)
        chosen.append(files)
    return chosen


def video_files(source: Path, output: Path, views: Sequence[str]) -> Files:
    """Choose the output video for each view. Views of ids get a folder with one PNG per frame instead.

    Args:
        source: input video. Its stem names the outputs in a folder.
        output: folder, or video file for a single view.
        views: keys of `VIEWS`.

    Raises:
        ConfigError: `output` is a file but there are several views or a view of ids, or it has an unsupported suffix, or
            it is the input.
    """
    if not output.suffix or output.is_dir():
        names = {view: f"{source.stem}_{view}" for view in views}
        return {view: output / (name if view in ID_VIEWS else f"{name}.mp4") for view, name in names.items()}
    if output.suffix.lower() not in CODECS:
        raise ConfigError(f"--output must be a folder or end in {' or '.join(CODECS)}, got '{output}'. Rename it.")
    if len(views) > 1 or views[0] in ID_VIEWS:
        raise ConfigError(f"--output must be a folder for --view {', '.join(views)}, got '{output}'. Pass a folder.")
    _require_distinct(output, source)
    return {views[0]: output}


def _require_distinct(output: Path, source: Path) -> None:
    if output.resolve() == source.resolve():
        raise ConfigError(f"--output and the input are the same file: '{output}'. Choose another file.")


def _segment_files(labels: Path) -> tuple[Path, Path]:
    """Return the paths of the PNG and JSON files next to the labels of a panoptic prediction."""
    stem = str(labels.with_suffix("")).removesuffix("_labels")
    return Path(f"{stem}_segments.png"), Path(f"{stem}_segments.json")
