"""Means, rows and the text of a report."""

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from data_factory import data_config, registered
from famix.evaluation.counting.scores import segmentation_scores
from famix.reports import Report, ScoredWeights, format_classes, format_report, format_scores, make_report
from famix.reports.report import PANOPTIC_METRICS, describe_occurring
from famix.reports.tables import format_row, text_table
from report_factory import fake_report, tables

SCORES = {
    "gta5_val": 70.0, "cityscapes_val": 48.5, "acdc_fog_val": 41.0, "acdc_night_val": 15.0, "mapillary_val": 52.4,
}  # fmt: skip


def table(text: str) -> list[list[str]]:
    (found,) = tables(text)
    return found


@pytest.fixture(scope="module", autouse=True)
def builtin_datasets() -> Iterator[None]:
    """Registers them."""
    with registered():
        yield


@pytest.fixture
def report() -> Report:
    return fake_report(SCORES, sources=("gta5_val",), group="acdc")


def test_names_with_marks_of_tables_stay_in_their_cells() -> None:
    names = ["person|rider", "back\\slash", "both\\|", "two\nlines", "007", "1e3"]
    text = text_table(["class | row", "IoU"], [[name, "1.0"] for name in names], style="pipe")
    rows = [re.findall(r"((?:\\.|[^|\\])*)\|", line)[1:] for line in text.splitlines()]
    cells = [[re.sub(r"\\(.)", r"\1", cell.strip()) for cell in row] for row in rows]
    assert cells[0] == ["class | row", "IoU"]
    assert cells[2:] == [[" ".join(name.split()), "1.0"] for name in names]


def test_means_count_every_target_once_and_the_source_never(report: Report) -> None:
    assert report.means()["acdc"]["mIoU"] == pytest.approx((41 + 15) / 2)
    assert report.means()["mean"]["mIoU"] == pytest.approx((48.5 + 41 + 15 + 52.4) / 4)
    assert math.isnan(report.means()["mean"]["fwIoU"])


def test_the_mean_without_a_target_is_nan() -> None:
    assert math.isnan(fake_report({"gta5_val": 1.0}, sources=("gta5_val",)).means()["mean"]["mIoU"])


def test_one_row_for_a_paper(report: Report) -> None:
    assert report.row() == pytest.approx(
        {
            "cityscapes": 48.5, "acdc_fog": 41, "acdc_night": 15, "mean of acdc": 28, "mapillary": 52.4, "mean": 39.225,
            "source: gta5": 70,
        }
    )  # fmt: skip
    assert list(report.row())[-3:] == ["mapillary", "mean", "source: gta5"]
    assert list(fake_report({"cityscapes_val": 1.0}).row()) == ["cityscapes"]


def test_report_of_a_config() -> None:
    cfg = data_config(train=("gta5_train",))
    cfg.OUTPUT_DIR, cfg.TEST.PROTOCOL_OF, cfg.TEST.CLASSES = "output/famix/seed3", ["acdc_fog_val=half"], "synthia16"
    results = {name: {"sem_seg": {"mIoU": score}} for name, score in SCORES.items()}
    report = make_report(cfg, results, ScoredWeights())
    assert report.sources == ("gta5_val",) and report.means()["acdc"]["mIoU"] == 28
    assert {name for name, scored in report.datasets.items() if scored.group} == {"acdc_fog_val", "acdc_night_val"}
    assert [scored.protocol for scored in report.datasets.values()] == ["native", "native", "half", "native", "native"]
    assert "terrain" not in report.datasets["gta5_val"].classes and len(report.datasets["gta5_val"].classes) == 16
    assert (report.run.method, report.run.seed, report.run.trained_on) == ("famix", 5, ("gta5_train",))


def test_panoptic_scores_stand_in_the_same_tables(report: Report) -> None:
    quality = {"PQ": 30.04, "SQ": 80.0, "RQ": 40.0, "PQ_th": 20.0}
    scored = {name: {**tasks, "panoptic_seg": quality} for name, tasks in report.results.items()}
    scored["mapillary_val"] = report.results["mapillary_val"]
    report = replace(report, results={**scored, "acdc_fog_val": {**scored["acdc_fog_val"], "segm": {"AP": 7.0}}})
    head, *rows = table(format_scores(report))
    assert head[4:] == ["mIoU", "fwIoU", "mACC", "pACC", *PANOPTIC_METRICS]
    assert head[8:12] == ["PQ", "SQ", "RQ", "PQ things"]
    cells = {row[0]: row for row in rows}
    assert cells["acdc_fog_val"][8:] == ["30.0", "80.0", "40.0", "20.0", "-", "-", "-", "-", "-", "7.0"]
    assert cells["mapillary_val"][4] == "52.4" and set(cells["mapillary_val"][8:]) == {"-"}
    assert cells["mean of acdc"][8] == "30.0" and cells["mean"][8] == "-"  # which lacks Mapillary's
    head, *rows = table(format_row(report))
    assert head[:4] == ["method", "weights", "score", "cityscapes"]
    assert [row[2:4] for row in rows] == [["PQ", "30.0"], ["mIoU", "48.5"]]
    assert format_report(report).count("PQ and mIoU in percent; 2 classes;") == 1


def test_scores_of_every_data_set(report: Report) -> None:
    rows = table(format_scores(report, digits=2))
    assert rows[0] == ["dataset", "role", "protocol", "classes", "mIoU", "fwIoU", "mACC", "pACC"]
    assert rows[1] == ["cityscapes_val", "target", "native", "2", "48.50", "-", "-", "-"]
    names = [row[0] for row in rows[2:]]
    assert names == ["acdc_fog_val", "acdc_night_val", "mapillary_val", "mean of acdc", "mean", "gta5_val"]
    assert rows[-2][4] == "39.23" and rows[-1][1] == "source"


