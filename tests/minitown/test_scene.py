"""Scenes: the same bytes for the same seed; labels, instances and depth that agree; and their conditions."""

import hashlib
from functools import partial

import cv2
import numpy as np
import pytest

from famix_minitown.datasets import FORMAT_VERSION
from famix_minitown.rendering.canvas import FAR, TrainId, patches
from famix_minitown.rendering.conditions import (
    CONDITIONS,
    DEVELOPMENT_CONDITIONS,
    apply_condition,
    draw_flakes,
    draw_streaks,
)
from famix_minitown.rendering.scene import Scene, render_scene

ALL = (*CONDITIONS, *DEVELOPMENT_CONDITIONS)
TOWN_CLASSES = {0, 1, 2, 3, 5, 7, 8, 10, 11, 13}


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [render_scene(seed) for seed in range(12)]


def test_bytes_are_those_of_the_format_version() -> None:
    """Cached images and finished experiments know only the version, which must increase if an image changes."""
    scene, digest = render_scene(50_000), hashlib.sha256()
    images = (apply_condition(scene, name) for name in ALL)
    for array in (scene.labels, scene.instances, scene.depth, *images):
        digest.update(array.tobytes())
    assert (FORMAT_VERSION, digest.hexdigest()) == (
        1,
        "f7d8e4a2079b2a83f0cec6100122c953373b872d55dbfcffa7ec5a051d392497",
    )


@pytest.mark.parametrize(
    ("draw", "count"), [(partial(draw_streaks, strength=200), 220), (draw_flakes, 900)], ids=["rain", "snow"]
)
def test_weather_is_equally_dense_at_every_size(draw: partial, count: int) -> None:
    shares = []
    for size in ((96, 192), (192, 384), (768, 1536)):
        fallen = draw(np.full((*size, 3), 60, np.uint8), np.random.default_rng(3), count=count)
        shares.append(float((fallen.astype(int) - 60).mean()))
    assert min(shares) > 0.6 * max(shares) > 0


def test_flakes_grow_with_the_image() -> None:
    areas = []
    for size in ((192, 384), (768, 1536)):
        fallen = draw_flakes(np.zeros((*size, 3), np.uint8), np.random.default_rng(3), count=40)
        found = cv2.connectedComponentsWithStats((fallen[..., 0] > 60).astype(np.uint8))[2]
        areas.append(found[1:, cv2.CC_STAT_AREA].max())
    assert 8 < areas[1] / areas[0] < 32  # four times as large in both directions


def test_any_size() -> None:
    narrow = (render_scene(seed, (64, 512)) for seed in range(60))
    without_sky = next(scene for scene in narrow if not (scene.labels == TrainId.SKY).any())
    for scene in (*(render_scene(3, size) for size in ((192, 384), (97, 131), (360, 480))), without_sky):
        size = scene.labels.shape
        assert scene.instances.shape == scene.depth.shape == scene.windows.shape == size
        assert {apply_condition(scene, name).shape for name in ALL} == {scene.image.shape} == {(*size, 3)}
    with pytest.raises(ValueError, match="at least 32 x 32 pixels"):
        render_scene(0, (16, 64))


def test_smooth_noise_has_no_seams() -> None:
    for seed in range(4):
        noise = patches((1200, 1400), 64, np.random.default_rng(seed)).astype(int)
        assert max(np.abs(np.diff(noise, axis=axis)).max() for axis in (0, 1)) <= 8


def test_classes_instances_and_depth(scenes: list[Scene]) -> None:
    assert set(np.unique(np.stack([scene.labels for scene in scenes])).tolist()) == TOWN_CLASSES
    for scene in scenes:
        countable = np.isin(scene.labels, (TrainId.PERSON, TrainId.CAR))
        assert ((scene.instances > 0) == countable).all()
        for number in np.unique(scene.instances[countable]):
            of_one = scene.instances == number
            assert len(np.unique(scene.labels[of_one])) == len(np.unique(scene.depth[of_one])) == 1
        sky = scene.labels == TrainId.SKY
        assert (scene.depth[sky] == FAR).all()
        assert ((scene.depth > 0.5) & (scene.depth < FAR))[~sky].all()
        road = np.where(scene.labels == TrainId.ROAD, scene.depth, np.nan)
        column = road[:, np.isfinite(road).sum(0).argmax()]
        assert (np.diff(column[np.isfinite(column)]) < 0).all()  # lower in the image is nearer


def test_fog_grows_with_depth(scenes: list[Scene]) -> None:
    """Contrast between neighboring pixels falls with distance, unlike under a veil of one thickness."""
    kept = {"near": [], "far": []}
    for scene in scenes:
        images = (apply_condition(scene, "fog"), scene.image)
        foggy, clear = (np.abs(np.diff(image.astype(float), axis=1)).sum(-1) for image in images)
        for name, low, high in (("near", 4, 9), ("far", 30, 60)):
            at = (scene.depth[:, 1:] > low) & (scene.depth[:, 1:] < high)
            kept[name].append(foggy[at].sum() / clear[at].sum())
    assert np.median(kept["near"]) > 2 * np.median(kept["far"])


def test_night_is_lit_by_lamps() -> None:
    scene = next(scene for scene in map(render_scene, range(40)) if any(light.ground for light in scene.lights))
    night = apply_condition(scene, "night")
    lamp = next(light for light in scene.lights if light.ground)
    assert night.mean() < 0.6 * scene.image.mean()
    assert night[round(lamp.row), round(lamp.column)].mean() > 2 * night.mean()
    dark = (scene.labels == TrainId.BUILDING) & (scene.windows == 0)
    assert night[scene.windows > 0].mean() > 2 * night[dark].mean()


def test_snow_lies_on_the_ground_and_dusk_is_warm(scenes: list[Scene]) -> None:
    for scene in scenes[:4]:
        ground = scene.labels <= TrainId.SIDEWALK
        assert apply_condition(scene, "snow")[ground].mean() > scene.image[ground].mean() + 30
        dusk, day = (
            image[..., 0].mean() / image[..., 2].mean() for image in (apply_condition(scene, "dusk"), scene.image)
        )
        assert dusk > day + 0.1


def test_condition_draws_its_severity() -> None:
    scene = render_scene(0)
    first, second = (apply_condition(scene, "fog", np.random.default_rng(seed)) for seed in (1, 2))
    assert (first != second).any()
    assert (apply_condition(scene, "fog") == apply_condition(scene, "fog")).all()
    with pytest.raises(ValueError, match="must be one of clear, night"):
        apply_condition(scene, "fgo")
