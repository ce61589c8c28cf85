"""The query head as a whole: a scene is learned, outputs fit images and protocols, and bad input is explained."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from error_matching import expect_error
from famix.data.mapper import make_segments
from famix.modeling import FAMixMaskFormer
from famix.modeling.query.criterion import MaskCriterion
from famix.modeling.query.queries import TextClassifier, TextQueries
from famix.utils.errors import ConfigError
from model_factory import make_restyler, tiny_backbone
from query_factory import (
    HIDDEN_DIM,
    NUM_CLASSES,
    SCENE_CLASSES,
    make_scene,
    make_scenes,
    tiny_decoder,
    tiny_maskformer,
)
from toy_segmentors import predict, show, windowed


def overfit(model: FAMixMaskFormer, by_class: bool = False, iterations: int = 60) -> dict[str, Any]:
    """Train on one scene, with a segment per instance or per class, and return the prediction for it."""
    (sample,) = make_scenes(0)
    if by_class:
        masks = sample["sem_seg"].numpy() == np.arange(NUM_CLASSES)[:, None, None]
        sample["segments"] = make_segments(masks, range(NUM_CLASSES))
    parameters = [parameter for parameter in model.train().parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=5e-3, weight_decay=0.0)
    for iteration in range(iterations):
        losses = model([{**sample, "point_seed": iteration}])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    with torch.inference_mode():
        (result,) = model.eval()([{"image": make_scene()[0]}])
    return result


def accuracy(result: dict[str, Any]) -> float:
    truth = np.take(SCENE_CLASSES, make_scene()[1])
    return float((result["sem_seg"].argmax(dim=0).numpy() == truth).mean())


def test_one_scene_overfits() -> None:
    result = overfit(tiny_maskformer())
    assert accuracy(result) > 0.99
    panoptic, segments = result["panoptic_seg"]
    truth = make_scene()[1]
    assert len(segments) == len(SCENE_CLASSES)
    for segment in segments:
        own = (panoptic == segment["id"]).numpy()
        number = np.bincount(truth[own]).argmax()
        overlap = (own & (truth == number)).sum() / (own | (truth == number)).sum()
        assert overlap > 0.9 and segment["category_id"] == SCENE_CLASSES[number]
        assert segment["isthing"] == (number >= 2)
    cars = result["instances"][result["instances"].scores > 0.5]
    assert cars.pred_classes.tolist() == [2, 2]
    assert sorted(cars.pred_boxes.tensor[:, 0].tolist()) == pytest.approx([4, 28], abs=1)


def test_text_queries_and_classifier_overfit() -> None:
    text = F.normalize(torch.randn(NUM_CLASSES, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    backbone = tiny_backbone(output_stride=32, trainable=[])
    torch.manual_seed(0)
    model = tiny_maskformer(
        backbone,
        decoder=tiny_decoder(backbone, num_queries=NUM_CLASSES, queries=TextQueries(text, HIDDEN_DIM)),
        classifier=TextClassifier(text, HIDDEN_DIM),
        criterion=MaskCriterion(NUM_CLASSES, num_points=64, query_per_class=True),
        things=(),
    )
    result = overfit(model, by_class=True, iterations=40)
    assert accuracy(result) > 0.99 and result.keys() == {"sem_seg"}


@pytest.fixture(scope="module")
def model() -> FAMixMaskFormer:
    return tiny_maskformer().eval()


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randint(256, (3, 50, 75), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_outputs_have_the_requested_size(model: FAMixMaskFormer, image: torch.Tensor) -> None:
    with torch.no_grad():
        results = model([{"image": image, "height": 100, "width": 150}, {"image": image[:, :40]}])
    for result, size in zip(results, ((100, 150), (40, 75)), strict=True):
        assert result["sem_seg"].shape == (NUM_CLASSES, *size) and result["sem_seg"].dtype == torch.float32
        assert result["sem_seg"].min() >= 0
        assert result["panoptic_seg"][0].shape == size and result["instances"].image_size == size


def test_masks_are_resized_before_they_are_summed(model: FAMixMaskFormer, image: torch.Tensor) -> None:
    with torch.no_grad():
        padded = F.pad((image - model.pixel_mean) / model.pixel_std, (0, 96 - 75, 0, 64 - 50))
        features = model.backbone(padded[None])
        output = model.decoder([features[name] for name in model.in_features])
        classes, masks = model.classifier(output.queries[-1])[0], output.masks[-1]
        full = F.interpolate(masks, (64, 96), mode="bilinear", align_corners=False)[:, :, :50, :75]
        resized = F.interpolate(full, (80, 70), mode="bilinear", align_corners=False)[0]
        expected = torch.einsum("qk,qhw->khw", classes.softmax(-1)[:, :-1], resized.sigmoid())
    torch.testing.assert_close(show(model, image, (80, 70)), expected)


def test_window_that_covers_the_image_equals_the_whole(model: FAMixMaskFormer, image: torch.Tensor) -> None:
    (scores,) = predict(model, windowed(75, 40), [{"image": image}])
    assert (scores - show(model, image, (50, 75))).abs().max() <= 1e-5


def test_overlapping_windows_average_score_maps(model: FAMixMaskFormer, image: torch.Tensor) -> None:
    (scores,) = predict(model, windowed(40, 25), [{"image": image}])
    total, count = torch.zeros_like(scores), torch.zeros(50, 75)
    for top in (0, 10):
        for left in (0, 25, 35):
            place = slice(top, top + 40), slice(left, left + 40)
            total[:, *place] += show(model, image[:, *place], (40, 40))
            count[place] += 1
    torch.testing.assert_close(scores, total / count, atol=1e-5, rtol=0)


def test_flipped_views_are_averaged_without_softmax(model: FAMixMaskFormer, image: torch.Tensor) -> None:
    (scores,) = predict(model, "flip", [{"image": image}])
    expected = (show(model, image, (50, 75)) + show(model, image.flip(-1), (50, 75)).flip(-1)) / 2
    torch.testing.assert_close(scores, expected)


def test_styles_change_the_losses_of_training_only() -> None:
    restyler = make_restyler("noise")
    plain, styled = tiny_maskformer(), tiny_maskformer(restyler=restyler)
    batch = make_scenes(0)
    restyler.reseed(1)
    first, second = plain.train()(batch), styled.train()(batch)
    assert all(first[name] != second[name] for name in first)
    results = [x.eval()([{"image": batch[0]["image"]}])[0]["sem_seg"] for x in (plain, styled)]
    assert torch.equal(*results)


def test_training_follows_a_prediction_of_the_same_size() -> None:
    """The library caches position embeddings, which must not come from inference mode."""
    model = tiny_maskformer()
    with torch.inference_mode():
        model.eval()([{"image": make_scene()[0]}])
    sum(model.train()(make_scenes(0)).values()).backward()


def test_more_segments_than_queries() -> None:
    backbone = tiny_backbone(output_stride=32, trainable=[])
    model = tiny_maskformer(backbone, decoder=tiny_decoder(backbone, num_queries=3)).train()
    with expect_error(ConfigError, "MODEL.MASK_FORMER.NUM_QUERIES", 3, "MODEL.MASK_FORMER.NUM_QUERIES"):
        model([{**x, "file_name": "crowd.png"} for x in make_scenes(0)])


@pytest.mark.parametrize("missing", ["segments", "point_seed"])
def test_targets_of_another_mapper(missing: str) -> None:
    batch = make_scenes(0)
    del batch[0][missing]
    with expect_error(ConfigError, missing, remedy="famix.data"):
        tiny_maskformer().train()(batch)


@pytest.mark.parametrize("key", ["object_threshold", "overlap_threshold"])
def test_invalid_threshold(key: str) -> None:
    with expect_error(ConfigError, f"MODEL.MASK_FORMER.{key.upper()}", 1.5):
        tiny_maskformer(**{key: 1.5})
