"""Means, rows, metadata and the text of a report."""

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_factory import data_config, registered
from famix.evaluation.counting.scores import segmentation_scores
from famix.io import file_sha256
from famix.reports import Report, ScoredWeights, format_classes, format_report, format_row, format_scores, make_report
from famix.reports.report import PANOPTIC_METRICS, describe_occurring, describe_run, method_name
from famix.reports.tables import format_corruptions, severity_curves, text_table
from report_factory import counted_report, fake_report, tables

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


def test_markdown_cells_are_escaped() -> None:
    names = ["person|rider", "back\\slash", "both\\|", "two\nlines", "007", "1e3"]
    text = text_table(["class | row", "IoU"], [[name, "1.0"] for name in names], style="pipe")
    rows = [re.findall(r"((?:\\.|[^|\\])*)\|", line)[1:] for line in text.splitlines()]
    cells = [[re.sub(r"\\(.)", r"\1", cell.strip()) for cell in row] for row in rows]
    assert cells[0] == ["class | row", "IoU"]
    assert cells[2:] == [[" ".join(name.split()), "1.0"] for name in names]


def test_means_count_targets_once_and_no_source(report: Report) -> None:
    assert report.means()["acdc"]["mIoU"] == pytest.approx((41 + 15) / 2)
    assert report.means()["mean"]["mIoU"] == pytest.approx((48.5 + 41 + 15 + 52.4) / 4)
    assert math.isnan(report.means()["mean"]["fwIoU"])
    assert math.isnan(fake_report({"gta5_val": 1.0}, sources=("gta5_val",)).means()["mean"]["mIoU"])
    row = {"cityscapes": 48.5, "acdc_fog": 41, "acdc_night": 15, "mean of acdc": 28, "mapillary": 52.4, "mean": 39.225}
    assert report.row() == pytest.approx({**row, "source: gta5": 70})
    assert list(report.row()) == [*row, "source: gta5"]
    assert list(fake_report({"cityscapes_val": 1.0}).row()) == ["cityscapes"]


def test_make_report_of_a_config() -> None:
    cfg = data_config(train=("gta5_train",))
    cfg.OUTPUT_DIR, cfg.TEST.PROTOCOL_OF, cfg.TEST.CLASSES = "output/famix/seed3", ["acdc_fog_val=half"], "synthia16"
    results = {name: {"sem_seg": {"mIoU": score}} for name, score in SCORES.items()}
    report = make_report(cfg, results, ScoredWeights())
    assert report.sources == ("gta5_val",) and report.means()["acdc"]["mIoU"] == 28
    assert {name for name, scored in report.datasets.items() if scored.group} == {"acdc_fog_val", "acdc_night_val"}
    assert [scored.protocol for scored in report.datasets.values()] == ["native", "native", "half", "native", "native"]
    assert "terrain" not in report.datasets["gta5_val"].classes and len(report.datasets["gta5_val"].classes) == 16
    assert (report.run.method, report.run.seed, report.run.trained_on) == ("famix", 5, ("gta5_train",))
    cfg.TEST.PROTOCOL_OF = ["acdc_fog_val=famix0.5"]
    rules = {name: one.absent_classes for name, one in make_report(cfg, results, ScoredWeights()).datasets.items()}
    assert rules == {name: "zero" if name == "acdc_fog_val" else "skip" for name in SCORES}


def test_method_name() -> None:
    for folder in ("output/famix", "output/famix/seed1", "output/famix_seed12/", "output/famix-seed=3"):
        assert method_name(folder) == "famix"
    names = {"/runs/GTA5_RN50/seed_2": "GTA5_RN50", "output/seeds": "seeds", "output/seed1/seed2": "output"}
    assert {folder: method_name(folder) for folder in names} == names


