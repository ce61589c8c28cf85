"""From a checkpoint to a network that predicts: neither CLIP's file nor a style bank nor the training data is needed."""

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from torch import nn

from famix.clip.build import backbone_of
from famix.config import load_config
from famix.data import register_datasets
from famix.data.class_table import SHIPPED, ClassTable, classes_in_files, classes_of, trained_classes
from famix.io import unwrapped_names
from famix.io.checkpointer import AVERAGE_FILE, BEST_FILE, LAST_FILE, SETTINGS, SafeCheckpointer, read_tensors
from famix.reports.run_metadata import AVERAGE, BEST
from famix.utils.errors import ConfigError, CorruptFileError, DatasetError, WeightsError
from famix.utils.paths import local_path

__all__ = ["CONFIG_FILE", "LoadedModel", "default_device", "load_model"]

CONFIG_FILE = "config.yaml"
"""What a run calls its effective config, beside its checkpoints."""

_EXPORTS = {".onnx": "projects/FAMix/examples/onnx_runtime_example.py", ".pt2": "torch.export.load"}
_SELECTED = {BEST: BEST_FILE, AVERAGE: AVERAGE_FILE}


@dataclass(frozen=True)
class _Shipped:
    """What a stripped checkpoint holds beside the weights."""

    config: list[str]  # KEY VALUE KEY VALUE ...
    classes: ClassTable


@dataclass(frozen=True)
class LoadedModel:
    """A trained network.

    Attributes:
        model: in eval mode, without gradients.
        cfg: that it was built with, frozen.
        classes: that it tells apart.
        checkpoint: its file.
        facts: what else the file says of itself: "iteration", "selection", ...
    """

    model: nn.Module
    cfg: CfgNode
    classes: ClassTable
    checkpoint: Path
    facts: Mapping[str, Any]


def load_model(
    path: str | os.PathLike[str],
    config: str | os.PathLike[str] | None = None,
    opts: Sequence[str] = (),
    device: str | torch.device | None = None,
) -> LoadedModel:
    """Build the network of a checkpoint.

    Args:
        path: a checkpoint; or the folder of a run, which stands for the weights that MODEL_SELECTION.USE names.
        config: the config that it was trained with; None takes the one inside a stripped checkpoint, else the
            config.yaml beside the checkpoint.
        opts: KEY VALUE KEY VALUE ..., which override the config.
        device: of torch; None takes a GPU where there is one.

    Raises:
        ConfigError: there is no config, it cannot be read, or its data sets or the device are unknown.
        WeightsError: there is no checkpoint, it is damaged, or of another config.
    """
    checkpoint, cfg = _find(Path(local_path(os.fspath(path), "the checkpoint", WeightsError)), config, opts)
    content = _with_plain_names(checkpoint, read_tensors(checkpoint))
    shipped = _read_shipped(checkpoint, content)
    settings = content.get(SETTINGS) if isinstance(content, dict) else None
    cfg = cfg or _read_config(checkpoint, config, shipped, opts, settings)
    cfg.MODEL.DEVICE = str(_usable(default_device() if device is None else device))
    if shipped is not None and not cfg.DATASETS.FILES:
        classes = shipped.classes
        cfg.DATASETS.TRAIN = (classes.register(),)
    else:
        classes = _classes(cfg, checkpoint, trained_classes(content) if isinstance(content, dict) else None)
    model = _build(cfg, content)
    facts = _load_weights(model, checkpoint)
    return LoadedModel(model.eval().requires_grad_(False), cfg, classes, checkpoint, facts)


