"""What a run is about to do, in ten lines, and what it has left, with the next command."""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from famix.data.domains import roles_of
from famix.engine.weights_file import LAST_FILE
from famix.mining import style_bank_path
from famix.reports import RESULTS_FILE
from famix.style import needs_bank

__all__ = ["summarize_end", "summarize_start"]

_SCRIPTS = Path(__file__).parents[2]  # only a clone has them
_WIDTH = 13  # of the first column


def summarize_start(cfg: CfgNode, args: argparse.Namespace, model: nn.Module | None = None, done: int = 0) -> str:
    """What a run is about to do.

    Args:
        cfg: the effective config.
        args: of the command line.
        model: to be trained or scored; None where styles are mined alone.
        done: iterations that an earlier start has done.
    """
    roles = roles_of(cfg)
    training = not (args.eval_only or args.mine_styles_only)
    rows = [("source", ", ".join(roles.sources) or "none")]
    if not args.mine_styles_only:
        change = "" if roles.decided_by == "TEST.SOURCE" else "; TEST.SOURCE changes this"
        rows.append(("targets", f"{', '.join(roles.targets) or 'none'} (by {roles.decided_by}{change})"))
    if roles.held_out and not args.mine_styles_only:
        rows.append(("also scored", f"{', '.join(roles.held_out)}: of the source's domain, not in the mean"))
    rows.append(("CLIP", cfg.MODEL.CLIP.WEIGHTS or "none: random weights, or those of a checkpoint"))
    if model is not None:
        rows.append(("network", cfg.MODEL.META_ARCHITECTURE))
        if training:
            rows.append(("trainable", _count_parameters(cfg, model)))
    if not args.eval_only:
        rows.append(("styles", _describe_styles(cfg)))
    if training:
        from_where = f", from iteration {done:,} on" if done else ""
        rows.append(("iterations", f"{cfg.SOLVER.MAX_ITER:,} of {cfg.SOLVER.IMS_PER_BATCH} images{from_where}"))
    rows += [("run", cfg.OUTPUT_DIR), ("device", _describe_devices(cfg)), ("seed", str(cfg.SEED))]
    task = "mines styles" if args.mine_styles_only else "scores" if args.eval_only else "trains and scores"
    return _table(f"FAMix {_version()} {task}:", rows)


def summarize_end(cfg: CfgNode, args: argparse.Namespace) -> str:
    """What a run has left, and what to type next.

    Args:
        cfg: the effective config.
        args: of the command line.
    """
    folder = cfg.OUTPUT_DIR
    results = [os.path.join(folder, name) for name in (RESULTS_FILE, Path(RESULTS_FILE).with_suffix(".md").name)]
    files = [("results", " and ".join(results))] if not args.mine_styles_only else []
    if not (args.eval_only or args.mine_styles_only):
        files.append(("checkpoint", os.path.join(folder, LAST_FILE)))
    if not args.eval_only and needs_bank(cfg):
        files.append(("style bank", style_bank_path(cfg)))
    files.append(("log", os.path.join(folder, "log.txt")))
    return _table("Done:", [*files, *(("next", command) for command in _next_commands(cfg, args))])


def _table(head: str, rows: Sequence[tuple[str, str]]) -> str:
    return "\n".join([head, *(f"  {name:<{_WIDTH}}{value}" for name, value in rows)])


def _version() -> str:
    try:
        return version("famix")
    except PackageNotFoundError:  # run from a clone that is not installed
        return "of this folder"


def _count_parameters(cfg: CfgNode, model: nn.Module) -> str:
    sizes = {True: 0, False: 0}
    for parameter in model.parameters():
        sizes[parameter.requires_grad] += parameter.numel()
    backbone = ", ".join(cfg.MODEL.CLIP.TRAINABLE) or "nothing"
    return f"{sizes[True] / 1e6:.1f} of {sum(sizes.values()) / 1e6:.1f} million parameters ({backbone} of CLIP, and the head)"


def _describe_styles(cfg: CfgNode) -> str:
    if not needs_bank(cfg):
        return f"strategy {cfg.MODEL.STYLE.STRATEGY}, without a bank"
    path = style_bank_path(cfg)
    return f"bank {path} ({'there already' if os.path.isfile(path) else 'to be mined first'})"


def _describe_devices(cfg: CfgNode) -> str:
    device, processes = torch.device(cfg.MODEL.DEVICE), comm.get_world_size()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    return f"{cfg.MODEL.DEVICE} ({name}), {processes} process{'es' if processes > 1 else ''}"


def _next_commands(cfg: CfgNode, args: argparse.Namespace) -> list[str]:
    """Commands that go on with what the run has left."""
    folder = cfg.OUTPUT_DIR
    if args.mine_styles_only:
        page = os.path.join(folder, "bank.html")
        commands = [("train_net.py", ["--config-file", args.config_file, *args.opts])]
        commands.append(("tools/inspect_bank.py", [style_bank_path(cfg), "--html", page]))
    else:
        report = ("tools/report.py", [folder, "--output", os.path.join(folder, "report.html")])
        weights = cfg.MODEL.WEIGHTS if args.eval_only and cfg.MODEL.WEIGHTS else folder
        demo = ("demo.py", ["--weights", weights, "--input", "IMAGES", "--output", os.path.join(folder, "seen")])
        commands = [report, demo]
    python = os.path.basename(sys.executable) or "python"
    return [
        shlex.join([python, os.path.relpath(_SCRIPTS / script), *map(str, words)])
        for script, words in commands
        if (_SCRIPTS / script).is_file()
    ]
