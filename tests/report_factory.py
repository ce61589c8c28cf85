"""Reports and run directories without a run."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml

from famix.evaluation.counting.confusion import write_confusion
from famix.evaluation.counting.scores import segmentation_scores
from famix.reports import Report, RunMetadata, ScoredDataset, ScoredWeights, write_report

__all__ = ["fake_report", "make_run_folder", "tables"]

CLASSES = ("road", "sky")


def fake_report(
    scores: Mapping[str, float],
    *,
    method: str = "famix",
    seed: int = 1,
    weights: ScoredWeights | None = None,
    method_hash: str | None = None,
    protocol: str = "native",
    classes: tuple[str, ...] = CLASSES,
    sources: tuple[str, ...] = (),
    group: str = "",
    absent_classes: str = "skip",
) -> Report:
    """Make a report of mIoU alone; datasets that start with the name of `group` are its conditions."""
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
    datasets = {
        name: ScoredDataset(
            heading=name.removesuffix("_val"),
            is_source=name in sources,
            group=group if group and name.startswith(group) and name not in sources else "",
            protocol=protocol,
            classes=classes,
            absent_classes=absent_classes,
        )
        for name in scores
    }
    return Report(run, datasets, {name: {"sem_seg": {"mIoU": score}} for name, score in scores.items()})


def tables(text: str) -> list[list[list[str]]]:
    """Cells of every Markdown table of a text, row by row, without the rules."""
    found = []
    for block in re.findall(r"(?:^\|.*\n?)+", text, flags=re.MULTILINE):
        head, rule, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines())
        assert all(set(cell) <= {"-", ":"} for cell in rule)
        found.append([head, *rows])
    return found


def make_run_folder(folder: Path) -> Path:
    """Write the files that a training and its scoring leave, but for checkpoints."""
    counts = np.array([[90, 10], [30, 20]])
    report = fake_report({"gta5_val": 70.25, "acdc_fog_val": 41.0}, sources=("gta5_val",))
    scores = {"mIoU": 41.0, **segmentation_scores(counts, CLASSES)}
    results = {"gta5_val": {"sem_seg": {"mIoU": 70.25, "IoU-road": 75.5}}, "acdc_fog_val": {"sem_seg": scores}}
    write_report(replace(report, results=results), folder)
    write_confusion(folder / "inference/acdc_fog_val/confusion.json", CLASSES, counts)
    lines = [{"iteration": 20 * number, "total_loss": 2.0 - 0.1 * number, "lr": 0.1} for number in range(5)]
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = {"OUTPUT_DIR": str(folder), "SEED": 1, "SOLVER": {"BASE_LR": 0.1, "STEPS": [10, 20]}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder
