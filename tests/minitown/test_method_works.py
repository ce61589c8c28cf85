"""The method in miniature: mined styles point to those of real images, and a network learns with them."""

from pathlib import Path

import pytest

from data_factory import registered
from famix.clip import IMAGE, CLIPImageTower, PromptEncoder, at_stage, load_clip_state_dict
from famix.engine import argument_parser
from famix_minitown.datasets import register
from famix_minitown.runs.experiment import CONFIGS, read_scores
from run_factory import load_benchmark, train_net
from town_factory import write_town


@pytest.mark.parametrize(
    ("stage", "options"),
    [("res2", {"metric": "source"}), (IMAGE, {"metric": "euclidean", "relative": True, "rate": 0.1})],
)
def test_mined_styles_point_to_those_of_real_images(stage: str, options: dict) -> None:
    """Compare the cosine of mined and true changes of the statistics with that for exchanged looks."""
    register()
    benchmark, weights = load_benchmark("mining_direction"), load_clip_state_dict("minitown")
    clip = at_stage(CLIPImageTower.from_state_dict(weights, trainable=()), stage).requires_grad_(False)
    patches = benchmark.collect(clip, stage, 40, seed=1)
    row = benchmark.measure(clip, stage, PromptEncoder(weights), patches, steps=15, **options)
    values = dict(zip(benchmark.HEADERS, row, strict=True))
    initial, final = map(float, values["cosine loss"].split(" -> "))
    assert final < 0.8 * initial
    cosine, exchanged, length = (float(values[name]) for name in ("cosine", "exchanged", "length"))
    assert cosine > 0.45 and cosine > exchanged + 0.35
    assert 0.5 < length < 2


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The definition of a small town."""
    splits = {"train": ("clear", range(48)), **{f"{c}_val": (c, range(50_000, 50_006)) for c in ("clear", "dusk")}}
    return write_town(tmp_path_factory.mktemp("town"), "halftown", splits, (128, 256))


@pytest.mark.parametrize(
    ("method", "clear", "dusk"),
    [("famix_weather", 25, 15), ("famix_weather_vit", 15, 8), ("famix_weather_convnext", 15, 8)],
)
def test_short_training_with_styles_learns_the_town(
    town: Path, tmp_path: Path, method: str, clear: int, dusk: int
) -> None:
    options = [
        "DATASETS.FILES", f"['{town}']", "DATASETS.TRAIN", "['halftown_train']",
        "DATASETS.TEST", "['halftown_clear_val', 'halftown_dusk_val']", "INPUT.CROP.SIZE", "[128, 128]",
        "SOLVER.MAX_ITER", "20", "DATALOADER.NUM_WORKERS", "0", "OUTPUT_DIR", str(tmp_path / "run"),
    ]  # fmt: skip
    with registered(town):
        config = str(CONFIGS / f"{method}.yaml")
        train_net().run(argument_parser().parse_args(["--config-file", config, *options]))
    scores = read_scores(tmp_path / "run")
    assert scores["clear"] > clear and scores["dusk"] > dusk, "of 10 classes; the largest alone makes 3 to 4"
