"""benchmarks/minitown.py: the banks and the noise that its controls are made of, and the numbers of its report."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from data_factory import registered
from famix.mining.noise_matching import matching_noise_scale
from famix.minitown.writer import write_tree
from famix.style import StyleBank
from famix.style.dominant import IGNORE_CLASS
from run_factory import load_benchmark
from town_factory import define_town

SIZE = (64, 128)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_benchmark("minitown")


@pytest.fixture
def benchmark(script: ModuleType, tmp_path: Path) -> Iterator[Any]:
    """The benchmark on 4 clear scenes, and 2 of fog for the oracle."""
    write_tree(tmp_path / "data", "train", ["clear"], range(4), SIZE)
    write_tree(tmp_path / "data", "fog_train", ["fog"], range(2), SIZE)
    definition = define_town(tmp_path / "data", "smalltown", ["train", "fog_train"])
    options = [
        "DATASETS.FILES", f"['{definition}']", "DATASETS.TRAIN", "['smalltown_train']", "INPUT.CROP.SIZE", "[64, 64]",
        "DATASETS.TEST", "['smalltown_clear_val', 'smalltown_fog_val']", "STYLE_MINING.IMS_PER_BATCH", "2",
    ]  # fmt: skip
    arguments = ["--configs", "famix", "noise", "oracle", "--seeds", "1", "--output", str(tmp_path / "runs"), "--"]
    with registered():
        yield script.Benchmark(script.make_parser().parse_args([*arguments, *options]))


def test_measured_banks_are_made_once_for_a_clip_and_its_settings(benchmark: Any) -> None:
    path = benchmark.measured_bank("source")
    bank, made = StyleBank.load(path), path.stat().st_mtime_ns
    assert len(bank) == 4 and bank.metadata["measured"] == "smalltown_train"  # a crop of each, one patch of a crop
    assert benchmark.measured_bank("source") == path and path.stat().st_mtime_ns == made
    benchmark.options += ("MODEL.STYLE.GRID", "[2, 2]")
    finer = benchmark.measured_bank("source")
    assert finer != path and len(StyleBank.load(finer)) == 16


def test_the_oracle_is_measured_on_the_tested_conditions_but_the_clear_day(benchmark: Any) -> None:
    bank = StyleBank.load(benchmark.measured_bank("oracle"))
    assert len(bank) == 2 and bank.metadata["measured"] == "smalltown_fog_train"


def test_noise_is_as_strong_as_the_styles_of_the_same_seed(benchmark: Any) -> None:
    own = StyleBank.load(benchmark.measured_bank("source"))
    mined = StyleBank(own.metadata)
    mined.add(own.class_ids, own.mean * 1.5, own.std * 1.5)
    folder = benchmark.experiment("famix", 1).output
    folder.mkdir(parents=True)
    mined.save(folder / "style_bank.safetensors")
    scale = float(benchmark.dependent("noise", 1).load_config().MODEL.STYLE.NOISE_SCALE)
    assert scale == pytest.approx(matching_noise_scale(mined, own), abs=1e-6) and scale > 0.4


def test_a_class_agnostic_bank_gives_every_class_any_style(script: ModuleType) -> None:
    bank = StyleBank({"class_names": '["road", "sky"]'})
    mean = torch.arange(8.0).reshape(4, 2) + 1
    bank.add(torch.tensor([0, 0, 0, 1]), mean, mean / 2)
    agnostic = script.class_agnostic_bank(bank)
    assert agnostic.class_ids.tolist() == [IGNORE_CLASS] * 4 and torch.equal(agnostic.mean, mean)
    drawn, _ = agnostic.sample(torch.ones(200, dtype=torch.int64), torch.Generator().manual_seed(0))
    assert {tuple(row) for row in drawn.tolist()} == {tuple(row) for row in mean.tolist()}


def test_gains_and_the_gap_by_hand(script: ModuleType) -> None:
    unseen = {"baseline": (20.0, 22.0), "famix": (26.0, 28.0), "oracle": (30.0, 32.0)}
    scores = {
        name: {seed: {"clear": 70.0, "unseen": value} for seed, value in enumerate(values)}
        for name, values in unseen.items()
    }
    assert script.paired_gains(scores, "famix", "baseline") == [6.0, 6.0]
    assert script.gap_closed(scores, "famix") == "60 %" and script.gap_closed(scores, "oracle") == "100 %"
    assert script.gap_closed({name: scores[name] for name in ("baseline", "famix")}, "famix") == ""
    assert script.gap_closed({**scores, "oracle": scores["baseline"]}, "famix") == "no gap"
