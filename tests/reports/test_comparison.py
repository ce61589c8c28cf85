"""Comparison of runs over several seeds, and its command."""

import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from error_matching import expect_error, explains
from famix.reports import Report, ScoredWeights, write_report
from famix.reports.comparison import compare_reports, format_comparisons, require_baseline, write_comparisons_csv
from famix.reports.tables import best_places, format_p, format_spread, paired_p
from famix.utils.errors import ConfigError
from report_factory import counted_report, fake_report, tables
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


def test_spread_and_p_by_hand() -> None:
    # Mean 3, standard deviation 2, so t = 3 / (2 / sqrt(3)) with two degrees of freedom; p from its closed form.
    gains = [1.0, 3.0, 5.0]
    t = 3 * math.sqrt(3) / 2
    assert paired_p(gains) == pytest.approx(1 - t / math.sqrt(2 + t * t))
    assert (format_spread(gains, "+"), format_p(gains)) == ("+3.0 ± 2.0", "0.1217")
    assert (format_spread([1.26]), format_spread([1.0, math.nan])) == ("1.3", "-")
    assert format_p([1.0, 1.0001, 1.0002, 1.0001]) == "< 0.0001"
    for without_spread in ([], [1.0], [2.0, 2.0], [1.0, math.nan]):
        assert math.isnan(paired_p(without_spread)) and format_p(without_spread) == "-"


def test_best_places_compare_printed_numbers() -> None:
    assert best_places(["1.0", "2.0"]) == [1] and best_places(["2.0", "2.0", "1.0"]) == [0, 1]
    assert best_places(["2.0", "2.0"]) == best_places(["2.0"]) == best_places(["-", "-"]) == []
    assert best_places(["-", "1.0", "0.5"]) == [1] and best_places(["10.5 ± 3.0", "9.9 ± 0.1"]) == [0]


def test_seeds_of_a_config_form_a_group() -> None:
    (comparison,) = compare_reports(both())
    assert [(group.name, group.seeds) for group in comparison.groups] == [("baseline", "1, 2, 3"), ("famix", "1, 2, 3")]
    baseline, famix = comparison.groups
    assert famix.values("fog") == [25, 26, 30] and famix.values("mean") == [27.5, 28.5, 32]
    assert famix.gains(baseline, "fog") == [5, 4, 6] and famix.gains(baseline, "night") == [0, 0, -1]


def test_runs_with_the_headings_of_another_version_share_a_table() -> None:
    reports = both()
    for path in [path for path in reports if path.startswith("famix")]:
        datasets = {name: replace(one, heading=name) for name, one in reports[path].datasets.items()}
        reports[path] = replace(reports[path], datasets=datasets)
    (comparison,) = compare_reports(reports)
    assert comparison.groups[1].gains(comparison.groups[0], "fog") == [5, 4, 6]
    assert format_comparisons([comparison]) == format_comparisons(compare_reports(both()))


def test_groups_differ_in_config_and_weights() -> None:
    def names(reports: dict[str, Report], by: str = "config") -> list[tuple[str, str, str]]:
        (comparison,) = compare_reports(reports, by)
        return [(group.name, group.weights, group.seeds) for group in comparison.groups]

    reports = runs("famix", {1: (1.0, 2.0)}, method_hash="a" * 64)
    reports |= runs("famix", {2: (3.0, 4.0)}, method_hash="b" * 64)
    assert names(reports) == [("famix (last, aaaaaa)", "last", "1"), ("famix (last, bbbbbb)", "last", "2")]
    assert names(reports, "method") == [("famix", "last", "1, 2")]
    reports = runs("famix", FAMIX) | {
        "ema": runs("famix", FAMIX, weights=ScoredWeights("ema", "e.pth"))["famix1/seed1"]
    }
    assert names(reports, "method") == [("famix (last)", "last", "1, 2, 3"), ("famix (ema)", "ema", "1")]


@pytest.mark.parametrize(
    "change",
    [{"protocol": "half"}, {"classes": ("road",)}, {"sources": ("night_val",)}, {"scores": {"fog_val": 1.0}}],
    ids=["protocol", "classes", "source", "datasets"],
)
def test_different_evaluations_share_no_table(change: dict[str, object]) -> None:
    other = {"scores": {"fog_val": 1.0, "night_val": 2.0}, "seed": 4, **change}
    comparisons = compare_reports({**runs("famix", FAMIX), "other": fake_report(**other)})  # type: ignore[arg-type]
    assert [[group.seeds for group in comparison.groups] for comparison in comparisons] == [["1, 2, 3"], ["4"]]
    assert len(tables(format_comparisons(comparisons))) == 2


def test_equal_seeds_and_unknown_baselines_are_refused() -> None:
    with expect_error(ConfigError, "famix", 2, "SEED") as caught:
        compare_reports({**runs("famix", FAMIX), "again": fake_report({"fog_val": 1.0, "night_val": 1.0}, seed=2)})
    for path in ("famix0/seed2", "again"):
        explains(str(caught.value), path)
    with expect_error(ConfigError, "--baseline", "basline", "Did you mean 'baseline'?"):
        require_baseline("basline", ["baseline", "famix"])


