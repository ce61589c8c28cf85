import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clip_factory import tiny_clip
from error_matching import expect_error
from famix.clip import CLIPResNet
from famix.style import channel_mean_std, optimize_styles, source_basis
from famix.utils.errors import ConfigError

SGD = {"lr": 0.5, "momentum": 0.9, "weight_decay": 0.01}
GENERATOR = torch.Generator().manual_seed(0)
PATCHES = torch.randn(3, 4, 6, 7, generator=GENERATOR) + 0.5
TEXTS = F.normalize(torch.randn(3, 5, generator=GENERATOR), dim=1)


def encode(patches):
    """A smooth map of two features per channel, which depend on mean and spread."""
    pooled = torch.cat([patches.mean((2, 3)), patches.amax((2, 3))], dim=1)
    weight = torch.linspace(0, 20, pooled.shape[1] * 5, dtype=pooled.dtype).view(-1, 5).sin() / 5
    return torch.tanh(pooled @ weight)


def optimize(patches=PATCHES, texts=TEXTS, encoder=encode, **settings):
    return optimize_styles(patches, texts, encoder, **{"steps": 3, **SGD, **settings})


def optimize_by_loop(steps, **sgd):
    own_mean = PATCHES.mean((2, 3), keepdim=True)
    own_std = (PATCHES.var((2, 3), keepdim=True) + 1e-5).sqrt()
    normalized = (PATCHES - own_mean) / own_std
    mean, std = torch.nn.Parameter(own_mean.clone()), torch.nn.Parameter(own_std.clone())
    optimizer, losses = torch.optim.SGD([mean, std], **sgd), []
    for _ in range(steps):
        optimizer.zero_grad()
        embedding = F.normalize(encode(F.relu(std * normalized + mean)), dim=1)
        loss = (1 - (embedding * TEXTS).sum(dim=1)).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return mean.detach().flatten(1), std.detach().flatten(1), losses


@pytest.mark.parametrize(
    "sgd", [SGD, {**SGD, "momentum": 0.0}, {**SGD, "weight_decay": 0.0}, {**SGD, "lr": 0.1}], ids=str
)
def test_equals_plain_loop(sgd):
    before = PATCHES.clone()
    with torch.no_grad():
        got = optimize(steps=12, **sgd)
    mean, std, losses = optimize_by_loop(12, **sgd)
    assert losses[-1] < losses[0] - 0.05, "the optimizer should matter in this example"
    torch.testing.assert_close(got.mean, mean)
    torch.testing.assert_close(got.std, std)
    assert got.losses.tolist() == pytest.approx(losses, rel=1e-4)
    assert torch.equal(PATCHES, before)


def test_relative_changes_equal_plain_loop():
    got = optimize(steps=3, relative=True, rectify=False)
    own_mean, own_std = channel_mean_std(PATCHES)
    free = [torch.zeros_like(own_mean, requires_grad=True) for _ in range(2)]  # in units of sqrt(10) of the formula
    optimizer = torch.optim.SGD(free, **SGD)
    for _ in range(3):
        optimizer.zero_grad()
        shift, growth = (10**0.5 * values for values in free)
        mean, std = own_mean + own_std * shift, own_std * growth.exp()
        embedding = encode(std * (PATCHES - own_mean) / own_std + mean)
        (1 - F.cosine_similarity(embedding, TEXTS)).mean().backward()
        optimizer.step()
    shift, growth = (10**0.5 * values.detach() for values in free)
    torch.testing.assert_close(got.mean, (own_mean + own_std * shift).flatten(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.std, (own_std * growth.exp()).flatten(1), rtol=1e-4, atol=1e-5)
    with expect_error(ConfigError, "relative", remedy="basis"):
        optimize(relative=True, basis=torch.eye(8))


def test_losses_are_those_of_each_style():
    styles = optimize(steps=5)
    assert styles.mean.shape == styles.std.shape == (3, 4)
    assert styles.losses.shape == (5,) and styles.style_losses.shape == (6, 3)
    mean, std = channel_mean_std(PATCHES)
    restyled = F.relu((PATCHES - mean) / std * styles.std[..., None, None] + styles.mean[..., None, None])
    torch.testing.assert_close(styles.style_losses[-1], 1 - F.cosine_similarity(encode(restyled), TEXTS))
    assert not any(tensor.requires_grad for tensor in vars(styles).values())


def test_zero_steps_and_no_patches():
    styles = optimize(steps=0)
    own_mean, own_std = channel_mean_std(PATCHES)
    assert torch.equal(styles.mean, own_mean.flatten(1)) and torch.equal(styles.std, own_std.flatten(1))
    assert styles.losses.shape == (0,) and styles.style_losses.shape == (1, 3)
    assert optimize(PATCHES[:0], TEXTS[:0]).mean.shape == (0, 4)


def test_half_precision_patches_give_float32_styles():
    got, expected = optimize(PATCHES.half(), TEXTS.half()), optimize(PATCHES.half().float(), TEXTS.half().float())
    assert got.mean.dtype == got.std.dtype == torch.float32
    assert torch.equal(got.mean, expected.mean)


def test_encoder_is_not_trained():
    clip = CLIPResNet.from_state_dict(tiny_clip().state_dict()).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        features = clip.features_at("res2", torch.rand(4, 3, 64, 64, generator=generator) * 2 - 1)
    clip.requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in clip.state_dict().items()}
    texts = F.normalize(torch.randn(4, 16, generator=generator), dim=1)
    optimize(features, texts, lambda x: clip.encode_from("res2", x), steps=2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in clip.state_dict().items())
    assert all(parameter.grad is None for parameter in clip.parameters())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("patches", torch.rand(3, 4, 6)), ("text_embeddings", torch.rand(2)), ("text_embeddings", torch.rand(1, 5)),
        ("basis", torch.rand(4, 4)), ("weights", torch.rand(3, 1)), ("weights", torch.rand(1)),
        ("encode_image's result", torch.rand(1, 5)), ("encode_image's result", None), ("steps", -1), ("steps", 1.5),
        ("steps", "3"), ("steps", None),
        *((name, np.ones((3, 5))) for name in ("patches", "text_embeddings", "basis", "weights", "encode_image's result")),
    ],
)  # fmt: skip
def test_rejects_wrong_arguments(name, value):
    argument = {"text_embeddings": "texts", "encode_image's result": "encoder"}.get(name, name)
    got = tuple(value.shape) if isinstance(value, torch.Tensor) else value if name == "steps" else type(value).__name__
    with expect_error(ConfigError, name, got):
        optimize(**{argument: value if argument != "encoder" else lambda patches: value})


