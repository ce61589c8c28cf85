"""Scoring a model on its targets."""

from famix.evaluation.evaluators import build_evaluator
from famix.evaluation.results_file import RESULTS_FILE, read_results, write_results
from famix.evaluation.table import format_class_results, format_results, mean_over_targets

__all__ = [
    "RESULTS_FILE",
    "build_evaluator",
    "format_class_results",
    "format_results",
    "mean_over_targets",
    "read_results",
    "write_results",
]
