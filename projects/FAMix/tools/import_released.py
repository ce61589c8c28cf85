"""Convert a checkpoint of FAMix's reference implementation for MODEL.WEIGHTS, or its style bank for MODEL.STYLE.BANK.
The file type is detected from its content, and nothing in the file is executed."""

# ruff: noqa: E402 - arguments are parsed before the slow imports

import argparse
import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

# Detectron2 calls functions that newer versions of torch deprecate.
warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated", category=FutureWarning)

_CHECKPOINT_SUFFIX, _BANK_SUFFIX = ".pth", ".safetensors"


def make_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Example: import_released.py released.pth --output model.pth --config-file configs/GTA5/famix_RN50.yaml",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="checkpoint (.pth) or style bank (saved_params.pkl)")
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="FILE",
        help=f"output file: {_CHECKPOINT_SUFFIX} for a checkpoint, {_BANK_SUFFIX} for a bank; an existing file is replaced",
    )
    parser.add_argument("--config-file", metavar="FILE", help="write the output only if the file fits this config")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings that override the config")
    return parser


if __name__ == "__main__":
    make_parser().parse_intermixed_args()  # answers --help and rejects invalid options immediately

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from torch import Tensor

from famix.clip import ARCHITECTURES
from famix.data import register_datasets, require_same_classes
from famix.engine import load_config
from famix.io import is_torch_file
from famix.io.released_checkpoint import ReleasedCheckpoint, read_released_checkpoint, save_weights
from famix.mining.metadata import bank_metadata, check_bank
from famix.style import IGNORE_CLASS, StyleBank
from famix.style.released import RELEASED_CLASSES
from famix.utils.errors import ConfigError, FAMixError, WeightsError
from famix.utils.messages import first_few
from famix.utils.paths import expand_arguments
from famix.utils.plugins import load_plugins


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command-line program.

    Returns:
        Exit status: 0 on success, or 2 after a one-line error on stderr.
    """
    arguments = make_parser().parse_intermixed_args(argv)
    try:
        load_plugins()
        _check_paths(expand_arguments(arguments))
        cfg = _load_config(arguments.config_file, arguments.opts)
        print(f"Reading {arguments.file}")
        convert = _import_checkpoint if is_torch_file(arguments.file) else _import_bank
        convert(arguments.file, arguments.output, cfg)
    except FAMixError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


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


def _load_config(file: str | None, opts: Sequence[str]) -> CfgNode | None:
    """Load the config. A published CLIP is replaced with random weights of its architecture."""
    if not file:
        return None
    cfg = load_config(file, opts)
    register_datasets(cfg.DATASETS.FILES)
    if cfg.MODEL.CLIP.WEIGHTS in ARCHITECTURES:
        cfg.MODEL.CLIP.ARCHITECTURE, cfg.MODEL.CLIP.WEIGHTS = cfg.MODEL.CLIP.WEIGHTS, ""
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def _import_checkpoint(file: Path, output: Path, cfg: CfgNode | None) -> None:
    _require_suffix(output, _CHECKPOINT_SUFFIX, "a checkpoint")
    checkpoint = read_released_checkpoint(file)
    print(describe_checkpoint(checkpoint))
    if cfg is not None:
        require_fit(checkpoint.weights, build_model(cfg).state_dict())
        _require_released_classes(cfg)
        print("Fits the config: same weight names, shapes and classes")
    save_weights(checkpoint.weights, output)
    print(f"Wrote {output}. Set MODEL.WEIGHTS to this file.")


def _import_bank(file: Path, output: Path, cfg: CfgNode | None) -> None:
    _require_suffix(output, _BANK_SUFFIX, "a style bank")
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


def require_fit(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise unless weights have exactly the names and shapes of a model.

    Args:
        weights: weights to load.
        expected: state dict of the model. Its values are ignored.

    Raises:
        WeightsError: names are missing or unexpected, or shapes differ.
    """
    kinds = {
        "missing": [name for name in expected if name not in weights],
        "unexpected": [name for name in weights if name not in expected],
        "with a different shape": [
            f"{name} {tuple(weights[name].shape)} instead of {tuple(value.shape)}"
            for name, value in expected.items()
            if name in weights and weights[name].shape != value.shape
        ],
    }
    problems = [f"{len(found)} {kind}: {first_few(found)}" for kind, found in kinds.items() if found]
    if problems:
        raise WeightsError(
            f"The weights do not fit the model in the config: {'; '.join(problems)}. Pass the matching --config-file."
        )


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
    lines = [f"style bank of the reference implementation: {len(bank)} styles with {bank.num_channels} channels"]
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


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    sys.exit(main())
