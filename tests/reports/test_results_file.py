"""Files of a report: round trip, format, earlier formats, and damaged files."""

import csv
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from error_matching import expect_error
from famix.reports import Report, ScoredWeights, format_report, read_report, read_results, write_report
from famix.utils.errors import DatasetError
from report_factory import counted_report, fake_report


@pytest.fixture
def report() -> Report:
    weights = ScoredWeights("best", "model_best.pth", "ef" * 32, 300, "gta5_val", 71.5)
    report = fake_report({"gta5_val": 70.25, "acdc_fog_val": 41.0}, sources=("gta5_val",), weights=weights)
    source = {"mIoU": 70.25, "fwIoU": 80.0, "IoU-train": math.nan}
    return replace(
        report, results={"gta5_val": {"sem_seg": source}, "acdc_fog_val": {"sem_seg": {"mIoU": np.float64(41)}}}
    )


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change the content of results.json; returns its path."""
    path = folder / "results.json"
    plain = json.loads(path.read_text())
    change(plain)
    path.write_text(json.dumps(plain))
    return path


def test_files_of_a_report(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path / "new")
    path = tmp_path / "new/results.json"
    back = read_report(path)
    assert (back.run, back.datasets, list(back.results)) == (report.run, report.datasets, list(report.results))
    assert math.isnan(back.results["gta5_val"]["sem_seg"]["IoU-train"])
    assert read_results(path)["acdc_fog_val"] == {"sem_seg": {"mIoU": 41.0}}
    plain = json.loads(path.read_text())
    assert plain["gta5_val"]["sem_seg"] == {"mIoU": 70.25, "fwIoU": 80.0, "IoU-train": None}
    assert plain["report"]["format_version"] == 2
    assert plain["report"]["means"]["mean"] == {"mIoU": 41.0, "fwIoU": None, "mACC": None, "pACC": None}
    assert path.with_suffix(".md").read_text() == format_report(report)
    rows = list(csv.DictReader(path.with_suffix(".csv").open()))
    assert [(row["data_set"], row["role"], row["mIoU"]) for row in rows] == [
        ("gta5_val", "source", "70.25"), ("acdc_fog_val", "target", "41.0"), ("mean", "mean", "41.0"),
    ]  # fmt: skip
    expected = {"method": "famix", "seed": "1", "weights": "best", "sha256": "ef" * 32, "protocol": "native"}
    expected |= {"num_classes": "2", "fwIoU": "80.0", "IoU-train": ""}
    assert {key: rows[0][key] for key in expected} == expected


def test_failed_write_keeps_the_files(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path)
    broken = replace(report, results={**report.results, "gta5_val": {"sem_seg": {"mIoU": object()}}})
    with pytest.raises(TypeError):
        write_report(broken, tmp_path)
    assert read_report(tmp_path / "results.json").score("gta5_val") == 70.25
    assert {file.name for file in tmp_path.iterdir()} == {"results.json", "results.csv", "results.md"}


def test_file_without_a_version_contains_scores(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text('{"a": {"sem_seg": {"mIoU": 12.5, "IoU-train": null}}}')
    scores = read_results(path)["a"]["sem_seg"]
    assert scores["mIoU"] == 12.5 and math.isnan(scores["IoU-train"])
    with expect_error(DatasetError, str(path), "none", "--eval-only"):
        read_report(path)
    for content in ("{", "[1]", '{"a": 3}', '{"report": 3}', '{"a": {"sem_seg": {"mIoU": "x"}}}'):
        path.write_text(content)
        with expect_error(DatasetError, str(path), remedy="--eval-only"):
            read_results(path)


@pytest.mark.parametrize(
    ("files", "remedy"),
    [
        ((), "OUTPUT_DIR"), (("config.yaml", "log.txt"), "--config-file"), (("config.yaml", "metrics.json"), "--resume"),
        (("config.yaml", "model_0000999.pth"), "--resume"), (("config.yaml", "model_final.pth"), "--eval-only"),
    ],
)  # fmt: skip
def test_missing_scores_name_the_next_command(tmp_path: Path, files: tuple[str, ...], remedy: str) -> None:
    for name in files:
        (tmp_path / name).write_text("content")
    for read in (read_results, read_report):
        with expect_error(DatasetError, key=str(tmp_path), value="results.json", remedy=remedy) as caught:
            read(tmp_path / "results.json")
        assert ("--resume" in str(caught.value)) == any(name.startswith(("model", "metrics")) for name in files)
    with expect_error(DatasetError, key=str(tmp_path / "none"), remedy="OUTPUT_DIR"):
        read_report(tmp_path / "none/results.json")


@pytest.mark.parametrize("rule", ["skip", "zero"])
def test_rule_for_absent_classes(tmp_path: Path, rule: str) -> None:
    """A dataset without sky, as which a tenth of the road is predicted, in files with and without the rule."""
    write_report(counted_report({"fog_val": np.array([[9, 1], [0, 0]])}, rule, ("road", "sky")), tmp_path)
    plain = json.loads((tmp_path / "results.json").read_text())
    assert plain["report"]["data_sets"]["fog_val"]["absent_classes"] == rule
    scores = plain["fog_val"]["sem_seg"]
    assert (scores["mIoU-skip"], scores["mIoU-zero"], scores["mIoU"]) == (90, 45, {"skip": 90, "zero": 45}[rule])
    first, mean = csv.DictReader((tmp_path / "results.csv").open())
    assert (first["num_classes"], first["num_occurring"], first["absent_classes"]) == ("2", "1", rule)
    for row in (first, mean):
        assert (row["mIoU-skip"], row["mIoU-zero"]) == ("90.0", "45.0")
    assert read_report(tmp_path / "results.json").datasets["fog_val"].absent_classes == rule

    for evaluator in ("streaming", "detectron2") if rule == "skip" else ("cityscapes",):

        def make_old(plain: dict[str, Any], evaluator: str = evaluator) -> None:
            plain["report"]["run"]["evaluator"] = evaluator
            plain["report"]["data_sets"]["fog_val"].pop("absent_classes", None)
            for name in ("mIoU-skip", "mIoU-zero"):
                plain["fog_val"]["sem_seg"].pop(name, None)

        report = read_report(rewrite(tmp_path, make_old))
        assert report.datasets["fog_val"].absent_classes == rule and report.other_means == ()
        assert report.score("fog_val", f"mIoU-{rule}") == report.score("fog_val")
        assert math.isnan(report.score("fog_val", "mIoU-zero" if rule == "skip" else "mIoU-skip"))
