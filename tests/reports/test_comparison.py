"""Comparison of runs over several seeds, and its command."""

import csv
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from error_matching import expect_error, explains, line_of_mistake
from famix.evaluation.counting.scores import segmentation_scores
from famix.reports import Report, ScoredWeights, write_report
from famix.reports.comparison import compare_reports, format_comparisons, require_baseline, write_comparisons_csv
from famix.reports.tables import format_p, format_spread, paired_p
from famix.utils.errors import ConfigError
from report_factory import fake_report, tables
from run_factory import load_tool

BASELINE = {1: (20.0, 30.0), 2: (22.0, 31.0), 3: (24.0, 35.0)}  # seed -> fog, night
FAMIX = {1: (25.0, 30.0), 2: (26.0, 31.0), 3: (30.0, 34.0)}


def runs(method: str, scores: dict[int, tuple[float, float]], **changes: object) -> dict[str, Report]:
    """Reports of several seeds by path."""
    return {
        f"{method}{len(changes)}/seed{seed}": fake_report(
            {"fog_val": fog, "night_val": night}, method=method, seed=seed, **changes
        )
        for seed, (fog, night) in scores.items()
    }


def both() -> dict[str, Report]:
    return {**runs("baseline", BASELINE), **runs("famix", FAMIX)}


def test_spread_and_test_by_hand() -> None:
    # Mean 3, standard deviation 2, so t = 3 / (2 / sqrt(3)) with two degrees of freedom; p from its closed form.
    gains = [1.0, 3.0, 5.0]
    t = 3 * math.sqrt(3) / 2
    assert paired_p(gains) == pytest.approx(1 - t / math.sqrt(2 + t * t))
    assert (format_spread(gains, "+"), format_p(gains)) == ("+3.0 ± 2.0", "0.1217")
    assert format_spread([1.26]) == "1.3"
    assert format_p([1.0, 1.0001, 1.0002, 1.0001]) == "< 0.0001"


@pytest.mark.parametrize("gains", [[], [1.0], [2.0, 2.0], [1.0, math.nan]])
def test_without_spread_there_is_no_p(gains: list[float]) -> None:
    assert math.isnan(paired_p(gains)) and format_p(gains) == "-"


def test_a_missing_score_is_a_dash() -> None:
    assert format_spread([1.0, math.nan]) == "-"


def test_seeds_of_a_config_are_one_group() -> None:
    (comparison,) = compare_reports(both())
    assert [(group.name, list(group.reports)) for group in comparison.groups] == [
        ("baseline", [1, 2, 3]), ("famix", [1, 2, 3]),
    ]  # fmt: skip
    baseline, famix = comparison.groups
    assert famix.values("fog") == [25, 26, 30] and famix.values("mean") == [27.5, 28.5, 32]
    assert famix.gains(baseline, "fog") == [5, 4, 6] and famix.gain(baseline, "night") == pytest.approx(-1 / 3)


def test_another_config_of_the_same_name_is_a_group_unless_asked_otherwise() -> None:
    reports = runs("famix", {1: (1.0, 2.0)}, method_hash="a" * 64) | {
        "other": fake_report({"fog_val": 3.0, "night_val": 4.0}, seed=2, method_hash="b" * 64)
    }
    (comparison,) = compare_reports(reports)
    assert [group.name for group in comparison.groups] == ["famix (last, aaaaaa)", "famix (last, bbbbbb)"]
    (comparison,) = compare_reports(reports, by="method")
    assert [(group.name, list(group.reports)) for group in comparison.groups] == [("famix", [1, 2])]


