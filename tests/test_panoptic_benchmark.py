"""benchmarks/panoptic.py: its report of known scores, and the differences between its methods."""

from pathlib import Path
from types import ModuleType

import pytest

from error_matching import expect_error
from famix.engine import load_config
from famix.utils.errors import ConfigError
from famix_minitown.runs.experiment import CONFIGS
from report_factory import tables
from run_factory import check_records, load_benchmark
from town_factory import write_run

SCORES = {f"{name}{kind}": 40.0 for name in ("PQ", "SQ", "RQ") for kind in ("", "_th", "_st")}
# Method -> PQ on clear days, at night and in fog, of seeds 1 and 2
QUALITY = {
    "source_only": [(60, 10, 20), (62, 12, 20)],
    "famix_weather": [(58, 20, 26), (60, 18, 24)],
    "jitter": [(60, 20, 20), (62, 20, 20)],
    "famix_weather_jitter": [(59, 23, 23), (59, 25, 25)],
}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_benchmark("panoptic")


def test_report_has_mean_spread_and_the_paired_gain(script: ModuleType, tmp_path: Path) -> None:
    arguments = ["--seeds", "1", "2", "--output", str(tmp_path / "runs"), "--records", str(tmp_path / "records")]
    benchmark = script.Benchmark(script.make_parser().parse_args(arguments))
    semantic = {"mIoU": 50.0, "IoU-road": 1.0, "IoU-train": None}
    for method, by_seed in QUALITY.items():
        for seed, values in enumerate(by_seed, 1):
            results = {
                f"minitown_{condition}_val_panoptic": {
                    "panoptic_seg": {**SCORES, "PQ": value}, "segm": {"AP": 5.0}, "sem_seg": semantic,
                }
                for condition, value in zip(("clear", "night", "fog"), values, strict=True)
            }  # fmt: skip
            run = benchmark.experiment(f"deeplab_{method}", seed)
            write_run(run.output, results, seconds=60.0 * seed)
            benchmark.keep((f"deeplab_{method}", seed), run)
    report = benchmark.report("the command")
    rows = [row for table in tables(report) for row in table]
    assert rows[0] == ["head", "method", "clear", "night", "fog", "unseen"]
    assert rows[1] == ["Panoptic-DeepLab", "source only", "61.0 ± 1.4", "11.0 ± 1.4", "20.0 ± 0.0", "15.5 ± 0.7"]
    assert rows[2][-1] == "22.0 ± 1.4"  # of 23 and 21
    assert "FAMix, weather words: +6.5 ± 2.1 points of PQ on `unseen` vs. source only" in report  # of 8 and 5
    assert "jitter: +4.5 ± 0.7 points of PQ on `unseen` vs. source only" in report  # of 5 and 4
    line = next(
        line for line in report.splitlines() if line.startswith("Panoptic-DeepLab, FAMix, weather words + jitter:")
    )
    assert "+4.0 ± 1.4 points of PQ on `unseen` vs. jitter" in line  # of 3 and 5
    assert "-2.0 ± 1.4 on `clear`" in line  # of -1 and -3
    assert "Printed by `the command`" in report and "mIoU: 1 of 19 classes occur." in report


def test_picture_file_is_checked_before_the_runs(script: ModuleType, tmp_path: Path) -> None:
    arguments = ["--recorded", "--records", str(tmp_path), "--picture", "/proc/none/scene.png"]
    with expect_error(ConfigError, "/proc/none", remedy="folder"):
        script.Benchmark(script.make_parser().parse_args(arguments)).run()


def test_methods_differ_in_styles_and_jitter_alone(script: ModuleType, tmp_path: Path) -> None:
    arguments = ["--methods", *script.METHODS, "--heads", "fpn", "--output", str(tmp_path)]
    benchmark = script.Benchmark(script.make_parser().parse_args(arguments))
    configs = {method: benchmark.experiment(f"fpn_{method}", 3).load_config() for method in script.METHODS}
    assert len({cfg.OUTPUT_DIR for cfg in configs.values()}) == len(script.METHODS)
    for method, cfg in configs.items():
        assert (cfg.SEED, cfg.STYLE_MINING.SEED, cfg.MODEL.META_ARCHITECTURE) == (3, 3, "FAMixPanopticFPN")
        semantic = load_config(str(CONFIGS / f"{'baseline' if method == 'source_only' else method}.yaml"))
        assert cfg.MODEL.STYLE == semantic.MODEL.STYLE, method
        assert cfg.INPUT.COLOR_JITTER == semantic.INPUT.COLOR_JITTER
        assert cfg.INPUT.COLOR_JITTER_PROBABILITY == semantic.INPUT.COLOR_JITTER_PROBABILITY
        if cfg.MODEL.STYLE.STRATEGY != "none":
            assert cfg.STYLE_MINING.STYLES == semantic.STYLE_MINING.STYLES
        cfg.OUTPUT_DIR, cfg.STYLE_MINING.STYLES, cfg.MODEL.STYLE = "", [], None
        cfg.INPUT.COLOR_JITTER, cfg.INPUT.COLOR_JITTER_PROBABILITY = [], 0.0
    assert all(cfg == configs["source_only"] for cfg in configs.values())


def test_committed_records_have_the_settings_of_today(script: ModuleType) -> None:
    check_records(script.Benchmark(script.make_parser().parse_args(["--heads", *script.HEADS])))
