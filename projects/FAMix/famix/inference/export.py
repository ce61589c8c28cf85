"""Export of semantic networks to torch.export's .pt2 and to ONNX, and comparison of an export with its network.

ONNX is converted from the torch.export graph by torch's own exporter, since the older one for TorchScript is deprecated.

Shapes: B images of H x W pixels, K classes.
"""

import importlib
import io
import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from famix.data.class_table import ClassTable
from famix.inference.predictor import SMALLEST_SIDE
from famix.modeling import FAMixSemanticSegmentor
from famix.utils.errors import ConfigError, WeightsError
from famix.utils.seeding import derive_seed

__all__ = [
    "MAX_DIFFERENCE",
    "MIN_EQUAL",
    "OPSET",
    "Agreement",
    "Network",
    "OnnxModel",
    "SemanticGraph",
    "compare",
    "export_graph",
    "make_image",
    "measure_latency",
    "require_agreement",
    "require_onnx",
    "write_onnx",
    "write_torch_export",
]

OPSET = 18
"""Version of the ONNX operators: the lowest that torch's exporter writes, and so the most portable."""

MAX_DIFFERENCE, MIN_EQUAL = 1e-3, 0.999
"""Limits of an export: difference of the probability of any class at any pixel, and share of pixels with equal labels."""

Network = Callable[[Tensor], Tensor]  # images (B, 3, H, W) -> logits (B, K, H, W)

