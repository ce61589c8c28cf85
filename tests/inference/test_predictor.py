"""A predictor says what the network says, however the image is given and from wherever the network comes."""

from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from error_matching import expect_error
from famix.evaluation import ProtocolInference, parse_protocol
from famix.inference import LoadedModel, Predictor
from famix.utils.errors import ConfigError, DatasetError
from inference.inference_factory import make_image


def model_scores(loaded: LoadedModel, image: np.ndarray, protocol: str = "native") -> torch.Tensor:
    """What evaluation would score: (K, H, W)."""
    model = ProtocolInference(loaded.model, parse_protocol(protocol))
    with torch.no_grad():
        return model([{"image": torch.from_numpy(image.transpose(2, 0, 1).copy())}])[0]["sem_seg"]


def test_labels_scores_and_probabilities_are_the_networks(predictor: Predictor, loaded: LoadedModel) -> None:
    image = make_image()
    prediction, scores = predictor(image), model_scores(loaded, image)
    assert prediction.labels.dtype == np.uint8
    assert len(np.unique(prediction.labels)) > 3  # or equality would say little
    np.testing.assert_array_equal(prediction.labels, scores.argmax(0).numpy())
    np.testing.assert_array_equal(prediction.scores, scores.numpy())
    np.testing.assert_allclose(prediction.probabilities, scores.softmax(0).numpy(), atol=1e-6)
    assert prediction.segment_ids is None
    assert prediction.segments == ()
    prediction.overlay(image)
    np.testing.assert_array_equal(image, make_image())  # an array is not changed


def test_classes_are_those_of_the_data_set(predictor: Predictor) -> None:
    prediction = predictor(make_image())
    assert prediction.class_names[:3] == ("road", "sidewalk", "building")
    assert len(prediction.class_names) == 19
    assert prediction.colors.shape == (19, 3)
    assert prediction.colors[10].tolist() == [70, 130, 180]  # the sky is blue in RGB


def test_path_pil_image_and_array_are_the_same(predictor: Predictor, tmp_path: Path) -> None:
    image = make_image()
    Image.fromarray(image).save(tmp_path / "image.png")
    expected = predictor(image).scores
    for same in (tmp_path / "image.png", str(tmp_path / "image.png"), Image.fromarray(image)):
        np.testing.assert_array_equal(predictor(same).scores, expected)
    grey = Image.fromarray(image).convert("L")
    np.testing.assert_array_equal(predictor(grey).labels, predictor(grey.convert("RGB")).labels)


def test_networks_of_bgr_images_get_their_order(predictor: Predictor, pristine_run: Path) -> None:
    image = make_image()
    bgr = Predictor.from_checkpoint(pristine_run, device="cpu", opts=["INPUT.FORMAT", "BGR"])
    assert not np.array_equal(predictor(image).scores, bgr(image).scores)
    np.testing.assert_array_equal(predictor(image).scores, bgr(image[..., ::-1]).scores)


def test_windows_that_go_together_give_the_same(pristine_run: Path) -> None:
    image, predictions, batches = make_image(), [], []
    for windows in (1, 4):
        options = ["TEST.WINDOW_BATCH", str(windows)]
        predictor = Predictor.from_checkpoint(pristine_run, protocol="slide64/40", device="cpu", opts=options)
        sizes: list[int] = []
        predictor.inference.model.register_forward_pre_hook(lambda _, inputs, sizes=sizes: sizes.append(len(inputs[0])))
        predictions.append(predictor(image).scores)
        batches.append(sizes)
    np.testing.assert_allclose(predictions[0], predictions[1], atol=1e-5)
    assert max(batches[0]) == 1 and max(batches[1]) == 4 and sum(batches[0]) == sum(batches[1])


@pytest.mark.parametrize("name", ["half+flip", "flip+logits", "slide64/40+flip"])
def test_protocol_is_followed(loaded: LoadedModel, name: str) -> None:
    image = make_image(64, 100)
    prediction = Predictor(loaded.model, loaded.classes, protocol=name)(image)
    scores = model_scores(loaded, image, name)
    np.testing.assert_array_equal(prediction.scores, scores.numpy())
    expected = scores.softmax(0) if "logits" in name else scores
    np.testing.assert_allclose(prediction.probabilities, expected.numpy(), atol=1e-6)
    np.testing.assert_allclose(prediction.probabilities.sum(0), 1, atol=1e-5)


