"""Execution of a run, from the command line to a trained and evaluated model."""

from famix.config import load_config
from famix.engine.config_checks import check_config
from famix.engine.console import explain_disk_errors, summarize_end, summarize_start
from famix.engine.hooks import SourceValidation, StyleMiningHook, WeightAverageHook
from famix.engine.launch import launch
from famix.engine.model_selection import ModelSelection, check_selection, load_for_scoring, save_weights
from famix.engine.optimization import build_lr_scheduler, build_optimizer
from famix.engine.setup import setup
from famix.engine.trainer import Trainer
from famix.io.checkpointer import SafeCheckpointer
from famix_cli.train import argument_parser

__all__ = [
    "ModelSelection", "SafeCheckpointer", "SourceValidation", "StyleMiningHook", "Trainer", "WeightAverageHook",
    "argument_parser", "build_lr_scheduler", "build_optimizer", "check_config", "check_selection", "explain_disk_errors",
    "launch", "load_config", "load_for_scoring", "save_weights", "setup", "summarize_end", "summarize_start",
]  # fmt: skip
