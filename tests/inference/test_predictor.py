"""A predictor returns the scores of its network, however the image is given and the network was loaded."""

from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from error_matching import expect_error
from famix.evaluation import ProtocolInference, parse_protocol
from famix.inference import Predictor
from famix.utils.errors import ConfigError, DatasetError
from inference.inference_factory import make_image


def model_scores(loaded, image, protocol="native"):
    """Scores (K, H, W) as in an evaluation."""
    model = ProtocolInference(loaded.model, parse_protocol(protocol))
    with torch.no_grad():
        return model([{"image": torch.from_numpy(image.transpose(2, 0, 1).copy())}])[0]["sem_seg"].numpy()


def test_repr_names_network_protocol_and_classes(loaded):
    shown = repr(Predictor(loaded.model, loaded.classes, protocol="half+flip"))
    assert (
        shown == "Predictor(FAMixSemanticSegmentor on cpu, half+flip, 19 classes: road, sidewalk, building and 16 more)"
    )


@pytest.mark.parametrize("name", ["native", "half+flip", "flip+logits", "slide64/40+flip"])
def test_predictions_are_those_of_the_network(loaded, name):
    image = make_image()
    prediction = Predictor(loaded.model, loaded.classes, protocol=name)(image)
    scores = model_scores(loaded, image, name)
    assert prediction.labels.dtype == np.uint8
    assert len(np.unique(prediction.labels)) > 1  # or equality would prove little
    np.testing.assert_array_equal(prediction.labels, scores.argmax(0))
    np.testing.assert_array_equal(prediction.scores, scores)
    expected = torch.from_numpy(scores).softmax(0) if name in ("native", "flip+logits") else scores
    np.testing.assert_allclose(prediction.probabilities, expected, atol=1e-6)
    np.testing.assert_allclose(prediction.probabilities.sum(0), 1, atol=1e-5)
    assert (prediction.segment_ids, prediction.segments) == (None, ())
    prediction.overlay(image)
    np.testing.assert_array_equal(image, make_image())  # an array is not changed


def test_classes_and_dropped_scores(predictor):
    prediction = predictor(make_image(), keep_scores=False)
    assert prediction.class_names[:3] == ("road", "sidewalk", "building")
    assert prediction.colors.shape == (19, 3)
    assert prediction.colors[10].tolist() == [70, 130, 180]  # the sky is blue in RGB
    assert prediction.kept_scores is None
    with pytest.raises(ValueError, match="keep_scores=True"):
        _ = prediction.probabilities


def test_path_pil_image_and_array_are_the_same(predictor, tmp_path):
    image = make_image()
    Image.fromarray(image).save(tmp_path / "image.png")
    expected = predictor(image).scores
    for same in (tmp_path / "image.png", str(tmp_path / "image.png"), Image.fromarray(image)):
        np.testing.assert_array_equal(predictor(same).scores, expected)
    gray = Image.fromarray(image).convert("L")
    np.testing.assert_array_equal(predictor(gray).labels, predictor(gray.convert("RGB")).labels)


def test_settings_of_a_checkpoint_are_followed(predictor, pristine_run):
    image = make_image()
    bgr = Predictor.from_checkpoint(pristine_run, device="cpu", opts=["INPUT.FORMAT", "BGR"])
    assert not np.array_equal(predictor(image).scores, bgr(image).scores)
    np.testing.assert_array_equal(predictor(image).scores, bgr(image[..., ::-1]).scores)

    flipped = Predictor.from_checkpoint(pristine_run / "model_final.pth", protocol="flip", device="cpu")
    both = (predictor(image).probabilities + predictor(image[:, ::-1]).probabilities[..., ::-1]) / 2
    np.testing.assert_allclose(flipped(image).probabilities, both, atol=1e-6)

    predictions, batches = [], []
    for windows in (1, 4):
        options = ["TEST.WINDOW_BATCH", str(windows)]
        sliding = Predictor.from_checkpoint(pristine_run, protocol="slide64/40", device="cpu", opts=options)
        sizes = []
        sliding.inference.model.register_forward_pre_hook(lambda _, inputs, sizes=sizes: sizes.append(len(inputs[0])))
        predictions.append(sliding(image).scores)
        batches.append(sizes)
    np.testing.assert_allclose(predictions[0], predictions[1], atol=1e-5)
    assert max(batches[0]) == 1 and max(batches[1]) == 4 and sum(batches[0]) == sum(batches[1])