# Bases of style changes


def correlated(count=4000):
    """Three statistics: two that always change together, and one that hardly changes."""
    generator = torch.Generator().manual_seed(0)
    common, small = torch.randn(count, generator=generator), 0.1 * torch.randn(count, generator=generator)
    return torch.stack([2 * common, common, small], dim=1)


def test_source_basis_factors_the_covariance():
    statistics = correlated()
    basis = source_basis(statistics, ridge=0.5)
    covariance = torch.cov(statistics.t())
    expected = covariance + 0.5 * covariance.diagonal().mean() * torch.eye(3)
    got = basis @ basis.t()
    torch.testing.assert_close(got / got[0, 0], expected / expected[0, 0])
    assert basis.square().sum().item() == pytest.approx(3)
    sharp = source_basis(statistics, ridge=0.01)
    step = sharp @ sharp.t() @ torch.tensor([1.0, 0.0, 0.0])
    assert step[1] / step[0] == pytest.approx(0.5, abs=0.02), "the second changes with the first"
    assert step[2].abs() < 0.05 * step[0]


@pytest.mark.parametrize("statistics", [torch.cat([torch.eye(3), -torch.eye(3)]), torch.ones(5, 3)])
def test_source_basis_of_equal_variances_is_the_identity(statistics):
    torch.testing.assert_close(source_basis(statistics), torch.eye(3))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [(torch.rand(4), "statistics"), (torch.rand(2, 3, 4), "statistics"), (torch.rand(1, 4), "STYLE_MINING.METRIC")],
)
def test_source_basis_rejects_wrong_shapes(wrong, named):
    with expect_error(ConfigError, named):
        source_basis(wrong)


def test_identity_basis_optimizes_the_statistics():
    plain, inside = optimize(steps=10, weight_decay=0.0), optimize(steps=10, weight_decay=0.0, basis=torch.eye(8))
    for name in ("mean", "std", "style_losses"):
        torch.testing.assert_close(getattr(inside, name), getattr(plain, name))


def test_basis_limits_the_directions_of_change():
    basis = torch.zeros(8, 8)
    basis[:, 0] = torch.tensor([1.0, -1.0, 0.5, 0.0, 0.0, 2.0, 0.0, 0.0])
    styles, start = optimize(steps=5, weight_decay=0.0, basis=basis), optimize(steps=0)
    change = torch.cat([styles.mean - start.mean, styles.std - start.std], dim=1)
    assert change[:, 0].abs().min() > 1e-3
    torch.testing.assert_close(change, change[:, :1] * basis[:, 0])


def test_weight_decay_with_a_basis_limits_changes():
    start = optimize(steps=0)
    free, pulled = (
        optimize(steps=40, momentum=0.0, basis=torch.eye(8), weight_decay=decay).mean - start.mean
        for decay in (0.0, 0.5)
    )
    assert pulled.norm() < 0.5 * free.norm()