def default_device() -> torch.device:
    """A GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _usable(device: str | torch.device) -> torch.device:
    try:
        wanted = torch.device(device)
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device {device} cannot be used ({str(error).splitlines()[0]}); take cpu, or a GPU that torch finds"
        ) from error
    return wanted


def _find(path: Path, config: str | os.PathLike[str] | None, opts: Sequence[str]) -> tuple[Path, CfgNode | None]:
    """The checkpoint, and for the folder of a run the config, which says which one that is."""
    if not path.is_dir():
        if path.suffix in _EXPORTS:
            raise WeightsError(
                f"--weights must be a checkpoint that training saved, or the folder of a run, got {path}, which is an "
                f"export. Name the .pth file; {_EXPORTS[path.suffix]} runs the export."
            )
        if path.is_file():
            return path, None
        raise WeightsError(
            f"checkpoint {path} does not exist; expected a file such as model_final.pth, or a run's folder"
        )
    cfg = _read_config(path / LAST_FILE, config, None, opts)
    checkpoint = path / _SELECTED.get(cfg.MODEL_SELECTION.USE, LAST_FILE)
    if checkpoint.is_file():
        return checkpoint, cfg
    others = ", ".join(sorted(file.name for file in path.glob("*.pth"))) or "none"
    raise WeightsError(
        f"the run {path} has no {checkpoint.name} (checkpoints there: {others}); finish the training, or name a file"
    )


def _with_plain_names(checkpoint: Path, content: Any) -> Any:
    """The content of a checkpoint, with the weights of a model that was wrapped under its own names."""
    state = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        return content
    try:
        plain = unwrapped_names(state)
    except CorruptFileError as error:
        raise WeightsError(f"{checkpoint} cannot be read: {error}") from error
    return {**content, "model": plain} if "model" in content else plain


def _read_shipped(checkpoint: Path, content: Any) -> _Shipped | None:
    if not isinstance(content, dict) or SHIPPED not in content:
        return None
    try:
        return _Shipped(_pairs(content[SHIPPED]["config"]), ClassTable.from_dict(content[SHIPPED]["classes"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{checkpoint} is damaged: its entry '{SHIPPED}' cannot be read ({type(error).__name__}: {error}); strip the "
            "checkpoint of the run anew with tools/export.py"
        ) from error


def _pairs(settings: Mapping[str, Any]) -> list[str]:
    """KEY VALUE KEY VALUE ..., as Python writes values: strings of digits are read back as what they are."""
    return [text for key, value in settings.items() for text in (str(key), repr(value))]


def _read_config(
    checkpoint: Path,
    config: str | os.PathLike[str] | None,
    shipped: _Shipped | None,
    opts: Sequence[str],
    settings: Mapping[str, Any] | None = None,
) -> CfgNode:
    """The config that is given, that of a stripped checkpoint, that of the run, or the settings of a lone checkpoint."""
    if config is not None:
        return load_config(os.fspath(config), opts)
    if shipped is not None:
        return load_config("", [*shipped.config, *opts])
    beside = checkpoint.with_name(CONFIG_FILE)
    if beside.is_file():
        return load_config(str(beside), opts)
    if isinstance(settings, Mapping):
        return load_config("", [*_pairs(settings), *opts])
    raise ConfigError(
        f"there is no {CONFIG_FILE} beside {checkpoint}; name the config that it was trained with (--config-file, or "
        "`config` in Python)"
    )


def _classes(cfg: CfgNode, checkpoint: Path, trained: ClassTable | None) -> ClassTable:
    """The classes of a network, compared with the definition of its dataset where there is one.

    Raises:
        ClassesError: they differ.
        ConfigError: the classes are unknown, or a definition has a mistake.
    """
    try:
        if trained is not None:
            cfg.DATASETS.FILES = [file for file in cfg.DATASETS.FILES if os.path.isfile(file)]
            own = classes_in_files(cfg.DATASETS.FILES, cfg.DATASETS.TRAIN)
            if own is not None:  # looked at first: another dataset of that name may be registered by now
                trained.require_same(own, checkpoint, cfg.DATASETS.TRAIN[0])
        register_datasets(cfg.DATASETS.FILES)
    except DatasetError as error:
        raise ConfigError(
            f"the names of the classes cannot be had: {error} Correct DATASETS.FILES, whose paths count from the current "
            "folder, or use a checkpoint of tools/export.py --format stripped, which needs no such file"
        ) from error
    if trained is None:
        return classes_of(cfg)
    known = [name for name in cfg.DATASETS.TRAIN if name in DatasetCatalog]
    if not known:
        cfg.DATASETS.TRAIN = (trained.register(),)
        return trained
    present = classes_of(cfg, known)
    trained.require_same(present, checkpoint, known[0])
    return present


def _build(cfg: CfgNode, content: Any) -> nn.Module:
    """The network of a config, with the backbone that a checkpoint holds; sets in the config what it was built with."""
    cfg.MODEL.CLIP.WEIGHTS = cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.STYLE.STRATEGY = "none"
    cfg.freeze()
    with backbone_of(content.get("model", content)) if isinstance(content, dict) else nullcontext():
        return build_model(cfg)


def _load_weights(model: nn.Module, checkpoint: Path) -> dict[str, Any]:
    try:
        content = SafeCheckpointer(model, strict=True).load(str(checkpoint), checkpointables=[])
    except WeightsError as error:
        raise WeightsError(f"{checkpoint} does not fit its config: {error}") from error
    return {key: value for key, value in content.items() if isinstance(value, str | int | float)}
