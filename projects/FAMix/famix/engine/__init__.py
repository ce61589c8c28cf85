"""Running: from the command line to a trained and evaluated model."""

from famix.engine.checkpointer import SafeCheckpointer
from famix.engine.config_checks import check_config
from famix.engine.disk_errors import explain_disk_errors
from famix.engine.load_config import load_config
from famix.engine.model_selection import ModelSelection, check_selection
from famix.engine.optimization import build_lr_scheduler, build_optimizer
from famix.engine.setup import setup
from famix.engine.source_validation import SourceValidation
from famix.engine.summary import summarize_end, summarize_start
from famix.engine.trainer import Trainer
from famix.engine.weight_average import WeightAverage, WeightAverageHook
from famix.engine.weights_file import load_for_scoring, save_weights
from famix_arguments import argument_parser

__all__ = [
    "ModelSelection",
    "SafeCheckpointer",
    "SourceValidation",
    "Trainer",
    "WeightAverage",
    "WeightAverageHook",
    "argument_parser",
    "build_lr_scheduler",
    "build_optimizer",
    "check_config",
    "check_selection",
    "explain_disk_errors",
    "load_config",
    "load_for_scoring",
    "save_weights",
    "setup",
    "summarize_end",
    "summarize_start",
]
