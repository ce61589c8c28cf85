"""From the command line to a checked config: whatever can be wrong is found before any work is done."""

import argparse
import logging
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng

from famix.data import register_datasets, verify_datasets
from famix.engine.config_checks import check_config, used_datasets
from famix.engine.console import LOGGERS, set_up_logs
from famix.engine.disk_errors import is_disk_error, raise_log_errors
from famix.engine.load_config import load_config
from famix.engine.processes import is_lost_connection
from famix.engine.resuming import take_up_run
from famix.engine.run_directory import claim_run_directory, holds_run, keep_settings
from famix.utils.errors import DatasetError, FAMixError
from famix.utils.paths import expand_path

__all__ = ["setup"]


def setup(args: argparse.Namespace, held: ExitStack | None = None) -> CfgNode:
    """Config, registration, checks, log files and seeds of a run.

    Args:
        args: as `argument_parser` parses them.
        held: keeps the lock of the run directory until it is closed; None takes no lock.

    Returns:
        The effective config, frozen. It is also saved as OUTPUT_DIR/config.yaml, unless a run is there that is only scored
        or mined for; with --overwrite, `Trainer.train` saves it.

    Raises:
        ConfigError: settings that cannot work, or a run directory that is in use or holds another run.
        DatasetError: data sets that cannot be used.
    """
    args.config_file = expand_path(args.config_file, "--config-file")
    cfg = load_config(args.config_file, args.opts)
    register_datasets(cfg.DATASETS.FILES)
    check_config(cfg, args)
    claim_run_directory(cfg, args, held)
    trains = not (args.eval_only or args.mine_styles_only)
    if args.resume and trains:
        take_up_run(cfg)
    if cfg.SEED < 0:
        cfg.SEED = comm.shared_random_seed() % 2**31  # config.yaml names it: the run can be repeated
    cfg.freeze()
    # The settings of a run stay beside its weights when it is scored; those of one to overwrite, until the new one starts.
    if not (args.overwrite if trains else holds_run(cfg.OUTPUT_DIR)):
        keep_settings(cfg, definitions=not args.eval_only)
    set_up_logs(cfg.OUTPUT_DIR)
    raise_log_errors(handler for name in LOGGERS for handler in logging.getLogger(name).handlers)
    _log_circumstances(cfg, args)
    seed_all_rng(cfg.SEED + comm.get_rank())
    if not args.eval_only:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    # Detectron2 logs whatever ends a training with its traceback; a user's mistake is told in one line instead.
    logging.getLogger("detectron2.engine.train_loop").addFilter(_is_no_user_error)
    _warn_of_random_weights(cfg, args)
    _verify_together(used_datasets(cfg, args), cfg.INPUT.MAX_PIXELS)
    return cfg


def _log_circumstances(cfg: CfgNode, args: argparse.Namespace) -> None:
    """What Detectron2's default_setup logs; that one would write config.yaml, too, whatever the folder holds."""
    logger = logging.getLogger("detectron2")
    logger.info("Rank of current process: %d. World size: %d", comm.get_rank(), comm.get_world_size())
    logger.info("Environment info:\n%s", collect_env_info())
    logger.info("Command line arguments: %s", args)
    logger.info("Running with full config:\n%s", cfg.dump())


def _is_no_user_error(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not (isinstance(error, FAMixError) or is_disk_error(error) or is_lost_connection(error))


def _warn_of_random_weights(cfg: CfgNode, args: argparse.Namespace) -> None:
    clip = cfg.MODEL.CLIP
    if not (args.eval_only or args.resume or clip.WEIGHTS or cfg.MODEL.WEIGHTS or "all" in clip.TRAINABLE):
        logging.getLogger(__name__).warning(
            "The frozen part of the backbone has random weights: neither MODEL.CLIP.WEIGHTS nor MODEL.WEIGHTS is set."
        )


def _verify_together(names: Sequence[str], max_pixels: int) -> None:
    """Look at the files once a machine, since each has its own disks; a problem on any stops every process."""
    problem = ""
    if comm.get_local_rank() == 0:
        try:
            verify_datasets(names, max_pixels=max_pixels)
        except DatasetError as error:
            problem = str(error)
    problems = [found for found in comm.all_gather(problem) if found]
    if problems:
        raise DatasetError(problems[0])
