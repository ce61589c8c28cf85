"""Load trained networks without CLIP weights, style bank or training data, and write stripped checkpoints."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from torch import nn

from famix.clip.adapter_files import with_base, without_base
from famix.clip.build import backbone_of
from famix.config import find_node, flat_settings, load_config
from famix.data import register_datasets
from famix.data.classes import SHIPPED, ClassTable, classes_of, trained_classes
from famix.data.corruption import register_corruptions
from famix.data.registration import classes_in_files
from famix.data.vocabulary import vocabulary_of
from famix.inference.hub import download_checkpoint, is_hub_name
from famix.io.atomic import save_tensors
from famix.io.checkpointer import AVERAGE_FILE, BEST_FILE, LAST_FILE, SETTINGS, SafeCheckpointer, read_checkpoint
from famix.modeling.query import text_embeddings_of
from famix.utils.errors import ConfigError, DatasetError, WeightsError
from famix.utils.paths import local_path, similar_path

_EXPORTS = {".onnx": "projects/FAMix/examples/onnx_runtime_example.py", ".pt2": "torch.export.load"}
_SELECTED = {"best": BEST_FILE, "ema": AVERAGE_FILE}  # MODEL_SELECTION.USE -> file name
LOCAL_SETTINGS = {  # keys that refer to other files -> values in a stripped checkpoint
    "MODEL.WEIGHTS": "",
    "MODEL.STYLE.BANK": "",
    "DATASETS.FILES": [],
    "OUTPUT_DIR": "./output",
    "TEST.CLASSES": "all",  # a list of classes requires the text tower
}


@dataclass(frozen=True)
class LoadedModel:
    """A trained network."""

    model: nn.Module  # in eval mode, without gradients
    cfg: CfgNode  # frozen
    classes: ClassTable  # predicted classes, from TEST.CLASSES if it lists any, otherwise `trained`
    checkpoint: Path
    facts: Mapping[str, Any]  # other plain entries in the checkpoint, such as "iteration" and "selection"
    base_weights: Mapping[str, str]  # config keys, missing in `cfg`, for the backbone's weights before training
    trained: ClassTable | None = None  # classes of the training datasets, if they differ from `classes`


def load_model(
    path: str | os.PathLike[str],
    config: str | os.PathLike[str] | None = None,
    opts: Sequence[str] = (),
    device: str | torch.device | None = None,
) -> LoadedModel:
    """Build a network and load its weights from a checkpoint.

    Only adapter-only checkpoints (see `save_adapters`), and networks for which TEST.CLASSES lists classes, need the CLIP
    weights of the training run.

    Args:
        path: checkpoint, run directory in which MODEL_SELECTION.USE selects the weights, or hf://OWNER/NAME (see
            `download_checkpoint`).
        config: training config. None selects the one in a stripped checkpoint, or config.yaml next to the checkpoint.
        opts: list [KEY, VALUE, KEY, VALUE, ...] that overrides the config.
        device: torch device. None selects a GPU if one is available.

    Raises:
        ConfigError: the config is missing or invalid, or the device or a dataset is unavailable.
        WeightsError: the checkpoint is missing or damaged, or does not fit the config.
    """
    if is_hub_name(os.fspath(path)):
        path = download_checkpoint(os.fspath(path))
    checkpoint, cfg = Path(local_path(os.fspath(path), "the checkpoint", WeightsError)), None
    is_run = checkpoint.is_dir()
    if is_run:
        cfg = _read_config(checkpoint / LAST_FILE, config, opts, {})
        checkpoint = checkpoint / _SELECTED.get(cfg.MODEL_SELECTION.USE, LAST_FILE)
    _require_checkpoint(checkpoint, is_run)
    content = read_checkpoint(checkpoint)
    is_stripped = SHIPPED in content
    try:
        settings = content[SHIPPED]["config"] if is_stripped else content.get(SETTINGS, {})
        trained = ClassTable.from_dict(content[SHIPPED]["classes"]) if is_stripped else trained_classes(content)
        settings = {str(key): value for key, value in settings.items()}
    except WeightsError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"Entry '{SHIPPED if is_stripped else SETTINGS}' in '{checkpoint}' is damaged ({type(error).__name__}: {error}). "
            "Strip the original checkpoint again with tools/export.py."
        ) from error
    cfg = cfg or _read_config(checkpoint, config, opts, settings, is_stripped)
    cfg.MODEL.DEVICE = str(default_device() if device is None else device)
    try:
        torch.empty(0, device=cfg.MODEL.DEVICE)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"Device {device} is not available ({reason}). Use cpu.") from error
    if is_stripped and trained is not None and not cfg.DATASETS.FILES:
        cfg.DATASETS.TRAIN = (trained.register(),)
        classes = trained
    else:
        classes = _check_classes(cfg, checkpoint, trained)
    content = with_base(content, checkpoint, cfg=cfg)
    base_weights = {"MODEL.CLIP.WEIGHTS": cfg.MODEL.CLIP.WEIGHTS, "MODEL.TIMM.WEIGHTS": cfg.MODEL.TIMM.WEIGHTS}
    cfg.MODEL.CLIP.WEIGHTS = cfg.MODEL.TIMM.WEIGHTS = cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.STYLE.STRATEGY = "none"
    cfg.freeze()
    with backbone_of(content["model"]), text_embeddings_of(content["model"], base_weights["MODEL.CLIP.WEIGHTS"]):
        vocabulary = vocabulary_of(cfg)
        model = build_model(cfg)
    try:
        SafeCheckpointer(model, strict=True).load_content(content)
    except WeightsError as error:
        raise WeightsError(f"'{checkpoint}' does not fit its config: {error}") from error
    facts = {key: value for key, value in content.items() if isinstance(value, str | int | float)}
    model = model.eval().requires_grad_(False)
    if vocabulary is None:
        return LoadedModel(model, cfg, classes, checkpoint, facts, base_weights)
    return LoadedModel(model, cfg, vocabulary.table, checkpoint, facts, base_weights, trained=classes)


def _require_checkpoint(checkpoint: Path, is_run: bool) -> None:
    """Raise WeightsError if a file is missing or an export. `is_run` tells that its run directory exists."""
    if checkpoint.suffix in _EXPORTS:
        raise WeightsError(
            f"--weights must be a training checkpoint or a run directory, got the export '{checkpoint}'. Use the .pth "
            f"file, or run the export with {_EXPORTS[checkpoint.suffix]}."
        )
    if not checkpoint.is_file():
        present = ", ".join(sorted(file.name for file in checkpoint.parent.glob("*.pth")))
        remedy = "Finish the training first." if is_run else f"Check the path.{similar_path(checkpoint)}"
        if present:
            remedy = f"Use one from the same folder: {present}."
        raise WeightsError(f"Checkpoint not found: '{checkpoint}'. {remedy}")


def default_device() -> torch.device:
    """Return the GPU if one is available, and the CPU otherwise."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def strip_checkpoint(loaded: LoadedModel, path: str | os.PathLike[str], *, half: bool = False) -> None:
    """Write the weights of a network, its config and its classes to a single file for MODEL.WEIGHTS and Predictor.

    The optimizer and trainer states are dropped, as are weights that the network does not use, such as CLIP's attention
    pool.

    Args:
        loaded: the network.
        path: output file. An existing file is replaced.
        half: store matrices and kernels in half precision. Vectors, i.e. norms and biases, keep full precision because a
            variance can be too small for half precision.

    Raises:
        WeightsError: the file cannot be written.
    """
    state = {
        name: value.cpu().half() if half and value.is_floating_point() and value.ndim > 1 else value.cpu()
        for name, value in loaded.model.state_dict().items()
    }
    _write_for_inference(loaded, {"model": state}, {}, path)


