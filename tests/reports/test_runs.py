"""Reading of run directories, and the page of runs."""

import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from error_matching import expect_error, explains
from famix.evaluation.counting.calibration import Calibration, write_calibration
from famix.evaluation.counting.confusion import ConfusionMatrix, write_confusion
from famix.reports import read_report, write_report
from famix.reports.run_page import class_scores, describe_confusion, render_runs
from famix.reports.runs import differing_settings, read_runs
from famix.utils.errors import ConfigError, DatasetError
from report_factory import CLASSES, COUNTS, counted_report
from report_factory import make_run_folder as write_run
from reports.pages import assert_sound


def test_read_runs(tmp_path: Path) -> None:
    (run,) = read_runs([write_run(tmp_path / "famix")])
    assert run.name == "famix" and list(run.losses) == ["total_loss"]
    iterations, losses = run.losses["total_loss"].tolist()
    assert iterations == [0, 20, 40, 60, 80] and losses == pytest.approx([2.0, 1.9, 1.8, 1.7, 1.6])
    assert run.confusions["acdc_fog_val"].counts.tolist() == COUNTS.tolist()
    assert run.settings["SOLVER.BASE_LR"] == 0.1
    (missing,) = run.missing
    explains(missing, run.report.datasets["gta5_val"].heading, remedy="streaming")


