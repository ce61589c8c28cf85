"""Scoring a model on its targets."""

from famix.evaluation.evaluators import build_evaluator
from famix.evaluation.table import format_class_results, format_results, mean_over_targets

__all__ = ["build_evaluator", "format_class_results", "format_results", "mean_over_targets"]
