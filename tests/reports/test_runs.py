"""Reader of run directories, and the page of runs."""

import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from error_matching import expect_error, explains, line_of_mistake
from famix.evaluation.counting.confusion import ConfusionMatrix, write_confusion
from famix.evaluation.counting.scores import segmentation_scores
from famix.reports import write_report
from famix.reports.run_page import class_scores, describe_confusion, render_runs
from famix.reports.runs import chosen_images, differing_settings, read_runs
from famix.reports.tables import best_places
from famix.utils.errors import ConfigError, DatasetError
from report_factory import CLASSES, fake_report
from reports.pages import assert_sound
from run_factory import load_tool

COUNTS = np.array([[90, 10], [30, 20]])  # of road and sky; rows are true


def write_run(
    folder: Path, fog: float = 40.0, *, settings: dict | None = None, lines: str | None = None, **facts: object
) -> Path:
    """A folder as a run leaves it: scores of fog and of the source, a confusion matrix of fog, losses and a config."""
    report = fake_report({"gta5_val": 70.0, "acdc_fog_val": fog}, sources=("gta5_val",), **facts)  # type: ignore[arg-type]
    scores = segmentation_scores(COUNTS, CLASSES) | dict.fromkeys(("mIoU", "mIoU-skip", "mIoU-zero"), fog)
    results = {"gta5_val": {"sem_seg": {"mIoU": 70.0, "IoU-road": math.nan}}, "acdc_fog_val": {"sem_seg": scores}}
    write_report(replace(report, results=results), folder)
    write_confusion(folder / "inference/acdc_fog_val/confusion.json", CLASSES, COUNTS)
    default = "".join(
        json.dumps({"iteration": 20 * i, "total_loss": 2.0 - 0.1 * i, "lr": 0.1}) + "\n" for i in range(5)
    )
    (folder / "metrics.json").write_text(default if lines is None else lines)
    config = {"OUTPUT_DIR": str(folder), "SEED": 1, "SOLVER": {"BASE_LR": 0.1, "FILE": f"{folder}/x"}} | (
        settings or {}
    )
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_a_run_is_read_as_it_was_left(tmp_path: Path) -> None:
    (run,) = read_runs([write_run(tmp_path / "famix")])
    assert run.name == "famix"
    assert list(run.losses) == ["total_loss"]
    assert run.losses["total_loss"][0].tolist() == [0, 20, 40, 60, 80]
    assert run.losses["total_loss"][1].tolist() == pytest.approx([2.0, 1.9, 1.8, 1.7, 1.6])
    assert run.confusions["acdc_fog_val"].counts.tolist() == COUNTS.tolist()
    assert run.settings["SOLVER.BASE_LR"] == 0.1
    (missing,) = run.missing
    explains(missing, "gta5_val", remedy="streaming")