def test_resumed_losses_replace_earlier_ones(tmp_path: Path) -> None:
    lines = [
        {"iteration": 40, "total_loss": 9.0, "loss_mask": 1.0},
        {"iteration": 60, "total_loss": 8.0},
        {"iteration": 20, "total_loss": 3.0},  # resumed here
        {"iteration": 40, "total_loss": 2.0},
        {"iteration": 80, "a_val/sem_seg/mIoU": 50.0},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"iteration": 60, "total'
    (run,) = read_runs([write_run(tmp_path / "a", lines=text)])
    assert list(run.losses) == ["total_loss", "loss_mask"]
    assert run.losses["total_loss"].tolist() == [[20, 40, 60], [3.0, 2.0, 8.0]]


def test_missing_and_foreign_files_are_skipped(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    (folder / "metrics.json").unlink()
    (folder / "config.yaml").unlink()
    write_confusion(folder / "inference/acdc_fog_val/confusion.json", CLASSES, COUNTS + 5)
    (run,) = read_runs([folder])
    assert not run.losses and not run.settings and not run.confusions
    assert {"no losses in metrics.json", "no config.yaml"} <= set(run.missing)
    assert any("acdc_fog" in reason and "different evaluation" in reason for reason in run.missing)
    assert "no losses in metrics.json" in assert_sound(render_runs([run], {})).text


@pytest.mark.parametrize(("ece", "reason"), [(12.5, ""), (13.0, "different evaluation"), (math.nan, "Cannot read")])
def test_calibration_must_fit_the_scores(tmp_path: Path, ece: float, reason: str) -> None:
    folder = write_run(tmp_path / "a")
    report = read_report(folder / "results.json")
    calibration = {"calibration": {"ECE": 13.0 if math.isnan(ece) else ece}}
    results = {**report.results, "acdc_fog_val": {**report.results["acdc_fog_val"], **calibration}}
    write_report(replace(report, results=results), str(folder))
    pixels = np.zeros(15, np.int64)
    pixels[12] = 8  # of which 7 are right with a confidence of 0.75
    path = folder / "inference/acdc_fog_val/calibration.json"
    write_calibration(path, Calibration(pixels, 0.75 * pixels, pixels * 7 // 8))
    if math.isnan(ece):
        path.write_text("[]")
    (run,) = read_runs([folder])
    assert list(run.calibrations) == ([] if reason else ["acdc_fog_val"])
    assert not reason or any(reason in one and "calibration" in one for one in run.missing)
    assert ("Calibration" in assert_sound(render_runs([run], {})).text) == (not reason)


@pytest.mark.parametrize(
    "file", ["config.yaml", "results.json", "metrics.json", "inference/acdc_fog_val/confusion.json"]
)
@pytest.mark.parametrize(
    "make", [os.mkfifo, os.mkdir, lambda path: os.symlink(path, path)], ids=["pipe", "folder", "loop"]
)
def test_irregular_files_are_refused(tmp_path: Path, file: str, make: Callable[[Path], None]) -> None:
    folder = write_run(tmp_path / "a")
    (folder / file).unlink()
    make(folder / file)
    if file.endswith("confusion.json"):
        assert any("acdc_fog" in reason for reason in read_runs([folder])[0].missing)
        return
    with expect_error((DatasetError, ConfigError), str(folder / file)):
        read_runs([folder])


SOUND = b'{"iteration": 0, "total_loss": 2.0}\n{"iteration": 20, "total_loss": NaN}\n'
ODD = [b'{"iteration": NaN, "total_loss": 1.0}', b'{"iteration": 1e999, "total_loss": 1.0}', b"", b"9" * 5000,
       b'{"iteration": "3", "loss_mask": 1.0}', b'{"iteration": 5, "total_loss": ' + b"9" * 400 + b"}", b"[" * 9999,
       b'{"iteration": 0, "total_loss": 2.0, "loss_\\ud800": 1.0}']  # fmt: skip


@pytest.mark.parametrize(
    ("content", "words"),
    [
        *((SOUND + torn, "last line")
          for torn in (b'{"iteration": 40, "tot', b"\xff\x00", b"[1, 2]", b'{"total_loss": 1.0}', b'"a"')),
        (b"\n".join(ODD) + b"\n" + SOUND, "8 damaged lines"),
    ],
)  # fmt: skip
def test_damaged_lines_are_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes, words: str
) -> None:
    folder = write_run(tmp_path / "a")
    (folder / "metrics.json").write_bytes(content)
    (run,) = read_runs([folder])
    assert run.losses["total_loss"][0].tolist() == [0, 20] and len(run.losses) == 1
    (record,) = caplog.records
    explains(record.getMessage(), str(folder / "metrics.json"), remedy=words)
    assert words in assert_sound(render_runs([run], {})).text


def test_names_and_differing_settings(tmp_path: Path) -> None:
    def names(*facts: dict) -> list[str]:
        folders = [write_run(tmp_path / f"{len(facts)}_{number}", **fact) for number, fact in enumerate(facts)]
        return [run.name for run in read_runs([*folders, folders[0]])]  # the same folder twice is one run

    assert names({"method": "a"}, {"method": "b"}) == ["a", "b"]
    assert names({"seed": 1}, {"seed": 2}, {"method": "b"}) == ["famix seed 1", "famix seed 2", "b seed 1"]
    same = names({}, {}, {}, {})
    assert len(set(same)) == 4 and all(name.startswith(str(tmp_path)) for name in same)
    folders = [
        write_run(tmp_path / "a"),
        write_run(tmp_path / "b", settings={"SOLVER": {"BASE_LR": 0.2, "FILE": f"{tmp_path}/b/x"}, "NEW": True}),
    ]
    assert differing_settings(read_runs(folders)) == {"SOLVER.BASE_LR": [0.1, 0.2], "NEW": [None, True]}


def test_page_of_two_runs(tmp_path: Path) -> None:
    runs = read_runs([write_run(tmp_path / "a", 40.0, method="base"), write_run(tmp_path / "b", 45.26, method="famix")])
    page = assert_sound(render_runs(runs, {}, ["a note"]))
    assert page.tables[0][1][:3] == ["base", "gta5_train", "-"]
    assert page.tables[1] == [
        ["mIoU in %", "acdc_fog", "gain", "source: gta5"],
        ["base", "40.0", "baseline", "70.0"],
        ["famix", "45.3 ★", "+5.3", "70.0"],
    ]
    assert "base and famix" in page.text and "a note" in page.text and "total loss" in page.text
    # 30 of 50 pixels of sky are predicted as road, 10 of 100 of road as sky
    assert page.text.count("sky as road 60 %; road as sky 10 %") == 2
    assert page.column("IoU in %", 2)["road"] == "69.2" * 2  # 90 / 130, a bar for each run
    assert page.tables[3][:2] == [["", "predicted class"], ["true class", "road", "sky"]]
    assert page.tables[3][2:] == [["road", "90", "10"], ["sky", "60", "40"]]


def test_page_gains_over_a_named_baseline(tmp_path: Path) -> None:
    scores = {"a": 40.0, "b": 42.0, "c": 39.0}
    runs = read_runs([write_run(tmp_path / name, fog, method=name) for name, fog in scores.items()])
    page = assert_sound(render_runs(runs, {}, baseline="b"))
    assert page.column("gain", 1) == {"a": "-2.0", "b": "baseline", "c": "-3.0"}
    with expect_error(ConfigError, "--baseline", "d", "a, b, c"):
        render_runs(runs, {}, baseline="d")


def test_page_of_seeds_and_different_protocols(tmp_path: Path) -> None:
    seeds = [write_run(tmp_path / f"{seed}", 40.0 + seed, seed=seed) for seed in (1, 3)]
    page = assert_sound(render_runs(read_runs(seeds), {}))
    assert page.tables[2][1] == ["famix, 2 seeds", "42.0 ± 1.4", "70.0 ± 0.0"]
    folders = [write_run(tmp_path / "a", protocol="half"), write_run(tmp_path / "b", 41.0, method="b")]
    page = assert_sound(render_runs(read_runs(folders), {}))
    assert "cannot be compared" in page.text
    rows = [[row[0] for row in table] for table in page.tables if table[0][0] == "mIoU in %"]
    assert rows == [["mIoU in %", "famix"], ["mIoU in %", "b"]]


def test_page_of_panoptic_scores_and_hostile_names(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", method="<script>alert(1)</script>")
    plain = json.loads((folder / "results.json").read_text())
    plain["acdc_fog_val"] |= {"panoptic_seg": {"PQ": 30.5}, "segm": {"AP": 12.25}}
    (folder / "results.json").write_text(json.dumps(plain))
    html = render_runs(read_runs([folder]), {})
    head, row = assert_sound(html).tables[2]
    assert head == ["in %", "acdc_fog: PQ", "acdc_fog: mask AP"] and row[1:] == ["30.5", "12.2"]
    assert "<script>" not in html


@pytest.mark.parametrize(("rule", "mean", "other"), [("skip", "95.0", "72.5"), ("zero", "72.5", "95.0")])
def test_page_shows_means_of_both_rules(tmp_path: Path, rule: str, mean: str, other: str) -> None:
    """At night there is no sky, but one pixel in ten is predicted as it."""
    counts = {"fog_val": np.diag([8, 4, 2]), "night_val": np.array([[9, 1, 0], [0, 0, 0], [0, 0, 0]])}
    report = counted_report(counts, rule)
    write_report(report, tmp_path)
    for name, one in counts.items():
        write_confusion(tmp_path / f"inference/{name}/confusion.json", ("road", "sky", "car"), one)
    (run,) = read_runs([tmp_path])
    assert set(run.confusions) == {"fog_val", "night_val"}, "the matrix fits the scores by either rule"
    page = render_runs([run], {})
    assert "classes that occur: fog 3 of 3, night 1 of 3" in page
    assert [assert_sound(page).column("mean", place)["famix"] for place in (1, 2)] == [mean, other]
    assert f"mIoU-{'zero' if rule == 'skip' else 'skip'} in %" in page
    assert class_scores(report, ["fog_val", "night_val"])["sky"] == 100, "without the night"


def test_describe_confusion() -> None:
    counts = np.zeros((3, 3), np.int64)
    counts[0], counts[2] = [99, 0, 1], [50, 0, 50]
    matrix = describe_confusion(ConfusionMatrix(("road", "bus", "sky"), counts), "famix")
    assert matrix is not None and matrix.names == ["road", "sky"]
    assert matrix.shares == [[0.99, 0.01], [0.5, 0.5]]
    assert describe_confusion(ConfusionMatrix(("road",), np.zeros((1, 1), np.int64)), "famix") is None
    rare = np.array([[9000, 1000, 0], [0, 5000, 0], [4, 0, 0]])
    matrix = describe_confusion(ConfusionMatrix(("road", "car", "sign"), rare), "famix")
    assert matrix is not None and matrix.caption == "famix. Largest confusions: road as car 10 %"
