"""Segmentors with known predictions, for tests of evaluation and inference."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.modeling.postprocessing import sem_seg_postprocess
from torch import Tensor, nn

from famix.evaluation.protocols.inference import ProtocolInference
from famix.evaluation.protocols.protocol import Protocol, parse_protocol
from famix.evaluation.protocols.transforms import SlidingWindow


class PerPixel(nn.Module):
    """A segmentor whose logits depend on the pixel alone, so that whole image, windows and mirror images agree."""

    num_classes = 4

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, self.num_classes, 1, bias=False)
        generator = torch.Generator().manual_seed(0)
        nn.init.normal_(self.projection.weight, std=1 / 64, generator=generator)
        self.seen: list[list[tuple[int, ...]]] = []  # (height, width) of the images of each call

    def forward(self, batched_inputs: Sequence[dict[str, Any]]) -> Any:
        if self.training:
            return {"loss": self.projection(batched_inputs[0]["image"][None].float()).mean()}
        self.seen.append([tuple(inputs["image"].shape[-2:]) for inputs in batched_inputs])
        return [{"sem_seg": self.predict(**inputs)} for inputs in batched_inputs]

    def predict(self, image: Tensor, height: int | None = None, width: int | None = None, **others: Any) -> Tensor:
        size = tuple(image.shape[-2:])
        return sem_seg_postprocess(self.logits(image.float()), size, height or size[0], width or size[1])

    def logits(self, image: Tensor) -> Tensor:
        return self.projection(image[None])[0]


class Contextual(PerPixel):
    """A segmentor whose logits depend on the surroundings and the position of a pixel."""

    def logits(self, image: Tensor) -> Tensor:
        ramp = torch.linspace(0, 1, image.shape[-1])
        return super().logits(F.avg_pool2d(image[None], 3, 1, 1)[0]) + ramp


def predict(
    model: nn.Module, protocol: Protocol | str, batch: Sequence[dict[str, Any]], **options: Any
) -> list[Tensor]:
    """Return the scores of each image of a batch under a protocol."""
    protocol = parse_protocol(protocol) if isinstance(protocol, str) else protocol
    with torch.no_grad():
        return [result["sem_seg"] for result in ProtocolInference(model.eval(), protocol, **options)(batch)]


def show(model: nn.Module, image: Tensor, size: Sequence[int]) -> Tensor:
    """Return the scores of a model for an image at a size, without a protocol."""
    with torch.no_grad():
        (result,) = model.eval()([{"image": image, "height": size[0], "width": size[1]}])
    return result["sem_seg"]


def windowed(size: int, stride: int, **fields: Any) -> Protocol:
    """Make a protocol with a sliding window."""
    return Protocol(name="windowed", window=SlidingWindow(size, stride), **fields)
