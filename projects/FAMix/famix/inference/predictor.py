"""Prediction with a trained network."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import nn

from famix.data.classes import ClassTable
from famix.data.images import MAX_PIXELS
from famix.data.meta_architecture import predicts
from famix.evaluation import ProtocolInference, parse_protocol
from famix.evaluation.protocols.inference import predicts_probabilities
from famix.evaluation.protocols.parts import LOGITS
from famix.evaluation.protocols.protocol import Protocol
from famix.evaluation.protocols.transforms import UNCHANGED
from famix.inference.background import read_ahead
from famix.inference.hub import HUB
from famix.inference.images import ImageSource, RGBImage, load_rgb
from famix.inference.loading import LoadedModel, load_model
from famix.inference.prediction import Prediction, read_result
from famix.utils.errors import ConfigError, DatasetError
from famix.utils.messages import counted, first_few

SMALLEST_SIDE = 32
"""Minimum side length of a network input in pixels, because the last stage of CLIP has a stride of 32."""


class Predictor:
    """A trained network as a function of an RGB image. OpenCV images are BGR; reverse them with `image[..., ::-1]`.

        predictor = famix.Predictor.from_checkpoint("output/famix/model_final.pth")
        prediction = predictor("street.jpg")
        prediction.labels                      # (H, W) train ids
        prediction.class_names                 # ("road", "sidewalk", ...)
        prediction.probabilities               # (K, H, W)
        prediction.overlay("street.jpg", 0.5)  # (H, W, 3) uint8, RGB

    Args:
        model: network that maps Detectron2 inputs to one dict with "sem_seg" per image.
        classes: classes of the network.
        protocol: inference protocol (see docs/PROTOCOLS.md). Predictions always have the size of the image.
        image_format: channel order of the network input, RGB or BGR.
        window_batch: number of sliding windows per forward pass.
        max_pixels: size limit for images (see INPUT.MAX_PIXELS).

    Raises:
        ConfigError: the protocol crops images, or the image format is unknown.
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
                f"protocol must cover the whole image, got '{protocol.name}', which crops it. Use one without a crop (see "
                "docs/PROTOCOLS.md)."
            )
        if image_format not in ("RGB", "BGR"):
            raise ConfigError(f"INPUT.FORMAT must be RGB or BGR, got {image_format}. Set INPUT.FORMAT to one of them.")
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
        """Load a network without CLIP weights, style bank or training data.

        Args:
            path, config, device, opts: see `load_model`.
            protocol: inference protocol, e.g. "half+flip" (see docs/PROTOCOLS.md).

        Raises:
            ConfigError: the protocol is invalid or not supported by the network. See also `load_model`.
            WeightsError: see `load_model`.
        """
        parsed = parse_protocol(protocol)  # rejected before a large file is read
        return cls.from_loaded(load_model(path, config, opts, device), parsed)

    @classmethod
    def from_loaded(cls, loaded: LoadedModel, protocol: str | Protocol = "native") -> "Predictor":
        """Wrap a network that `load_model` has loaded.

        Raises:
            ConfigError: the protocol is invalid or not supported by the network.
        """
        parsed = parse_protocol(protocol) if isinstance(protocol, str) else protocol
        cfg = loaded.cfg
        if "panoptic_seg" in predicts(cfg) and not parsed.is_native:
            raise ConfigError(
                f"--protocol must be native for {cfg.MODEL.META_ARCHITECTURE}, got '{parsed.name}'. Resizing and averaging "
                "are not supported for instances. Use --protocol native."
            )
        return cls(
            loaded.model,
            loaded.classes,
            protocol=parsed,
            image_format=cfg.INPUT.FORMAT,
            window_batch=cfg.TEST.WINDOW_BATCH,
            max_pixels=cfg.INPUT.MAX_PIXELS,
        )

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        protocol: str = "native",
        device: str | torch.device | None = None,
        opts: Sequence[str] = (),
    ) -> "Predictor":
        """Load a network that famix-publish uploaded to a model hub.

        Args:
            name: "OWNER/NAME" or "OWNER/NAME@REVISION", where a revision is a branch, tag or commit.
            protocol, device, opts: see `from_checkpoint`.

        Raises:
            ConfigError: the name is malformed, or huggingface_hub is not installed. See also `from_checkpoint`.
            WeightsError: the network does not exist, cannot be downloaded or is damaged.
        """
        return cls.from_checkpoint(f"{HUB}{name.removeprefix(HUB)}", protocol=protocol, device=device, opts=opts)

    def __repr__(self) -> str:
        model = self.inference.model
        device = next((parameter.device for parameter in model.parameters()), "no device")
        names = first_few(self.classes.names)
        return f"Predictor({type(model).__name__} on {device}, {self.protocol.name}, {counted(len(self.classes.names), 'class')}: {names})"

    def __call__(self, image: ImageSource, *, keep_scores: bool = True) -> Prediction:
        """Predict one image.

        Args:
            image: path, PIL image, or array (H, W, 3) uint8 in RGB order.
            keep_scores: whether to keep `scores` and `probabilities`, which need 4 * K bytes per pixel.

        Raises:
            DatasetError: the image cannot be read, has the wrong shape or dtype, is too small, or exceeds `max_pixels`.
        """
        (prediction,) = self._predict([load_rgb(image, self.max_pixels)], keep_scores)
        return prediction

    def predict_many(
        self, images: Iterable[ImageSource], *, batch_size: int = 1, keep_scores: bool = False
    ) -> Iterator[Prediction]:
        """Predict images lazily while a thread reads the next files.

        Args:
            images: images as in `__call__`, possibly an endless stream.
            batch_size: maximum number of images per forward pass. Only consecutive images of the same size share a pass,
                so no image is padded.
            keep_scores: whether to keep `scores` and `probabilities`, which need 4 * K bytes per pixel.

        Yields:
            The prediction for each image, in order.

        Raises:
            DatasetError: see `__call__`. It is raised after the predictions for all earlier images.
        """
        loaded = read_ahead((load_rgb(image, self.max_pixels) for image in images), ahead=max(4, batch_size))
        batch: list[RGBImage] = []
        try:
            for image in loaded:
                if batch and (len(batch) == batch_size or batch[0].shape != image.shape):
                    ready, batch = batch, []
                    yield from self._predict(ready, keep_scores)
                batch.append(image)
        except DatasetError:
            if batch:
                yield from self._predict(batch, keep_scores)
            raise
        if batch:
            yield from self._predict(batch, keep_scores)

    @torch.inference_mode()
    def _predict(self, images: Sequence[RGBImage], keep_scores: bool) -> list[Prediction]:
        inputs = []
        for image in images:
            height, width = image.shape[:2]
            sides = [self.protocol.view_size((height, width), scale) for scale, _ in self.protocol.views]
            if min(map(min, sides)) < SMALLEST_SIDE:
                raise DatasetError(
                    f"image must have at least {SMALLEST_SIDE} pixels along each side under the protocol "
                    f"'{self.protocol.name}', got {height} x {width} pixels. Use a larger image."
                )
            ordered = image if self.image_format == "RGB" else image[..., ::-1]
            pixels = torch.from_numpy(ordered.transpose(2, 0, 1).copy())
            inputs.append({"image": pixels, "height": height, "width": width})
        averaged = self.protocol.averages and self.protocol.average != LOGITS
        normalize = predicts_probabilities(self.inference.model)
        results = self.inference(inputs)
        options = {"keep_scores": keep_scores, "averaged": averaged or normalize, "normalize": normalize}
        return [read_result(result, self.classes, **options) for result in results]
