"""Export of networks to .pt2 (torch.export) and ONNX, and comparison of an export with the original network.

PyTorch's own exporter converts the torch.export graph to ONNX. Shapes: B images of H x W pixels, K classes.
"""

import importlib
import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from famix.clip.adapters import merge_adapters
from famix.data.classes import ClassTable
from famix.inference.predictor import SMALLEST_SIDE
from famix.inference.query_graph import QueryGraph
from famix.modeling import FAMixSemanticSegmentor
from famix.modeling.query import MaskFormer
from famix.utils.errors import ConfigError, WeightsError
from famix.utils.seeding import derive_seed

OPSET = 18
"""ONNX opset version: the lowest, and therefore most portable, that PyTorch's exporter supports."""

MAX_DIFFERENCE, MIN_EQUAL = 1e-3, 0.999
"""Limits for an export: largest difference in any class probability, and smallest fraction of pixels with equal labels."""

Network = Callable[[Tensor], Tensor]  # images (B, 3, H, W) -> scores (B, K, H, W)

_INPUT = "image"
_AXES = {0: "batch", 2: "height", 3: "width"}  # variable-length axes of the input and output
_RANGES = {"batch": (1, 1024), "height": (SMALLEST_SIDE, 1 << 14), "width": (SMALLEST_SIDE, 1 << 14)}
_EXAMPLE_BATCH, _EXAMPLE_SIZE = 2, (96, 128)  # torch.export would treat lengths of 0 and 1 as fixed
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class SemanticGraph(nn.Module):
    """Inference with a FAMixSemanticSegmentor as a function of tensors.

    Args:
        model: network in eval mode. Its adapters are merged into the weights in place.
        image_format: channel order that the model expects, RGB or BGR. The graph itself always expects RGB.

    Raises:
        ConfigError: the network is not a FAMixSemanticSegmentor.
    """

    mean: Tensor
    std: Tensor
    divisor = 1  # height and width of images must be multiples of it in an export
    size: ClassVar = None  # height and width of images are free
    outputs: ClassVar = {"logits": "(batch, classes, height, width); the index of the highest logit is the train id"}
    facts: ClassVar = {"tasks": '["semantic"]', "things": "[]"}

    def __init__(self, model: nn.Module, image_format: str = "RGB") -> None:
        super().__init__()
        head: Any = getattr(model, "sem_seg_head", None)
        if not isinstance(model, FAMixSemanticSegmentor) or not hasattr(head, "layers"):
            raise ConfigError(
                "MODEL.META_ARCHITECTURE must be FAMixMaskFormer, or FAMixSemanticSegmentor with a head that has `layers`, got "
                f"{type(model).__name__} with {type(head).__name__}. Use --format stripped."
            )
        merge_adapters(model.backbone)
        self.divisor = max(1, model.backbone.size_divisibility)
        self.backbone, self.head = model.backbone, head
        self.is_reversed = image_format == "BGR"
        self.register_buffer("mean", model.pixel_mean.clone())
        self.register_buffer("std", model.pixel_std.clone())

    def forward(self, image: Tensor) -> Tensor:
        """Compute logits (B, K, H, W) from RGB images (B, 3, H, W), uint8 or float32 in the range 0-255."""
        ordered = image.flip(1) if self.is_reversed else image
        pixels = (ordered.float() - self.mean) / self.std
        height, width = image.shape[-2:]
        if not torch.compiler.is_exporting():
            pixels = F.pad(pixels, (0, -width % self.divisor, 0, -height % self.divisor))
        logits = self.head.layers(self.backbone(pixels))
        logits = F.interpolate(logits, pixels.shape[-2:], mode="bilinear", align_corners=False)
        return logits[..., :height, :width]


Graph: TypeAlias = SemanticGraph | QueryGraph


def make_graph(model: nn.Module, size: tuple[int, int], image_format: str = "RGB") -> Graph:
    """Make the graph of a network. Raises ConfigError if the network has none.

    Args:
        model: network in eval mode. Its adapters are merged into the weights in place.
        size: height and width of images in exports of query heads. Other graphs accept any size.
        image_format: channel order that the model expects, RGB or BGR. The graph itself always expects RGB.
    """
    return (
        QueryGraph(model, size, image_format) if isinstance(model, MaskFormer) else SemanticGraph(model, image_format)
    )


