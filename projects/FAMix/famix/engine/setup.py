"""From the command line to a checked config: whatever can be wrong is found before any work is done."""

import argparse
import difflib
import os
import re
import tempfile
from collections.abc import Sequence

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from famix.config import add_famix_config
from famix.data import register_datasets, require_same_classes, verify_datasets
from famix.errors import ConfigError, DatasetError
from famix.mining import style_bank_path

__all__ = ["argument_parser", "check_config", "load_config", "setup"]

_EPILOG = """
Examples:
  train and evaluate            train_net.py --config-file configs/CamVid/famix_narrow.yaml
  mine the style bank only      train_net.py --config-file CONFIG --mine-styles-only
  evaluate a checkpoint         train_net.py --config-file CONFIG --eval-only MODEL.WEIGHTS output/model_final.pth
  continue after a stop         train_net.py --config-file CONFIG --resume
  8 GPUs of one machine         train_net.py --config-file CONFIG --num-gpus 8
  2 machines, on each           train_net.py --config-file CONFIG --num-gpus 8 --num-machines 2 --machine-rank 0|1
                                --dist-url tcp://FIRST_MACHINE:PORT
  other settings                train_net.py --config-file CONFIG SOLVER.BASE_LR 0.05 MODEL.DEVICE cpu
"""


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's arguments, and --mine-styles-only."""
    parser = default_argument_parser(_EPILOG)
    parser.add_argument(
        "--mine-styles-only", action="store_true", help="mine the style bank, or check the one there is, and stop"
    )
    return parser


def setup(args: argparse.Namespace) -> CfgNode:
    """Config, registration, checks, log files and seeds of a run.

    Args:
        args: as `argument_parser` parses them.

    Returns:
        The effective config, frozen; it is also saved as OUTPUT_DIR/config.yaml.

    Raises:
        ConfigError: settings that cannot work.
        DatasetError: data sets that cannot be used.
    """
    cfg = load_config(args.config_file, args.opts)
    register_datasets(cfg.DATASETS.FILES)
    check_config(cfg, args)
    if cfg.SEED < 0:
        cfg.SEED = comm.shared_random_seed() % 2**31  # config.yaml names it: the run can be repeated
    cfg.freeze()
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="famix")
    _verify_together(_used_datasets(cfg, args))
    return cfg


def load_config(config_file: str, opts: Sequence[str] = ()) -> CfgNode:
    """Read a config file, and settings given as KEY VALUE pairs.

    Args:
        config_file: YAML; "" takes the defaults.
        opts: KEY VALUE KEY VALUE ..., which override the file.

    Raises:
        ConfigError: the file is missing or malformed, or a key or value does not fit.
    """
    late = [word for word in map(str, opts) if word.startswith("--")]
    if late:
        raise ConfigError(f"{' '.join(late)} must stand before the KEY VALUE pairs, which end the command line")
    cfg = get_cfg()
    add_famix_config(cfg)
    known = _keys(cfg)
    for key in opts[::2]:
        if key not in known:
            raise ConfigError(_unknown_key(key, known))
    try:
        if config_file:
            cfg.merge_from_file(config_file, allow_unsafe=False)  # Detectron2's default runs code that a YAML names
        cfg.merge_from_list(list(opts))
    except FileNotFoundError as error:
        raise ConfigError(f"config file {error.filename} does not exist") from error
    except OSError as error:
        raise ConfigError(f"config file {error.filename} cannot be read ({error.strerror})") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{config_file} is not valid YAML: {error}") from error
    except (KeyError, AssertionError, ValueError) as error:
        raise ConfigError(_explain(str(error).strip("'\""), known)) from error
    except (AttributeError, TypeError) as error:  # yacs takes for granted that a file holds a mapping
        raise ConfigError(f"{config_file} does not hold settings in the form KEY: value") from error
    return cfg


def check_config(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Find what cannot work, from the config and the registered data sets alone.

    Args:
        cfg: the effective config.
        args: of the command line: what the run is to do.

    Raises:
        ConfigError: names the key, what it is and what it should be.
        DatasetError: a data set is unknown, or two have different classes.
    """
    training, testing = not args.eval_only, not args.mine_styles_only
    if not (training or testing):
        raise ConfigError("--eval-only and --mine-styles-only exclude each other; leave one out")
    if training and not cfg.DATASETS.TRAIN:
        raise ConfigError("DATASETS.TRAIN is empty; name the labelled source data set")
    if testing and not cfg.DATASETS.TEST:
        raise ConfigError("DATASETS.TEST is empty; name at least one target data set")
    _check_device(cfg.MODEL.DEVICE)
    _check_output(cfg.OUTPUT_DIR)
    _check_classes(cfg, _used_datasets(cfg, args))
    if training and cfg.MODEL.STYLE.STRATEGY == "bank" and not cfg.MODEL.CLIP.WEIGHTS:
        path = style_bank_path(cfg)
        if not os.path.isfile(path):
            raise ConfigError(
                f"MODEL.STYLE.STRATEGY bank needs styles, but there is no bank at {path} and no CLIP to mine one with; "
                "set MODEL.CLIP.WEIGHTS (e.g. RN50 or a file), MODEL.STYLE.BANK, or another strategy"
            )


def _used_datasets(cfg: CfgNode, args: argparse.Namespace) -> list[str]:
    sources = () if args.eval_only else cfg.DATASETS.TRAIN
    targets = () if args.mine_styles_only else cfg.DATASETS.TEST
    return [*sources, *targets]


def _verify_together(names: Sequence[str]) -> None:
    """Look at the files once a machine, since each has its own disks; a problem on any stops every process."""
    problem = ""
    if comm.get_local_rank() == 0:
        try:
            verify_datasets(names)
        except DatasetError as error:
            problem = str(error)
    problems = [found for found in comm.all_gather(problem) if found]
    if problems:
        raise DatasetError(problems[0])


def _check_device(device: str) -> None:
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ConfigError(f"MODEL.DEVICE must be a device of torch such as cuda or cpu; got {device!r}") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"MODEL.DEVICE is {device}, but torch finds no GPU; add MODEL.DEVICE cpu to the command")


def _check_output(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"OUTPUT_DIR {folder} cannot be written to ({error.strerror}); choose another") from error


def _check_classes(cfg: CfgNode, names: Sequence[str]) -> None:
    require_same_classes(names)
    head, metadata = cfg.MODEL.SEM_SEG_HEAD, MetadataCatalog.get(names[0])
    if (len(metadata.stuff_classes), metadata.ignore_label) != (head.NUM_CLASSES, head.IGNORE_VALUE):
        raise ConfigError(
            f"data set {names[0]} has {len(metadata.stuff_classes)} classes and ignore label {metadata.ignore_label}; "
            f"the config says MODEL.SEM_SEG_HEAD.NUM_CLASSES {head.NUM_CLASSES} and IGNORE_VALUE {head.IGNORE_VALUE}"
        )


def _keys(cfg: CfgNode, prefix: str = "") -> list[str]:
    keys: list[str] = []
    for key, value in cfg.items():
        keys += _keys(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else [prefix + key]
    return keys


def _explain(message: str, known: Sequence[str]) -> str:
    unknown = re.fullmatch(r"Non-existent (?:config )?key: (?P<key>\S+)", message)
    if unknown:
        return _unknown_key(unknown["key"], known)
    return f"the config cannot be read: {message}"


def _unknown_key(key: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, known, n=3)
    advice = f"did you mean {' or '.join(close)}?" if close else "see the key table in projects/FAMix/README.md"
    return f"unknown config key {key}; {advice}"
