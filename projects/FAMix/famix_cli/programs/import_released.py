"""Import of the reference implementation's checkpoints and style banks: famix-import."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from torch import Tensor

from famix.clip import ARCHITECTURES
from famix.data import require_same_classes
from famix.io import is_torch_file
from famix.io.released_checkpoint import ReleasedCheckpoint, read_released_checkpoint, require_fit, save_weights
from famix.mining.metadata import bank_metadata, check_bank
from famix.style import IGNORE_CLASS, StyleBank
from famix.style.released import RELEASED_CLASSES
from famix.utils.errors import ConfigError
from famix.utils.messages import counted
from famix_cli.import_released import BANK_SUFFIX, CHECKPOINT_SUFFIX
from famix_cli.programs import read_config, run_program


def convert(arguments: argparse.Namespace) -> None:
    """Convert a file, after comparing it with the config."""
    _check_paths(arguments)
    cfg = None
    if arguments.config_file:
        cfg = read_config(arguments)
        if cfg.MODEL.CLIP.WEIGHTS in ARCHITECTURES:  # random weights have the shapes of published ones
            cfg.MODEL.CLIP.ARCHITECTURE, cfg.MODEL.CLIP.WEIGHTS = cfg.MODEL.CLIP.WEIGHTS, ""
        cfg.MODEL.DEVICE = "cpu"
    print(f"Reading {arguments.file}")
    import_file = _import_checkpoint if is_torch_file(arguments.file) else _import_bank
    import_file(arguments.file, arguments.output, cfg)


def _check_paths(arguments: argparse.Namespace) -> None:
    file, output = arguments.file, arguments.output
    if file.is_dir():
        raise ConfigError(
            f"FILE must be a file, got the folder '{file}'. Pass the checkpoint or saved_params.pkl in it."
        )
    if not file.is_file():
        raise ConfigError(f"File not found: '{file}'. Pass a checkpoint or saved_params.pkl.")
    if output.is_dir() or output.resolve() == file.resolve():
        found = "a folder" if output.is_dir() else "the input"
        raise ConfigError(f"--output must be a new file, got {found} '{output}'. Choose another file.")
    if arguments.opts and not arguments.config_file:
        raise ConfigError(
            f"Settings {' '.join(arguments.opts)} override a config, but none is given. Add --config-file FILE."
        )


def _import_checkpoint(file: Path, output: Path, cfg: CfgNode | None) -> None:
    _require_suffix(output, CHECKPOINT_SUFFIX, "a checkpoint")
    checkpoint = read_released_checkpoint(file)
    print(describe_checkpoint(checkpoint))
    if cfg is not None:
        require_fit(checkpoint.weights, build_model(cfg).state_dict())
        _require_released_classes(cfg)
        print("Fits the config: same weight names, shapes and classes")
    save_weights(checkpoint.weights, output)
    print(f"Wrote {output}. Set MODEL.WEIGHTS to this file.")


def _import_bank(file: Path, output: Path, cfg: CfgNode | None) -> None:
    _require_suffix(output, BANK_SUFFIX, "a style bank")
    bank = StyleBank.from_released_pickle(file)
    print(describe_bank(bank))
    if cfg is not None:
        _require_released_classes(cfg)
        channels = build_model(cfg).backbone.output_shape()[cfg.MODEL.STYLE.STAGE].channels
        check_bank(bank, bank_metadata(cfg, "", RELEASED_CLASSES), str(file), channels)
        print("Fits the config: same stage, grid, channels and classes")
    bank.metadata["imported_from"] = file.name
    bank.save(output)
    print(f"Wrote {output}. Set MODEL.STYLE.BANK to this file.")


def _require_suffix(output: Path, suffix: str, what: str) -> None:
    if output.suffix != suffix:
        raise ConfigError(f"--output must end in {suffix} for {what}, got '{output}'. Rename it.")


def describe_checkpoint(checkpoint: ReleasedCheckpoint) -> str:
    """Describe the content of a checkpoint."""
    weights = checkpoint.weights
    lines = [f"checkpoint of the reference implementation: {_architecture(weights)}"]
    for part in ("backbone.", "sem_seg_head."):
        sizes = [value.numel() for name, value in weights.items() if name.startswith(part)]
        lines += [f"  {part}*: {len(sizes)} tensors, {sum(sizes):,} numbers"]
    lines += [f"  classes: {len(weights['sem_seg_head.classifier.3.weight'])}"]
    if checkpoint.iterations is not None:
        lines += [f"  trained for {checkpoint.iterations:,} iterations"]
    if checkpoint.best_score is not None:
        lines += [f"  best mIoU in its own validation: {100 * checkpoint.best_score:.2f} %"]
    return "\n".join(lines)


def describe_bank(bank: StyleBank) -> str:
    """Describe the number of styles per class."""
    counts = bank.counts()
    lines = [
        f"style bank of the reference implementation: {counted(len(bank), 'style')} with {counted(bank.num_channels, 'channel')}"
    ]
    lines += [
        f"  {counts.get(id_, 0):6} {bank.class_name(id_)}" for id_ in (*range(len(RELEASED_CLASSES)), IGNORE_CLASS)
    ]
    return "\n".join(lines)


def _architecture(weights: Mapping[str, Tensor]) -> str:
    blocks = {tuple(name.split(".")[1:3]) for name in weights if name.startswith("backbone.layer")}
    layers = tuple(sum(layer == f"layer{stage}" for layer, _ in blocks) for stage in range(1, 5))
    width = 2 * len(weights["backbone.conv1.weight"])
    known = [name for name, sizes in ARCHITECTURES.items() if (sizes.layers, sizes.width) == (layers, width)]
    return f"CLIP {known[0]}" if known else f"a CLIP ResNet with {layers} blocks and width {width}"


def _require_released_classes(cfg: CfgNode) -> None:
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    if not names:
        raise ConfigError("DATASETS.TRAIN and DATASETS.TEST are both empty. Set one of them to compare its classes.")
    require_same_classes(names)
    classes = MetadataCatalog.get(names[0]).stuff_classes
    if tuple(classes) != RELEASED_CLASSES:
        raise ConfigError(
            f"Classes of dataset '{names[0]}' must be the 19 Cityscapes classes of the reference implementation, got "
            f"{', '.join(classes)}. Use datasets with the Cityscapes classes in the same order."
        )


def execute(arguments: argparse.Namespace) -> int:
    """Run the program and return its exit status (see `run_program`)."""
    return run_program(convert, arguments)
