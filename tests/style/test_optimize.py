import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clip_factory import tiny_clip
from error_matching import expect_error
from famix.clip import CLIPResNet
from famix.style import channel_mean_std, optimize_styles
from famix.utils.errors import ConfigError

SGD = {"lr": 0.5, "momentum": 0.9, "weight_decay": 0.01}


def small_encoder(patches):
    """A smooth map of two features per channel, which sees both mean and spread."""
    pooled = torch.cat([patches.mean((2, 3)), patches.amax((2, 3))], dim=1)
    weight = torch.linspace(0, 20, pooled.shape[1] * 5, dtype=pooled.dtype).view(-1, 5).sin() / 5
    return torch.tanh(pooled @ weight)


def draw_patches_and_texts(number=3, channels=4, width=5):
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(number, channels, 6, 7, generator=generator) + 0.5
    return patches, F.normalize(torch.randn(number, width, generator=generator), dim=1)


def optimize_by_loop(patches, texts, encode, steps, **sgd):
    """Plain torch, one step after the other."""
    own_mean = patches.mean((2, 3), keepdim=True)
    own_std = (patches.var((2, 3), keepdim=True) + 1e-5).sqrt()
    normalised = (patches - own_mean) / own_std
    mean, std = torch.nn.Parameter(own_mean.clone()), torch.nn.Parameter(own_std.clone())
    optimizer, losses = torch.optim.SGD([mean, std], **sgd), []
    for _ in range(steps):
        optimizer.zero_grad()
        embedding = F.normalize(encode(F.relu(std * normalised + mean)), dim=1)
        loss = (1 - (embedding * texts).sum(dim=1)).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return mean.detach().flatten(1), std.detach().flatten(1), losses


@pytest.mark.parametrize(
    "sgd", [SGD, {**SGD, "momentum": 0.0}, {**SGD, "weight_decay": 0.0}, {**SGD, "lr": 0.1}], ids=str
)
def test_equals_a_plain_loop(sgd):
    patches, texts = draw_patches_and_texts()
    got = optimize_styles(patches, texts, small_encoder, steps=12, **sgd)
    mean, std, losses = optimize_by_loop(patches, texts, small_encoder, 12, **sgd)
    assert losses[-1] < losses[0] - 0.05, "the optimiser should matter in this example"
    torch.testing.assert_close(got.mean, mean)
    torch.testing.assert_close(got.std, std)
    assert got.losses.tolist() == pytest.approx(losses, rel=1e-4)


def test_shapes_and_history():
    patches, texts = draw_patches_and_texts(number=3, channels=4)
    styles = optimize_styles(patches, texts, small_encoder, steps=5, **SGD)
    assert styles.mean.shape == styles.std.shape == (3, 4)
    assert styles.losses.shape == (5,) and styles.style_losses.shape == (6, 3)
    after = 1 - F.cosine_similarity(small_encoder(restyled(patches, styles)), texts)
    torch.testing.assert_close(styles.style_losses[-1], after)
    assert not any(tensor.requires_grad for tensor in vars(styles).values())


def restyled(patches, styles):
    mean, std = channel_mean_std(patches)
    return F.relu((patches - mean) / std * styles.std[..., None, None] + styles.mean[..., None, None])


def test_no_step_returns_the_patches_own_statistics():
    patches, texts = draw_patches_and_texts()
    styles = optimize_styles(patches, texts, small_encoder, steps=0, **SGD)
    own_mean, own_std = channel_mean_std(patches)
    assert torch.equal(styles.mean, own_mean.flatten(1)) and torch.equal(styles.std, own_std.flatten(1))
    assert styles.losses.shape == (0,) and styles.style_losses.shape == (1, 3)


def test_runs_where_gradients_are_off_and_leaves_the_patches_alone():
    patches, texts = draw_patches_and_texts()
    before, expected = patches.clone(), optimize_styles(patches, texts, small_encoder, steps=3, **SGD)
    with torch.no_grad():
        got = optimize_styles(patches, texts, small_encoder, steps=3, **SGD)
    assert torch.equal(got.mean, expected.mean)
    assert torch.equal(patches, before)


def test_half_precision_patches_give_float32_styles():
    patches, texts = draw_patches_and_texts()
    got = optimize_styles(patches.half(), texts.half(), small_encoder, steps=3, **SGD)
    expected = optimize_styles(patches.half().float(), texts.half().float(), small_encoder, steps=3, **SGD)
    assert got.mean.dtype == got.std.dtype == torch.float32
    assert torch.equal(got.mean, expected.mean)


@pytest.fixture(scope="module")
def clip():
    return CLIPResNet.from_state_dict(tiny_clip().state_dict()).eval()


@pytest.fixture(scope="module")
def clip_patches(clip):
    generator = torch.Generator().manual_seed(5)
    images = torch.rand(4, 3, 64, 64, generator=generator) * 2 - 1
    with torch.no_grad():
        features = clip.features_at("res2", images)
    return features, F.normalize(torch.randn(4, 16, generator=generator), dim=1)


def test_the_encoder_is_not_trained(clip, clip_patches):
    clip.requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in clip.state_dict().items()}
    optimize_styles(*clip_patches, lambda x: clip.encode_from("res2", x), steps=2, **SGD)
    assert all(torch.equal(tensor, before[name]) for name, tensor in clip.state_dict().items())
    assert all(parameter.grad is None for parameter in clip.parameters())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("patches", torch.rand(3, 2, 4)),
        ("text_embeddings", torch.rand(2)),
        ("text_embeddings", torch.rand(1, 2)),
        ("basis", torch.rand(2, 2)),
        ("weights", torch.rand(3, 1)),
        ("weights", torch.rand(1)),
        ("encode_image's result", torch.rand(1, 2)),
    ],
)
def test_shapes_that_would_broadcast_are_refused(name, value):
    arguments = {"patches": torch.rand(3, 2, 4, 4), "text_embeddings": torch.rand(3, 2), "basis": None, "weights": None}
    result = value if name.startswith("encode") else None
    if result is None:
        arguments[name] = value
    settings = {"steps": 1, "lr": 1.0, "momentum": 0.9, "weight_decay": 0.0}
    with expect_error(ConfigError, name, tuple(value.shape)):
        optimize_styles(**arguments, **settings, encode_image=lambda x: x.mean((2, 3)) if result is None else result)


@pytest.mark.parametrize("argument", ["patches", "text_embeddings", "basis", "weights"])
def test_what_is_no_tensor_is_refused_by_name(argument):
    patches, texts = draw_patches_and_texts()
    arguments = {"patches": patches, "text_embeddings": texts} | {argument: np.ones((3, 5))}
    with expect_error(ConfigError, argument, "ndarray", "torch.as_tensor"):
        optimize_styles(**arguments, encode_image=small_encoder, steps=1, **SGD)


@pytest.mark.parametrize("result", [None, np.ones((3, 5))], ids=["none", "array"])
def test_an_encoder_that_returns_no_tensor_is_named(result):
    with expect_error(ConfigError, "encode_image", type(result).__name__):
        optimize_styles(*draw_patches_and_texts(), lambda patches: result, steps=1, **SGD)


@pytest.mark.parametrize("steps", [-1, 1.5, "3", None])
def test_steps_that_are_no_count_are_refused(steps):
    with expect_error(ConfigError, "steps", steps):
        optimize_styles(*draw_patches_and_texts(), small_encoder, steps=steps, **SGD)


def test_no_patches_have_no_styles():
    patches, texts = draw_patches_and_texts()
    assert optimize_styles(patches[:0], texts[:0], small_encoder, steps=1, **SGD).mean.shape == (0, 4)
