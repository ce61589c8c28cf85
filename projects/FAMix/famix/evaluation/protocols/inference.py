"""Inference with any semantic segmentation model under an evaluation protocol."""

from collections.abc import Callable
from functools import reduce
from itertools import chain, product
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from famix.evaluation.protocols.parts import LOGITS
from famix.evaluation.protocols.protocol import Protocol
from famix.evaluation.protocols.transforms import Size, SlidingWindow, resize_bilinear, size_of
from famix.utils.errors import ConfigError, DatasetError


class ProtocolInference(nn.Module):
    """Wrapper that makes a model predict under a protocol. In training mode, it only calls the model.

    Views of an image (scales, flips) and windows are predicted one after another and summed, so memory does not grow with
    their number. A protocol that averages nothing returns the model's output, e.g. logits. Any other protocol returns mean
    softmax probabilities or, with the part `logits`, mean model outputs. Outputs of a model with the class attribute
    `SCORES = "probabilities"` are averaged without softmax.

    Args:
        model: model that maps Detectron2's inputs to one dict per image with "sem_seg", scores (K, height, width).
        protocol: evaluation protocol, see `famix.evaluation.parse_protocol`.
        window_batch: number of windows per forward pass.
    """

    def __init__(self, model: nn.Module, protocol: Protocol, window_batch: int = 1) -> None:
        super().__init__()
        self.model = model
        self.protocol = protocol
        self.window_batch = window_batch
        self.applies_softmax = protocol.average != LOGITS and not predicts_probabilities(model)
        self.training = model.training  # inference_on_dataset restores this mode

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Return losses in training mode, and predictions otherwise.

        Args:
            batched_inputs: dicts with "image" (C, H, W) and optionally "height" and "width", the size of the image
                file. Other entries reach the model only in training mode or under the protocol "native".

        Returns:
            One dict per image with "sem_seg", scores (K, height, width) at `Protocol.scored_size` of the image file.

        Raises:
            ConfigError: the model's predictions differ in size from the requested "height" and "width".
            DatasetError: an image is too small for the model under the protocol.
        """
        if self.training:
            return self.model(batched_inputs)
        for inputs in batched_inputs:
            self._check_size(inputs)
        if self.protocol.is_native:
            return self.model(batched_inputs)
        with torch.no_grad():
            return [{"sem_seg": self._predict_image(inputs)} for inputs in batched_inputs]

    def _check_size(self, inputs: dict[str, Any]) -> None:
        model = getattr(self.model, "module", self.model)
        if getattr(model, "size_divisibility", 0) > 1:
            return  # the model pads images
        smallest = int(getattr(getattr(model, "backbone", None), "smallest_side", 1))
        size, window = size_of(inputs["image"]), self.protocol.window
        sides = [side for scale, _ in self.protocol.views for side in self.protocol.view_size(size, scale)]
        if min(*sides, *((window.size,) if window else ())) < smallest:
            raise DatasetError(
                f"Image '{inputs.get('file_name', 'unknown')}' has {size[0]} x {size[1]} pixels (height x width), which leaves the "
                f"network fewer than {smallest} per side under the protocol '{self.protocol.name}'. Remove the image, or "
                "use another TEST.PROTOCOL."
            )

    def _predict_image(self, inputs: dict[str, Any]) -> Tensor:
        device = next(chain(self.model.parameters(), self.model.buffers()), inputs["image"]).device
        image = inputs["image"].to(device)
        size = inputs.get("height", image.shape[-2]), inputs.get("width", image.shape[-1])
        views = self.protocol.views
        scores = reduce(Tensor.add_, (self._predict_view(image, size, *view) for view in views))
        return scores.div_(len(views)) if self.protocol.averages else scores

    def _predict_view(self, image: Tensor, size: Size, scale: float, flipped: bool) -> Tensor:
        """Return the scores for one view at the size of the ground truth. Scores to be averaged are copied."""
        released, window, scored_size = self.protocol.released, self.protocol.window, self.protocol.scored_size(size)
        if released:
            view, statistics = self.protocol.image.apply_image(image, size).float(), self._pixel_statistics()
            if statistics:
                mean, std = statistics.values()
                view = (view - mean) / std
            view = resize_bilinear(view, self.protocol.view_size(size, scale), align_corners=True)
        else:
            view = self.protocol.image.apply_image(image, size, scale)
        view = view.flip(-1) if flipped else view
        if window is None or window.count(size_of(view)) == 1:
            (scores,) = self._call_model([view], size_of(view) if released else scored_size)
            scores = self._averaged(resize_bilinear(scores, scored_size, align_corners=released))
        else:
            scores = slide(view, window, self._predict_windows, self.window_batch)
            scores = resize_bilinear(scores, scored_size, align_corners=released)
        return scores.flip(-1) if flipped else scores

    def _predict_windows(self, windows: list[Tensor]) -> list[Tensor]:
        return [self._averaged(scores) for scores in self._call_model(windows, size_of(windows[0]))]

    def _averaged(self, scores: Tensor) -> Tensor:
        if not self.protocol.averages:
            return scores
        if self.applies_softmax:
            return scores.softmax(dim=0, dtype=torch.float32)
        return scores.to(torch.float32, copy=True)

    def _call_model(self, images: list[Tensor], size: Size) -> list[Tensor]:
        """Return the model's scores at the given size. Images of a `released` protocol are already normalized."""
        inputs = [{"image": image, "height": size[0], "width": size[1]} for image in images]
        statistics = self._pixel_statistics() if self.protocol.released else {}
        neutral = {name: torch.full_like(value, name.endswith("std")) for name, value in statistics.items()}
        results = functional_call(self.model, neutral, (inputs,)) if neutral else self.model(inputs)
        scores = [result["sem_seg"] for result in results]
        for got in scores:
            if size_of(got) != size:
                raise ConfigError(
                    f"Protocol '{self.protocol.name}': the model returned scores of shape {tuple(got.shape)}, but 'height' and "
                    f"'width' request {size[0]} x {size[1]}. Resize the scores in the model."
                )
        return scores

    def _pixel_statistics(self) -> dict[str, Tensor]:
        """Return the pixel_mean and pixel_std buffers of a Detectron2 model, or {} if it has none."""
        found = {name.rpartition(".")[2]: (name, value) for name, value in self.model.named_buffers()}
        names = ("pixel_mean", "pixel_std")
        return dict(found[name] for name in names) if found.keys() >= set(names) else {}