_INPUT, _OUTPUT = "image", "logits"
_AXES = {0: "batch", 2: "height", 3: "width"}  # axes of input and output with any length
_MAX_LENGTHS = {"batch": 1024, "height": 1 << 14, "width": 1 << 14}
_EXAMPLE_SHAPE = (2, 3, 96, 128)  # torch.export takes 0 and 1 for fixed lengths
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class SemanticGraph(nn.Module):
    """Inference of a FAMixSemanticSegmentor as a function of tensors.

    Args:
        model: network in eval mode.
        image_format: channel order of the model's images, RGB or BGR; the graph always takes RGB.

    Raises:
        ConfigError: the network is of another type, or its backbone pads images.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, image_format: str = "RGB") -> None:
        super().__init__()
        head: Any = getattr(model, "sem_seg_head", None)
        if not isinstance(model, FAMixSemanticSegmentor) or not hasattr(head, "layers"):
            raise ConfigError(
                "MODEL.META_ARCHITECTURE must be FAMixSemanticSegmentor with a head that has `layers`, got "
                f"{type(model).__name__} with {type(head).__name__}. Use --format stripped."
            )
        divisor = model.backbone.size_divisibility
        if divisor > 1:
            raise ConfigError(
                f"backbone must take images of any size, got {type(model.backbone).__name__}, which pads them to multiples "
                f"of {divisor} pixels. Use --format stripped."
            )
        self.backbone, self.head = model.backbone, head
        self.is_reversed = image_format == "BGR"
        self.register_buffer("mean", model.pixel_mean.clone())
        self.register_buffer("std", model.pixel_std.clone())

    def forward(self, image: Tensor) -> Tensor:
        """Map RGB images (B, 3, H, W), uint8 or float32 in the range 0-255, to logits (B, K, H, W)."""
        ordered = image.flip(1) if self.is_reversed else image
        pixels = (ordered.float() - self.mean) / self.std
        logits = self.head.layers(self.backbone(pixels))
        return F.interpolate(logits, image.shape[-2:], mode="bilinear", align_corners=False)


def export_graph(graph: SemanticGraph, *, float_input: bool = False) -> ExportedProgram:
    """Trace a graph for any number and size of images.

    Args:
        graph: graph on the CPU.
        float_input: take float32 images instead of uint8, also in the range 0-255.
    """
    example = torch.zeros(_EXAMPLE_SHAPE, dtype=torch.float32 if float_input else torch.uint8)
    lowest = {"batch": 1, "height": SMALLEST_SIDE, "width": SMALLEST_SIDE}
    sizes = {axis: Dim(name, min=lowest[name], max=_MAX_LENGTHS[name]) for axis, name in _AXES.items()}
    return torch.export.export(graph.eval().requires_grad_(False), (example,), dynamic_shapes={_INPUT: sizes})


def write_torch_export(program: ExportedProgram, path: str | os.PathLike[str]) -> None:
    """Write a traced graph as a .pt2 file.

    Raises:
        OSError: the file cannot be written.
    """
    content = io.BytesIO()  # torch aborts the process when it writes to a full disk itself
    torch.export.save(program, content)
    Path(path).write_bytes(content.getbuffer())


def require_onnx() -> None:
    """Raise ConfigError unless the packages for ONNX are installed."""
    for name in _PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"--format onnx requires the package {name}, got: {error}. Run pip install {' '.join(_PACKAGES)}."
            ) from error


def write_onnx(program: ExportedProgram, path: str | os.PathLike[str], classes: ClassTable, **facts: str) -> None:
    """Write a traced graph as one ONNX file of opset `OPSET`, which describes its input, output and classes.

    Args:
        program: result of `export_graph`.
        path: the file, which is replaced.
        classes: classes of the network, stored as JSON lists "class_names" and "colors".
        **facts: further metadata.

    Raises:
        ConfigError: a package is missing.
        OSError: the file cannot be written.
    """
    require_onnx()
    with _quiet():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[_INPUT],
            output_names=[_OUTPUT],
            dynamic_shapes={_INPUT: _AXES},
            opset_version=OPSET,
            verbose=False,
        )
    assert exported is not None
    exported.model.metadata_props.update(
        {
            "class_names": json.dumps(classes.names),
            "colors": json.dumps([list(color) for color in classes.colors]),
            "input": f"{_INPUT}: (batch, 3, height, width), RGB, pixel values 0-255, not normalised",
            "output": f"{_OUTPUT}: (batch, classes, height, width); the index of the highest logit is the train id",
            **facts,
        }
    )
    Path(path).write_bytes(exported.model_proto.SerializeToString())  # its save() hides the error of a full disk


class OnnxModel:
    """An ONNX file in ONNX Runtime on the CPU.

    Args:
        path: the file.
        threads: threads per operator; None leaves them to ONNX Runtime.

    Raises:
        ConfigError: a package is missing.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int | None = None) -> None:
        require_onnx()
        runtime = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3  # errors only
        self._session = runtime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to logits (B, K, H, W)."""
        (logits,) = self._session.run([_OUTPUT], {_INPUT: images.numpy()})
        return torch.from_numpy(logits)


@dataclass(frozen=True)
class Agreement:
    """Agreement of two networks on an image.

    Attributes:
        size: (height, width) of the image.
        difference: largest difference of the probability of any class at any pixel.
        equal: share of the pixels with equal labels, 0 to 1.
    """

    size: tuple[int, int]
    difference: float
    equal: float


def make_image(size: tuple[int, int], seed: int = 0) -> Tensor:
    """Draw blobs of colour with noise, in which a network sees many classes: (1, 3, height, width) uint8."""
    generator = torch.Generator().manual_seed(derive_seed(seed, *size))
    coarse = torch.rand((1, 3, size[0] // 24 + 2, size[1] // 24 + 2), generator=generator)
    blobs = F.interpolate(coarse, size, mode="bicubic", align_corners=False)
    noise = torch.randn((1, 3, *size), generator=generator)
    return (255 * blobs + 12 * noise).clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def compare(reference: Network, other: Network, images: Sequence[Tensor]) -> list[Agreement]:
    """Compare two networks on images of shape (B, 3, H, W) each."""
    agreements = []
    for image in images:
        expected, got = reference(image), other(image)
        difference = (expected.softmax(dim=1) - got.softmax(dim=1)).abs().max().item()
        equal = (expected.argmax(dim=1) == got.argmax(dim=1)).float().mean().item()
        agreements.append(Agreement((image.shape[-2], image.shape[-1]), difference, equal))
    return agreements


def require_agreement(agreements: Sequence[Agreement], name: str) -> None:
    """Raise unless all agreements are within `MAX_DIFFERENCE` and `MIN_EQUAL`; NaN never is.

    Args:
        agreements: result of `compare`.
        name: name of the export for the error.

    Raises:
        WeightsError: names the first image beyond the limits.
    """
    for found in agreements:
        if not (found.difference <= MAX_DIFFERENCE and found.equal >= MIN_EQUAL):
            raise WeightsError(
                f"{name} must agree with the network, but on an image of {found.size[0]} x {found.size[1]} pixels "
                f"probabilities differ by up to {found.difference:.2g} (limit {MAX_DIFFERENCE}) and {found.equal:.2%} of the "
                f"labels are equal (limit {MIN_EQUAL:.1%}). Nothing was written; use --format stripped."
            )


@torch.no_grad()
def measure_latency(networks: Sequence[Network], image: Tensor, runs: int) -> list[list[float]]:
    """Time networks on an image in turns, so that other load on the machine affects all alike.

    Args:
        networks: networks on the CPU.
        image: (B, 3, H, W).
        runs: timed runs of each network, after one to warm up.

    Returns:
        Milliseconds of each run of each network.
    """
    times: list[list[float]] = [[] for _ in networks]
    for run in range(runs + 1):
        for network, taken in zip(networks, times, strict=True):
            start = time.perf_counter()
            network(image)
            if run:
                taken.append(1000 * (time.perf_counter() - start))
    return times


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's remarks on its own workings."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
