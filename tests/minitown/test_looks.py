"""Looks, captions, and the configs and the benchmark that follow from them."""

import numpy as np
import pytest

from error_matching import expect_error
from famix.data import CITYSCAPES_CLASSES
from famix.engine import load_config
from famix.utils.errors import ConfigError
from famix_minitown.clip.captions import MOST_LOOKS, caption, draw_looks, vocabulary
from famix_minitown.rendering.conditions import CONDITIONS
from famix_minitown.rendering.looks import LOOKS, STRICT_LOOKS, WEATHER, apply_looks
from famix_minitown.rendering.scene import Scene, render_scene
from famix_minitown.runs.experiment import CONFIGS
from run_factory import load_benchmark

BENCHMARK = load_benchmark("minitown_looks")


@pytest.fixture(scope="module")
def scene() -> Scene:
    return render_scene(5)


def apply(scene: Scene, name: str, strength: float = 1.0) -> np.ndarray:
    return apply_looks(scene, ((name, strength),), np.random.default_rng(0))


@pytest.mark.parametrize("name", LOOKS)
def test_look_grows_with_its_strength(scene: Scene, name: str) -> None:
    weak, strong = apply(scene, name, 0.3), apply(scene, name)
    assert strong.shape == scene.image.shape and strong.dtype == np.uint8
    assert (apply(scene, name) == strong).all()
    weak_change, strong_change = (np.abs(image.astype(float) - scene.image).mean() for image in (weak, strong))
    assert strong_change > 2 and weak_change < strong_change


def test_looks_show_their_names(scene: Scene) -> None:
    assert (apply_looks(scene, (), np.random.default_rng(0)) == scene.image).all()
    gray = apply(scene, "monochrome").astype(int)
    assert np.abs(gray - gray.mean(-1, keepdims=True)).max() < 2
    assert np.corrcoef(apply(scene, "negative").ravel(), scene.image.ravel())[0, 1] < -0.9
    for name, strength in (("sepai", 1.0), ("sepia", 1.5)):
        with expect_error(ConfigError, "look", value=name):
            apply(scene, name, strength)


def test_drawn_looks_and_captions_agree() -> None:
    kinds, counts = [], set()
    for seed in range(400):
        rng = np.random.default_rng(seed)
        looks = draw_looks(rng)
        families = [LOOKS[name].family for name, _ in looks]
        assert len(set(families)) == len(families) <= MOST_LOOKS
        assert all(0.45 <= strength <= 1 for _, strength in looks)
        counts.add(len(looks))
        kinds.append(WEATHER in families)
        text = caption(looks, "car", rng)
        assert "car" in text or "vehicle" in text
        assert all(any(phrase in text for phrase in LOOKS[name].phrases) for name, _ in looks), text
    assert counts == {0, 1, 2, 3} and 0.1 < np.mean(kinds) < 0.3


def test_looks_resemble_the_measured_conditions() -> None:
    assert {LOOKS[name].resembles for name in STRICT_LOOKS} == {None}
    assert {look.resembles for look in LOOKS.values()} - {None} == set(CONDITIONS) - {"clear"}
    for name, cosines in BENCHMARK.look_resemblance([render_scene(420_000 + index) for index in range(4)]).items():
        nearest = max(cosines, key=lambda condition: cosines[condition])
        if abs(cosines[nearest] - BENCHMARK.RESEMBLING) > 0.05:
            assert LOOKS[name].resembles == (nearest if cosines[nearest] > BENCHMARK.RESEMBLING else None), name


def test_image_statistics_by_hand() -> None:
    image = np.zeros((6, 12, 3), np.uint8)
    image[:2, :2] = [[[10, 0, 0], [30, 0, 0]], [[10, 0, 0], [30, 0, 0]]]  # the first of 3 x 6 patches
    mean, std = BENCHMARK.image_statistics(image).reshape(2, 3, 6, 4)
    assert mean[0, 0, :3].tolist() == [20, 0, 0] and std[0, 0, :3].tolist() == [10, 0, 0]
    assert mean[1, 3].tolist() == [0, 0, 0, 0]


def test_configs_use_the_usual_phrases() -> None:
    def styles(config: str) -> list[str]:
        return list(load_config(str(CONFIGS / f"{config}.yaml")).STYLE_MINING.STYLES)

    usual = {name: look.phrases[0] for name, look in LOOKS.items()}
    weather = [name for name, look in LOOKS.items() if look.family == WEATHER]
    assert styles("famix") == [usual[name] for name in STRICT_LOOKS]
    assert styles("famix_web") == [usual[name] for name in LOOKS if name not in weather]
    assert sorted(styles("famix_weather")) == sorted(usual[name] for name in weather)


def test_vocabulary_is_sorted_and_ends_with_the_end_token() -> None:
    tokens = vocabulary([entry.name for entry in CITYSCAPES_CLASSES])
    assert list(tokens) == sorted(set(tokens)) and tokens[-1] == 49407 and tokens[0] > 0
