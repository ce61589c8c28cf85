"""Report files: results.json, results.csv and results.md.

results.json contains the scores in percent by dataset, task and metric, as returned by the evaluators. Under "report",
it also contains the metadata, evaluation settings, means and a format version. Files in format 1 contain only scores.
"""

import json
import math
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar, get_args

from famix.evaluation.counting.scores import ABSENT_CLASSES, SKIP, ZERO
from famix.io import read_json
from famix.io.atomic import whole_file
from famix.reports.report import MEAN, TASK, Report, RunMetadata, ScoredDataset, ScoredWeights
from famix.reports.tables import csv_table, format_report
from famix.utils.errors import DatasetError
from famix.utils.paths import similar_path

RESULTS_FILE = "results.json"  # in OUTPUT_DIR

_FORMAT_VERSION = 2
_REPORT = "report"
_MAX_BYTES = 64 << 20  # for results.json; 1000 classes on 100 datasets need a tenth of it

T = TypeVar("T")
Scores = dict[str, dict[str, dict[str, float]]]


def write_report(report: Report, folder: str | os.PathLike[str]) -> None:
    """Write results.json, results.csv and results.md atomically.

    NaN, the score of a class that does not occur, becomes null in JSON and an empty cell in CSV. A missing folder is
    created, and existing files are replaced.
    """
    facts = {
        "format_version": _FORMAT_VERSION,
        "run": asdict(report.run),
        "data_sets": {name: asdict(scored) for name, scored in report.datasets.items()},
        "means": report.means(),
    }
    plain = _without_nan({_REPORT: facts, **report.results})
    path = Path(folder) / RESULTS_FILE
    texts = {
        path: json.dumps(plain, indent=2, allow_nan=False) + "\n",
        path.with_suffix(".csv"): _to_csv(report),
        path.with_suffix(".md"): format_report(report),
    }
    for file, text in texts.items():
        with whole_file(file) as part:
            part.write_text(text)


def read_results(path: str | os.PathLike[str]) -> Scores:
    """Read the scores from a results.json in any format version. Null becomes NaN.

    Raises:
        DatasetError: the file is missing or malformed.
    """
    return _read(Path(path))[0]


def read_report(path: str | os.PathLike[str]) -> Report:
    """Read a results.json with its metadata.

    Raises:
        DatasetError: the file is missing, is malformed or has a different format version.
    """
    results, plain = _read(Path(path))
    if plain is None or plain.get("format_version") != _FORMAT_VERSION:
        found = "none" if plain is None else plain.get("format_version")
        raise DatasetError(
            f"'{path}' has format version {found}, but version {_FORMAT_VERSION} is required. Score the checkpoint again with "
            "--eval-only."
        )
    with _explained(Path(path)):
        weights = _from_plain(ScoredWeights, plain["run"]["weights"])
        run = _from_plain(RunMetadata, plain["run"], weights=weights)
        rule = ZERO if run.evaluator == "cityscapes" else SKIP  # for files without "absent_classes"
        datasets = {
            name: _from_plain(ScoredDataset, {"absent_classes": rule, **scored})
            for name, scored in plain["data_sets"].items()
        }
        if datasets.keys() != results.keys():
            raise ValueError(f"metadata for {sorted(datasets)}, but scores for {sorted(results)}")
        return Report(run, datasets, results)


def _read(path: Path) -> tuple[Scores, Mapping[str, Any] | None]:
    """Read the scores and, if present, the metadata."""
    with _explained(path):
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


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Raise DatasetError for a missing or malformed file."""
    try:
        yield
    except FileNotFoundError as error:
        raise DatasetError(_explain_missing(path)) from error
    except (OSError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DatasetError(
            f"Cannot read scores from '{path}': malformed file ({error}). Score the run again with --eval-only."
        ) from error


def _explain_missing(path: Path) -> str:
    folder = path.parent if path.name == RESULTS_FILE else path
    if not folder.is_dir():
        return f"Run directory not found: '{folder}'. Pass the OUTPUT_DIR of a scored run.{similar_path(folder)}"
    config = folder / "config.yaml"
    if not config.is_file():
        return f"{RESULTS_FILE} not found in '{folder}'. Pass the OUTPUT_DIR of a scored run."
    is_trained = (folder / "model_final.pth").is_file()
    began = is_trained or any(
        file.stat().st_size for file in (*folder.glob("model_*.pth"), *folder.glob("metrics.json"))
    )
    return (
        f"{RESULTS_FILE} not found in '{folder}'{'' if began else ', whose training stopped before its first iteration'}. To "
        f"{'score' if is_trained else 'finish and score' if began else 'start'} the run, use: "
        f"python projects/FAMix/train_net.py --config-file {shlex.quote(str(config))}"
        f"{' --eval-only --resume' if is_trained else ' --resume' if began else ''}"
    )


def _from_plain(kind: type[T], plain: Mapping[str, Any], **known: Any) -> T:
    """Make a dataclass from its JSON form. Fields in `known` are not checked.

    Raises:
        TypeError, ValueError: a field is missing, unknown, or has a wrong type or value.
    """
    values = {**plain, **known}
    for name, hint in ((field.name, field.type) for field in fields(kind)):  # type: ignore[arg-type]
        if name not in values or name in known:
            continue
        value = values[name]
        if hint == tuple[str, ...]:
            fits = isinstance(value, list) and all(isinstance(entry, str) for entry in value)
            values[name] = tuple(value) if fits else value
        elif hint == Mapping[str, str]:
            fits = isinstance(value, dict) and all(isinstance(entry, str) for entry in value.values())
        else:
            allowed = get_args(hint) or (hint,)
            fits = type(value) in allowed or (type(value) is int and float in allowed)
        if not fits:
            raise TypeError(f"{name} is {value!r:.200}, expected {hint}")
        if name == "absent_classes" and value not in ABSENT_CLASSES:
            raise ValueError(f"{name} is {value!r}, expected {' or '.join(ABSENT_CLASSES)}")
    return kind(**values)


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def _to_csv(report: Report) -> str:
    """Format one row per dataset and mean."""
    run, weights = report.run, report.run.weights
    by_class = (metric for tasks in report.results.values() for metric in tasks.get(TASK, {}))
    metrics = dict.fromkeys((*report.metrics, *by_class))
    same = {"method": run.method, "seed": run.seed, "weights": weights.label, "sha256": weights.sha256}
    rows: list[dict[str, Any]] = []
    for name, scored in report.datasets.items():
        facts = {
            "data_set": name,
            "role": "source" if scored.is_source else "target",
            "protocol": scored.protocol,
            "num_classes": len(scored.classes),
            "num_occurring": report.occurring(name),
            "absent_classes": scored.absent_classes,
        }
        rows.append(same | facts | {metric: report.score(name, metric) for metric in metrics})
    for group, means in report.means().items():
        rows.append(same | {"data_set": group if group == MEAN else f"{MEAN} of {group}", "role": MEAN, **means})
    columns = ["data_set", "role", "protocol", "num_classes", "num_occurring", "absent_classes"]
    return csv_table([*same, *columns, *metrics], rows)