@pytest.mark.parametrize(
    ("change", "config_differs", "method_differs"),
    [
        (["OUTPUT_DIR", "elsewhere"], False, False),
        *((change, True, False) for change in (
            ["SEED", 7], ["STYLE_MINING.SEED", 7], ["MODEL.STYLE.BANK", "a.safetensors"], ["TEST.PROTOCOL", "half"],
            ["TEST.ABSENT_CLASSES", "zero"], ["MODEL.DEVICE", "cpu"], ["DATASETS.TEST", ("a_val",)],
            ["MODEL_SELECTION.USE", "ema"], ["MODEL.WEIGHTS", "a.pth"],
        )),
        *((change, True, True) for change in (
            ["SOLVER.BASE_LR", 0.5], ["MODEL.STYLE.STRATEGY", "none"], ["DATASETS.TRAIN", ("other_train",)],
        )),
    ],
)  # fmt: skip
def test_hashes_of_config_and_method(change: list[Any], config_differs: bool, method_differs: bool) -> None:
    plain, changed = data_config(), data_config()
    changed.merge_from_list(change)
    runs = [describe_run(cfg, ScoredWeights()) for cfg in (plain, changed)]
    assert (runs[0].config_hash != runs[1].config_hash) == config_differs
    assert (runs[0].method_hash != runs[1].method_hash) == method_differs


def test_description_of_weights(tmp_path: Path) -> None:
    for weights, label, words in (
        (ScoredWeights("last", "model_final.pth", None, 40), "last", "last, 40 iterations"),
        (ScoredWeights("ema", "model_ema.pth", None, 40), "ema", "moving average, 40 iterations"),
        (ScoredWeights("best", "a.pth", None, 30, "a_val", 71.26), "best", "best on a_val (71.3), 30 iterations"),
        (ScoredWeights("file", "model_0000019.pth"), "model_0000019", "model_0000019.pth"),
        (ScoredWeights(iterations=20), "memory", "in memory, 20 iterations"),
    ):
        assert (weights.label, weights.describe()) == (label, words)
    (tmp_path / "file").write_bytes(b"weights" * 1000)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(b"weights" * 1000).hexdigest()


def test_panoptic_scores_share_the_tables(report: Report) -> None:
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
    assert cells["mean of acdc"][8] == "30.0" and cells["mean"][8] == "-", "Mapillary has no PQ"
    head, *rows = table(format_row(report))
    assert head[:4] == ["method", "weights", "score", "cityscapes"]
    assert [row[2:4] for row in rows] == [["PQ", "30.0"], ["mIoU", "48.5"]]
    assert format_report(report).count("PQ and mIoU in percent; 2 classes;") == 1


def test_format_report(report: Report) -> None:
    rows = table(format_scores(report, digits=2))
    assert rows[0] == ["dataset", "role", "protocol", "classes", "mIoU", "fwIoU", "mACC", "pACC"]
    assert rows[1] == ["cityscapes_val", "target", "native", "2", "48.50", "-", "-", "-"]
    names = [row[0] for row in rows[2:]]
    assert names == ["acdc_fog_val", "acdc_night_val", "mapillary_val", "mean of acdc", "mean", "gta5_val"]
    assert rows[-2][4] == "39.23" and rows[-1][1] == "source"
    text = format_report(report)
    assert text.startswith("# famix\n\nmIoU in percent; 2 classes; the mean counts every target once. Trained on")
    head, row = table(text.split("\n\n")[2])
    assert head == ["method", "weights", *report.row()]
    assert row == ["famix", "last", "48.5", "41.0", "15.0", "28.0", "52.4", "39.2", "70.0"]
    assert "IoU of every class" not in text, "these scores have none"
    assert f"| {'ab' * 32}" in text and "model_final.pth" in text and "last, 40000 iterations" in text

    fog = {"IoU-road": 90.0, "IoU-train": math.nan, "IoU-wall": math.nan, "ACC-road": 1.0}
    night = {"IoU-road": 70.55, "IoU-train": math.nan, "IoU-wall": 12.25}
    results = {"fog_val": {"sem_seg": fog}, "night_val": {"sem_seg": night}}
    report = replace(fake_report({"fog_val": 1.0, "night_val": 2.0}), results=results)
    assert table(format_classes(report)) == [["IoU", "fog", "night"], ["road", "90.0", "70.5"], ["wall", "-", "12.2"]]
    assert format_classes(report) in format_report(report)


