import numpy as np
import pytest
import torch

from error_matching import expect_error
from famix.style import (
    Statistics,
    StyleBank,
    channel_mean_std,
    mix_statistics,
    patch_mean_std,
    restyle_patches,
    transfer_statistics,
)
from famix.utils.errors import ConfigError

SIZES_AND_GRIDS = [((6, 6), (3, 3)), ((8, 12), (2, 3)), ((7, 5), (3, 2)), ((4, 11), (4, 3)), ((5, 4), (1, 1))]


def restyle_by_loop(features, mean, std, alpha, grid):
    """The recipe's sentence, patch by patch and channel by channel."""
    result = features.clone()
    for row, band in enumerate(result.tensor_split(grid[0], -2)):
        for col, patches in enumerate(band.tensor_split(grid[1], -1)):
            for image in range(len(features)):
                for channel in range(features.shape[1]):
                    patch, weight = patches[image, channel], alpha[image, channel, 0, 0]
                    own_mean, own_std = patch.mean(), (patch.var() + 1e-5).sqrt()
                    new_mean = weight * own_mean + (1 - weight) * mean[image, channel, row, col]
                    new_std = weight * own_std + (1 - weight) * std[image, channel, row, col]
                    patch.copy_((new_std * (patch - own_mean) / own_std + new_mean).clamp(min=0))
    return result


def draw(batch, channels, size, grid, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)

    def uniform(*shape):
        return torch.rand(batch, channels, *shape, dtype=dtype, generator=generator)

    return uniform(*size), uniform(*grid), uniform(*grid), uniform(1, 1)


@pytest.mark.parametrize(("size", "grid"), SIZES_AND_GRIDS)
@pytest.mark.parametrize(("batch", "channels"), [(1, 1), (3, 4)])
def test_equals_a_plain_loop(size, grid, batch, channels):
    arguments = draw(batch, channels, size, grid)
    before = arguments[0].clone()
    got = restyle_patches(*arguments, grid)
    assert torch.equal(arguments[0], before), "the given features keep their values"
    expected = restyle_by_loop(*arguments, grid)
    assert (expected == 0).any() or channels == 1, "the ReLU should matter in this example"
    torch.testing.assert_close(got, expected)


def test_hand_computed_example():
    """Own mean 2 and std 2, so that the cells are -0.5, -0.5, -0.5 and 1.5 standard deviations from the mean.

    First channel: mean 0.25 * 2 + 0.75 * 6 = 5, std 0.25 * 2 + 0.75 * 4 = 3.5: 5 - 1.75 and 5 + 5.25.
    Second channel: mean 0.5 * 2 + 0.5 * 0 = 1, std 0.5 * 2 + 0.5 * 6 = 4: 1 - 2, cut off at 0, and 1 + 6.
    """
    features = torch.tensor([[1.0, 1.0], [1.0, 5.0]]).expand(1, 2, 2, 2)
    mean, std = (torch.tensor(values).view(1, 2, 1, 1) for values in ([6.0, 0.0], [4.0, 6.0]))
    alpha = torch.tensor([0.25, 0.5]).view(1, 2, 1, 1)
    got = restyle_patches(features, mean, std, alpha, (1, 1))
    expected = torch.tensor([[[[3.25, 3.25], [3.25, 10.25]], [[0.0, 0.0], [0.0, 7.0]]]])
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=0)


def test_alpha_may_differ_from_patch_to_patch():
    features, mean, std, _ = draw(2, 3, (6, 6), (3, 2))
    alpha = torch.zeros(2, 3, 3, 2, dtype=torch.float64)
    alpha[:, :, 1, 0] = 1
    got = restyle_patches(features, mean, std, alpha, (3, 2))
    torch.testing.assert_close(got[..., 2:4, :3], features[..., 2:4, :3])
    assert (got[..., 2:4, 3:] - features[..., 2:4, 3:]).abs().amax((-1, -2)).min() > 0.01


