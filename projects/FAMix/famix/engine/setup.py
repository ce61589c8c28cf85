"""Setup of a run, from the command line to a checked config and a locked run directory, before any work starts."""

import argparse
import logging
import os
import re
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng

from famix.config import load_config
from famix.data import register_datasets, verify_datasets
from famix.data.corruption import expand_corruptions, register_corruptions
from famix.data.definition import keep_definitions
from famix.data.meta_architecture import trains_on
from famix.engine.config_checks import check_config, check_source, used_datasets
from famix.engine.console import set_up_logs
from famix.engine.peers import in_main_process
from famix.engine.resuming import take_up_run
from famix.io.atomic import FileLock, remove_stale_parts, whole_file
from famix.utils.errors import ConfigError, DatasetError
from famix.utils.paths import expand_path

_HIGH_RATE = 0.01  # for queries, which Mask2Former trains with 0.0001
_LOCK, _CONFIG, _METRICS = "run.lock", "config.yaml", "metrics.json"
_CHECKPOINT = re.compile(r"last_checkpoint|model_(\d{7}|final|best|ema)\.pth")
_OTHERS = re.compile(
    r"config_before_resume\.yaml|results\.(json|csv|md)|trackers\.json|events\.out\.tfevents\..*|not_finite_.*\.pth"
)


def setup(args: argparse.Namespace, held: ExitStack | None = None) -> CfgNode:
    """Read and check the config, register datasets, lock the run directory, and set up logs and seeds.

    Args:
        args: parsed command line (see `argument_parser`).
        held: stack that holds the lock on the run directory until it is closed. If None, the directory is not locked.

    Returns:
        The effective config, frozen. It is written to OUTPUT_DIR/config.yaml unless an existing run is only evaluated
        or used for style mining; with --overwrite, `Trainer.train` writes it.

    Raises:
        ConfigError: a setting is invalid, or the run directory is in use or contains a different run.
        DatasetError: a dataset is unusable.
    """
    args.config_file = expand_path(args.config_file, "--config-file")
    cfg = load_config(args.config_file, args.opts)
    register_datasets(cfg.DATASETS.FILES)
    cfg.DATASETS.TEST = expand_corruptions(cfg.DATASETS.TEST)
    register_corruptions(cfg.DATASETS.TEST)
    check_config(cfg, args)
    in_main_process(lambda: _claim_run_directory(cfg, args, held))
    trains = not (args.eval_only or args.mine_styles_only)
    if args.resume and trains:
        take_up_run(cfg)
    if cfg.SEED < 0:
        cfg.SEED = comm.shared_random_seed() % 2**31  # stored in config.yaml, so the run can be repeated
    cfg.freeze()
    # Evaluation keeps the settings of the run; --overwrite keeps those of the old run until the new one starts.
    has_run = bool(_files(cfg.OUTPUT_DIR, _CHECKPOINT)) and os.path.isfile(os.path.join(cfg.OUTPUT_DIR, _CONFIG))
    if not (args.overwrite if trains else has_run):
        keep_settings(cfg, definitions=not args.eval_only)
    set_up_logs(cfg.OUTPUT_DIR)
    logger = logging.getLogger("detectron2")  # as in default_setup, which would always replace config.yaml
    logger.info("Rank of current process: %d. World size: %d", comm.get_rank(), comm.get_world_size())
    logger.info("Environment info:\n%s", collect_env_info())
    logger.info("Command line arguments: %s", args)
    logger.info("Running with full config:\n%s", cfg.dump())
    seed_all_rng(cfg.SEED + comm.get_rank())
    if not args.eval_only:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    clip = cfg.MODEL.CLIP
    if not (args.eval_only or args.resume or clip.WEIGHTS or cfg.MODEL.WEIGHTS or "all" in clip.TRAINABLE):
        logging.getLogger(__name__).warning(
            "The frozen part of the backbone has random weights: neither MODEL.CLIP.WEIGHTS nor MODEL.WEIGHTS is set."
        )
    solver = cfg.SOLVER
    if trains and "segments" in trains_on(cfg) and (solver.OPTIMIZER == "SGD" or solver.BASE_LR >= _HIGH_RATE):
        logging.getLogger(__name__).warning(
            "SOLVER.OPTIMIZER and SOLVER.BASE_LR are %s and %g, with which %s diverges. Set SOLVER.OPTIMIZER to ADAMW and "
            "SOLVER.BASE_LR to 0.0001 (docs/PANOPTIC.md).",
            solver.OPTIMIZER, solver.BASE_LR, cfg.MODEL.META_ARCHITECTURE,
        )  # fmt: skip
    _verify_together(used_datasets(cfg, args), cfg.INPUT.MAX_PIXELS)
    if not args.eval_only:
        in_main_process(lambda: check_source(cfg, args))
    return cfg