def test_classes_that_some_data_set_shows() -> None:
    nowhere = math.nan
    report = fake_report({"fog_val": 1.0, "night_val": 2.0})
    fog = {"IoU-road": 90.0, "IoU-train": nowhere, "IoU-wall": nowhere, "ACC-road": 1.0}
    night = {"IoU-road": 70.55, "IoU-train": nowhere, "IoU-wall": 12.25}
    report = Report(report.run, report.datasets, {"fog_val": {"sem_seg": fog}, "night_val": {"sem_seg": night}})
    assert table(format_classes(report)) == [["IoU", "fog", "night"], ["road", "90.0", "70.5"], ["wall", "-", "12.2"]]
    assert format_classes(report) in format_report(report)


def test_the_whole_text(report: Report) -> None:
    text = format_report(report)
    assert text.startswith("# famix\n\nmIoU in percent; 2 classes; the mean counts every target once. Trained on")
    row = table(text.split("\n\n")[2])
    assert row[0] == [
        "method", "weights", "cityscapes", "acdc_fog", "acdc_night", "mean of acdc", "mapillary", "mean", "source: gta5",
    ]  # fmt: skip
    assert row[1] == ["famix", "last", "48.5", "41.0", "15.0", "28.0", "52.4", "39.2", "70.0"]
    assert "IoU of every class" not in text, "these scores have none"
    assert f"| {'ab' * 32}" in text and "model_final.pth" in text and "last, 40000 iterations" in text


NAMES = ("road", "sky", "car")
NO_SKY = np.array([[9, 1, 0], [0, 0, 0], [0, 0, 0]])  # a pixel of road is taken for sky; there is neither sky nor car


def report_of(counts: dict[str, np.ndarray], rule: str, names: tuple[str, ...] = NAMES, **facts: Any) -> Report:
    """A report of confusion matrices."""
    scores = {name: {"sem_seg": segmentation_scores(one, names, absent=rule)} for name, one in counts.items()}
    report = fake_report(dict.fromkeys(counts, 0.0), classes=names, absent_classes=rule, **facts)
    return replace(report, results=scores)


@pytest.mark.parametrize(
    ("rule", "other", "entered", "words"),
    [
        ("skip", "mIoU-zero", "1 of 3", "mIoU leaves them out, mIoU-zero counts them as 0"),
        ("zero", "mIoU-skip", "1 of 3 + 1 as 0", "mIoU counts them as 0, mIoU-skip leaves them out"),
    ],
)
def test_both_means_stand_where_they_differ(rule: str, other: str, entered: str, words: str) -> None:
    report = report_of({"fog_val": np.diag([8, 4, 2]), "night_val": NO_SKY}, rule)
    mean, of_the_other = ("90.0", "45.0") if rule == "skip" else ("45.0", "90.0")
    head, fog, night, *_ = table(format_scores(report))
    assert head[3:7] == ["classes", "mIoU", other, "fwIoU"]
    assert (fog[3:6], night[3:6]) == (["3 of 3", "100.0", "100.0"], [entered, mean, of_the_other])
    row = table(format_row(report))
    assert [cells[2:5] for cells in row[1:]] == [["mIoU", "100.0", mean], [other, "100.0", of_the_other]]
    text = format_report(report)
    assert "classes that occur: fog 3 of 3, night 1 of 3" in text and words in text


def test_one_mean_stands_where_both_are_equal() -> None:
    for rule in ("skip", "zero"):
        report = report_of({"fog_val": np.diag([8, 4, 0]), "night_val": np.diag([1, 4, 0])}, rule)
        assert "mIoU-" not in format_report(report) and "; 2 of 3 classes occur;" in format_report(report)


def test_rules_of_single_datasets_show_both_means() -> None:
    report = report_of({"fog_val": NO_SKY, "night_val": NO_SKY}, "skip")
    mixed = {**report.datasets, "fog_val": replace(report.datasets["fog_val"], absent_classes="zero")}
    scores = {"sem_seg": segmentation_scores(NO_SKY, NAMES, absent="zero")}
    report = Report(report.run, mixed, {**report.results, "fog_val": scores})
    assert report.row() == pytest.approx({"fog": 45, "night": 90, "mean": 67.5})
    assert report.row("mIoU-skip")["mean"] == pytest.approx(90)
    assert report.row("mIoU-zero")["mean"] == pytest.approx(45)


def test_the_rule_of_a_config_stands_in_the_report() -> None:
    cfg = data_config(train=("gta5_train",))
    cfg.TEST.PROTOCOL_OF = ["acdc_fog_val=famix0.5"]
    results = {name: {"sem_seg": {"mIoU": score}} for name, score in SCORES.items()}
    rules = {name: one.absent_classes for name, one in make_report(cfg, results, ScoredWeights()).datasets.items()}
    assert rules == {name: "zero" if name == "acdc_fog_val" else "skip" for name in SCORES}


def test_occurring_classes_are_counted_in_the_subset() -> None:
    scores = {"ACC-road": 1.0, "ACC-sky": math.nan, "ACC-car": 0.0}
    for classes, count in ((NAMES, 2), (("sky",), 0)):
        report = replace(fake_report({"a": 1.0}, classes=classes), results={"a": {"sem_seg": scores}})
        assert report.occurring("a") == count
    assert fake_report({"a": 1.0}).occurring("a") is None


def test_occurring_classes_in_words() -> None:
    assert describe_occurring([10, 10], 19) == "10 of 19 classes occur"
    assert describe_occurring([11, 9], 19) == "9 to 11 of 19 classes occur"