@pytest.mark.parametrize("name", ["short64", "fit96x48", "halftruth"])
def test_prediction_has_the_size_of_the_image_where_the_protocol_scores_at_another(
    loaded: LoadedModel, name: str
) -> None:
    predictor = Predictor(loaded.model, loaded.classes, protocol=name)
    assert predictor(make_image(72, 112)).labels.shape == (72, 112)


def test_protocol_of_a_checkpoint_is_followed(pristine_run: Path, predictor: Predictor) -> None:
    image = make_image()
    flipped = Predictor.from_checkpoint(pristine_run / "model_final.pth", protocol="flip", device="cpu")
    both = (predictor(image).probabilities + predictor(image[:, ::-1]).probabilities[..., ::-1]) / 2
    np.testing.assert_allclose(flipped(image).probabilities, both, atol=1e-6)


def test_protocols_and_image_formats_are_checked(loaded: LoadedModel, tmp_path: Path) -> None:
    with expect_error(ConfigError, key="protocol", value="robustnet1536", remedy="docs/PROTOCOLS.md"):
        Predictor(loaded.model, loaded.classes, protocol="robustnet1536")  # which crops
    with expect_error(ConfigError, key="'halff'"):
        Predictor.from_checkpoint(tmp_path / "nothing.pth", protocol="halff")  # before anything is read
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
    ids=["grey", "channels first", "four channels", "float", "empty", "list", "small", "missing"],
)
def test_bad_image_is_one_error(predictor: Predictor, image: object, value: str) -> None:
    with expect_error(DatasetError, key="Image" if isinstance(image, Path) else "image", value=value):
        predictor(image)  # type: ignore[arg-type]


def test_smallest_image_counts_what_the_network_is_shown(loaded: LoadedModel, predictor: Predictor) -> None:
    image = make_image(32, 33)
    assert predictor(image).labels.shape == (32, 33)
    with expect_error(DatasetError, key="protocol 'half'", value="32 x 33"):
        Predictor(loaded.model, loaded.classes, protocol="half")(image)


def test_scores_can_be_left_out(predictor: Predictor) -> None:
    prediction = predictor(make_image(), keep_scores=False)
    assert prediction.kept_scores is None
    with pytest.raises(ValueError, match="keep_scores=True"):
        _ = prediction.probabilities


@pytest.mark.parametrize("batch_size", [1, 3])
def test_many_images_are_predicted_as_alone(predictor: Predictor, batch_size: int) -> None:
    sizes = [(72, 112), (72, 112), (40, 64), (72, 112), (72, 112), (72, 112), (72, 112)]
    images = [make_image(*size, seed=seed) for seed, size in enumerate(sizes)]
    predictions = list(predictor.predict_many(images, batch_size=batch_size, keep_scores=True))
    for image, prediction in zip(images, predictions, strict=True):
        np.testing.assert_allclose(prediction.scores, predictor(image).scores, atol=1e-4)


def test_batches_hold_images_of_one_size(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[list[tuple[int, ...]]] = []
    inference = predictor.inference.forward
    monkeypatch.setattr(
        predictor.inference, "forward", lambda x: (shapes.append([tuple(i["image"].shape) for i in x]), inference(x))[1]
    )
    sizes = [(40, 64), (40, 64), (40, 64), (48, 64), (40, 64)]
    list(predictor.predict_many([make_image(*size) for size in sizes], batch_size=2))
    assert [[shape[1] for shape in batch] for batch in shapes] == [[40, 40], [40], [48], [40]]


def test_endless_images_are_taken_as_they_are_needed(predictor: Predictor) -> None:
    taken: list[int] = []

    def camera() -> Iterator[np.ndarray]:
        for number in count():
            taken.append(number)
            yield make_image(40, 64)

    assert len(list(islice(predictor.predict_many(camera()), 3))) == 3
    assert len(taken) < 20


@pytest.mark.parametrize("batch_size", [1, 4])
def test_bad_file_among_many_comes_in_its_place(predictor: Predictor, tmp_path: Path, batch_size: int) -> None:
    Image.fromarray(make_image()).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("no image")
    predictions = predictor.predict_many([tmp_path / "good.png", tmp_path / "bad.png"], batch_size=batch_size)
    assert next(predictions).labels.shape == (72, 112)
    with expect_error(DatasetError, key=str(tmp_path / "bad.png")):
        next(predictions)
