"""What a network says of an image."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from famix.data.class_table import ClassTable
from famix.data.images import MAX_PIXELS
from famix.evaluation.counting.confusion import argmax_classes
from famix.inference.images import ImageSource, RGBImage, load_rgb
from famix.inference.segments import Segment, read_segments
from famix.utils.errors import DatasetError
from famix.visualization.overlay import blend, color_segments, overlay_segments

__all__ = ["Prediction", "read_result"]


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a network says of an image of H x W pixels.

    Attributes:
        labels: (H, W) train ids, uint8, or uint16 where there are more than 256 classes.
        classes: names, colours and kinds of the K classes.
        segments: that a panoptic network found; empty for others.
        segment_ids: (H, W) int32, `id` of the segment of every pixel, 0 where there is none; None for networks that
            are not panoptic.
        kept_scores: (K, H, W) what the network returned, on its device; None where that was not kept.
        averaged: whether these are probabilities.
    """

    labels: NDArray[np.uint8] | NDArray[np.uint16]
    classes: ClassTable
    segments: tuple[Segment, ...] = ()
    segment_ids: NDArray[np.int32] | None = None
    kept_scores: Tensor | None = None
    averaged: bool = False

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; the place is the train id."""
        return self.classes.names

    @property
    def colors(self) -> NDArray[np.uint8]:
        """(K, 3) RGB colours of the classes."""
        return np.array(self.classes.colors, dtype=np.uint8)

    @property
    def scores(self) -> NDArray[np.float32]:
        """(K, H, W) float32: logits, or the probabilities that a protocol averaged.

        Raises:
            ValueError: they were not kept.
        """
        return self._require_scores().cpu().numpy()

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """(K, H, W) float32, summing up to 1 over the classes.

        Raises:
            ValueError: the scores were not kept.
        """
        scores = self._require_scores()
        return (scores if self.averaged else scores.softmax(dim=0)).cpu().numpy()

    def color_image(self) -> RGBImage:
        """(H, W, 3) RGB: every pixel in the colour of its class; of a panoptic network, each thing in a shade of it.

        What belongs to none of its segments is black.
        """
        if self.segment_ids is None:
            return np.take(self.colors, self.labels, axis=0)
        return color_segments(self.segment_ids, *self._classes_of_segments(), self.classes.colors)

    def overlay(self, image: ImageSource, alpha: float = 0.5) -> RGBImage:
        """Lay the colours over the image; what a panoptic network sees as things gets an outline.

        What belongs to none of its segments stays as it is.

        Args:
            image: that was predicted: a path, PIL image or RGB array.
            alpha: weight of the colours, 0-1.

        Returns:
            (H, W, 3) uint8, RGB.

        Raises:
            DatasetError: the image has another size.
        """
        pixels = load_rgb(image, max(MAX_PIXELS, self.labels.size))
        if pixels.shape[:2] != self.labels.shape:
            raise DatasetError(
                f"got an image of {pixels.shape[0]} x {pixels.shape[1]} pixels for a prediction of "
                f"{self.labels.shape[0]} x {self.labels.shape[1]}; give the image that was predicted"
            )
        if self.segment_ids is None:
            return blend(pixels, self.color_image(), alpha)
        return overlay_segments(pixels, self.segment_ids, *self._classes_of_segments(), self.classes.colors, alpha)

    def visible_classes(self) -> list[int]:
        """Train ids that `color_image` shows, ascending."""
        if self.segment_ids is None:
            return [int(class_id) for class_id in np.unique(self.labels)]
        return sorted({segment.class_id for segment in self.segments})

    def _classes_of_segments(self) -> tuple[list[int], set[int]]:
        """Return the train id of each segment, and those of the things among them."""
        class_ids = [segment.class_id for segment in self.segments]
        return class_ids, {segment.class_id for segment in self.segments if segment.is_thing}

    def _require_scores(self) -> Tensor:
        if self.kept_scores is None:
            raise ValueError("the scores of this prediction were not kept; predict with keep_scores=True")
        return self.kept_scores.float()


def read_result(result: Mapping[str, Any], classes: ClassTable, *, keep_scores: bool, averaged: bool) -> Prediction:
    """Make a prediction of what a network returned for an image.

    Args:
        result: "sem_seg", scores (K, H, W), and perhaps "panoptic_seg", as Detectron2's panoptic networks return it.
        classes: of the network.
        keep_scores: keep the scores, too, 4 * K bytes a pixel.
        averaged: whether the scores are probabilities.
    """
    scores: Tensor = result["sem_seg"]
    labels = argmax_classes(scores).cpu().numpy()
    if labels.dtype != np.uint8:
        labels = labels.astype(np.uint16)  # of more classes than a byte can name
    kept = scores if keep_scores else None
    if "panoptic_seg" not in result:
        return Prediction(labels, classes, kept_scores=kept, averaged=averaged)
    panoptic, described = result["panoptic_seg"]
    ids, segments = read_segments(panoptic, described, classes)
    return Prediction(labels, classes, segments, ids, kept, averaged)
