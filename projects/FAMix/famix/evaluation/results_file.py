"""The scores of a run as a file for other programs."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from famix.errors import DatasetError

__all__ = ["RESULTS_FILE", "read_results", "write_results"]

RESULTS_FILE = "results.json"
"""Name of the file in OUTPUT_DIR."""

Results = Mapping[str, Mapping[str, Mapping[str, float]]]  # data set -> task -> metric -> percent


def write_results(results: Results, path: str | os.PathLike[str]) -> None:
    """Write scores as JSON; the file appears whole or not at all.

    Args:
        results: data set -> task -> metric -> percent. NaN, the score of a class that is nowhere, becomes null.
        path: of the file, which is replaced; its folder is made where it is missing.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    plain = {
        name: {task: {metric: _to_json(value) for metric, value in scores.items()} for task, scores in tasks.items()}
        for name, tasks in results.items()
    }
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        part.write_text(json.dumps(plain, indent=2, allow_nan=False) + "\n")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_results(path: str | os.PathLike[str]) -> dict[str, dict[str, dict[str, float]]]:
    """Read what `write_results` wrote; null becomes NaN again.

    Raises:
        DatasetError: the file is missing or holds something else.
    """
    try:
        plain = json.loads(Path(path).read_text())
        return {
            name: {
                task: {metric: _from_json(value) for metric, value in scores.items()} for task, scores in tasks.items()
            }
            for name, tasks in plain.items()
        }
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DatasetError(f"got no scores from {path} ({error}), expected a file that an evaluation wrote") from error


def _to_json(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _from_json(value: float | None) -> float:
    return math.nan if value is None else float(value)
