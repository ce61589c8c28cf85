"""The functions behind the page: pictures, predictions, values under the pointer, style words, files."""

import base64
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from app.app_factory import make_networks, write_picture
from error_matching import expect_error, explains, line_of_mistake
from famix.clip import CLIPImageTower, PromptEncoder, load_clip_state_dict
from famix.data.classes import ClassTable
from famix.inference import Prediction, Segment
from famix.utils.errors import ConfigError, DatasetError
from famix_app import comparison, session
from famix_app.comparison import (
    CLASSES,
    UNSURE,
    Side,
    changed_share,
    draw,
    legend,
    pointer_values,
    predict,
    write_files,
)
from famix_app.networks import Network, find_demo_runs, load_networks, short_names
from famix_app.pictures import Picture, read_picture, render_town
from famix_app.session import Session
from famix_app.words import PictureStyler, parse_words
from famix_cli.app import main
from famix_minitown.datasets import register
from inference.inference_factory import make_image

TABLE = ClassTable(("road", "a <b>", "car"), ((1, 2, 3), (4, 5, 6), (7, 8, 9)), things=(2,))
Output = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> list[Network]:
    return make_networks(tmp_path_factory.mktemp("app"))


def make_side(labels: np.ndarray, name: str = "net", confidence: float = 0.5) -> Side:
    prediction = Prediction(labels.astype(np.uint8), TABLE)
    return Side(name, prediction, labels.astype(np.uint16), np.full(labels.shape, confidence, np.float32))


# Networks and pictures


def test_names_are_as_short_as_they_differ() -> None:
    assert short_names([Path("/a/famix"), Path("/a/baseline")]) == ["famix", "baseline"]
    assert short_names([Path("/a/famix/seed1"), Path("/a/baseline/seed1")]) == ["famix/seed1", "baseline/seed1"]
    assert short_names([Path("/a/model_final.pth"), Path("/a/v1.5")]) == ["model_final", "v1.5"]


def test_a_run_listed_twice_is_loaded_once(networks: list[Network]) -> None:
    assert [network.name for network in networks] == ["plain/run", "styled/run"]
    run = networks[0].loaded.checkpoint.parent
    (network,) = load_networks([run, run / ".." / "run"], "cpu")
    assert network.name == "run"


def test_runs_of_the_demo_end_with_both_methods(tmp_path: Path) -> None:
    with expect_error(ConfigError, "RUN", tmp_path, "famix-town"):
        find_demo_runs(tmp_path)
    for name in ("famix_web_jitter", "baseline", "famix_web", "jitter", "unfinished"):
        (tmp_path / name).mkdir()
        if name != "unfinished":
            (tmp_path / name / "model_final.pth").touch()
    assert [run.name for run in find_demo_runs(tmp_path)] == ["baseline", "jitter", "famix_web", "famix_web_jitter"]


def test_files_that_are_no_pictures_are_refused_by_name(tmp_path: Path) -> None:
    good = write_picture(tmp_path / "good.png")
    assert read_picture(good, 72 * 112).name == "good.png"
    with expect_error(DatasetError, "good.png", 72 * 112, "INPUT.MAX_PIXELS"):
        read_picture(good, 72 * 112 - 1)
    (tmp_path / "half.png").write_bytes(good.read_bytes()[:3000])
    (tmp_path / "notes.txt").write_text("no picture")
    for name in ("half.png", "notes.txt"):
        with expect_error(DatasetError, name) as caught:
            read_picture(tmp_path / name, 1 << 20)
        assert str(tmp_path) not in str(caught.value)


def test_town_renders_scenes_in_conditions() -> None:
    night, fog, other = (render_town(*choice).pixels for choice in (("night", 1), ("fog", 1), ("night", 2)))
    assert night.shape == fog.shape == (192, 384, 3) and night.mean() < fog.mean() and (night != other).any()


# Predictions


def test_confidence_is_the_probability_of_the_shown_class(networks: list[Network]) -> None:
    pixels = make_image()
    side, prediction = predict(networks[0], pixels), networks[0].predictor(pixels)
    assert side.prediction.kept_scores is None
    for row in range(0, 72, 9):
        for column in range(0, 112, 9):
            scores = prediction.probabilities[:, row, column]
            assert side.class_ids[row, column] == scores.argmax()
            assert side.confidence[row, column] == pytest.approx(scores.max())


def test_classes_of_panoptic_predictions_are_those_of_the_segments(networks: list[Network]) -> None:
    scores = torch.tensor([0.7, 0.2, 0.1])[:, None, None].expand(3, 2, 2)
    segments = (Segment(1, 2, "car", True, 1), Segment(2, 0, "road", False, 2))
    ids = np.array([[0, 1], [2, 2]], np.int32)
    prediction = Prediction(np.zeros((2, 2), np.uint8), TABLE, segments, ids, scores, averaged=True)
    side = predict(replace(networks[0], predictor=lambda pixels: prediction), make_image(2, 2))  # type: ignore[arg-type]
    assert side.class_ids.tolist() == [[3, 2], [0, 0]]
    np.testing.assert_allclose(side.confidence, [[0.7, 0.1], [0.7, 0.7]], rtol=1e-6)
    values = pointer_values([side])
    assert values is not None and values["sides"][0]["names"][3] == "no segment"