@pytest.mark.parametrize("name", ["short64", "fit96x48", "halftruth"])
def test_predictions_have_the_size_of_the_image(loaded, name):
    assert Predictor(loaded.model, loaded.classes, protocol=name)(make_image(72, 112)).labels.shape == (72, 112)


def test_protocols_and_image_formats_are_checked(loaded, tmp_path):
    with expect_error(ConfigError, key="protocol", value="robustnet1536", remedy="docs/PROTOCOLS.md"):
        Predictor(loaded.model, loaded.classes, protocol="robustnet1536")  # which crops
    with expect_error(ConfigError, key="'halff'"):
        Predictor.from_checkpoint(tmp_path / "nothing.pth", protocol="halff")  # before a file is read
    with expect_error(ConfigError, key="INPUT.FORMAT", value="YUV", remedy="INPUT.FORMAT"):
        Predictor(loaded.model, loaded.classes, image_format="YUV")


@pytest.mark.parametrize(
    ("image", "value"),
    [
        (np.zeros((40, 40), np.uint8), "(40, 40)"),
        (np.zeros((3, 40, 40), np.uint8), "(3, 40, 40)"),
        (np.zeros((40, 40, 4), np.uint8), "(40, 40, 4)"),
        (np.zeros((40, 40, 3)), "float64"),
        (np.zeros((0, 40, 3), np.uint8), "(0, 40, 3)"),
        ([[0]], "list"),
        (np.zeros((31, 40, 3), np.uint8), "31 x 40"),
        (Path("/nowhere/image.png"), "/nowhere/image.png"),
    ],
    ids=["gray", "channels first", "four channels", "float", "empty", "list", "small", "missing"],
)
def test_invalid_images_are_refused(predictor, image, value):
    with expect_error(DatasetError, key="Image" if isinstance(image, Path) else "image", value=value):
        predictor(image)


def test_smallest_image_depends_on_the_protocol(loaded, predictor):
    image = make_image(32, 33)
    assert predictor(image).labels.shape == (32, 33)
    with expect_error(DatasetError, key="protocol 'half'", value="32 x 33"):
        Predictor(loaded.model, loaded.classes, protocol="half")(image)


@pytest.mark.parametrize(
    ("batch_size", "batches"), [(1, [[72], [72], [40], [72], [72], [72]]), (2, [[72, 72], [40], [72, 72], [72]])]
)
def test_predict_many_batches_images_of_one_size(predictor, monkeypatch, batch_size, batches):
    heights, forward = [], predictor.inference.forward

    def note(inputs):
        heights.append([each["height"] for each in inputs])
        return forward(inputs)

    sizes = [(72, 112), (72, 112), (40, 64), (72, 112), (72, 112), (72, 112)]
    images = [make_image(*size, seed=seed) for seed, size in enumerate(sizes)]
    monkeypatch.setattr(predictor.inference, "forward", note)
    predictions = list(predictor.predict_many(images, batch_size=batch_size, keep_scores=True))
    assert heights == batches
    for image, prediction in zip(images, predictions, strict=True):
        np.testing.assert_allclose(prediction.scores, predictor(image).scores, atol=1e-4)


def test_predict_many_is_lazy(predictor):
    taken = []
    camera = (taken.append(number) or make_image(40, 64) for number in count())
    assert len(list(islice(predictor.predict_many(camera), 3))) == 3
    assert len(taken) < 20


@pytest.mark.parametrize("batch_size", [1, 4])
def test_predict_many_raises_errors_in_order(predictor, tmp_path, batch_size):
    Image.fromarray(make_image()).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("no image")
    predictions = predictor.predict_many([tmp_path / "good.png", tmp_path / "bad.png"], batch_size=batch_size)
    assert next(predictions).labels.shape == (72, 112)
    with expect_error(DatasetError, key=str(tmp_path / "bad.png")):
        next(predictions)
