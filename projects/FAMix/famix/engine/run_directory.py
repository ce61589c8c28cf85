"""The run directory, OUTPUT_DIR: one process tree writes into it at a time, and no run replaces another by mistake."""

import argparse
import os
import re
from contextlib import ExitStack, suppress
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils import comm

from famix.data.definition_record import keep_definitions
from famix.engine.processes import in_main_process
from famix.io.atomic import FileLock, remove_stale_parts, whole_file
from famix.utils.errors import ConfigError

__all__ = ["claim_run_directory", "clear_run_directory", "holds_run", "keep_settings"]

_LOCK = "run.lock"
_CONFIG = "config.yaml"
_METRICS = "metrics.json"
_CHECKPOINT = re.compile(r"last_checkpoint|model_(\d{7}|final|best|ema)\.pth")
_OTHERS = re.compile(r"config_before_resume\.yaml|results\.(json|csv|md)|events\.out\.tfevents\..*|not_finite_.*\.pth")


def claim_run_directory(cfg: CfgNode, args: argparse.Namespace, held: ExitStack | None = None) -> None:
    """Lock OUTPUT_DIR, and refuse a training that would write over another; called in every process of a run.

    A run is there if there are checkpoints or metrics: a directory with a style bank or configs alone is free.

    Args:
        cfg: the effective config.
        args: of the command line.
        held: keeps the lock until it is closed or the process ends; None takes no lock.

    Raises:
        ConfigError: another process writes into the directory, it holds a run that the command neither resumes nor
            overwrites, or options contradict each other.
    """

    def claim() -> None:
        _check_options(args)
        if held is not None:
            held.callback(_lock(cfg.OUTPUT_DIR).close, remove=True)
        if args.eval_only or args.mine_styles_only or args.resume:
            return
        if args.overwrite:
            _require_foreign_weights(cfg)
        else:
            _require_no_run(cfg.OUTPUT_DIR)

    in_main_process(claim)


def clear_run_directory(folder: str | os.PathLike[str]) -> None:
    """Remove the checkpoints, metrics and scores of a run; the style bank, the log and other files stay.

    Called in every process of a run; the main one removes them. A training may have metrics.json open already, so that
    it is emptied instead.

    Args:
        folder: OUTPUT_DIR.
    """

    def clear() -> None:
        remove_stale_parts(folder)
        checkpoints, others = _files(folder, _CHECKPOINT), _files(folder, _OTHERS)
        # The name of the last checkpoint goes first: whatever stops this, --resume starts anew instead of going on.
        for path in [*sorted(checkpoints, key=lambda path: path.suffix), *others]:
            path.unlink()
        with suppress(FileNotFoundError):
            os.truncate(os.path.join(folder, _METRICS), 0)

    in_main_process(clear)


def holds_run(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder has the checkpoints and the settings of a run.

    Args:
        folder: OUTPUT_DIR.
    """
    return bool(_files(folder, _CHECKPOINT)) and os.path.isfile(os.path.join(folder, _CONFIG))


def keep_settings(cfg: CfgNode, *, definitions: bool = True) -> None:
    """Write the settings of a run and copies of the definitions of its datasets into its folder.

    Called in every process of a run; the main one writes.

    Args:
        cfg: the effective config.
        definitions: copy those, too.
    """
    if not comm.is_main_process():
        return
    with whole_file(os.path.join(cfg.OUTPUT_DIR, _CONFIG)) as part:
        part.write_text(cfg.dump())
    if definitions:
        keep_definitions(cfg.DATASETS.FILES, cfg.OUTPUT_DIR)


def _check_options(args: argparse.Namespace) -> None:
    other = "--resume" * args.resume or "--eval-only" * args.eval_only or "--mine-styles-only" * args.mine_styles_only
    if args.overwrite and other:
        raise ConfigError(f"--overwrite must stand without {other}: it starts a training anew. Leave one out.")


def _lock(folder: str) -> FileLock:
    try:
        return FileLock(Path(folder) / _LOCK)
    except BlockingIOError:
        raise ConfigError(
            f"OUTPUT_DIR must be a directory that no other process writes into, got {folder}. Wait until that run has "
            "ended, or set OUTPUT_DIR to another directory."
        ) from None


def _require_no_run(folder: str) -> None:
    found = [path.name for path in _files(folder, _CHECKPOINT)]
    with suppress(OSError):
        if not found and os.path.getsize(os.path.join(folder, _METRICS)):
            found = [_METRICS]
    if found:
        raise ConfigError(
            f"OUTPUT_DIR must be a directory without a run, got {folder} with {max(found)}. Continue that run with "
            "--resume, start anew in its place with --overwrite, or set OUTPUT_DIR to another directory."
        )


def _require_foreign_weights(cfg: CfgNode) -> None:
    """Weights to start from must not be among the files that are removed."""
    weights = Path(cfg.MODEL.WEIGHTS)
    if any(path.samefile(weights) for path in _files(cfg.OUTPUT_DIR, _CHECKPOINT) if weights.is_file()):
        raise ConfigError(
            f"MODEL.WEIGHTS must be outside the run that --overwrite removes, got {cfg.MODEL.WEIGHTS}. Set OUTPUT_DIR to "
            "another directory."
        )


def _files(folder: str | os.PathLike[str], pattern: "re.Pattern[str]") -> list[Path]:
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        return sorted(Path(entry.path) for entry in entries if pattern.fullmatch(entry.name) and entry.is_file())
    return []