def test_memory_of_the_device_is_reported(networks: list[Network]) -> None:
    def fail(pixels: np.ndarray) -> None:
        raise torch.OutOfMemoryError("full")

    with expect_error(DatasetError, "picture", "2 x 3", "--device"):
        predict(replace(networks[0], predictor=fail), make_image(2, 3))  # type: ignore[arg-type]


def test_views_are_the_overlay_the_unsure_pixels_and_the_picture() -> None:
    picture, side = Picture("a", make_image(8, 8)), make_side(np.zeros((8, 8)), confidence=0.0)
    np.testing.assert_array_equal(draw(picture, side, CLASSES), side.prediction.overlay(picture.pixels))
    assert (draw(picture, side, UNSURE) == (255, 176, 0)).all()
    np.testing.assert_array_equal(draw(picture, None, UNSURE), picture.pixels)


def test_shown_pictures_have_a_largest_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "SHOWN_WIDTH", 5)
    ids = np.arange(40).reshape(4, 10) % 3
    assert draw(Picture("a", make_image(4, 10)), make_side(ids), CLASSES).shape == (2, 5, 3)
    values = pointer_values([make_side(ids)])
    assert values is not None and (values["height"], values["width"]) == (2, 5)


def test_values_under_the_pointer_are_those_of_the_predictions() -> None:
    ids, confidence = np.array([[0, 1, 2], [2, 1, 0]]), np.array([[0, 0.72, 1], [0.11, 0.2, 0.997]], np.float32)
    side = replace(make_side(ids), confidence=confidence)
    values = pointer_values([side, make_side(2 - ids, "other")])
    assert values is not None and pointer_values([]) is None
    assert [entry["network"] for entry in values["sides"]] == ["net", "other"]
    content = zlib.decompress(base64.b64decode(values["sides"][0]["data"]))
    np.testing.assert_array_equal(np.frombuffer(content[:12], "<u2").reshape(2, 3), ids)
    np.testing.assert_allclose(np.frombuffer(content[12:], np.uint8).reshape(2, 3) / 255, confidence, atol=0.5 / 255)
    assert values["sides"][0]["names"][1] == "a <b>" and values["sides"][0]["colors"][1] == "rgb(4, 5, 6)"


def test_legend_lists_the_classes_of_both_sides() -> None:
    shown = legend([make_side(np.zeros((2, 2))), make_side(np.ones((2, 2)))], CLASSES)
    assert shown.index("rgb(1, 2, 3)") < shown.index("rgb(4, 5, 6)") and "car" not in shown
    assert "a &lt;b&gt;" in shown
    assert "not sure" in legend([], UNSURE)


def test_files_are_the_labels_and_the_overlay(tmp_path: Path) -> None:
    picture, ids = Picture("../my street.jpg", make_image(4, 6)), np.arange(24).reshape(4, 6) % 3
    files = write_files(picture, [make_side(ids, "a/b"), make_side(ids * 0, "c")], tmp_path / "new")
    more = write_files(picture, [make_side(ids, "a/b")], tmp_path / "new")
    assert len(files) == 4 and len(more) == 2 and not {*files} & {*more}
    assert [file.name.endswith(("_labels.png", "_overlay.jpg")) for file in files] == [True] * 4
    np.testing.assert_array_equal(np.asarray(Image.open(files[0])), ids)
    assert all(file.parent.parent == tmp_path / "new" and "street" in file.name for file in files)


def test_changed_share() -> None:
    assert changed_share(make_side(np.zeros((2, 2))), make_side(np.array([[0, 1], [0, 0]]))) == 0.25


