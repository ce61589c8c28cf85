"""results.json, .csv and .md: what is written comes back, also what was written before there was a version."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

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


def test_everything_comes_back(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path / "new")
    back = read_report(tmp_path / "new/results.json")
    assert (back.run, back.datasets) == (report.run, report.datasets)
    assert list(back.results) == list(report.results)
    assert back.results["acdc_fog_val"] == report.results["acdc_fog_val"]
    assert math.isnan(back.results["gta5_val"]["sem_seg"]["IoU-train"])


def test_scores_stay_where_readers_of_scores_look(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path)
    plain = json.loads((tmp_path / "results.json").read_text())
    assert plain["gta5_val"]["sem_seg"] == {"mIoU": 70.25, "fwIoU": 80.0, "IoU-train": None}
    assert plain["report"]["format_version"] == 2
    assert plain["report"]["means"]["mean"] == {"mIoU": 41.0, "fwIoU": None, "mACC": None, "pACC": None}
    assert read_results(tmp_path / "results.json")["acdc_fog_val"] == {"sem_seg": {"mIoU": 41.0}}


def test_files_without_a_version_are_scores_alone(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text('{"a": {"sem_seg": {"mIoU": 12.5, "IoU-train": null}}}')
    scores = read_results(path)["a"]["sem_seg"]
    assert scores["mIoU"] == 12.5 and math.isnan(scores["IoU-train"])
    with expect_error(DatasetError, str(path), "none", "--eval-only"):
        read_report(path)


def test_a_later_version_is_refused(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path)
    path = tmp_path / "results.json"
    path.write_text(path.read_text().replace('"format_version": 2', '"format_version": 3'))
    with expect_error(DatasetError, str(path), 3, "--eval-only"):
        read_report(path)


def test_rows_of_the_csv_file(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path)
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [(row["data_set"], row["role"], row["mIoU"]) for row in rows] == [
        ("gta5_val", "source", "70.25"), ("acdc_fog_val", "target", "41.0"), ("mean", "mean", "41.0"),
    ]  # fmt: skip
    first = rows[0]
    assert (first["method"], first["seed"], first["weights"], first["sha256"]) == ("famix", "1", "best", "ef" * 32)
    assert (first["protocol"], first["num_classes"], first["fwIoU"], first["IoU-train"]) == ("native", "2", "80.0", "")


def test_the_text_stands_beside_them(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path)
    assert (tmp_path / "results.md").read_text() == format_report(report)


def test_files_are_replaced_whole(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path)
    broken = replace(report, results={**report.results, "gta5_val": {"sem_seg": {"mIoU": object()}}})
    with pytest.raises(TypeError):
        write_report(broken, tmp_path)
    assert read_report(tmp_path / "results.json").score("gta5_val") == 70.25
    assert {file.name for file in tmp_path.iterdir()} == {"results.json", "results.csv", "results.md"}


@pytest.mark.parametrize("content", ["{", "[1]", '{"a": 3}', '{"report": 3}', '{"a": {"sem_seg": {"mIoU": "x"}}}'])
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    with expect_error(DatasetError, str(path), remedy="--eval-only"):
        read_results(path)


@pytest.mark.parametrize(
    ("files", "remedy"),
    [((), "Name another folder"), (("config.yaml",), "--resume"), (("config.yaml", "model_final.pth"), "--eval-only")],
)
def test_a_run_without_scores_says_how_to_get_them(tmp_path: Path, files: tuple[str, ...], remedy: str) -> None:
    for name in files:
        (tmp_path / name).touch()
    for read in (read_results, read_report):
        with expect_error(DatasetError, key=str(tmp_path), value="results.json", remedy=remedy):
            read(tmp_path / "results.json")
    with expect_error(DatasetError, key=str(tmp_path / "none"), remedy="OUTPUT_DIR"):
        read_report(tmp_path / "none/results.json")


@pytest.mark.parametrize("missing", ["run", "data_sets"])
def test_incomplete_files_are_refused(report: Report, tmp_path: Path, missing: str) -> None:
    write_report(report, tmp_path)
    path = tmp_path / "results.json"
    plain = json.loads(path.read_text())
    del plain["report"][missing]
    path.write_text(json.dumps(plain))
    with expect_error(DatasetError, str(path), missing, "--eval-only"):
        read_report(path)


def absent_report(rule: str) -> Report:
    """A report of a data set without sky, for which a tenth of the road is taken."""
    scores = segmentation_scores(np.array([[9, 1], [0, 0]]), ("road", "sky"), absent=rule)
    return replace(fake_report({"fog_val": 0.0}, absent_classes=rule), results={"fog_val": {"sem_seg": scores}})


@pytest.mark.parametrize("rule", ["skip", "zero"])
def test_files_have_both_means_the_rule_and_how_many_classes_occur(tmp_path: Path, rule: str) -> None:
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


@pytest.mark.parametrize("rule", ["none", 3, None])
def test_an_unknown_rule_is_refused(tmp_path: Path, rule: object) -> None:
    write_report(absent_report("skip"), tmp_path)
    path = tmp_path / "results.json"
    plain = json.loads(path.read_text())
    plain["report"]["data_sets"]["fog_val"]["absent_classes"] = rule
    path.write_text(json.dumps(plain))
    with expect_error(DatasetError, str(path), repr(rule), "--eval-only"):
        read_report(path)


@pytest.mark.parametrize(("evaluator", "rule"), [("streaming", "skip"), ("detectron2", "skip"), ("cityscapes", "zero")])
def test_files_that_say_no_rule_follow_their_evaluators(tmp_path: Path, evaluator: str, rule: str) -> None:
    write_report(absent_report(rule), tmp_path)
    path = tmp_path / "results.json"
    plain = json.loads(path.read_text())
    plain["report"]["run"]["evaluator"] = evaluator
    del plain["report"]["data_sets"]["fog_val"]["absent_classes"]
    for name in ("mIoU-skip", "mIoU-zero"):
        del plain["fog_val"]["sem_seg"][name]
    path.write_text(json.dumps(plain))
    report = read_report(path)
    assert report.datasets["fog_val"].absent_classes == rule and report.other_means == ()
    assert report.score("fog_val", f"mIoU-{rule}") == report.score("fog_val")
    assert math.isnan(report.score("fog_val", "mIoU-zero" if rule == "skip" else "mIoU-skip"))
