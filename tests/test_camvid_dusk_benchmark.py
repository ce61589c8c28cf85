"""benchmarks/camvid_dusk.py: its report of known scores, and the differences between its methods."""

from pathlib import Path
from typing import Any

import pytest

from report_factory import tables
from run_factory import load_benchmark
from town_factory import write_run

# Method -> (mIoU by day, mIoU at dusk) of seeds 1 and 2
SCORES = {
    "none": [(40.0, 20.0), (42.0, 22.0)],
    "colour jitter": [(40.0, 21.0), (42.0, 23.0)],
    "noise": [(39.0, 20.0), (41.0, 24.0)],
    "FAMix": [(38.0, 25.0), (40.0, 29.0)],
    "FAMix and jitter": [(37.0, 20.0), (39.0, 20.0)],
    "FAMix 1x1": [(38.0, 24.0), (40.0, 26.0)],
}


@pytest.fixture
def benchmark(tmp_path: Path) -> Any:
    script = load_benchmark("camvid_dusk")
    return script.Benchmark(script.make_parser().parse_args(["--seeds", "1", "2", "--output", str(tmp_path)]))


def test_report_has_the_paired_gain(benchmark: Any) -> None:
    for name, by_seed in SCORES.items():
        for seed, (day, dusk) in enumerate(by_seed, 1):
            classes, scores = {"ACC-road": 1.0, "ACC-train": None}, {"camvid_val_day": day, "camvid_val_dusk": dusk}
            results = {target: {"sem_seg": {"mIoU": value, **classes}} for target, value in scores.items()}
            write_run(benchmark.experiment(name, seed).output, results, seconds=60 * seed, machine=f"processor {seed}")
    report = benchmark.report("the command")
    rows = {cells[0]: cells[1:] for cells in tables(report)[0]}
    assert rows["none"] == ["41.0 ± 1.4", "21.0 ± 1.4", "", "", "1.5"]
    assert rows["FAMix"] == ["39.0 ± 1.4", "27.0 ± 2.8", "+6.0 ± 1.4", "0.1051", "1.5"]  # t = 6, one degree of freedom
    assert rows["FAMix and jitter"][2].startswith("-1.0")
    assert "\nPrinted by `the command`:\n" in report and "1 of 2 classes occur" in report
    assert "one thread each, on processor 1 and processor 2" in report


def test_methods_differ_in_jitter_styles_and_grid_alone(benchmark: Any) -> None:
    configs = {name: benchmark.experiment(name, 1).load_config() for name in benchmark.methods}
    found = {
        name: (cfg.MODEL.STYLE.STRATEGY, any(cfg.INPUT.COLOR_JITTER), cfg.MODEL.STYLE.GRID[0])
        for name, cfg in configs.items()
    }
    assert found == {
        "none": ("none", False, 3), "colour jitter": ("none", True, 3), "noise": ("noise", False, 3),
        "FAMix": ("bank", False, 3), "FAMix and jitter": ("bank", True, 3), "FAMix 1x1": ("bank", False, 1),
    }  # fmt: skip
    assert len({cfg.OUTPUT_DIR for cfg in configs.values()}) == len(SCORES)
    for cfg in configs.values():
        cfg.OUTPUT_DIR, cfg.MODEL.STYLE.STRATEGY, cfg.MODEL.STYLE.GRID, cfg.INPUT.COLOR_JITTER = "", "", [], []
    assert len({cfg.dump() for cfg in configs.values()}) == 1