def predicts_probabilities(model: nn.Module) -> bool:
    """Return whether a model, possibly wrapped, declares that "sem_seg" are unnormalized probabilities, not logits."""
    return getattr(getattr(model, "module", model), "SCORES", "logits") == "probabilities"


def slide(
    image: Tensor, window: SlidingWindow, predict: Callable[[list[Tensor]], list[Tensor]], batch_size: int = 1
) -> Tensor:
    """Average the scores of sliding windows at every pixel, storing only one score map and one batch of scores.

    Args:
        image: (C, H, W) image.
        window: size and stride of the windows.
        predict: function that maps a list of crops (C, h, w) to their scores (K, h, w).
        batch_size: number of windows per call of `predict`, at least 1.

    Returns:
        (K, H, W) scores of the same type.
    """
    height, width = size_of(image)
    places = list(product(window.spans(height), window.spans(width)))
    total = count = image.new_zeros(0)
    for first in range(0, len(places), batch_size):
        batch = places[first : first + batch_size]
        for (rows, columns), scores in zip(batch, predict([image[:, *place] for place in batch]), strict=True):
            if not len(total):
                total, count = scores.new_zeros((len(scores), height, width)), scores.new_zeros((height, width))
            total[:, rows, columns] += scores
            count[rows, columns] += 1
        del scores  # before the next batch is predicted
    return total.div_(count)