def test_memory_format_does_not_matter():
    features, *rest = draw(2, 8, (7, 9), (3, 2))
    last = features.to(memory_format=torch.channels_last)
    got = restyle_patches(last, *rest, (3, 2))
    torch.testing.assert_close(got, restyle_patches(features, *rest, (3, 2)))
    assert got.is_contiguous(memory_format=torch.channels_last), "all layers behind would work in the slower order"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [(6, 6), (7, 8)])
def test_half_precision_is_rounded_once(dtype, size):
    features, *rest = draw(2, 3, size, (3, 2), torch.float32)
    features = (features * 500).to(dtype)
    got = restyle_patches(features, *rest, (3, 2))
    assert got.dtype == dtype
    assert torch.equal(got, restyle_patches(features.float(), *rest, (3, 2)).to(dtype))


def test_single_cell_patches_take_the_mixed_mean():
    features, mean, std, alpha = draw(2, 3, (3, 2), (3, 2))
    torch.testing.assert_close(
        restyle_patches(features, mean, std, alpha, (3, 2)), alpha * features + (1 - alpha) * mean
    )


@pytest.mark.parametrize("grid", [(2, 2), (2, 3)])
def test_gradients_reach_every_argument(grid):
    arguments = [tensor.requires_grad_() for tensor in draw(1, 2, (5, 4), grid)]
    assert torch.autograd.gradcheck(lambda *tensors: restyle_patches(*tensors, grid), arguments)


def test_no_gradient_passes_the_relu():
    features, mean, std, alpha = draw(1, 1, (4, 4), (1, 1))
    mean = (mean - 100).requires_grad_()
    restyled = restyle_patches(features, mean, std, torch.zeros_like(alpha), (1, 1))
    restyled.sum().backward()
    assert (restyled == 0).all() and mean.grad.item() == 0


def drawn_from_a_bank(channels):
    bank = StyleBank()
    bank.add(torch.tensor([0, 1]), torch.rand(2, channels), torch.rand(2, channels))
    return bank.sample(torch.tensor([[[0]], [[1]]]))


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_a_banks_sample_fits_with_its_channels_second(channels):
    """On a grid of 1 x 1, (B, 1, 1, C) broadcasts with (B, C, 1, 1)."""
    mean, std = drawn_from_a_bank(channels)
    features = torch.rand(2, channels, 4, 5)
    got = restyle_patches(features, mean.movedim(-1, 1), std.movedim(-1, 1), 0.0, (1, 1))
    own_mean, own_std = channel_mean_std(features)
    expected = std[:, 0, 0, :, None, None] * (features - own_mean) / own_std + mean[:, 0, 0, :, None, None]
    torch.testing.assert_close(got, expected.relu())
    if channels > 1:
        with expect_error(ConfigError, "mean", (2, 1, 1, channels), ".movedim(-1, 1)"):
            restyle_patches(features, mean, std, 0.0, (1, 1))


@pytest.mark.parametrize("alpha", [0, 1, 0.3, torch.tensor(0.3), torch.full((2, 1, 1, 1), 0.3), torch.tensor([0.3])])
def test_alpha_may_be_a_number_or_of_some_axes(alpha):
    features, mean, std, full = draw(2, 3, (6, 6), (3, 2))
    value = float(alpha if not isinstance(alpha, torch.Tensor) else alpha.flatten()[0])
    expected = restyle_patches(features, mean, std, torch.full_like(full, value), (3, 2))
    torch.testing.assert_close(restyle_patches(features, mean, std, alpha, (3, 2)), expected)


@pytest.mark.parametrize(
    ("argument", "shape"),
    [
        ("features", (2, 6, 6)), ("features", (6, 6)), ("mean", (2, 3)), ("mean", (2, 3, 1, 1)), ("mean", (1, 3, 3, 2)),
        ("std", (2, 3, 2, 3)), ("std", (2, 1, 3, 2)), ("std", (2, 3, 3, 2, 1)), ("alpha", (3,)), ("alpha", (2, 3)),
        ("alpha", (3, 2)), ("alpha", (3, 2, 1, 1)), ("alpha", (2, 3, 2, 3)),
    ],
)  # fmt: skip
def test_other_shapes_are_refused(argument, shape):
    arguments = dict(zip(("features", "mean", "std", "alpha"), draw(2, 3, (6, 6), (3, 2)), strict=True))
    arguments[argument] = torch.rand(shape)
    with expect_error(ConfigError, argument, shape):
        restyle_patches(**arguments, grid=(3, 2))