def export_graph(graph: Graph, *, float_input: bool = False) -> ExportedProgram:
    """Trace a graph on the CPU for any number of images, uint8 or float32 in the range 0-255.

    Height and width are `graph.size`. If it is None, they can have any value or, if the backbone pads images, any multiple
    of its divisor.
    """
    shape = (_EXAMPLE_BATCH, 3, *(graph.size or _EXAMPLE_SIZE))
    example = torch.zeros(shape, dtype=torch.float32 if float_input else torch.uint8)
    sizes: dict[int, Any] = {}
    for axis, name in _free_axes(graph).items():
        least, most = _RANGES[name]
        unit = graph.divisor if axis else 1
        sizes[axis] = (
            Dim(name, min=least, max=most) if unit == 1 else unit * Dim(f"{name}_units", min=2, max=most // unit)
        )
    return torch.export.export(graph.eval().requires_grad_(False), (example,), dynamic_shapes={_INPUT: sizes})


def _free_axes(graph: Graph) -> dict[int, str]:
    return {axis: name for axis, name in _AXES.items() if not (axis and graph.size)}


def write_torch_export(program: ExportedProgram, path: str | os.PathLike[str]) -> None:
    """Write a traced graph to a .pt2 file. Raises OSError if the file cannot be written."""
    content = io.BytesIO()  # torch itself would abort the process on a full disk
    torch.export.save(program, content)
    Path(path).write_bytes(content.getbuffer())


def require_onnx() -> None:
    """Raise ConfigError unless the ONNX packages are installed."""
    for name in _PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"--format onnx requires the package {name} ({error}). Run 'pip install {' '.join(_PACKAGES)}'."
            ) from error


def load_torch_export(path: str | os.PathLike[str]) -> Network:
    """Load a .pt2 file as a function from images to scores."""
    module = torch.export.load(path).module()
    return lambda images: scores_of(module(images))


def scores_of(outputs: Tensor | Mapping[str, Tensor]) -> Tensor:
    """Return the scores (B, K, H, W) in the result of a graph."""
    return outputs if isinstance(outputs, Tensor) else outputs["scores"]


def write_onnx(
    program: ExportedProgram, path: str | os.PathLike[str], graph: Graph, classes: ClassTable, **facts: str
) -> None:
    """Write a traced graph to a single ONNX file with opset `OPSET`.

    The metadata describe the input, the outputs and the classes, the latter as JSON lists "class_names" and "colors", and
    include `graph.facts` and `facts`.

    Raises:
        ConfigError: a package is missing.
        OSError: the file cannot be written.
    """
    require_onnx()
    height, width = graph.size or ("height", "width")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"):
        exported = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[_INPUT],
            output_names=list(graph.outputs),
            dynamic_shapes={_INPUT: _free_axes(graph)},
            opset_version=OPSET,
            verbose=False,
        )
    assert exported is not None
    exported.model.metadata_props.update(
        {
            "class_names": json.dumps(classes.names),
            "colors": json.dumps([list(color) for color in classes.colors]),
            "input": f"{_INPUT}: (batch, 3, {height}, {width}), RGB, pixel values 0-255, not normalized",
            "size": f"{height}x{width}" if graph.size else "free",
            "output": "\n".join(f"{name}: {description}" for name, description in graph.outputs.items()),
            **graph.facts,
            **facts,
        }
    )
    Path(path).write_bytes(exported.model_proto.SerializeToString())  # its save() hides the error if the disk is full


def load_onnx(path: str | os.PathLike[str], threads: int = 0) -> Network:
    """Load an ONNX file as a function from images to scores.

    It runs in ONNX Runtime on the CPU, with `threads` threads per operator (0 for its default).
    """
    require_onnx()
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only
    session = runtime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    scores = session.get_outputs()[-1].name
    return lambda images: torch.from_numpy(session.run([scores], {_INPUT: images.numpy()})[0])


def make_image(size: tuple[int, int], seed: int = 0) -> Tensor:
    """Create an image of noisy color blobs, (1, 3, height, width) uint8, in which a network predicts many classes."""
    generator = torch.Generator().manual_seed(derive_seed(seed, *size))
    coarse = torch.rand((1, 3, size[0] // 24 + 2, size[1] // 24 + 2), generator=generator)
    blobs = F.interpolate(coarse, size, mode="bicubic", align_corners=False)
    noise = torch.randn((1, 3, *size), generator=generator)
    return (255 * blobs + 12 * noise).clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def compare(reference: Network, other: Network, images: Tensor, *, are_logits: bool = True) -> tuple[float, float]:
    """Return the largest difference in any class probability, and the fraction of pixels with equal labels.

    `are_logits` tells whether the scores are logits, which softmax turns into probabilities.
    """
    expected, got = reference(images), other(images)
    equal = (expected.argmax(dim=1) == got.argmax(dim=1)).float().mean().item()
    if are_logits:
        expected, got = expected.softmax(dim=1), got.softmax(dim=1)
    return (expected - got).abs().max().item(), equal


def require_agreement(difference: float, equal: float, size: tuple[int, int], name: str) -> None:
    """Raise WeightsError if a result of `compare` is NaN or exceeds the limits. `size` and `name` appear in the message."""
    if not (difference <= MAX_DIFFERENCE and equal >= MIN_EQUAL):
        raise WeightsError(
            f"{name} disagrees with the network: on an image of {size[0]} x {size[1]} pixels, probabilities differ by up "
            f"to {difference:.2g} (limit {MAX_DIFFERENCE}) and {equal:.2%} of the labels are equal (limit "
            f"{MIN_EQUAL:.1%}). Nothing was written. Use --format stripped."
        )
