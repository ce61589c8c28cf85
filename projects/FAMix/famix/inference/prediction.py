"""Prediction for one image: labels, segments, scores, and their visualization."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from famix.data.classes import ClassTable
from famix.data.images import MAX_PIXELS
from famix.evaluation.counting.confusion import argmax_classes
from famix.evaluation.panoptic import predicted_segments
from famix.inference.images import ImageSource, RGBImage, load_rgb
from famix.utils.errors import DatasetError
from famix.utils.messages import counted, first_few
from famix.visualization.overlay import color_segments, overlay_colors, overlay_segments


@dataclass(frozen=True)
class Segment:
    """A thing instance, or all pixels of one stuff class."""

    id: int  # value in the segment map, starting at 1
    class_id: int  # train id
    class_name: str
    is_thing: bool
    area: int  # pixels
    score: float | None = None  # confidence in [0, 1], or None if the network returns no scores


@dataclass(frozen=True, eq=False)
class Prediction:
    """Prediction for an image of H x W pixels."""

    labels: NDArray[np.uint8] | NDArray[np.uint16]  # (H, W) train ids, uint16 if there are more than 256 classes
    classes: ClassTable
    segments: tuple[Segment, ...] = ()  # empty if the network is not panoptic
    segment_ids: NDArray[np.int32] | None = None  # (H, W) `Segment.id` of each pixel, 0 outside all segments
    kept_scores: Tensor | None = None  # (K, H, W) network output on its device, or None if not kept
    averaged: bool = False  # whether the scores are probabilities

    def __repr__(self) -> str:
        height, width = self.labels.shape
        segments = "" if self.segment_ids is None else f", {counted(len(self.segments), 'segment')}"
        visible = first_few([self.classes.names[class_id] for class_id in self.visible_classes()])
        return f"Prediction({height} x {width} pixels{segments}: {visible})"

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names in the order of train ids."""
        return self.classes.names

    @property
    def colors(self) -> NDArray[np.uint8]:
        """RGB class colors, (K, 3)."""
        return np.array(self.classes.colors, dtype=np.uint8)

    @property
    def scores(self) -> NDArray[np.float32]:
        """Logits (K, H, W), float32, or probabilities if the protocol averages them or the network predicts them.

        Raises ValueError if the scores were not kept.
        """
        if self.kept_scores is None:
            raise ValueError("Scores were not kept. Predict with keep_scores=True.")
        return self.kept_scores.float().cpu().numpy()

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """Class probabilities (K, H, W), float32. Raises ValueError if the scores were not kept."""
        if self.kept_scores is None or self.averaged:
            return self.scores
        return self.kept_scores.float().softmax(dim=0).cpu().numpy()

    @property
    def confidence(self) -> NDArray[np.float32]:
        """Probability of the predicted class, (H, W) float32. Raises ValueError if the scores were not kept."""
        return self.probabilities.max(axis=0)

    def color_image(self) -> RGBImage:
        """Return an RGB image (H, W, 3) with each pixel in its class color and each thing in a shade of its class color.

        In a panoptic prediction, pixels outside all segments are black.
        """
        if self.segment_ids is None:
            return np.take(self.colors, self.labels, axis=0)
        return color_segments(self.segment_ids, *self._segment_classes(), self.classes.colors)

    def overlay(self, image: ImageSource, alpha: float = 0.5) -> RGBImage:
        """Draw the colors over the image, with class borders at full opacity and the things of a panoptic prediction outlined.

        Dark images are brightened, so that a prediction can be compared with the image at night.

        Args:
            image: the predicted image as a path, PIL image or RGB array.
            alpha: opacity of the colors, in [0, 1].

        Returns:
            RGB image (H, W, 3), uint8. In a panoptic prediction, pixels outside all segments show the original image.

        Raises:
            DatasetError: the image has a different size.
        """
        pixels = load_rgb(image, max(MAX_PIXELS, self.labels.size))
        if pixels.shape[:2] != self.labels.shape:
            expected, got = (f"{height} x {width}" for height, width in (self.labels.shape, pixels.shape[:2]))
            raise DatasetError(f"image must have {expected} pixels, got {got}. Pass the predicted image.")
        if self.segment_ids is None:
            return overlay_colors(pixels, self.color_image(), self.labels, alpha)
        return overlay_segments(pixels, self.segment_ids, *self._segment_classes(), self.classes.colors, alpha)

    def visible_classes(self) -> list[int]:
        """Return the train ids visible in `color_image`, in ascending order."""
        if self.segment_ids is None:
            return [int(class_id) for class_id in np.unique(self.labels)]
        return sorted({segment.class_id for segment in self.segments})

    def _segment_classes(self) -> tuple[list[int], set[int]]:
        """Return the train id of each segment and the set of thing train ids."""
        class_ids = [segment.class_id for segment in self.segments]
        return class_ids, {segment.class_id for segment in self.segments if segment.is_thing}


def read_result(
    result: Mapping[str, Any], classes: ClassTable, *, keep_scores: bool, averaged: bool, normalize: bool = False
) -> Prediction:
    """Convert a network's output for one image to a `Prediction`.

    Args:
        result: dict with scores (K, H, W) under "sem_seg". Panoptic networks add (map, segments) under "panoptic_seg".
            The map (H, W) contains ids, with 0 outside all segments, and each segment is a dict with "id", "category_id"
            (train id), "isthing" and optionally "score". Alternatively, as in Panoptic-DeepLab, the map contains train id
            * LABEL_DIVISOR + instance, with -1 outside all segments, and `segments` is None.
        classes: classes of the network.
        keep_scores: whether to keep the scores, which need 4 * K bytes per pixel.
        averaged: whether the scores are probabilities.
        normalize: whether to divide the kept scores by their sum over the classes.

    Returns:
        The prediction, with segments numbered from 1. Segments without pixels are dropped.
    """
    scores: Tensor = result["sem_seg"]
    labels = argmax_classes(scores).cpu().numpy()
    if labels.dtype != np.uint8:
        labels = labels.astype(np.uint16)  # more than 256 classes
    kept = scores if keep_scores else None
    if kept is not None and normalize:
        kept = kept / kept.sum(dim=0).clamp(min=torch.finfo(kept.dtype).tiny)
    if "panoptic_seg" not in result:
        return Prediction(labels, classes, kept_scores=kept, averaged=averaged)
    panoptic = predicted_segments(*result["panoptic_seg"])
    segments = []
    for entry in panoptic.segments:
        class_id, score = int(entry["category_id"]), entry.get("score")
        name, is_thing = classes.names[class_id], bool(entry.get("isthing", class_id in classes.things))
        score = None if score is None else float(score)
        segments.append(Segment(entry["id"], class_id, name, is_thing, entry["area"], score))
    return Prediction(labels, classes, tuple(segments), panoptic.numbers, kept, averaged)
