"""Regions that no query claims become queries that CLIP classifies."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clip_factory import tiny_clip
from famix.clip import CLIPImageTower
from famix.modeling.query.inference import panoptic_segments, semantic_scores
from famix.modeling.query.regions import UnclaimedRegions, find_regions
from query_factory import make_scenes, tiny_maskformer

SIZE, CLASSES = (40, 60), 3
ROAD = torch.tensor([[9.0, -9, -9, -9]])  # logits of a query that is surely class 0


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return {**tiny_clip().state_dict(), "logit_scale": torch.tensor(math.log(20.0))}


@pytest.fixture(scope="module")
def regions(weights: dict[str, Tensor]) -> UnclaimedRegions:
    text = torch.randn(CLASSES, weights["text_projection"].shape[1], generator=torch.Generator().manual_seed(0))
    return UnclaimedRegions.from_clip(weights, text)


def mask_without(*holes: tuple[slice, slice]) -> Tensor:
    """A mask (1, H, W) that claims everything but the holes."""
    mask = torch.full((1, *SIZE), 0.99)
    for rows, columns in holes:
        mask[0, rows, columns] = 0.1
    return mask


LARGE, SMALL = (slice(10, 22), slice(4, 12)), (slice(30, 36), slice(50, 60))


def test_queries_of_regions_equal_a_plain_computation(regions: UnclaimedRegions, weights: dict[str, Tensor]) -> None:
    image = torch.randn(3, *SIZE, generator=torch.Generator().manual_seed(1))
    masks = mask_without(SMALL, LARGE)
    classes, found = regions(ROAD, masks, image)
    assert classes.shape == (3, CLASSES + 1) and found.shape == (3, *SIZE)
    assert torch.equal(classes[:1], ROAD) and torch.equal(found[:1], masks)
    tower = CLIPImageTower.from_state_dict(weights, trainable=())
    boxes = ((slice(10, 22), slice(2, 14)), (slice(28, 38), slice(50, 60)))  # squares around them, the larger one first
    for number, (box, region) in enumerate(zip(boxes, (LARGE, SMALL), strict=True), 1):
        crop = F.interpolate(image[(slice(None), *box)][None], (64, 64), mode="bicubic", antialias=True)
        similarity = F.cosine_similarity(tower.encode_image(crop), regions.text_embeddings)
        torch.testing.assert_close(classes[number].softmax(0)[:-1], (20 * similarity).softmax(0), rtol=1e-4, atol=1e-5)
        assert classes[number, -1] == -torch.inf
        expected = torch.zeros(SIZE)
        expected[region] = 1 - 0.1 * ROAD.softmax(1)[0, :3].sum()
        torch.testing.assert_close(found[number], expected)


def test_unclaimed_pixels_get_the_class_of_their_region(regions: UnclaimedRegions) -> None:
    classes, masks = regions(ROAD, mask_without(LARGE), torch.randn(3, *SIZE))
    labels, best = semantic_scores(classes, masks).argmax(0), int(classes[1].argmax())
    assert (labels[LARGE] == best).all() and (labels == 0).sum() >= labels.numel() - 12 * 8
    ids, segments = panoptic_segments(classes, masks, (best,), object_threshold=0.0, overlap_threshold=0.8)
    assert [segment["category_id"] for segment in segments] == [0, best]
    assert (ids[LARGE] == 2).all() and (ids == 1).sum() == ids.numel() - 12 * 8


def test_images_may_have_another_size(regions: UnclaimedRegions) -> None:
    image = torch.randn(1, 3, 20, 30)
    large = F.interpolate(image, SIZE, mode="nearest")[0]
    one, other = (regions(ROAD, mask_without((slice(0, 40), slice(0, 40))), x)[0] for x in (image[0], large))
    torch.testing.assert_close(one, other, rtol=0.05, atol=0.2)


@pytest.mark.parametrize("holes", [(), ((slice(5, 6), slice(7, 8)),)])
def test_claimed_images_and_specks_add_no_queries(regions: UnclaimedRegions, holes: tuple[tuple[slice, slice]]) -> None:
    masks = mask_without(*holes)
    classes, found = regions(ROAD, masks, torch.randn(3, *SIZE))
    assert classes is ROAD and found is masks


def test_regions_are_connected_and_ordered_by_area() -> None:
    image = np.zeros(SIZE, bool)
    image[:4, :4] = image[4:6, 4:6] = True  # they touch at a corner only
    image[10:20, 10:50] = True
    found = find_regions(image)
    assert [int(region.mask.sum()) for region in found] == [400, 16, 4]
    top, left, bottom, right = found[0].box
    assert (top, left, bottom, right) == (0, 10 / 60, 40 / 40, 50 / 60)  # a square of 40, cut off at the top


def test_networks_add_them_in_inference_only(regions: UnclaimedRegions) -> None:
    model, batch = tiny_maskformer(regions=regions), make_scenes(0, 2)
    assert not any(name.startswith("regions") for name in model.state_dict())
    losses = model.train()(batch)
    plain = tiny_maskformer().train()(batch)
    assert all(torch.equal(losses[name], plain[name]) for name in plain)
    model.eval().classifier.linear.bias.data[-1] = 20.0  # every query is "no object"
    with torch.no_grad():
        for scores in (result["sem_seg"] for result in model(batch)):
            torch.testing.assert_close(scores.sum(0), torch.ones(64, 64), atol=1e-3, rtol=1e-3)