def save_adapters(loaded: LoadedModel, path: str | os.PathLike[str]) -> None:
    """Write the adapters and all other trained weights, but not the frozen weights of the backbone.

    The file can be used like one of `strip_checkpoint` while MODEL.CLIP.WEIGHTS (or MODEL.TIMM.WEIGHTS) in its config, or in
    the options for loading, names the weights used for training.

    Args:
        loaded: network with adapters, which are not merged.
        path: output file. An existing file is replaced.

    Raises:
        ConfigError: the network has no adapters, or its config does not name the weights of its backbone.
        WeightsError: these weights are missing or differ from those used for training, or the file cannot be written.
    """
    cfg = loaded.cfg.clone()
    cfg.defrost()
    for key, value in loaded.base_weights.items():
        node, name = find_node(cfg, key)
        node[name] = value
    _write_for_inference(loaded, without_base(loaded.model, cfg), loaded.base_weights, path)


def _write_for_inference(
    loaded: LoadedModel, content: Mapping[str, Any], settings: Mapping[str, str], path: str | os.PathLike[str]
) -> None:
    """Write entries with weights to a checkpoint, along with the classes and the config with overridden settings."""
    config = {**flat_settings(loaded.cfg), **LOCAL_SETTINGS, **settings}
    shipped = {"config": config, "classes": (loaded.trained or loaded.classes).to_dict()}
    try:
        save_tensors({**loaded.facts, **content, SHIPPED: shipped}, path)
    except OSError as error:
        raise WeightsError(f"'{path}' cannot be written ({error.strerror or error}). Choose another file.") from error


def _read_config(
    checkpoint: Path,
    config: str | os.PathLike[str] | None,
    opts: Sequence[str],
    settings: Mapping[str, Any],
    is_stripped: bool = False,
) -> CfgNode:
    """Read the given config, the one in a stripped checkpoint, config.yaml next to it, or the settings stored in it."""
    beside = checkpoint.with_name("config.yaml")
    if config is not None or (beside.is_file() and not is_stripped):
        return load_config(os.fspath(config or beside), opts)
    if settings:  # passed as Python literals, so that strings of digits stay strings
        return load_config("", [*(text for key, value in settings.items() for text in (key, repr(value))), *opts])
    raise ConfigError(f"--config-file is required because '{beside}' does not exist. Pass --config-file FILE.")


def _check_classes(cfg: CfgNode, checkpoint: Path, trained: ClassTable | None) -> ClassTable:
    """Return the classes of a network. Raises ClassesError if its registered or defined dataset has different classes."""
    try:
        if trained is not None:
            cfg.DATASETS.FILES = [file for file in cfg.DATASETS.FILES if os.path.isfile(file)]
            defined = classes_in_files(cfg.DATASETS.FILES, cfg.DATASETS.TRAIN)
            if defined is not None:  # checked first, since a different dataset may be registered under that name
                trained.require_same(defined, checkpoint, cfg.DATASETS.TRAIN[0])
        register_datasets(cfg.DATASETS.FILES)
        register_corruptions(cfg.DATASETS.TEST)
    except DatasetError as error:
        raise ConfigError(
            f"DATASETS.FILES does not define the classes of '{checkpoint}': {error} Correct the paths, which are relative "
            "to the current folder, or use a checkpoint written by tools/export.py --format stripped."
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