def _verify_together(names: Sequence[str], max_pixels: int) -> None:
    """Verify files once per machine. A problem on any machine stops every process."""
    problem = ""
    if comm.get_local_rank() == 0:
        try:
            verify_datasets(names, max_pixels=max_pixels)
        except DatasetError as error:
            problem = str(error)
    problems = [found for found in comm.all_gather(problem) if found]
    if problems:
        raise DatasetError(problems[0])


def _claim_run_directory(cfg: CfgNode, args: argparse.Namespace, held: ExitStack | None) -> None:
    """Lock OUTPUT_DIR and reject a training run that would replace an existing one.

    A directory with checkpoints or metrics counts as a run; one with only a style bank or configs does not.
    """
    folder = cfg.OUTPUT_DIR
    if held is not None:
        try:
            held.callback(FileLock(Path(folder) / _LOCK).close, remove=True)
        except BlockingIOError:
            raise ConfigError(
                f"OUTPUT_DIR is in use by another process: '{folder}'. Wait until that run has ended, or set "
                "OUTPUT_DIR to another directory."
            ) from None
    if args.eval_only or args.mine_styles_only or args.resume:
        return
    checkpoints, weights = _files(folder, _CHECKPOINT), Path(cfg.MODEL.WEIGHTS)
    if args.overwrite and weights.is_file() and any(path.samefile(weights) for path in checkpoints):
        raise ConfigError(
            f"MODEL.WEIGHTS is part of the run that --overwrite would remove: '{cfg.MODEL.WEIGHTS}'. Set OUTPUT_DIR to "
            "another directory."
        )
    found = [path.name for path in checkpoints]
    with suppress(OSError):
        if not found and os.path.getsize(os.path.join(folder, _METRICS)):
            found = [_METRICS]
    if found and not args.overwrite:
        raise ConfigError(
            f"OUTPUT_DIR already contains a run: '{folder}' has {max(found)}. Continue that run with --resume, replace "
            "it with --overwrite, or set OUTPUT_DIR to another directory."
        )


def clear_run_directory(folder: str) -> None:
    """Remove the checkpoints, metrics and scores of a run, but keep the style bank, the log and other files.

    Call it in every process. metrics.json is emptied rather than removed because training may have opened it already.
    """

    def clear() -> None:
        remove_stale_parts(folder)
        # The file last_checkpoint is removed first, so --resume after an interruption starts a new training run.
        for path in [*sorted(_files(folder, _CHECKPOINT), key=lambda path: path.suffix), *_files(folder, _OTHERS)]:
            path.unlink()
        with suppress(FileNotFoundError):
            os.truncate(os.path.join(folder, _METRICS), 0)

    in_main_process(clear)


def keep_settings(cfg: CfgNode, *, definitions: bool = True) -> None:
    """Store config.yaml and, optionally, copies of the dataset definitions in OUTPUT_DIR. Call it in every process."""
    if comm.is_main_process():
        with whole_file(os.path.join(cfg.OUTPUT_DIR, _CONFIG)) as part:
            part.write_text(cfg.dump())
        if definitions:
            keep_definitions(cfg.DATASETS.FILES, cfg.OUTPUT_DIR)


def _files(folder: str, pattern: "re.Pattern[str]") -> list[Path]:
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        return sorted(Path(entry.path) for entry in entries if pattern.fullmatch(entry.name) and entry.is_file())
    return []