def test_comparison_of_panoptic_scores() -> None:
    reports = {}
    for name, report in both().items():
        quality = {key: {"panoptic_seg": {"PQ": tasks["sem_seg"]["mIoU"] / 2}} for key, tasks in report.results.items()}
        scored = {key: {**tasks, **quality[key]} for key, tasks in report.results.items()}
        reports[name] = replace(report, results=scored)
    (comparison,) = compare_reports(reports, metric="PQ")
    baseline, famix = comparison.groups
    assert famix.values("fog") == [12.5, 13.0, 15.0] and famix.gains(baseline, "fog") == [2.5, 2, 3]
    assert "PQ in percent; protocol native" in format_comparisons([comparison])
    with expect_error(ConfigError, "baseline0/seed1", "PQ", "mIoU, fwIoU, mACC, pACC"):
        compare_reports(both(), metric="PQ")


def absent_runs(rule: str, seed: int = 1) -> dict[str, Report]:
    """Two runs on a dataset without sky, which the baseline predicts on a tenth of the road."""
    return {
        f"{rule}/{method}": counted_report(
            {"fog_val": np.array([[9, taken], [0, 0]])}, rule, ("road", "sky"), method=method, seed=seed
        )
        for method, taken in (("baseline", 1), ("famix", 0))
    }


@pytest.mark.parametrize(
    ("rule", "other", "values"), [("skip", "zero", ["90.0", "45.0"]), ("zero", "skip", ["45.0", "90.0"])]
)
def test_comparison_shows_means_of_both_rules(rule: str, other: str, values: list[str]) -> None:
    comparisons = compare_reports(absent_runs(rule))
    text = format_comparisons(comparisons)
    assert [[row[3] for row in table[1:]] for table in tables(text)] == [[value, "**100.0**"] for value in values]
    assert text.count("1 of 2 classes occur") == 2
    assert text.count("left out") == text.count("count as 0") == 1
    metrics = [row["metric"] for row in csv.DictReader(write_comparisons_csv(comparisons).splitlines())]
    assert metrics == ["mIoU"] * 2 + [f"mIoU-{other}"] * 2
    reports = absent_runs(rule) | absent_runs(other, seed=2)
    assert len(compare_reports(reports)) == 2
    (comparison,) = compare_reports(reports, metric="mIoU-zero")
    assert [group.values("fog") for group in comparison.groups] == [[45, 45], [100, 100]]
    assert comparison.other_means() == ()


def test_tables_of_scores_and_gains() -> None:
    scores, gains = tables(format_comparisons(compare_reports(both()), "baseline"))
    assert scores == [
        ["method", "weights", "seeds", "fog", "night", "mean"],
        ["baseline", "last", "1, 2, 3", "22.0 ± 2.0", "**32.0 ± 2.6**", "27.0 ± 2.3"],
        ["famix", "last", "1, 2, 3", "**27.0 ± 2.6**", "31.7 ± 2.1", "**29.3 ± 2.4**"],
    ]
    assert gains[0] == ["method", "pairs", "fog", "night", "mean"]
    assert gains[1][:4] == ["famix", "3", "+5.0 ± 1.0 (p 0.0131)", "-0.3 ± 0.6 (p 0.4226)"] and len(gains) == 2
    reports = {**runs("baseline", {1: (20.0, 30.0)}), **runs("famix", {2: (25.0, 30.0), 3: (27.0, 31.0)})}
    _, gains = tables(format_comparisons(compare_reports(reports), "baseline"))
    assert gains[1] == ["famix", "0", "+6.0", "+0.5", "+3.2"], "without a common seed"
    reports = {**runs("a", {1: (10.04, 5.0)}), **runs("b", {1: (10.0, 5.0)}), **runs("c", {1: (9.0, 5.0)})}
    (table,) = tables(format_comparisons(compare_reports(reports)))
    assert [row[3:5] for row in table[1:]] == [["**10.0**", "5.0"], ["**10.0**", "5.0"], ["9.0", "5.0"]]
    reports = {**runs("baseline", BASELINE), **runs("famix", FAMIX, protocol="half")}
    text = format_comparisons(compare_reports(reports), "baseline")
    assert "protocol half; 2 classes" in text and "baseline has no run" in text
    assert len(tables(text)) == 2, "no gains of the baseline over itself"


def test_csv_has_all_digits() -> None:
    rows = list(csv.DictReader(write_comparisons_csv(compare_reports(both()), "baseline").splitlines()))
    assert [(row["method"], row["data_set"]) for row in rows] == [
        (method, data_set) for method in ("baseline", "famix") for data_set in ("fog", "night", "mean")
    ]
    row = rows[3]
    assert (float(row["mean"]), float(row["gain"]), float(row["paired_gain"])) == (27, 5, 5)
    assert float(row["std"]) == pytest.approx(math.sqrt(7)) and float(row["p"]) == pytest.approx(0.0131, abs=1e-4)
    assert (row["runs"], row["pairs"], row["scored"]) == ("3", "3", "protocol native; 2 classes")
    assert (row["metric"], rows[0]["gain"], rows[0]["p"]) == ("mIoU", "", "")


def test_command_writes_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, report in both().items():
        write_report(report, tmp_path / path)
    folders = [str(tmp_path / path) for path in both()]
    files = [tmp_path / "new/table.md", tmp_path / "new/table.csv"]
    same_run = f"{folders[-1]}/results.json"
    for file in files:
        load_tool("compare_runs").main([*folders, same_run, "--baseline", "baseline", "--output", str(file)])
    printed = capsys.readouterr().out
    assert printed == 2 * files[0].read_text() and len(tables(files[0].read_text())) == 2
    assert files[1].read_text() == write_comparisons_csv(compare_reports(both()), "baseline")
