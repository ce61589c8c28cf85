"""The tables over all targets: the scores, and the IoU of every class."""

import math
from collections.abc import Mapping

from tabulate import tabulate

__all__ = ["format_class_results", "format_results", "mean_over_targets"]

_METRICS = ("mIoU", "fwIoU", "mACC", "pACC")
_TASK = "sem_seg"
_CLASS_PREFIX = "IoU-"


def format_results(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Lay out the results of several data sets, with their mean where there is more than one.

    Args:
        results: data set -> task -> metric -> percent, as Detectron2's evaluators return them; other tasks than
            "sem_seg" are left out.

    Returns:
        A Markdown table.
    """
    scores = {name: tasks[_TASK] for name, tasks in results.items() if _TASK in tasks}
    rows = [[name, *(metrics[m] for m in _METRICS)] for name, metrics in scores.items()]
    if len(rows) > 1:
        means = mean_over_targets(results)
        rows.append(["mean", *(means[m] for m in _METRICS)])
    return tabulate(rows, headers=["data set", *_METRICS], floatfmt=".2f", tablefmt="github")


def format_class_results(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Lay out the IoU of every class that some data set's ground truth shows.

    Args:
        results: see format_results.

    Returns:
        A Markdown table, a row per class and a column per data set; empty where a data set lacks the class.
    """
    scores = {name: tasks[_TASK] for name, tasks in results.items() if _TASK in tasks}
    keys = dict.fromkeys(key for score in scores.values() for key in score if key.startswith(_CLASS_PREFIX))
    rows = []
    for key in keys:
        values = [score.get(key, math.nan) for score in scores.values()]
        if not all(map(math.isnan, values)):
            rows.append([key.removeprefix(_CLASS_PREFIX), *(None if math.isnan(v) else v for v in values)])
    return tabulate(rows, headers=["IoU", *scores], floatfmt=".2f", tablefmt="github")


def mean_over_targets(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, float]:
    """Unweighted mean of every metric over the data sets, in percent."""
    scores = [tasks[_TASK] for tasks in results.values() if _TASK in tasks]
    return {metric: sum(score[metric] for score in scores) / len(scores) for metric in _METRICS}
