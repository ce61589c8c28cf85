"""The report of benchmarks/camvid_dusk.py, from runs whose scores are known, and what its methods differ in."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from run_factory import load_benchmark

# Method -> seed -> mIoU by day and at dusk
SCORES = {
    "none": {1: (40.0, 20.0), 2: (42.0, 22.0)},
    "colour jitter": {1: (40.0, 21.0), 2: (42.0, 23.0)},
    "noise": {1: (39.0, 20.0), 2: (41.0, 24.0)},
    "FAMix": {1: (38.0, 25.0), 2: (40.0, 29.0)},
    "FAMix and jitter": {1: (37.0, 20.0), 2: (39.0, 20.0)},
    "FAMix 1x1": {1: (38.0, 24.0), 2: (40.0, 26.0)},
}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_benchmark("camvid_dusk")


def make_benchmark(script: ModuleType, folder: Path) -> Any:
    return script.Benchmark(script.make_parser().parse_args(["--seeds", "1", "2", "--output", str(folder)]))


def test_report_has_both_times_of_day_and_the_paired_gain(script: ModuleType, tmp_path: Path) -> None:
    benchmark = make_benchmark(script, tmp_path)
    for name, by_seed in SCORES.items():
        for seed, (day, dusk) in by_seed.items():
            output = benchmark.experiment(name, seed).output
            output.mkdir(parents=True)
            (output / "experiment.json").write_text(
                json.dumps({"seconds": 60.0 * seed, "machine": f"processor {seed}"})
            )
            scores = {"camvid_val_day": day, "camvid_val_dusk": dusk}
            results = {
                name: {"sem_seg": {"mIoU": value, "ACC-road": 1.0, "ACC-train": None}} for name, value in scores.items()
            }
            (output / "results.json").write_text(json.dumps(results))
    lines = benchmark.report("the command").splitlines()
    rows = {cells[0]: cells[1:] for line in lines if (cells := [cell.strip() for cell in line.split("|")[1:-1]])}
    assert rows["none"] == ["41.0 ± 1.4", "21.0 ± 1.4", "", "", "1.5"]
    assert rows["FAMix"] == ["39.0 ± 1.4", "27.0 ± 2.8", "+6.0 ± 1.4", "0.1051", "1.5"]  # t = 6, one degree of freedom
    assert rows["FAMix and jitter"][2].startswith("-1.0")
    assert "Printed by `the command`:" in lines
    assert any("1 of 2 classes occur" in line for line in lines)
    assert any("a thread each, on processor 1 and processor 2" in line for line in lines)


def test_methods_differ_in_jitter_styles_and_grid_alone(script: ModuleType, tmp_path: Path) -> None:
    benchmark = make_benchmark(script, tmp_path)
    configs = {name: benchmark.experiment(name, 1).load_config() for name in SCORES}
    found = {
        name: (cfg.MODEL.STYLE.STRATEGY, any(cfg.INPUT.COLOR_JITTER), tuple(cfg.MODEL.STYLE.GRID))
        for name, cfg in configs.items()
    }
    patches, picture = (3, 3), (1, 1)
    assert found == {
        "none": ("none", False, patches), "colour jitter": ("none", True, patches), "noise": ("noise", False, patches),
        "FAMix": ("bank", False, patches), "FAMix and jitter": ("bank", True, patches),
        "FAMix 1x1": ("bank", False, picture),
    }  # fmt: skip
    assert len({cfg.OUTPUT_DIR for cfg in configs.values()}) == len(SCORES)
    for cfg in configs.values():
        cfg.OUTPUT_DIR, cfg.MODEL.STYLE.STRATEGY, cfg.MODEL.STYLE.GRID, cfg.INPUT.COLOR_JITTER = "", "", [], []
    assert len({cfg.dump() for cfg in configs.values()}) == 1
