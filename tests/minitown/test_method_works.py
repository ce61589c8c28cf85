"""What the method is for, in miniature: words find the styles of real pictures, and networks learn to see with them."""

from pathlib import Path

import pytest

from data_factory import registered
from famix.clip import CLIPResNet, PromptEncoder, load_clip_state_dict
from famix.engine import argument_parser
from famix_minitown.datasets import register
from famix_minitown.experiment import CONFIGS, read_scores
from famix_minitown.writer import write_tree
from run_factory import load_benchmark, train_net
from town_factory import define_town

SIZE = (128, 256)


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 clear scenes to train on, 6 others to score by clear day and at dusk; the definition of their datasets."""
    folder = tmp_path_factory.mktemp("town")
    write_tree(folder, "train", ["clear"], range(48), SIZE)
    for condition in ("clear", "dusk"):
        write_tree(folder, f"{condition}_val", [condition], range(50_000, 50_006), SIZE)
    return define_town(folder, "halftown", ["train", "clear_val", "dusk_val"])


def score(town: Path, config: str, output: Path) -> dict[str, float]:
    """mIoU by clear day and at dusk after a short training."""
    options = [
        "DATASETS.FILES", f"['{town}']", "DATASETS.TRAIN", "['halftown_train']",
        "DATASETS.TEST", "['halftown_clear_val', 'halftown_dusk_val']", "INPUT.CROP.SIZE", "[128, 128]",
        "SOLVER.MAX_ITER", "40", "DATALOADER.NUM_WORKERS", "0", "OUTPUT_DIR", str(output),
    ]  # fmt: skip
    with registered(town):
        train_net().run(argument_parser().parse_args(["--config-file", str(CONFIGS / f"{config}.yaml"), *options]))
    return read_scores(output)


def test_words_move_styles_to_where_pictures_in_that_look_lie() -> None:
    """The cosine of the mined and of the true change of the statistics, against that of another look's words."""
    register()
    benchmark, weights = load_benchmark("mining_direction"), load_clip_state_dict("minitown")
    clip = CLIPResNet.from_state_dict(weights, trainable=()).requires_grad_(False)
    patches = benchmark.collect(clip, 40, seed=1)
    row = benchmark.measure(clip, PromptEncoder(weights), patches, steps=15, metric="source")
    cosine, exchanged, length = (float(row[place]) for place in (3, 6, 7))
    assert cosine > 0.45 and cosine > exchanged + 0.35
    assert 0.5 < length < 2


def test_a_short_training_with_styles_sees_the_town(town: Path, tmp_path: Path) -> None:
    scores = score(town, "famix_weather", tmp_path)
    assert scores["clear"] > 35 and scores["dusk"] > 15, "of 10 classes; the largest alone makes 3 to 4"
