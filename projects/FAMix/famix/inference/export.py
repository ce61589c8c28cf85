"""Files for other runtimes: torch.export's .pt2, and ONNX.

ONNX is made from the same traced graph, by torch's own exporter. Its older one, which records TorchScript, is faster,
but deprecated.
"""

import importlib
import io
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch.export import ExportedProgram

from famix.data.class_table import ClassTable
from famix.inference.graph import AXES, INPUT, OUTPUT
from famix.utils.errors import ConfigError

__all__ = ["OPSET", "OnnxModel", "onnx_metadata", "require_onnx", "write_onnx", "write_torch_export"]

OPSET = 18
"""Version of ONNX's operators: the lowest that torch's exporter writes, which the most runtimes read."""

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def require_onnx() -> None:
    """Raise ConfigError unless the packages for ONNX are installed."""
    for name in _PACKAGES:
        _import(name)


def write_onnx(program: ExportedProgram, path: str | os.PathLike[str], metadata: Mapping[str, str]) -> None:
    """Write a traced graph as one ONNX file of opset `OPSET`.

    Args:
        program: as `export_graph` returns it.
        path: of the file, replaced if there.
        metadata: texts to keep in the file.

    Raises:
        ConfigError: a package is missing.
        OSError: the file cannot be written.
    """
    require_onnx()
    with _quiet():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={INPUT: AXES},
            opset_version=OPSET,
            verbose=False,
        )
    assert exported is not None
    exported.model.metadata_props.update(metadata)
    # Its own writing says little of a full disk.
    Path(path).write_bytes(exported.model_proto.SerializeToString())


def write_torch_export(program: ExportedProgram, path: str | os.PathLike[str]) -> None:
    """Write a traced graph as a .pt2 file.

    Raises:
        OSError: the file cannot be written.
    """
    content = io.BytesIO()  # torch aborts the process where it writes to a full disk itself
    torch.export.save(program, content)
    Path(path).write_bytes(content.getbuffer())


def onnx_metadata(classes: ClassTable, **facts: str) -> dict[str, str]:
    """Texts that make a file speak for itself.

    Args:
        classes: of the network.
        facts: more of them.

    Returns:
        "class_names" and "colors" as JSON lists, what the input and the output are, and the facts.
    """
    return {
        "class_names": json.dumps(list(classes.names)),
        "colors": json.dumps([list(color) for color in classes.colors]),
        "input": f"{INPUT}: (batch, 3, height, width), RGB, pixel values 0-255, not normalised",
        "output": f"{OUTPUT}: (batch, classes, height, width); the place of the highest is the train id",
        **facts,
    }


class OnnxModel:
    """An ONNX file, run by ONNX Runtime on the CPU.

    Args:
        path: of the file.
        threads: for one operator; None leaves it to ONNX Runtime.

    Raises:
        ConfigError: ONNX Runtime is not installed.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int | None = None) -> None:
        runtime = _import("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3  # errors; warnings are of no use to users
        self._session = runtime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to logits (B, K, H, W)."""
        (logits,) = self._session.run([OUTPUT], {INPUT: images.numpy()})
        return torch.from_numpy(logits)


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"ONNX needs the package {name}, which cannot be imported ({error}); pip install {' '.join(_PACKAGES)}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what the exporter says of its own workings."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