def test_other_weights_of_a_run_are_a_group() -> None:
    reports = runs("famix", FAMIX) | {"ema": fake_report(
        {"fog_val": 1.0, "night_val": 2.0}, weights=ScoredWeights("ema", "model_ema.pth")
    )}  # fmt: skip
    (comparison,) = compare_reports(reports, by="method")
    assert [(group.name, group.weights) for group in comparison.groups] == [
        ("famix (last)", "last"), ("famix (ema)", "ema"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [{"protocol": "half"}, {"classes": ("road",)}, {"sources": ("night_val",)}, {"scores": {"fog_val": 1.0}}],
    ids=["protocol", "classes", "source", "datasets"],
)
def test_what_was_scored_otherwise_shares_no_table(change: dict[str, object]) -> None:
    other = {"scores": {"fog_val": 1.0, "night_val": 2.0}, "seed": 4, **change}
    comparisons = compare_reports({**runs("famix", FAMIX), "other": fake_report(**other)})  # type: ignore[arg-type]
    assert [[list(group.reports) for group in comparison.groups] for comparison in comparisons] == [[[1, 2, 3]], [[4]]]
    assert len(tables(format_comparisons(comparisons))) == 2


def test_two_runs_of_the_same_seed_are_refused() -> None:
    reports = {**runs("famix", FAMIX), "again": fake_report({"fog_val": 1.0, "night_val": 1.0}, seed=2)}
    with expect_error(ConfigError, "famix", 2, "SEED") as caught:
        compare_reports(reports)
    for path in ("famix0/seed2", "again"):
        explains(str(caught.value), path)


def test_panoptic_runs_are_compared_by_what_is_asked_for() -> None:
    reports = {}
    for name, report in both().items():
        scored = {
            key: {**tasks, "panoptic_seg": {"PQ": tasks["sem_seg"]["mIoU"] / 2}}
            for key, tasks in report.results.items()
        }
        reports[name] = replace(report, results=scored)
    (comparison,) = compare_reports(reports, metric="PQ")
    baseline, famix = comparison.groups
    assert famix.values("fog") == [12.5, 13.0, 15.0] and famix.gain(baseline, "fog") == 2.5
    assert "PQ in percent; protocol native" in format_comparisons([comparison])
    with expect_error(ConfigError, "baseline0/seed1", "PQ", "mIoU, fwIoU, mACC, pACC"):
        compare_reports(both(), metric="PQ")


def test_an_unknown_baseline_is_refused() -> None:
    with expect_error(ConfigError, "--baseline", "basline", "Did you mean 'baseline'?"):
        require_baseline("basline", ["baseline", "famix"])


def absent_runs(rule: str) -> dict[str, Report]:
    """Two runs on a dataset without sky, of which one takes road for it."""
    reports = {}
    for method, taken in (("baseline", 1), ("famix", 0)):
        scores = segmentation_scores(np.array([[9, taken], [0, 0]]), ("road", "sky"), absent=rule)
        report = fake_report({"fog_val": 0.0}, method=method, absent_classes=rule)
        reports[f"{rule}/{method}"] = replace(report, results={"fog_val": {"sem_seg": scores}})
    return reports


@pytest.mark.parametrize(("rule", "values"), [("skip", ["90.0", "**100.0**"]), ("zero", ["45.0", "**100.0**"])])
def test_a_comparison_shows_both_means_and_how_many_classes_occur(rule: str, values: list[str]) -> None:
    comparisons = compare_reports(absent_runs(rule))
    text = format_comparisons(comparisons)
    first, second = tables(text)
    assert [row[3] for row in first[1:]] == values
    assert [row[3] for row in second[1:]] == (["45.0", "**100.0**"] if rule == "skip" else ["90.0", "**100.0**"])
    assert text.count("1 of 2 classes occur") == 2
    assert text.count("left out") == text.count("count as 0") == 1
    metrics = [row["metric"] for row in csv.DictReader(write_comparisons_csv(comparisons).splitlines())]
    assert metrics == ["mIoU"] * 2 + ["mIoU-zero" if rule == "skip" else "mIoU-skip"] * 2


def test_means_by_different_rules_share_no_table_unless_one_is_asked_for() -> None:
    reports = absent_runs("skip") | {
        path: replace(report, run=replace(report.run, seed=2)) for path, report in absent_runs("zero").items()
    }
    assert len(compare_reports(reports)) == 2
    (comparison,) = compare_reports(reports, metric="mIoU-zero")
    assert [group.values("fog") for group in comparison.groups] == [[45, 45], [100, 100]]
    assert comparison.other_means() == ()


def test_tables_of_scores_and_differences() -> None:
    scores, gains = tables(format_comparisons(compare_reports(both()), "baseline"))
    assert scores == [
        ["method", "weights", "seeds", "fog", "night", "mean"],
        ["baseline", "last", "1, 2, 3", "22.0 ± 2.0", "**32.0 ± 2.6**", "27.0 ± 2.3"],
        ["famix", "last", "1, 2, 3", "**27.0 ± 2.6**", "31.7 ± 2.1", "**29.3 ± 2.4**"],
    ]
    assert gains[0] == ["method", "pairs", "fog", "night", "mean"]
    assert gains[1][:4] == ["famix", "3", "+5.0 ± 1.0 (p 0.0131)", "-0.3 ± 0.6 (p 0.4226)"]
    assert len(gains) == 2


def test_equal_means_share_the_win_unless_all_are_equal() -> None:
    reports = {**runs("a", {1: (10.04, 5.0)}), **runs("b", {1: (10.0, 5.0)}), **runs("c", {1: (9.0, 5.0)})}
    (table,) = tables(format_comparisons(compare_reports(reports)))
    assert [row[3:5] for row in table[1:]] == [["**10.0**", "5.0"], ["**10.0**", "5.0"], ["9.0", "5.0"]]


def test_without_a_common_seed_the_means_are_compared() -> None:
    reports = {**runs("baseline", {1: (20.0, 30.0)}), **runs("famix", {2: (25.0, 30.0), 3: (27.0, 31.0)})}
    _, gains = tables(format_comparisons(compare_reports(reports), "baseline"))
    assert gains[1] == ["famix", "0", "+6.0", "+0.5", "+3.2"]


def test_a_table_without_the_baseline_says_so() -> None:
    reports = {**runs("baseline", BASELINE), **runs("famix", FAMIX, protocol="half")}
    text = format_comparisons(compare_reports(reports), "baseline")
    assert "protocol half; 2 classes" in text and "baseline has no run" in text
    assert len(tables(text)) == 2, "a baseline on its own differs from nothing"


def test_csv_has_every_number_in_full() -> None:
    rows = list(csv.DictReader(write_comparisons_csv(compare_reports(both()), "baseline").splitlines()))
    assert [(row["method"], row["data_set"]) for row in rows] == [
        (method, data_set) for method in ("baseline", "famix") for data_set in ("fog", "night", "mean")
    ]
    row = rows[3]
    assert (float(row["mean"]), float(row["gain"]), float(row["paired_gain"])) == (27, 5, 5)
    assert float(row["std"]) == pytest.approx(math.sqrt(7)) and float(row["p"]) == pytest.approx(0.0131, abs=1e-4)
    assert (row["runs"], row["pairs"], row["scored"]) == ("3", "3", "protocol native; 2 classes")
    assert row["metric"] == "mIoU"
    assert (rows[0]["gain"], rows[0]["p"]) == ("", "")


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    """OUTPUT_DIRs of six runs."""
    for path, report in both().items():
        write_report(report, tmp_path / path)
    return [str(tmp_path / path) for path in both()]


def test_command_merges_runs(folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / "new/table.md", tmp_path / "new/table.csv"]
    as_file = f"{folders[-1]}/results.json"  # a run that is named twice counts once
    for file in files:
        load_tool("compare_runs").main([*folders, as_file, "--baseline", "baseline", "--output", str(file)])
    printed = capsys.readouterr().out
    assert printed == 2 * files[0].read_text() and len(tables(files[0].read_text())) == 2
    assert files[1].read_text() == write_comparisons_csv(compare_reports(both()), "baseline")


@pytest.mark.parametrize(
    ("arguments", "key", "remedy"),
    [
        (["{tmp}/nowhere"], "{tmp}/nowhere", "OUTPUT_DIR"),
        (["{tmp}"], "{tmp}", "OUTPUT_DIR"),
        (["{tmp}/loop"], "{tmp}/loop", ""),
        (["{run}", "{copy}"], "seeds", "SEED"),
        (["{run}", "--baseline", "nothing"], "--baseline", "baseline"),
        (["{run}", "--metric", "PQ"], "--metric", "mIoU"),
        (["{run}", "--output", "{tmp}/table.txt"], "--output", "{tmp}/table.txt"),
        (["{run}", "--output", "{run}/results.json/table.md"], "{run}/results.json", ""),
    ],
)
def test_mistakes_end_with_a_line(
    folders: list[str], arguments: list[str], key: str, remedy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"tmp": tmp_path, "run": folders[0], "copy": shutil.copytree(folders[0], tmp_path / "copy")}
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    words = [argument.format(**places) for argument in arguments]
    explains(
        line_of_mistake(capsys, load_tool("compare_runs").main, *words),
        key.format(**places),
        remedy=remedy.format(**places),
    )
