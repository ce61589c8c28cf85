"""Any semantic model of Detectron2's, used as an evaluation protocol says."""

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from famix.evaluation.protocols.parts import LOGITS
from famix.evaluation.protocols.protocol import Protocol
from famix.evaluation.protocols.resampling import Size, resize_normalized_released, resize_scores, size_of
from famix.evaluation.protocols.sliding import slide
from famix.utils.errors import ConfigError, DatasetError

__all__ = ["ProtocolInference"]

_MEAN, _STD = "pixel_mean", "pixel_std"


class ProtocolInference(nn.Module):
    """A model that predicts as a protocol says; in train mode it is the model itself.

    Views of an image (scales, mirror images) are predicted one after the other and summed up, windows into one map of
    their view, so that memory does not grow with the number of either. A protocol that averages nothing returns what
    the model returns, e.g. logits; one that averages returns the mean of softmax probabilities, or of what the model
    returns where it has the part `logits`.

    Args:
        model: takes Detectron2's inputs and returns a dict with "sem_seg" per image, scores (K, height, width).
        protocol: see `famix.evaluation.parse_protocol`.
        window_batch: windows that the model gets at once.
    """

    def __init__(self, model: nn.Module, protocol: Protocol, window_batch: int = 1) -> None:
        super().__init__()
        self.model = model
        self.protocol = protocol
        self.window_batch = window_batch
        self.training = model.training  # what evaluates a model puts it back into the mode that it was in

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Losses in training, predictions otherwise.

        Args:
            batched_inputs: dicts with "image" (C, H, W) and optionally "height" and "width", the size of the image
                file; other entries reach the model in train mode and under the protocol "native" alone.

        Returns:
            In training what the model returns; otherwise one dict per image with "sem_seg" (K, height, width), scores
            of the size that `Protocol.prepare_labels` gives to labels of the image file's size.

        Raises:
            ConfigError: the model's predictions are not of the size that it was asked for.
            DatasetError: an image is smaller than the model can take under the protocol.
        """
        if not self.training:
            for inputs in batched_inputs:
                self._require_size(inputs)
        if self.training or self.protocol.is_native:
            return self.model(batched_inputs)
        with torch.no_grad():
            return [{"sem_seg": self._score(inputs)} for inputs in batched_inputs]

    def _require_size(self, inputs: dict[str, Any]) -> None:
        smallest = _smallest_side(self.model)
        size, window = size_of(inputs["image"]), self.protocol.window
        sides = [side for scale, _ in self.protocol.views for side in self.protocol.view_size(size, scale)]
        if min(*sides, *((window.size,) if window else ())) < smallest:
            raise DatasetError(
                f"{inputs.get('file_name', 'an image')} must leave the network at least {smallest} pixels a side under the "
                f"protocol '{self.protocol.name}', got an image of {size[0]} x {size[1]} (height x width). Leave it out, or set "
                "another TEST.PROTOCOL."
            )

    def _score(self, inputs: dict[str, Any]) -> Tensor:
        image = inputs["image"].to(self._device(inputs["image"]))
        size = inputs.get("height", image.shape[-2]), inputs.get("width", image.shape[-1])
        scored_size, views = self.protocol.scored_size(size), self.protocol.views
        if not self.protocol.averages:
            ((scale, _),) = views
            return self._whole(self._view(image, size, scale), scored_size)
        total: Tensor | None = None
        for scale, mirrored in views:
            total = _add(total, self._view_scores(self._view(image, size, scale), mirrored, scored_size))
        assert total is not None
        return total.div_(len(views))

    def _view(self, image: Tensor, size: Size, scale: float) -> Tensor:
        """A scale of the framed image: of pixel values, or normalised where it shrinks as in the released program."""
        if not self.protocol.released:
            return self.protocol.image.view(image, size, scale)
        framed = self.protocol.image.view(image, size)
        buffers = _normalization(self.model)
        normalized = (framed - buffers[_MEAN][1]) / buffers[_STD][1] if buffers else framed.float()
        return resize_normalized_released(normalized, self.protocol.view_size(size, scale))

    def _whole(self, view: Tensor, size: Size) -> Tensor:
        """Scores (K, height, width) of a view that is shown whole."""
        if not self.protocol.released:
            return self._predict([view], size)[0]
        return resize_scores(self._predict([view], size_of(view))[0], size, align_corners=True)

    def _view_scores(self, view: Tensor, mirrored: bool, size: Size) -> Tensor:
        """What is averaged, of one view; the tensor is the caller's to change."""
        view, window = view.flip(-1) if mirrored else view, self.protocol.window
        if window is None or window.count(size_of(view)) == 1:
            scores = self._averaged(self._whole(view, size))
        else:
            put_together = slide(view, window, self._window_scores, self.window_batch)
            scores = resize_scores(put_together, size, align_corners=self.protocol.released)
        return scores.flip(-1) if mirrored else scores

    def _window_scores(self, windows: list[Tensor]) -> list[Tensor]:
        return [self._averaged(scores) for scores in self._predict(windows, size_of(windows[0]))]

    def _averaged(self, scores: Tensor) -> Tensor:
        if self.protocol.average == LOGITS:
            return scores.to(torch.float32, copy=True)
        return scores.softmax(dim=0, dtype=torch.float32)

    def _predict(self, images: list[Tensor], size: Size) -> list[Tensor]:
        height, width = size
        inputs = [{"image": image, "height": height, "width": width} for image in images]
        results = self._show_normalized(inputs) if self.protocol.released else self.model(inputs)
        scores = [result["sem_seg"] for result in results]
        for got in scores:
            if size_of(got) != size:
                raise ConfigError(
                    f"protocol '{self.protocol.name}' asked the model for scores of {height} x {width} pixels, but got a "
                    f"tensor of shape {tuple(got.shape)}; the model must keep to 'height' and 'width' of its inputs"
                )
        return scores

    def _show_normalized(self, inputs: list[dict[str, Any]]) -> Any:
        """What the model returns for images that are normalised already."""
        buffers = _normalization(self.model)
        if not buffers:
            return self.model(inputs)
        (mean, mean_values), (std, std_values) = buffers[_MEAN], buffers[_STD]
        neutral = {mean: torch.zeros_like(mean_values), std: torch.ones_like(std_values)}
        return functional_call(self.model, neutral, (inputs,))

    def _device(self, image: Tensor) -> torch.device:
        weights = next(chain(self.model.parameters(), self.model.buffers()), image)
        return weights.device


def _normalization(model: nn.Module) -> dict[str, tuple[str, Tensor]]:
    """The buffers that Detectron2's models normalise images by: last part of the name -> name and value; or nothing."""
    found = {name.rpartition(".")[2]: (name, value) for name, value in model.named_buffers()}
    return {part: found[part] for part in (_MEAN, _STD)} if {_MEAN, _STD} <= found.keys() else {}


def _smallest_side(model: nn.Module) -> int:
    """Pixels that a model needs along both sides; 1 where it pads images itself, or nothing is known."""
    model = getattr(model, "module", model)
    if getattr(model, "size_divisibility", 0) > 1:
        return 1
    return int(getattr(getattr(model, "backbone", None), "smallest_side", 1))


def _add(total: Tensor | None, scores: Tensor) -> Tensor:
    return scores if total is None else total.add_(scores)
