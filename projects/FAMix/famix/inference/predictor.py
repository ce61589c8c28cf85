"""A trained network as a function of an image."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from famix.data.class_table import ClassTable
from famix.data.images import MAX_PIXELS
from famix.evaluation import ProtocolInference, parse_protocol
from famix.evaluation.protocols.parts import LOGITS
from famix.evaluation.protocols.protocol import Protocol
from famix.evaluation.protocols.transforms import UNCHANGED
from famix.inference.background import read_ahead
from famix.inference.images import ImageSource, RGBImage, load_rgb
from famix.inference.loading import load_model
from famix.inference.prediction import Prediction, read_result
from famix.utils.errors import ConfigError, DatasetError
from famix.utils.meta_architecture import predicts

__all__ = ["SMALLEST_SIDE", "Predictor"]

SMALLEST_SIDE = 32
"""Pixels that a network needs along both sides of what it is shown: CLIP's last stage has a stride of 32."""


class Predictor:
    """A trained network, called with an image. Images are RGB: OpenCV's are BGR, `image[..., ::-1]` turns them round.

        predictor = famix.Predictor.from_checkpoint("output/famix/model_final.pth")
        prediction = predictor("street.jpg")
        prediction.labels                      # (H, W) train ids
        prediction.class_names                 # ("road", "sidewalk", ...)
        prediction.probabilities               # (K, H, W)
        prediction.overlay("street.jpg", 0.5)  # (H, W, 3) uint8, RGB

    Args:
        model: takes Detectron2's inputs and returns a dict with "sem_seg" per image.
        classes: that it tells apart.
        protocol: how it looks at an image, see docs/PROTOCOLS.md. Predictions have the size of the image, also where
            the protocol scores at another one.
        image_format: of the images that the network takes, RGB or BGR.
        window_batch: windows of a sliding window that the network gets at once.
        max_pixels: of an image, see INPUT.MAX_PIXELS.

    Raises:
        ConfigError: the protocol crops, so that parts of an image would be without prediction; another image format.
    """

    def __init__(
        self,
        model: nn.Module,
        classes: ClassTable,
        *,
        protocol: str | Protocol = "native",
        image_format: str = "RGB",
        window_batch: int = 1,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        protocol = parse_protocol(protocol) if isinstance(protocol, str) else protocol
        if protocol.image.crop is not None:
            raise ConfigError(
                f"protocol '{protocol.name}' cuts images to their centre, and says nothing of the rest; use one without a "
                "crop, see docs/PROTOCOLS.md"
            )
        if image_format not in ("RGB", "BGR"):
            raise ConfigError(f"INPUT.FORMAT is {image_format}, expected RGB or BGR")
        self.classes = classes
        self.protocol = replace(protocol, truth=UNCHANGED)
        self.image_format = image_format
        self.max_pixels = max_pixels
        self.inference = ProtocolInference(model.eval(), self.protocol, window_batch)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | os.PathLike[str],
        config: str | os.PathLike[str] | None = None,
        protocol: str = "native",
        device: str | torch.device | None = None,
        opts: Sequence[str] = (),
    ) -> "Predictor":
        """Load a network; neither CLIP's file nor a style bank nor the training data is needed.

        Args:
            path: a checkpoint; or the folder of a run, which stands for the weights that MODEL_SELECTION.USE names.
            config: the config that it was trained with; None takes the one inside a stripped checkpoint, else the
                config.yaml beside the checkpoint.
            protocol: how it looks at images, e.g. "half+flip", see docs/PROTOCOLS.md.
            device: of torch; None takes a GPU where there is one.
            opts: KEY VALUE KEY VALUE ..., which override the config.

        Raises:
            ConfigError: there is no config, it cannot be read, or the protocol or the device cannot be used.
            WeightsError: there is no checkpoint, it is damaged, or of another config.
        """
        parsed = parse_protocol(protocol)  # a mistake is told before a large file is read
        loaded = load_model(path, config, opts, device)
        architecture = loaded.cfg.MODEL.META_ARCHITECTURE
        if "panoptic_seg" in predicts(loaded.cfg) and not parsed.is_native:
            raise ConfigError(
                f"protocol '{parsed.name}' resizes or averages scores of classes, which says nothing of instances; use "
                f"native with {architecture}"
            )
        cfg = loaded.cfg
        return cls(
            loaded.model,
            loaded.classes,
            protocol=parsed,
            image_format=cfg.INPUT.FORMAT,
            window_batch=cfg.TEST.WINDOW_BATCH,
            max_pixels=cfg.INPUT.MAX_PIXELS,
        )

    def __call__(self, image: ImageSource, *, keep_scores: bool = True) -> Prediction:
        """Predict one image.

        Args:
            image: path of a file, a PIL image, or an array (H, W, 3) uint8 in RGB order.
            keep_scores: False saves the memory of `scores` and `probabilities`, which are then not to be had.

        Raises:
            DatasetError: the image cannot be read, has another shape or type, is too small, or larger than `max_pixels`.
        """
        (prediction,) = self._predict([load_rgb(image, self.max_pixels)], keep_scores)
        return prediction

    def predict_many(
        self, images: Iterable[ImageSource], *, batch_size: int = 1, keep_scores: bool = False
    ) -> Iterator[Prediction]:
        """Predict images one by one as they are asked for; files are read in a thread meanwhile.

        Args:
            images: as for a call; iterated over lazily, so that it may be endless.
            batch_size: images that go through the network at once, where they follow each other and have one size, so
                that none is padded.
            keep_scores: keep `scores` and `probabilities`, 4 * K bytes a pixel.

        Yields:
            A prediction for every image, in their order.

        Raises:
            DatasetError: see `__call__`; the images before have been yielded.
        """
        loaded = read_ahead((load_rgb(image, self.max_pixels) for image in images), ahead=max(4, batch_size))
        for batch in _batches(loaded, batch_size):
            yield from self._predict(batch, keep_scores)

    @torch.inference_mode()
    def _predict(self, images: Sequence[RGBImage], keep_scores: bool) -> list[Prediction]:
        results = self.inference([self._input(image) for image in images])
        averaged = self.protocol.averages and self.protocol.average != LOGITS
        return [read_result(result, self.classes, keep_scores=keep_scores, averaged=averaged) for result in results]

    def _input(self, image: RGBImage) -> dict[str, Any]:
        height, width = image.shape[:2]
        if (
            min(min(self.protocol.view_size((height, width), scale)) for scale, _ in self.protocol.views)
            < SMALLEST_SIDE
        ):
            raise DatasetError(
                f"got an image of {height} x {width} pixels, of which the network would be shown less than "
                f"{SMALLEST_SIDE} along a side under the protocol '{self.protocol.name}'; give a larger one"
            )
        ordered = image if self.image_format == "RGB" else image[..., ::-1]
        return {"image": _channels_first(ordered), "height": height, "width": width}


def _channels_first(image: RGBImage) -> Tensor:
    return torch.from_numpy(image.transpose(2, 0, 1).copy())


def _batches(images: Iterator[RGBImage], batch_size: int) -> Iterator[list[RGBImage]]:
    """Put images that follow each other together, up to a number, as long as they have one size."""
    batch: list[RGBImage] = []
    try:
        for image in images:
            if batch and (len(batch) == batch_size or batch[0].shape != image.shape):
                yield batch
                batch = []
            batch.append(image)
    except DatasetError:
        if batch:
            yield batch  # what came before the bad image
        raise
    if batch:
        yield batch
