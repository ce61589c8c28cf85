"""Reports and run directories without a run."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from famix.evaluation.counting.confusion import write_confusion
from famix.evaluation.counting.scores import segmentation_scores
from famix.reports import Report, RunMetadata, ScoredDataset, ScoredWeights, write_report

CLASSES = ("road", "sky")
COUNTS = np.array([[90, 10], [30, 20]])  # of road and sky; rows are true classes


def fake_report(
    scores: Mapping[str, float],
    *,
    method: str = "famix",
    seed: int = 1,
    weights: ScoredWeights | None = None,
    method_hash: str | None = None,
    sources: tuple[str, ...] = (),
    group: str = "",
    protocol: str = "native",
    classes: tuple[str, ...] = CLASSES,
    absent_classes: str = "skip",
) -> Report:
    """Make a report of mIoU alone; targets that start with the name of `group` are its conditions."""
    run = RunMetadata(
        method=method,
        seed=seed,
        trained_on=("gta5_train",),
        weights=weights or ScoredWeights("last", "model_final.pth", "ab" * 32, 40000),
        evaluator="streaming",
        config_hash="cd" * 32,
        method_hash=method_hash or f"hash of {method}",
        date="2026-11-23T12:00:00+00:00",
        versions={"famix": "0.1.0", "torch": "2.14.1"},
    )
    datasets = {}
    for name in scores:
        is_source = name in sources
        its_group = group if group and name.startswith(group) and not is_source else ""
        heading = name.removesuffix("_val")
        datasets[name] = ScoredDataset(heading, is_source, its_group, protocol, classes, absent_classes)
    return Report(run, datasets, {name: {"sem_seg": {"mIoU": score}} for name, score in scores.items()})


def counted_report(
    counts: Mapping[str, np.ndarray], rule: str, classes: tuple[str, ...] = ("road", "sky", "car"), **facts: Any
) -> Report:
    """Make a report of confusion matrices with a rule for absent classes."""
    scores = {name: {"sem_seg": segmentation_scores(one, classes, absent=rule)} for name, one in counts.items()}
    report = fake_report(dict.fromkeys(counts, 0.0), classes=classes, absent_classes=rule, **facts)
    return replace(report, results=scores)


def tables(text: str) -> list[list[list[str]]]:
    """Return the cells of every Markdown table of a text, row by row, without the rules."""
    found = []
    for block in re.findall(r"(?:^\|.*\n?)+", text, flags=re.MULTILINE):
        head, rule, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines())
        assert all(set(cell) <= {"-", ":"} for cell in rule)
        found.append([head, *rows])
    return found


def make_run_folder(
    folder: Path,
    fog: float = 41.0,
    *,
    settings: Mapping[str, Any] | None = None,
    lines: str | None = None,
    **facts: Any,
) -> Path:
    """Write the files of a scored training without checkpoints: fog, with a confusion matrix, and the source."""
    report = fake_report({"gta5_val": 70.0, "acdc_fog_val": fog}, sources=("gta5_val",), **facts)
    scores = segmentation_scores(COUNTS, CLASSES) | dict.fromkeys(("mIoU", "mIoU-skip", "mIoU-zero"), fog)
    results = {"gta5_val": {"sem_seg": {"mIoU": 70.0, "IoU-road": math.nan}}, "acdc_fog_val": {"sem_seg": scores}}
    write_report(replace(report, results=results), folder)
    write_confusion(folder / "inference/acdc_fog_val/confusion.json", CLASSES, COUNTS)
    losses = ({"iteration": 20 * number, "total_loss": 2.0 - 0.1 * number, "lr": 0.1} for number in range(5))
    text = "".join(json.dumps(line) + "\n" for line in losses) if lines is None else lines
    (folder / "metrics.json").write_text(text)
    config = {"OUTPUT_DIR": str(folder), "SEED": 1, "SOLVER": {"BASE_LR": 0.1, "FILE": f"{folder}/x"}}
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, **(settings or {})}))
    return folder
