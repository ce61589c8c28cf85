"""Looks and captions: what is applied is what is told, and the same bytes for the same random numbers."""

import numpy as np
import pytest

from famix.data import CITYSCAPES_CLASSES
from famix.engine import load_config
from famix_minitown.captions import MOST_ATTRIBUTES, caption, draw_look, vocabulary
from famix_minitown.conditions import CONDITIONS
from famix_minitown.looks import LOOKS, STRICT_LOOKS, WEATHER, apply_looks
from famix_minitown.scene import Scene, render_scene
from run_factory import ROOT, load_benchmark

CONFIGS = ROOT / "projects/FAMix/configs/minitown"
BENCHMARK = load_benchmark("minitown_looks")
CLASS_NAMES = [entry.name for entry in CITYSCAPES_CLASSES]


@pytest.fixture(scope="module")
def scene() -> Scene:
    return render_scene(5)


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("name", LOOKS)
def test_every_look_shows_more_with_more_strength(scene: Scene, name: str) -> None:
    weak, strong = (apply_looks(scene, ((name, strength),), _rng()) for strength in (0.3, 1.0))
    assert strong.shape == scene.image.shape and strong.dtype == np.uint8
    assert (apply_looks(scene, ((name, 1.0),), _rng()) == strong).all()
    weak_change, strong_change = (np.abs(image.astype(float) - scene.image).mean() for image in (weak, strong))
    assert strong_change > 2 and weak_change < strong_change


def test_no_look_is_the_clear_day(scene: Scene) -> None:
    assert (apply_looks(scene, (), _rng()) == scene.image).all()


def test_grayscale_has_no_color_and_negative_turns(scene: Scene) -> None:
    gray = apply_looks(scene, (("monochrome", 1.0),), _rng()).astype(int)
    assert np.abs(gray - gray.mean(-1, keepdims=True)).max() < 2
    negative = apply_looks(scene, (("negative", 1.0),), _rng()).astype(float)
    assert np.corrcoef(negative.ravel(), scene.image.ravel())[0, 1] < -0.9


def test_drawn_looks() -> None:
    drawn = [draw_look(_rng(seed)) for seed in range(400)]
    families = [[LOOKS[name].family for name, _ in look] for look in drawn]
    assert all(len(set(kinds)) == len(kinds) <= MOST_ATTRIBUTES for kinds in families)
    assert {len(look) for look in drawn} == {0, 1, 2, 3}
    assert all(0.45 <= strength <= 1 for look in drawn for _, strength in look)
    assert 0.1 < np.mean([WEATHER in kinds for kinds in families]) < 0.3


def test_captions_name_every_look_and_the_class() -> None:
    for seed in range(200):
        rng = _rng(seed)
        look = draw_look(rng)
        text = caption(look, "car", rng)
        assert "car" in text or "vehicle" in text
        for name, _ in look:
            assert any(phrase in text for phrase in LOOKS[name].phrases), (text, name)


def test_strict_looks_resemble_no_condition() -> None:
    assert {LOOKS[name].resembles for name in STRICT_LOOKS} == {None}
    assert {look.resembles for look in LOOKS.values()} - {None} == set(CONDITIONS) - {"clear"}


def test_looks_resemble_what_they_measure_to_resemble() -> None:
    for name, cosines in BENCHMARK.look_resemblance([render_scene(420_000 + index) for index in range(4)]).items():
        nearest = max(cosines, key=lambda condition: cosines[condition])
        if cosines[nearest] >= BENCHMARK.RESEMBLING + 0.05:
            assert LOOKS[name].resembles == nearest, name
        elif cosines[nearest] < BENCHMARK.RESEMBLING - 0.05:
            assert LOOKS[name].resembles is None, name


def test_image_statistics_by_hand() -> None:
    image = np.zeros((6, 12, 3), np.uint8)
    image[:2, :2] = [[[10, 0, 0], [30, 0, 0]], [[10, 0, 0], [30, 0, 0]]]  # the first of 3 x 6 patches
    mean, std = BENCHMARK.image_statistics(image).reshape(2, 3, 6, 4)
    assert mean[0, 0, :3].tolist() == [20, 0, 0] and std[0, 0, :3].tolist() == [10, 0, 0]
    assert mean[1, 3].tolist() == [0, 0, 0, 0]


def _styles(config: str) -> list[str]:
    return list(load_config(str(CONFIGS / f"{config}.yaml")).STYLE_MINING.STYLES)


def test_configs_take_their_prompts_from_the_table() -> None:
    usual = {name: look.phrases[0] for name, look in LOOKS.items()}
    weather = [name for name, look in LOOKS.items() if look.family == WEATHER]
    assert _styles("famix") == [usual[name] for name in STRICT_LOOKS]
    assert _styles("famix_web") == [usual[name] for name in LOOKS if name not in weather]
    assert sorted(_styles("famix_weather")) == sorted(usual[name] for name in weather)


def test_vocabulary_is_sorted_and_has_the_end_token_last() -> None:
    tokens = vocabulary(CLASS_NAMES)
    assert list(tokens) == sorted(set(tokens)) and tokens[-1] == 49407 and tokens[0] > 0