def test_statistics_of_other_shapes_are_refused():
    """The other functions that a wrong shape would go through in silence."""
    features, mean, std, alpha = draw(2, 3, (6, 6), (3, 2))
    own = patch_mean_std(features, (3, 2))
    with expect_error(ConfigError, "drawn", (1, 3, 3, 2)):
        mix_statistics(own, Statistics(mean[:1], std[:1]), alpha)
    with expect_error(ConfigError, "new", (2, 3, 3, 1)):
        transfer_statistics(features, own, Statistics(mean[..., :1], std[..., :1]), (3, 2))
    with expect_error(ConfigError, "mean and std", (2, 3, 3, 1)):
        Statistics(mean, std[..., :1])
    for function in (channel_mean_std, lambda x: patch_mean_std(x, (1, 1))):
        for wrong in (features[0], features[None], features.flatten(2)):
            with expect_error(ConfigError, "x", tuple(wrong.shape)):
                function(wrong)
        with expect_error(ConfigError, "x", torch.int64, ".float()"):
            function(features.long())


NO_TENSOR = [np.zeros((2, 4, 6, 9), np.float32), [[1.0]], 0.5, 1, None]
FEATURES, DRAWN = torch.rand(2, 4, 6, 9), torch.rand(2, 4, 2, 3)


@pytest.mark.parametrize("wrong", NO_TENSOR, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("argument", ["features", "mean", "std"])
def test_what_is_no_tensor_is_refused_by_name(argument, wrong):
    arguments = {"features": FEATURES, "mean": DRAWN, "std": DRAWN}
    with expect_error(ConfigError, argument, type(wrong).__name__, "torch.as_tensor"):
        restyle_patches(**arguments | {argument: wrong}, alpha=0.5, grid=(2, 3))
    integers = arguments[argument].long()
    with expect_error(ConfigError, argument, integers.dtype):
        restyle_patches(**arguments | {argument: integers}, alpha=0.5, grid=(2, 3))


@pytest.mark.parametrize(
    "wrong", ["half", None, [0.5], 1j, np.full((2, 4, 1, 1), 0.5)], ids=lambda value: type(value).__name__
)
def test_an_alpha_of_another_type_is_refused(wrong):
    with expect_error(ConfigError, "alpha", type(wrong).__name__, "Convert"):
        restyle_patches(FEATURES, DRAWN, DRAWN, wrong, (2, 3))


@pytest.mark.parametrize("wrong", [2.0, -0.5, float("nan")])
@pytest.mark.parametrize("shape", [(), (2, 4, 1, 1)])
def test_an_alpha_tensor_out_of_range_is_refused(wrong, shape):
    for alpha in (wrong, torch.full(shape, wrong)):
        with expect_error(ConfigError, "alpha", f"{wrong:g}", "own statistics"):
            restyle_patches(FEATURES, DRAWN, DRAWN, alpha, (2, 3))


@pytest.mark.parametrize("wrong", [2, (2.0, 3.0), "23", None, torch.tensor([2, 3])])
def test_a_grid_of_another_type_is_refused(wrong):
    with expect_error(ConfigError, "grid", remedy="(3, 3)"):
        restyle_patches(FEATURES, DRAWN, DRAWN, 0.5, wrong)


def test_a_grid_may_be_of_numpys_integers():
    expected = restyle_patches(FEATURES, DRAWN, DRAWN, 0.5, (2, 3))
    torch.testing.assert_close(restyle_patches(FEATURES, DRAWN, DRAWN, np.float32(0.5), np.array([2, 3])), expected)
