"""Running: from the command line to a trained and evaluated model."""

from famix.engine.checkpointer import SafeCheckpointer
from famix.engine.config_checks import check_config
from famix.engine.optimization import build_lr_scheduler, build_optimizer
from famix.engine.setup import argument_parser, load_config, setup
from famix.engine.trainer import Trainer

__all__ = [
    "SafeCheckpointer",
    "Trainer",
    "argument_parser",
    "build_lr_scheduler",
    "build_optimizer",
    "check_config",
    "load_config",
    "setup",
]
