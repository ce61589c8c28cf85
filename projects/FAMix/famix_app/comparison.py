"""Predictions for the shown picture: their views, the values under the pointer, and files to download."""

import base64
import re
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from famix.inference import Prediction
from famix.inference.images import RGBImage
from famix.inference.views import LABELS, VIEWS, ViewOptions, write_views
from famix.utils.errors import DatasetError
from famix.visualization.overlay import downsample, mark_unsure
from famix_app.networks import Network
from famix_app.pictures import Picture

CLASSES, UNSURE = "Classes", "Not sure"
"""Views of a prediction: class colors over the picture, and the picture with unsure pixels marked."""

SHOWN_WIDTH = 1600
"""Maximum width of shown pictures in pixels. Predictions and downloads have the size of the picture."""

_NO_SEGMENT = "no segment"


@dataclass(frozen=True, eq=False)
class Side:
    """Prediction of a network for a picture of H x W pixels."""

    network: str
    prediction: Prediction  # without scores
    class_ids: NDArray[np.uint16]  # (H, W) train ids of the drawn classes; the number of classes outside all segments
    confidence: NDArray[np.float32]  # (H, W) probability of these classes, in [0, 1]


def predict(network: Network, pixels: RGBImage) -> Side:
    """Predict a picture.

    Raises:
        DatasetError: the picture is too small for the network, or too large for the memory of its device.
    """
    try:
        prediction = network.predictor(pixels)
        class_ids, confidence = prediction.labels.astype(np.uint16), prediction.confidence
    except torch.OutOfMemoryError as error:
        raise DatasetError(
            f"picture must fit into the memory of the device, got {pixels.shape[0]} x {pixels.shape[1]} pixels. Use a smaller "
            "picture, or start famix-app with --device cpu."
        ) from error
    if prediction.segment_ids is not None:
        number = len(prediction.classes.names)
        table = [number, *(segment.class_id for segment in prediction.segments)]
        class_ids = np.array(table, np.uint16)[prediction.segment_ids]
        inside = class_ids < number
        own = np.where(inside, class_ids, prediction.labels)[None].astype(np.int64)
        confidence = np.take_along_axis(prediction.probabilities, own, axis=0)[0]
    return Side(network.name, replace(prediction, kept_scores=None), class_ids, confidence)


def draw(picture: Picture, side: Side | None, view: str) -> RGBImage:
    """Draw a view of a prediction, or the picture itself for None, at most `SHOWN_WIDTH` pixels wide."""
    pixels = picture.pixels
    if side is not None:
        shown = side.prediction.overlay(pixels) if view == CLASSES else mark_unsure(pixels, side.confidence)
        return downsample(shown, SHOWN_WIDTH, smooth=True)
    return downsample(pixels, SHOWN_WIDTH, smooth=True)


def legend(sides: Sequence[Side], view: str) -> str:
    """Return the legend of a view as HTML."""
    if view == UNSURE:
        return '<div class="legend"><span>sure</span><i class="scale"></i><span>not sure</span></div>'
    entries = sorted(
        {
            (class_id, side.prediction.class_names[class_id], side.prediction.classes.colors[class_id])
            for side in sides
            for class_id in side.prediction.visible_classes()
        }
    )
    chips = (f'<span><i style="background: rgb{color}"></i>{escape(name)}</span>' for _, name, color in entries)
    return f'<div class="legend">{"".join(chips)}</div>'


def pointer_values(sides: Sequence[Side]) -> dict[str, Any] | None:
    """Return the values that the page shows for the pixel under the pointer, or None without predictions.

    Each side has "data": the class ids (uint16, little-endian) and then the confidences (0 to 255) of all pixels of the
    shown size, compressed with zlib, as Base64.
    """
    if not sides:
        return None
    step = -(-sides[0].class_ids.shape[1] // SHOWN_WIDTH)
    height, width = sides[0].class_ids[::step, ::step].shape
    entries = []
    for side in sides:
        classes = side.prediction.classes
        confidence = np.rint(side.confidence[::step, ::step] * 255).astype(np.uint8)
        content = side.class_ids[::step, ::step].astype("<u2").tobytes() + confidence.tobytes()
        entries.append(
            {
                "network": side.network,
                "names": [*classes.names, _NO_SEGMENT],
                "colors": [f"rgb{tuple(color)}" for color in classes.colors] + ["transparent"],
                "data": base64.b64encode(zlib.compress(content, 1)).decode(),
            }
        )
    return {"width": width, "height": height, "sides": entries}


def write_files(picture: Picture, sides: Sequence[Side], folder: Path) -> list[Path]:
    """Write the labels (PNG) and the overlay of each prediction to a new folder below `folder`.

    Returns:
        The files, for panoptic predictions with those of the segments.

    Raises:
        ConfigError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(dir=folder))
    for side in sides:
        stem = re.sub(r"[^\w-]+", "_", f"{picture.name}_{side.network}")
        files = {view: new / f"{stem}{VIEWS[view]}" for view in (LABELS, "overlay")}
        write_views(files, picture.pixels, side.prediction, ViewOptions())
    return sorted(new.iterdir())


def changed_share(plain: Side, other: Side) -> float:
    """Return the share of pixels whose classes differ, from 0 to 1."""
    return float((plain.class_ids != other.class_ids).mean())