# Sessions


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the networks that predict from now on."""
    called: list[str] = []

    def record(network: Network, pixels: np.ndarray) -> Side:
        called.append(network.name)
        return predict(network, pixels)

    monkeypatch.setattr(session, "predict", record)
    return called


def test_each_network_predicts_a_picture_once(networks: list[Network], calls: list[str]) -> None:
    one, other, state = Picture("1", make_image()), Picture("2", make_image(seed=1)), Session()
    state.add([one, other], networks[:1])
    assert state.shown is state.original is other and calls == ["plain/run"]
    first, second = state.sides(other, networks)
    assert calls == ["plain/run", "styled/run"] and changed_share(first, second) > 0
    assert state.sides(other, networks) == [first, second] and len(calls) == 2
    state.open(one, networks)
    assert state.shown is one and len(calls) == 4 and state.pictures == [one, other]


def test_an_error_leaves_the_session_as_it_was(networks: list[Network]) -> None:
    good, state = Picture("1", make_image()), Session()
    state.add([good], networks)
    with pytest.raises(DatasetError):
        state.add([Picture("2", make_image(20, 20))], networks)
    assert state.pictures == [good] and state.shown is good


def test_sessions_keep_the_newest_pictures(networks: list[Network], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "MOST_PICTURES", 2)
    pictures, state = [Picture(str(seed), make_image(seed=seed)) for seed in range(3)], Session()
    state.add(pictures, networks[:1])
    assert state.pictures == pictures[1:]


# Style words


def test_words_are_separated_by_commas() -> None:
    assert parse_words(" foggy,  at   night;snowy\nfoggy,") == ["foggy", "at night", "snowy"]
    for text, value in ((" , ", None), (",".join("abcdefg"), 7), ("x" * 61, 61)):
        with expect_error(ConfigError, "Style words", value):
            parse_words(text)


def test_fog_has_less_contrast_and_is_closer_to_its_prompt(networks: list[Network]) -> None:
    register()
    loaded = replace(networks[0].loaded, base_weights={"MODEL.CLIP.WEIGHTS": "minitown"})
    styler, pixels = PictureStyler(replace(networks[0], loaded=loaded)), render_town("clear", 1).pixels
    labels = np.zeros(pixels.shape[:2])
    labels[:60] = 2  # fewer pixels
    plain = Side("", Prediction(labels.astype(np.uint8), networks[0].predictor.classes), labels, labels)
    foggy = styler.restyle(pixels, plain, "foggy")
    # On average: the mining amplifies rounding, and on some processors a channel keeps its contrast.
    assert foggy.std((0, 1)).mean() < 0.9 * pixels.std((0, 1)).mean()
    for channel in range(3):  # an affine map
        old, new = pixels[..., channel].ravel().astype(float), foggy[..., channel].ravel().astype(float)
        inside = (new > 0) & (new < 255)
        assert np.corrcoef(old[inside], new[inside])[0, 1] > 0.999
    weights = load_clip_state_dict("minitown")
    tower = CLIPImageTower.from_state_dict(weights, trainable=()).eval()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (tower.pixel_mean, tower.pixel_std))
    side, similarities = tower.input_resolution, []
    for image in (pixels, foggy):
        values = torch.from_numpy(image.transpose(2, 0, 1).copy()).float()[None]
        small = F.interpolate((values - mean) / std, (side, side), mode="bicubic", antialias=True)
        with torch.no_grad():
            text = PromptEncoder(weights)([f"foggy {plain.prediction.class_names[0]}"], ["a photo of a {}."])
            similarities.append(float(F.cosine_similarity(tower.encode_image(small), text)))
    assert similarities[1] > similarities[0] + 0.1
    assert styler.unknown_words(["foggy", "xylophone"]) == ["xylophone"]


def test_session_restyles_the_original(networks: list[Network]) -> None:
    state, styler = Session(), PictureStyler(networks[0])
    styler._settings = replace(styler._settings, steps=2)  # quicker
    with expect_error(ConfigError, "picture"):
        next(state.restyle(["foggy"], styler, networks))
    state.add([Picture("street", make_image())], networks)
    for words in (["foggy"], ["night", "foggy"]):  # of the original, also where a restyled picture is shown
        (original, plain), *_, (foggy, sides) = state.restyle(words, styler, networks)
        assert original is state.original and [picture.name for picture in state.restyled] == [
            f"street, {word}" for word in words
        ]
        np.testing.assert_array_equal(foggy.pixels, styler.restyle(original.pixels, plain[1], "foggy"))
        assert [side.network for side in plain] == [side.network for side in sides] == ["plain/run", "styled/run"]
        expected = predict(networks[1], foggy.pixels)
        np.testing.assert_array_equal(sides[1].class_ids, expected.class_ids)
        state.shown = foggy
    state.open(state.original, networks)
    assert state.restyled[-1] is foggy
    state.add([Picture("other", make_image(seed=1))], networks)
    assert state.restyled == []


@pytest.mark.parametrize(("source", "remedy"), [("", "run"), ("gone.pt", "gone.pt"), ("RN50", "Copy")])
def test_a_missing_clip_is_named(
    networks: list[Network], source: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    loaded = replace(networks[0].loaded, base_weights={"MODEL.CLIP.WEIGHTS": source})
    with expect_error(ConfigError, "plain/run", source or None, remedy):
        PictureStyler(replace(networks[0], loaded=loaded))


# Command line


def test_command_without_runs_or_gradio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    monkeypatch.chdir(tmp_path)
    assert "famix-town" in line_of_mistake(capsys, main)
    gradio = ModuleType("gradio")
    gradio.__version__ = "5.49.1"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    explains(line_of_mistake(capsys, main, "run"), "gradio", "5.49.1", "famix[app]")
    monkeypatch.setitem(sys.modules, "gradio", None)
    explains(line_of_mistake(capsys, main, "run"), "gradio", None, "famix[app]")