def test_losses_of_a_resumed_run_replace_those_before(tmp_path: Path) -> None:
    lines = [
        {"iteration": 40, "total_loss": 9.0, "loss_mask": 1.0},
        {"iteration": 60, "total_loss": 8.0},
        {"iteration": 20, "total_loss": 3.0},  # taken up again here
        {"iteration": 40, "total_loss": 2.0},
        {"iteration": 80, "a_val/sem_seg/mIoU": 50.0},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"iteration": 60, "total'
    (run,) = read_runs([write_run(tmp_path / "a", lines=text)])
    assert list(run.losses) == ["total_loss", "loss_mask"]
    assert run.losses["total_loss"][0].tolist() == [20, 40, 60]
    assert run.losses["total_loss"][1].tolist() == [3.0, 2.0, 8.0]


def test_what_is_missing_is_said_and_the_rest_is_read(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    (folder / "metrics.json").unlink()
    (folder / "config.yaml").unlink()
    (run,) = read_runs([folder])
    assert not run.losses and not run.settings
    assert {"no losses in metrics.json", "no config.yaml"} <= set(run.missing)
    assert "no losses in metrics.json" in assert_sound(render_runs([run], {})).text


def test_a_confusion_matrix_of_other_scores_is_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    write_confusion(folder / "inference/acdc_fog_val/confusion.json", CLASSES, COUNTS + 5)
    (run,) = read_runs([folder])
    assert not run.confusions
    assert any("acdc_fog_val" in reason and "different evaluation" in reason for reason in run.missing)


def break_results(folder: Path, change: Callable[[dict], object]) -> bytes:
    plain = json.loads((folder / "results.json").read_text())
    change(plain)
    return json.dumps(plain).encode()


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 12)
)
DAMAGED = [
    *(("config.yaml", text) for text in ("[1, 2]", "a: [", BOMB, "a: 2001-99-99", "a: " + "9" * 5000, b"a: \xff", "[" * 9999)),
    *(("results.json", text) for text in ("{}x", "[]", '{"a', b"\xff", "{" * 9999, '{"a": {"b": {"c": NaN}}}')),
]  # fmt: skip
CHANGES: dict[str, Callable[[dict], object]] = {
    "an infinite score": lambda plain: plain["gta5_val"]["sem_seg"].update(mIoU=math.inf),
    "a score that is no number": lambda plain: plain["gta5_val"]["sem_seg"].update(mIoU=[]),
    "a file that is a number": lambda plain: plain["report"]["run"]["weights"].update(file=5),
    "a seed that is a text": lambda plain: plain["report"]["run"].update(seed="1"),
    "a method that is a list": lambda plain: plain["report"]["run"].update(method=["famix"]),
    "a date that is missing": lambda plain: plain["report"]["run"].pop("date"),
    "versions that are a list": lambda plain: plain["report"]["run"].update(versions=["1"]),
    "classes that are a text": lambda plain: plain["report"]["data_sets"]["gta5_val"].update(classes="road"),
    "a heading that is none": lambda plain: plain["report"]["data_sets"]["gta5_val"].update(heading=None),
    "half a character": lambda plain: plain["report"]["run"].update(method="famix \ud800"),
    "a version of two lines": lambda plain: plain["report"].update(format_version="1\n2"),
    "a run that is a list": lambda plain: plain["report"].update(run=[1]),
}


@pytest.mark.parametrize(("file", "content"), [*DAMAGED, *(("results.json", change) for change in CHANGES)])
def test_damaged_files_are_one_line_for_every_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, content: str | bytes
) -> None:
    folder = write_run(tmp_path / "a")
    change = CHANGES.get(str(content))
    text = break_results(folder, change) if change else content.encode() if isinstance(content, str) else content
    (folder / file).write_bytes(text)
    commands = [("report", ["--output", str(tmp_path / "page.html"), "--examples", "0"])]
    commands += [("compare_runs", [])] if file == "results.json" else []
    for command, options in commands:
        line = line_of_mistake(capsys, load_tool(command).main, folder, *options)
        assert len(line) < 1500
        explains(line, str(folder / file))
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    "file", ["config.yaml", "results.json", "metrics.json", "inference/acdc_fog_val/confusion.json"]
)
@pytest.mark.parametrize("kind", ["pipe", "folder", "loop"])
def test_nothing_waits_for_a_pipe(tmp_path: Path, file: str, kind: str) -> None:
    folder = write_run(tmp_path / "a")
    (folder / file).unlink()
    make = {"pipe": os.mkfifo, "folder": os.mkdir, "loop": lambda path: os.symlink(path, path)}
    make[kind](folder / file)
    if file.endswith("confusion.json"):
        assert any("acdc_fog_val" in reason for reason in read_runs([folder])[0].missing)
        return
    with expect_error((DatasetError, ConfigError), str(folder / file)):
        read_runs([folder])