NAMES = ("road", "sky", "car")
NO_SKY = np.array(
    [[9, 1, 0], [0, 0, 0], [0, 0, 0]]
)  # one pixel of road is predicted as sky; neither sky nor car occurs


@pytest.mark.parametrize(
    ("rule", "other", "entered", "words"),
    [
        ("skip", "mIoU-zero", "1 of 3", "mIoU leaves them out, mIoU-zero counts them as 0"),
        ("zero", "mIoU-skip", "1 of 3 + 1 as 0", "mIoU counts them as 0, mIoU-skip leaves them out"),
    ],
)
def test_means_of_both_rules(rule: str, other: str, entered: str, words: str) -> None:
    report = counted_report({"fog_val": np.diag([8, 4, 2]), "night_val": NO_SKY}, rule)
    means = ["90.0", "45.0"] if rule == "skip" else ["45.0", "90.0"]
    head, fog, night, *_ = table(format_scores(report))
    assert head[3:7] == ["classes", "mIoU", other, "fwIoU"]
    assert (fog[3:6], night[3:6]) == (["3 of 3", "100.0", "100.0"], [entered, *means])
    rows = [cells[2:5] for cells in table(format_row(report))[1:]]
    assert rows == [["mIoU", "100.0", means[0]], [other, "100.0", means[1]]]
    text = format_report(report)
    assert "classes that occur: fog 3 of 3, night 1 of 3" in text and words in text
    same = format_report(counted_report({"fog_val": np.diag([8, 4, 0]), "night_val": np.diag([1, 4, 0])}, rule))
    assert "mIoU-" not in same and "; 2 of 3 classes occur;" in same


def test_rules_of_single_datasets() -> None:
    report = counted_report({"fog_val": NO_SKY, "night_val": NO_SKY}, "skip")
    mixed = {**report.datasets, "fog_val": replace(report.datasets["fog_val"], absent_classes="zero")}
    scores = {"sem_seg": segmentation_scores(NO_SKY, NAMES, absent="zero")}
    report = Report(report.run, mixed, {**report.results, "fog_val": scores})
    assert report.row() == pytest.approx({"fog": 45, "night": 90, "mean": 67.5})
    assert report.row("mIoU-skip")["mean"] == pytest.approx(90)
    assert report.row("mIoU-zero")["mean"] == pytest.approx(45)


def test_occurring_classes() -> None:
    scores = {"ACC-road": 1.0, "ACC-sky": math.nan, "ACC-car": 0.0}
    for classes, count in ((NAMES, 2), (("sky",), 0)):
        assert (
            replace(fake_report({"a": 1.0}, classes=classes), results={"a": {"sem_seg": scores}}).occurring("a")
            == count
        )
    assert fake_report({"a": 1.0}).occurring("a") is None
    assert describe_occurring([10, 10], 19) == "10 of 19 classes occur"
    assert describe_occurring([11, 9], 19) == "9 to 11 of 19 classes occur"


def test_scores_over_severity_and_their_mean_over_corruptions() -> None:
    scores = {
        "a_val": 80.0,
        **{
            f"a_val@{kind}{level}": start - 10 * level
            for kind, start in (("fog", 80), ("jpeg", 70))
            for level in range(1, 6)
        },
    }
    report = fake_report({**scores, "b_val@snow2": 9.0})
    curves = severity_curves(report)
    assert curves["a_val"] == {
        "fog": [80, 70, 60, 50, 40, 30], "jpeg": [80, 60, 50, 40, 30, 20], "mean": [80, 65, 55, 45, 35, 25],
    }  # fmt: skip
    assert (
        list(curves["b_val"]) == ["snow"]
        and np.isfinite(curves["b_val"]["snow"]).tolist() == [False, False, True] + [False] * 3
    )
    (rows,) = tables(format_corruptions(report))
    assert rows[3] == ["a_val", "mean", "80.0", "65.0", "55.0", "45.0", "35.0", "25.0", "45.0"]
    assert rows[4] == ["b_val", "snow", "-", "-", "9.0", "-", "-", "-", "-"]
    assert format_corruptions(fake_report({"a_val": 1.0})) == ""
