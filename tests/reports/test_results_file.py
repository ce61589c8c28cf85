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
from famix.evaluation.counting.scores import segmentation_scores
from famix.reports import Report, ScoredWeights, format_report, read_report, read_results, write_report
from famix.utils.errors import DatasetError
from report_factory import fake_report


@pytest.fixture
def report() -> Report:
    weights = ScoredWeights("best", "model_best.pth", "ef" * 32, 300, "gta5_val", 71.5)
    report = fake_report({"gta5_val": 70.25, "acdc_fog_val": 41.0}, sources=("gta5_val",), weights=weights)
    results = {
        "gta5_val": {"sem_seg": {"mIoU": 70.25, "fwIoU": 80.0, "IoU-train": math.nan}},
        "acdc_fog_val": {"sem_seg": {"mIoU": float(np.float64(41.0))}},
    }
    return replace(report, results=results)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change the content of results.json; returns its path."""
    path = folder / "results.json"
    plain = json.loads(path.read_text())
    change(plain)
    path.write_text(json.dumps(plain))
    return path


def test_files_hold_the_report(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path / "new")
    path = tmp_path / "new/results.json"
    back = read_report(path)
    assert (back.run, back.datasets) == (report.run, report.datasets)
    assert list(back.results) == list(report.results)
    assert math.isnan(back.results["gta5_val"]["sem_seg"]["IoU-train"])
    assert read_results(path)["acdc_fog_val"] == {"sem_seg": {"mIoU": 41.0}}
    plain = json.loads(path.read_text())
    assert plain["gta5_val"]["sem_seg"] == {"mIoU": 70.25, "fwIoU": 80.0, "IoU-train": None}
    assert plain["report"]["format_version"] == 2
    assert plain["report"]["means"]["mean"] == {"mIoU": 41.0, "fwIoU": None, "mACC": None, "pACC": None}
    assert path.with_suffix(".md").read_text() == format_report(report)


def test_rows_of_the_csv_file(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path)
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [(row["data_set"], row["role"], row["mIoU"]) for row in rows] == [
        ("gta5_val", "source", "70.25"), ("acdc_fog_val", "target", "41.0"), ("mean", "mean", "41.0"),
    ]  # fmt: skip
    first = rows[0]
    assert (first["method"], first["seed"], first["weights"], first["sha256"]) == ("famix", "1", "best", "ef" * 32)
    assert (first["protocol"], first["num_classes"], first["fwIoU"], first["IoU-train"]) == ("native", "2", "80.0", "")


def test_files_are_replaced_whole(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path)
    broken = replace(report, results={**report.results, "gta5_val": {"sem_seg": {"mIoU": object()}}})
    with pytest.raises(TypeError):
        write_report(broken, tmp_path)
    assert read_report(tmp_path / "results.json").score("gta5_val") == 70.25
    assert {file.name for file in tmp_path.iterdir()} == {"results.json", "results.csv", "results.md"}


def test_files_without_a_version_hold_scores_alone(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text('{"a": {"sem_seg": {"mIoU": 12.5, "IoU-train": null}}}')
    scores = read_results(path)["a"]["sem_seg"]
    assert scores["mIoU"] == 12.5 and math.isnan(scores["IoU-train"])
    with expect_error(DatasetError, str(path), "none", "--eval-only"):
        read_report(path)


@pytest.mark.parametrize("content", ["{", "[1]", '{"a": 3}', '{"report": 3}', '{"a": {"sem_seg": {"mIoU": "x"}}}'])
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    with expect_error(DatasetError, str(path), remedy="--eval-only"):
        read_results(path)


@pytest.mark.parametrize(
    ("change", "value"),
    [
        (lambda report: report.update(format_version=3), 3),
        (lambda report: report.pop("run"), "run"),
        (lambda report: report.pop("data_sets"), "data_sets"),
        *((lambda report, rule=rule: report["data_sets"]["gta5_val"].update(absent_classes=rule), repr(rule))
          for rule in ("none", 3, None)),
    ],
)  # fmt: skip
def test_malformed_metadata_are_refused(
    report: Report, tmp_path: Path, change: Callable[[dict[str, Any]], object], value: object
) -> None:
    write_report(report, tmp_path)
    path = rewrite(tmp_path, lambda plain: change(plain["report"]))
    with expect_error(DatasetError, str(path), value, "--eval-only"):
        read_report(path)


@pytest.mark.parametrize(
    ("files", "remedy"),
    [((), "OUTPUT_DIR"), (("config.yaml",), "--resume"), (("config.yaml", "model_final.pth"), "--eval-only")],
)
def test_a_run_without_scores_names_the_command_that_scores_it(
    tmp_path: Path, files: tuple[str, ...], remedy: str
) -> None:
    for name in files:
        (tmp_path / name).touch()
    for read in (read_results, read_report):
        with expect_error(DatasetError, key=str(tmp_path), value="results.json", remedy=remedy):
            read(tmp_path / "results.json")
    with expect_error(DatasetError, key=str(tmp_path / "none"), remedy="OUTPUT_DIR"):
        read_report(tmp_path / "none/results.json")


def absent_report(rule: str) -> Report:
    """A report of a dataset without sky, which a tenth of the road is predicted as."""
    scores = segmentation_scores(np.array([[9, 1], [0, 0]]), ("road", "sky"), absent=rule)
    return replace(fake_report({"fog_val": 0.0}, absent_classes=rule), results={"fog_val": {"sem_seg": scores}})


@pytest.mark.parametrize("rule", ["skip", "zero"])
def test_files_have_both_means_the_rule_and_the_number_of_occurring_classes(tmp_path: Path, rule: str) -> None:
    write_report(absent_report(rule), tmp_path)
    plain = json.loads((tmp_path / "results.json").read_text())
    assert plain["report"]["data_sets"]["fog_val"]["absent_classes"] == rule
    scores = plain["fog_val"]["sem_seg"]
    assert (scores["mIoU-skip"], scores["mIoU-zero"], scores["mIoU"]) == (90, 45, {"skip": 90, "zero": 45}[rule])
    first, mean = csv.DictReader((tmp_path / "results.csv").open())
    assert (first["num_classes"], first["num_occurring"], first["absent_classes"]) == ("2", "1", rule)
    for row in (first, mean):
        assert (row["mIoU-skip"], row["mIoU-zero"]) == ("90.0", "45.0")
    assert read_report(tmp_path / "results.json").datasets["fog_val"].absent_classes == rule


@pytest.mark.parametrize(("evaluator", "rule"), [("streaming", "skip"), ("detectron2", "skip"), ("cityscapes", "zero")])
def test_files_without_a_rule_follow_their_evaluators(tmp_path: Path, evaluator: str, rule: str) -> None:
    def make_old(plain: dict[str, Any]) -> None:
        plain["report"]["run"]["evaluator"] = evaluator
        del plain["report"]["data_sets"]["fog_val"]["absent_classes"]
        for name in ("mIoU-skip", "mIoU-zero"):
            del plain["fog_val"]["sem_seg"][name]

    write_report(absent_report(rule), tmp_path)
    report = read_report(rewrite(tmp_path, make_old))
    assert report.datasets["fog_val"].absent_classes == rule and report.other_means == ()
    assert report.score("fog_val", f"mIoU-{rule}") == report.score("fog_val")
    assert math.isnan(report.score("fog_val", "mIoU-zero" if rule == "skip" else "mIoU-skip"))