def test_torn_and_damaged_lines_are_left_out_with_a_notice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A run that is killed or whose disk is full leaves half a line."""
    sound = b'{"iteration": 0, "total_loss": 2.0}\n{"iteration": 20, "total_loss": NaN}\n'
    folder = write_run(tmp_path / "a")
    for torn in (b'{"iteration": 40, "tot', b"\xff\x00", b"[1, 2]", b'{"total_loss": 1.0}', b'"a"'):
        caplog.clear()
        (folder / "metrics.json").write_bytes(sound + torn)
        (run,) = read_runs([folder])
        assert run.losses["total_loss"][0].tolist() == [0, 20]
        (record,) = caplog.records
        explains(record.getMessage(), str(folder / "metrics.json"), remedy="last line")
        assert "last line" in assert_sound(render_runs([run], {})).text
    caplog.clear()
    odd = [b'{"iteration": NaN, "total_loss": 1.0}', b'{"iteration": 1e999, "total_loss": 1.0}', b"", b"9" * 5000,
           b'{"iteration": "3", "loss_mask": 1.0}', b'{"iteration": 5, "total_loss": ' + b"9" * 400 + b"}", b"[" * 9999]  # fmt: skip
    (folder / "metrics.json").write_bytes(b"\n".join(odd) + b"\n" + sound)
    (run,) = read_runs([folder])
    assert run.losses["total_loss"][0].tolist() == [0, 20] and len(run.losses) == 1
    explains(caplog.records[0].getMessage(), "7")
    assert_sound(render_runs([run], {}))


def test_names_tell_runs_apart(tmp_path: Path) -> None:
    def names(*facts: dict) -> list[str]:
        folders = [write_run(tmp_path / f"{len(facts)}_{number}", **fact) for number, fact in enumerate(facts)]
        return [run.name for run in read_runs([*folders, folders[0]])]  # the same folder twice is one run

    assert names({"method": "a"}, {"method": "b"}) == ["a", "b"]
    assert names({"seed": 1}, {"seed": 2}, {"method": "b"}) == ["famix seed 1", "famix seed 2", "b seed 1"]
    same = names({}, {}, {}, {})
    assert len(set(same)) == 4 and all(name.startswith(str(tmp_path)) for name in same)


def test_settings_that_differ_are_found_whatever_the_folders_are_called(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a")
    second = write_run(tmp_path / "b", settings={"SOLVER": {"BASE_LR": 0.2, "FILE": f"{tmp_path}/b/x"}, "NEW": True})
    assert differing_settings(read_runs([first, second])) == {"SOLVER.BASE_LR": [0.1, 0.2], "NEW": [None, True]}


@pytest.mark.parametrize(
    ("texts", "places"),
    [
        (["1.0", "2.0"], [1]),
        (["2.0", "2.0", "1.0"], [0, 1]),
        (["2.0", "2.0"], []),
        (["2.0"], []),
        (["-", "1.0", "0.5"], [1]),
        (["-", "-"], []),
        (["10.5 ± 3.0", "9.9 ± 0.1"], [0]),
    ],
)
def test_winners_are_those_that_read_best(texts: list[str], places: list[int]) -> None:
    assert best_places(texts) == places


def test_the_page_shows_the_scores_and_their_winners(tmp_path: Path) -> None:
    runs = read_runs([write_run(tmp_path / "a", 40.0, method="base"), write_run(tmp_path / "b", 45.26, method="famix")])
    html = render_runs(runs, {}, ["a note"])
    page = assert_sound(html)
    assert page.tables[0][1][:3] == ["base", "gta5_train", "-"], "metadata of the runs on top"
    assert page.tables[1] == [
        ["mIoU in %", "acdc_fog", "gain", "source: gta5"],
        ["base", "40.0", "baseline", "70.0"],
        ["famix", "45.3 ★", "+5.3", "70.0"],
    ]
    assert "base and famix" in page.text and "a note" in page.text and "total loss" in page.text
    # 30 of 50 pixels of sky are taken for road, 10 of 100 of road for sky
    assert page.text.count("sky as road 60 %; road as sky 10 %") == 2
    assert page.column("IoU in %", 2)["road"] == "69.2" * 2  # 90 / 130, a bar for each run
    assert page.tables[3][2:] == [["road", "90", "10"], ["sky", "60", "40"]]
    assert page.tables[3][0] == ["", "predicted class"] and page.tables[3][1] == ["true class", "road", "sky"]


def test_seeds_are_put_together(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / f"{seed}", 40.0 + seed, seed=seed) for seed in (1, 3)]
    page = assert_sound(render_runs(read_runs(folders), {}))
    assert page.tables[2][1] == ["famix, 2 seeds", "42.0 ± 1.4", "70.0 ± 0.0"]


def test_runs_that_were_scored_differently_share_no_table(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / "a", protocol="half"), write_run(tmp_path / "b", 41.0, method="b")]
    page = assert_sound(render_runs(read_runs(folders), {}))
    assert "cannot be compared" in page.text
    rows = [[row[0] for row in table] for table in page.tables if table[0][0] == "mIoU in %"]
    assert rows == [["mIoU in %", "famix"], ["mIoU in %", "b"]]


def test_panoptic_scores_have_a_table(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    plain = json.loads((folder / "results.json").read_text())
    plain["acdc_fog_val"] |= {"panoptic_seg": {"PQ": 30.5}, "segm": {"AP": 12.25}}
    (folder / "results.json").write_text(json.dumps(plain))
    page = assert_sound(render_runs(read_runs([folder]), {}))
    assert page.tables[2] == [["in %", "acdc_fog: PQ", "acdc_fog: mask AP"], ["famix", "30.5", "12.2"]]


def test_names_of_runs_cannot_become_markup(tmp_path: Path) -> None:
    html = render_runs(read_runs([write_run(tmp_path / "a", method="<script>alert(1)</script>")]), {})
    assert_sound(html)
    assert "<script>" not in html


def test_matrices_show_the_classes_that_are_there() -> None:
    counts = np.zeros((3, 3), np.int64)
    counts[0], counts[2] = [99, 0, 1], [50, 0, 50]
    matrix = describe_confusion(ConfusionMatrix(("road", "bus", "sky"), counts), "famix")
    assert matrix is not None and matrix.names == ["road", "sky"]
    assert matrix.shares == [[0.99, 0.01], [0.5, 0.5]]
    assert describe_confusion(ConfusionMatrix(("road",), np.zeros((1, 1), np.int64)), "famix") is None


def test_captions_leave_hardly_labelled_classes_out() -> None:
    counts = np.array([[9000, 1000, 0], [0, 5000, 0], [4, 0, 0]])
    matrix = describe_confusion(ConfusionMatrix(("road", "car", "sign"), counts), "famix")
    assert matrix is not None and matrix.caption == "famix. Largest confusions: road as car 10 %"


def test_gains_refer_to_the_named_baseline(tmp_path: Path) -> None:
    runs = read_runs(
        [write_run(tmp_path / name, fog, method=name) for name, fog in (("a", 40.0), ("b", 42.0), ("c", 39.0))]
    )
    page = assert_sound(render_runs(runs, {}, baseline="b"))
    assert page.column("gain", 1) == {"a": "-2.0", "b": "baseline", "c": "-3.0"}
    with expect_error(ConfigError, "--baseline", "d", "a, b, c"):
        render_runs(runs, {}, baseline="d")


def test_examples_are_spread_over_the_data_set() -> None:
    assert chosen_images(50, 2) == [12, 37]
    assert chosen_images(3, 5) == [0, 1, 2]
    assert chosen_images(1, 1) == [0]


def write_absent(folder: Path, rule: str, **facts: object) -> Path:
    """A run on two conditions of three classes: at night there is no sky, but one pixel in ten is taken for it."""
    names = ("road", "sky", "car")
    counts = {"fog_val": np.diag([8, 4, 2]), "night_val": np.array([[9, 1, 0], [0, 0, 0], [0, 0, 0]])}
    report = fake_report(dict.fromkeys(counts, 0.0), classes=names, absent_classes=rule, **facts)  # type: ignore[arg-type]
    scores = {name: {"sem_seg": segmentation_scores(one, names, absent=rule)} for name, one in counts.items()}
    write_report(replace(report, results=scores), folder)
    for name, one in counts.items():
        write_confusion(folder / f"inference/{name}/confusion.json", names, one)
    return folder


@pytest.mark.parametrize(("rule", "mean", "other"), [("skip", "95.0", "72.5"), ("zero", "72.5", "95.0")])
def test_the_page_shows_both_means_and_how_many_classes_occur(tmp_path: Path, rule: str, mean: str, other: str) -> None:
    (run,) = read_runs([write_absent(tmp_path / "famix", rule)])
    assert set(run.confusions) == {"fog_val", "night_val"}, "the matrix is that of the scores by either rule"
    page = render_runs([run], {})
    assert "classes that occur: fog 3 of 3, night 1 of 3" in page
    assert assert_sound(page).column("mean", 1)["famix"] == mean
    assert assert_sound(page).column("mean", 2)["famix"] == other
    assert f"mIoU-{'zero' if rule == 'skip' else 'skip'} in %" in page


def test_a_class_that_is_only_predicted_stays_out_of_the_mean_of_a_class(tmp_path: Path) -> None:
    (run,) = read_runs([write_absent(tmp_path / "famix", "zero")])
    assert class_scores(run.report, ["fog_val", "night_val"])["sky"] == 100


def test_losses_with_half_a_character_in_their_name_are_damaged(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    (folder / "metrics.json").write_text('{"iteration": 0, "total_loss": 2.0, "loss_\\ud800": 1.0}\n')
    (run,) = read_runs([folder])
    assert not run.losses and any("metrics.json" in reason for reason in run.missing)
