"""The loss of the query head equals a plain rewriting, on any number of processes."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from error_matching import expect_error
from famix.data.mapper import make_segments
from famix.modeling.query.criterion import MaskCriterion, Segments
from famix.modeling.query.points import derive_keys, sample_maps, uncertain_points, uniform_points
from famix.utils.errors import ConfigError
from query_factory import NUM_CLASSES, make_scenes, tiny_maskformer
from robustness.faults import start_fork, status_of

WEIGHTS = {"class_weight": 2.0, "mask_weight": 5.0, "dice_weight": 3.0}
NO_OBJECT_WEIGHT = 0.3
SIZE = (40, 48)
NUM_POINTS = 60


def random_segments(counts: tuple[int, ...], seed: int = 0) -> list[Any]:
    """Make images with the given numbers of segments, which may touch but not overlap."""
    rng, targets = np.random.default_rng(seed), []
    for count in counts:
        cells = np.repeat(np.repeat(rng.integers(0, count + 1, (5, 6)), 8, axis=0), 8, axis=1)
        masks = cells == np.arange(count)[:, None, None]
        targets.append(make_segments(masks, rng.integers(0, NUM_CLASSES, count).tolist()))
    return targets


def predictions(num_layers: int, batch: int, num_queries: int = 7) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    classes = [torch.randn(batch, num_queries, NUM_CLASSES + 1, generator=generator) for _ in range(num_layers)]
    masks = [3 * torch.randn(batch, num_queries, 10, 12, generator=generator) for _ in range(num_layers)]
    return [x.requires_grad_() for x in classes], [x.requires_grad_() for x in masks]


def plain_losses(
    classes: list[Tensor],
    masks: list[Tensor],
    targets: list[Any],
    seeds: list[int],
    fixed: bool = False,
    class_weights: Sequence[float] = (1.0,) * NUM_CLASSES,
) -> dict[str, Tensor]:
    """Loop over layers, images and segments, with points drawn for one image or segment at a time."""
    total = {"loss_class": torch.zeros(()), "loss_mask": torch.zeros(()), "loss_dice": torch.zeros(())}
    num_segments = max(1, sum(len(target) for target in targets))
    for layer, (layer_classes, layer_masks) in enumerate(zip(classes, masks, strict=True)):
        class_loss, weights = torch.zeros(()), 0.0
        for image, target in enumerate(targets):
            seed = torch.tensor([seeds[image]])
            true = target.gt_masks.tensor.float()
            points = uniform_points(derive_keys(seed, 0, layer), NUM_POINTS)
            probabilities = layer_classes[image].detach().softmax(-1)
            cost = np.zeros((len(layer_classes[image]), len(target)))
            for query in range(len(cost)):
                x = sample_maps(layer_masks[image, query][None, None].detach(), points)[0, 0]
                for place, label in enumerate(target.gt_classes.tolist()):
                    y = sample_maps(true[place][None, None], points)[0, 0]
                    dice = 1 - (2 * (x.sigmoid() * y).sum() + 1) / (x.sigmoid().sum() + y.sum() + 1)
                    binary = F.binary_cross_entropy_with_logits(x, y)
                    cost[query, place] = (
                        WEIGHTS["mask_weight"] * binary
                        + WEIGHTS["dice_weight"] * dice
                        - WEIGHTS["class_weight"] * probabilities[query, label]
                    )
            pairs = dict(zip(*(found.tolist() for found in linear_sum_assignment(cost)), strict=True))
            if fixed:
                pairs = {label: place for place, label in enumerate(target.gt_classes.tolist())}
            for query in range(len(cost)):
                label = int(target.gt_classes[pairs[query]]) if query in pairs else NUM_CLASSES
                weight = class_weights[label] if query in pairs else NO_OBJECT_WEIGHT
                class_loss = class_loss - weight * layer_classes[image, query].log_softmax(-1)[label]
                weights += weight
                if query in pairs:
                    place = pairs[query]
                    logits = layer_masks[image, query]
                    key = derive_keys(seed, 1, layer, place)
                    chosen = uncertain_points(logits[None].detach(), key, NUM_POINTS)
                    x = sample_maps(logits[None, None], chosen)[0, 0]
                    y = sample_maps(true[place][None, None], chosen)[0, 0]
                    p = x.sigmoid()
                    total["loss_mask"] = total["loss_mask"] + F.binary_cross_entropy_with_logits(x, y) / num_segments
                    dice = 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)
                    total["loss_dice"] = total["loss_dice"] + dice / num_segments
        total["loss_class"] = total["loss_class"] + class_loss / weights
    return {name: WEIGHTS[f"{name[5:]}_weight"] * loss for name, loss in total.items()}


def criterion(**options: Any) -> MaskCriterion:
    return MaskCriterion(NUM_CLASSES, **WEIGHTS, no_object_weight=NO_OBJECT_WEIGHT, num_points=NUM_POINTS, **options)


@pytest.mark.parametrize("counts", [(4, 2), (3, 0, 5), (7,)])
def test_equals_a_plain_loop(counts: tuple[int, ...]) -> None:
    targets, seeds = random_segments(counts), list(range(5, 5 + len(counts)))
    classes, masks = predictions(3, len(counts))
    expected = plain_losses(classes, masks, targets, seeds)
    expected_gradients = torch.autograd.grad(sum(expected.values()), [*classes, *masks])
    got = criterion()(classes, masks, Segments.collate(targets, SIZE, seeds, torch.device("cpu")))
    gradients = torch.autograd.grad(sum(got.values()), [*classes, *masks])
    for name, loss in expected.items():
        assert got[name].item() == pytest.approx(loss.item(), rel=1e-5, abs=1e-5), name
    for one, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_class_weights_equal_a_plain_loop() -> None:
    weights, targets, seeds = (0.5, 2.0, 0.0), random_segments((4, 0, 2)), [5, 6, 7]
    classes, masks = predictions(2, 3)
    expected = plain_losses(classes, masks, targets, seeds, class_weights=weights)
    got = criterion(class_weights=weights)(classes, masks, Segments.collate(targets, SIZE, seeds, torch.device("cpu")))
    for name, loss in expected.items():
        assert got[name].item() == pytest.approx(loss.item(), rel=1e-5), name
    equal = plain_losses(classes, masks, targets, seeds)
    assert got["loss_class"].item() != pytest.approx(equal["loss_class"].item(), rel=1e-3)


def test_one_query_per_class_equals_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, NUM_CLASSES, SIZE), np.full(SIZE, 1)]
    targets = []
    for label in labels:
        present = np.unique(label)
        targets.append(make_segments(label == present[:, None, None], present.tolist()))
    classes, masks = predictions(2, 2, num_queries=NUM_CLASSES)
    expected = plain_losses(classes, masks, targets, [3, 4], fixed=True)
    segments = Segments.collate(targets, SIZE, [3, 4], torch.device("cpu"))
    got = criterion(query_per_class=True)(classes, masks, segments)
    for name, loss in expected.items():
        assert got[name].item() == pytest.approx(loss.item(), rel=1e-5), name


def test_masks_are_padded_like_images() -> None:
    (target,) = random_segments((3,))
    joined = Segments.collate([target, target[:1]], (64, 64), [1, 2], torch.device("cpu"))
    assert joined.masks.shape == (4, 64, 64) and joined.masks[:, 40:].sum() == joined.masks[:, :, 48:].sum() == 0
    assert torch.equal(joined.masks[:3, :40, :48], target.gt_masks.tensor.float())
    assert joined.images.tolist() == [0, 0, 0, 1] and joined.places.tolist() == [0, 1, 2, 0]


def test_batch_without_segments_gives_every_parameter_a_gradient() -> None:
    model = tiny_maskformer().train()
    batch = [{**x, "segments": x["segments"][:0]} for x in make_scenes(0)]
    losses = model(batch)
    assert losses["loss_mask"] == losses["loss_dice"] == 0 < losses["loss_class"]
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.decoder.parameters())


def test_losses_are_float32_under_autocast() -> None:
    model, batch = tiny_maskformer().train(), make_scenes(0, 8)
    exact = model(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(batch)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(exact[name].item(), rel=0.05)
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "key"),
    [({"mask_weight": -1.0}, "MASK_WEIGHT"), ({"no_object_weight": math.inf}, "NO_OBJECT_WEIGHT"), ({"num_points": 0}, "NUM_POINTS")],
)  # fmt: skip
def test_invalid_setting(options: dict[str, Any], key: str) -> None:
    with expect_error(ConfigError, f"MODEL.MASK_FORMER.{key}", *options.values()):
        MaskCriterion(NUM_CLASSES, **options)


# Points


def test_points_are_uniform_and_depend_on_the_key_only() -> None:
    keys = derive_keys(torch.arange(40), 2)
    points = uniform_points(keys, 500)
    assert points.shape == (40, 500, 2) and points.min() >= 0 and points.max() < 1
    counts = torch.histc(points, 10, 0, 1)
    assert ((counts - 4000).abs() < 5 * 4000**0.5).all()
    centered = points.flatten(1) - 0.5
    correlation = centered @ centered.t() / centered.square().sum(1).mean()
    assert (correlation - torch.eye(40)).abs().max() < 0.2  # 6 standard deviations of 1,000 independent numbers
    assert torch.equal(uniform_points(keys[7:8], 500)[0], points[7])
    assert len(torch.unique(points)) > 0.99 * points.numel()


def test_different_values_give_different_keys() -> None:
    seeds = torch.arange(20)
    keys = torch.stack([derive_keys(seeds, stream, layer, place) for stream in range(2) for layer in range(10) for place in range(5)])  # fmt: skip
    assert len(keys.unique()) == keys.numel()


def test_most_points_are_uncertain_ones() -> None:
    logits = torch.linspace(-8, 8, 64).expand(2, 64, 64)  # zero in the middle column
    points = uncertain_points(logits, torch.tensor([1, 2]), 400)
    assert points.shape == (2, 400, 2)
    distance = (points[..., 0] - 0.5).abs()
    # 300 of 1,200 candidates are within an eighth of the width around the middle, and 100 are anywhere.
    assert (distance[:, :300] < 0.16).all() and (distance[:, 300:] > 0.16).sum() > 80
    candidates = uniform_points(torch.tensor([1, 2]), 1200)
    smallest = sample_maps(logits[:, None], candidates)[:, 0].abs().sort(dim=1).values[:, :300]
    chosen = sample_maps(logits[:, None], points[:, :300])[:, 0].abs().sort(dim=1).values
    assert torch.equal(chosen, smallest)


# Processes


def gradients_of(model: torch.nn.Module, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
    losses = model(batch)
    sum(losses.values()).backward()
    inner = getattr(model, "module", model)
    return {name: parameter.grad for name, parameter in inner.named_parameters() if parameter.grad is not None}


def run_rank(rank: int, folder: Path) -> None:
    """Save the gradients of one of two processes, which has every other image."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    model = torch.nn.parallel.DistributedDataParallel(tiny_maskformer().train())
    torch.save(gradients_of(model, unequal_batch()[rank::2]), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def unequal_batch() -> list[dict[str, Any]]:
    """Make three scenes and one without segments, so that the processes have different numbers of segments."""
    batch = make_scenes(0, 4, 8, 12, seeds=(5, 6, 7, 8))
    batch[1]["segments"], batch[2]["segments"] = batch[1]["segments"][:0], batch[2]["segments"][:3]
    return batch


def test_two_processes_equal_one(tmp_path: Path) -> None:
    ranks = [start_fork(partial(run_rank, rank, tmp_path), log := tmp_path / "log") for rank in range(2)]
    expected = gradients_of(tiny_maskformer().train(), unequal_batch())
    assert [status_of(pid) for pid in ranks] == [0, 0], log.read_text()[-3000:]
    for rank in range(2):
        got = torch.load(tmp_path / f"{rank}.pt")
        assert got.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(got[name], gradient, atol=1e-5, rtol=1e-4, msg=name)
