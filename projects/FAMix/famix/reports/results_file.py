"""The scores of a run as files for other programs: results.json, results.csv and results.md.

results.json holds, for every data set, task -> metric -> percent as the evaluators return them, and under "report"
what they are of, with a format version and the means. Files of before had the data sets alone.
"""

import csv
import io
import json
import math
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from famix.io import read_json
from famix.io.atomic import whole_file
from famix.reports.report import MEAN, TASK, Report
from famix.reports.report_text import format_report
from famix.utils.errors import DatasetError

__all__ = ["FORMAT_VERSION", "RESULTS_FILE", "read_report", "read_results", "write_report"]

RESULTS_FILE = "results.json"
"""Name of the file in OUTPUT_DIR."""

FORMAT_VERSION = 2
"""Of results.json; the first had no number."""

_REPORT = "report"
_MAX_BYTES = 64 << 20  # of a results.json; a thousand classes in a hundred datasets have a tenth of it


def write_report(report: Report, folder: str | os.PathLike[str]) -> None:
    """Write results.json, results.csv and results.md; each appears whole or not at all.

    NaN, the score of a class that is nowhere, becomes null in JSON and empty in CSV.

    Args:
        report: scores and facts.
        folder: of the files, which are replaced; made where it is missing.

    Raises:
        OSError: a file cannot be written.
    """
    path = Path(folder) / RESULTS_FILE
    plain = {_REPORT: {"format_version": FORMAT_VERSION, **report.to_json()}, **report.results}
    texts = {
        path: json.dumps(_without_nan(plain), indent=2, allow_nan=False) + "\n",
        path.with_suffix(".csv"): _to_csv(report),
        path.with_suffix(".md"): format_report(report),
    }
    for file, text in texts.items():
        with whole_file(file) as part:
            part.write_text(text)


def read_results(path: str | os.PathLike[str]) -> dict[str, dict[str, dict[str, float]]]:
    """Read the scores of a results.json, of any format version; null becomes NaN again.

    Returns:
        Data set -> task -> metric -> percent.

    Raises:
        DatasetError: the file is missing or holds something else.
    """
    return _read(path)[0]


def read_report(path: str | os.PathLike[str]) -> Report:
    """Read a results.json with all that it says.

    Raises:
        DatasetError: the file is missing, holds something else, or is of another format version.
    """
    results, plain = _read(path)
    if plain is None or plain.get("format_version") != FORMAT_VERSION:
        found = "none" if plain is None else plain.get("format_version")
        raise DatasetError(
            f"{path} has the format version {found}, expected {FORMAT_VERSION}, which says seed, protocol and "
            "checkpoint; score the checkpoint again with --eval-only"
        )
    try:
        return Report.from_json(plain, results)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DatasetError(f"got no scores from {path} ({error}), expected a file that an evaluation wrote") from error


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, dict[str, dict[str, float]]], Mapping[str, Any] | None]:
    try:
        plain = read_json(path, _MAX_BYTES)
        report = plain.pop(_REPORT, None)
        results = {
            name: {
                task: {metric: math.nan if value is None else float(value) for metric, value in scores.items()}
                for task, scores in tasks.items()
            }
            for name, tasks in plain.items()
        }
        return results, None if report is None else dict(report)
    except FileNotFoundError as error:
        raise DatasetError(_explain_missing(Path(path))) from error
    except (OSError, ValueError, AttributeError, TypeError, OverflowError) as error:
        raise DatasetError(f"got no scores from {path} ({error}), expected a file that an evaluation wrote") from error


def _explain_missing(path: Path) -> str:
    """What to do about a run without scores."""
    folder = path.parent if path.name == RESULTS_FILE else path
    if not folder.is_dir():
        return f"the run {folder} does not exist; name the OUTPUT_DIR of a scored run"
    if not (folder / "config.yaml").is_file():
        return f"{folder} must be the OUTPUT_DIR of a scored run, got no {RESULTS_FILE} in it. Name another folder."
    to_do = "score" if (folder / "model_final.pth").is_file() else "finish and score"
    words = "--eval-only --resume" if to_do == "score" else "--resume"
    return (
        f"{folder} must be a scored run, got no {RESULTS_FILE} in it. To {to_do} it: python projects/FAMix/train_net.py "
        f"--config-file {shlex.quote(str(folder / 'config.yaml'))} {words}"
    )


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def _to_csv(report: Report) -> str:
    """A row per data set, then the means; numbers in full."""
    run, weights = report.run, report.run.weights
    by_class = (metric for tasks in report.results.values() for metric in tasks.get(TASK, {}))
    metrics = list(dict.fromkeys((*report.metrics, *by_class)))
    head = [
        "method",
        "seed",
        "weights",
        "sha256",
        "data_set",
        "role",
        "protocol",
        "num_classes",
        "num_occurring",
        "absent_classes",
        *metrics,
    ]
    same = [run.method, run.seed, weights.label, weights.sha256 or ""]
    rows = [
        [*same, name, "source" if scored.is_source else "target", scored.protocol, len(scored.classes)]
        + [_count(report.occurring(name)), scored.absent_classes]
        + [_cell(report.score(name, metric)) for metric in metrics]
        for name, scored in report.data_sets.items()
    ]
    rows += [
        [*same, MEAN if group == MEAN else f"{MEAN} of {group}", MEAN, "", "", "", ""]
        + [_cell(means.get(metric)) for metric in metrics]
        for group, means in report.means().items()
    ]
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([head, *rows])
    return stream.getvalue()


def _count(value: int | None) -> str:
    return "" if value is None else str(value)


def _cell(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else repr(float(value))
