import numpy as np
import pytest
import torch

from error_matching import expect_error
from famix.style import StyleBank, channel_mean_std, patch_mean_std, restyle_patches
from famix.utils.errors import ConfigError

GRID = (3, 2)


def restyle_by_loop(features, mean, std, alpha, grid):
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
    shapes = (size, grid, grid, (1, 1))
    return [torch.rand(batch, channels, *shape, dtype=dtype, generator=generator) for shape in shapes]


@pytest.mark.parametrize(
    ("size", "grid"), [((6, 6), (3, 3)), ((8, 12), (2, 3)), ((7, 5), (3, 2)), ((4, 11), (4, 3)), ((5, 4), (1, 1))]
)
@pytest.mark.parametrize(("batch", "channels"), [(1, 1), (3, 4)])
def test_equals_plain_loop(size, grid, batch, channels):
    arguments = draw(batch, channels, size, grid)
    before = arguments[0].clone()
    got = restyle_patches(*arguments, grid)
    assert torch.equal(arguments[0], before), "the features must not change"
    expected = restyle_by_loop(*arguments, grid)
    assert (expected == 0).any() or channels == 1, "the ReLU should matter in this example"
    torch.testing.assert_close(got, expected)
    signed = restyle_patches(*arguments, grid, rectify=False)
    assert torch.equal(signed.relu(), got) and (channels == 1 or signed.min() < 0)
    assert torch.equal(restyle_patches(*arguments, grid, own=patch_mean_std(arguments[0], grid)), got)


def test_hand_computed_example():
    """Own mean 2 and std 2, so that the cells are -0.5, -0.5, -0.5 and 1.5 standard deviations from the mean.

    First channel: mean 0.25 * 2 + 0.75 * 6 = 5, std 0.25 * 2 + 0.75 * 4 = 3.5: 5 - 1.75 and 5 + 5.25.
    Second channel: mean 0.5 * 2 + 0.5 * 0 = 1, std 0.5 * 2 + 0.5 * 6 = 4: 1 - 2, cut off at 0, and 1 + 6.
    """
    features = torch.tensor([[1.0, 1.0], [1.0, 5.0]]).expand(1, 2, 2, 2)
    mean, std, alpha = (torch.tensor(values).view(1, 2, 1, 1) for values in ([6.0, 0.0], [4.0, 6.0], [0.25, 0.5]))
    got = restyle_patches(features, mean, std, alpha, (1, 1))
    expected = torch.tensor([[[[3.25, 3.25], [3.25, 10.25]], [[0.0, 0.0], [0.0, 7.0]]]])
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=0)


def test_alpha_may_differ_between_patches():
    features, mean, std, _ = draw(2, 3, (6, 6), GRID)
    alpha = torch.zeros(2, 3, 3, 2, dtype=torch.float64)
    alpha[:, :, 1, 0] = 1
    got = restyle_patches(features, mean, std, alpha, GRID)
    torch.testing.assert_close(got[..., 2:4, :3], features[..., 2:4, :3])
    assert (got[..., 2:4, 3:] - features[..., 2:4, 3:]).abs().amax((-1, -2)).min() > 0.01


@pytest.mark.parametrize("alpha", [0, 1, 0.3, torch.tensor(0.3), torch.full((2, 1, 1, 1), 0.3), torch.tensor([0.3])])
def test_alpha_broadcasts(alpha):
    features, mean, std, full = draw(2, 3, (6, 6), GRID)
    value = float(alpha if not isinstance(alpha, torch.Tensor) else alpha.flatten()[0])
    expected = restyle_patches(features, mean, std, torch.full_like(full, value), GRID)
    torch.testing.assert_close(restyle_patches(features, mean, std, alpha, GRID), expected)


def test_memory_format_is_kept():
    features, *rest = draw(2, 8, (7, 9), GRID)
    got = restyle_patches(features.to(memory_format=torch.channels_last), *rest, GRID)
    torch.testing.assert_close(got, restyle_patches(features, *rest, GRID))
    assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [(6, 6), (7, 8)])
def test_half_precision_is_rounded_once(dtype, size):
    features, *rest = draw(2, 3, size, GRID, torch.float32)
    features = (features * 500).to(dtype)
    got = restyle_patches(features, *rest, GRID)
    assert got.dtype == dtype and torch.equal(got, restyle_patches(features.float(), *rest, GRID).to(dtype))


def test_single_cell_patches_get_the_mixed_mean():
    features, mean, std, alpha = draw(2, 3, GRID, GRID)
    expected = alpha * features + (1 - alpha) * mean
    torch.testing.assert_close(restyle_patches(features, mean, std, alpha, GRID), expected)


@pytest.mark.parametrize("grid", [(2, 2), (2, 3)])
def test_gradients_reach_every_argument(grid):
    arguments = [tensor.requires_grad_() for tensor in draw(1, 2, (5, 4), grid)]
    assert torch.autograd.gradcheck(lambda *tensors: restyle_patches(*tensors, grid), arguments)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_bank_samples_need_their_channels_second(channels):
    """On a grid of 1 x 1, (B, 1, 1, C) would broadcast with (B, C, 1, 1)."""
    bank = StyleBank()
    bank.add(torch.tensor([0, 1]), torch.rand(2, channels), torch.rand(2, channels))
    mean, std = bank.sample(torch.tensor([[[0]], [[1]]]))
    features = torch.rand(2, channels, 4, 5)
    got = restyle_patches(features, mean.movedim(-1, 1), std.movedim(-1, 1), 0.0, (1, 1))
    own_mean, own_std = channel_mean_std(features)
    expected = std[:, 0, 0, :, None, None] * (features - own_mean) / own_std + mean[:, 0, 0, :, None, None]
    torch.testing.assert_close(got, expected.relu())
    if channels > 1:
        with expect_error(ConfigError, "mean", (2, 1, 1, channels), ".movedim(-1, 1)"):
            restyle_patches(features, mean, std, 0.0, (1, 1))


VALID = dict(zip(("features", "mean", "std", "alpha"), draw(2, 3, (6, 6), GRID), strict=True))


@pytest.mark.parametrize(
    ("argument", "shape"),
    [
        ("features", (2, 6, 6)), ("features", (6, 6)), ("mean", (2, 3)), ("mean", (2, 3, 1, 1)), ("mean", (1, 3, 3, 2)),
        ("std", (2, 3, 2, 3)), ("std", (2, 1, 3, 2)), ("std", (2, 3, 3, 2, 1)), ("alpha", (3,)), ("alpha", (2, 3)),
        ("alpha", (3, 2)), ("alpha", (3, 2, 1, 1)), ("alpha", (2, 3, 2, 3)),
    ],
)  # fmt: skip
def test_rejects_other_shapes(argument, shape):
    with expect_error(ConfigError, argument, shape):
        restyle_patches(**VALID | {argument: torch.rand(shape)}, grid=GRID)


@pytest.mark.parametrize("wrong", [np.zeros((2, 3, 6, 6), np.float32), [[1.0]], 0.5, 1, None])
@pytest.mark.parametrize("argument", ["features", "mean", "std"])
def test_rejects_other_types(argument, wrong):
    with expect_error(ConfigError, argument, type(wrong).__name__, "torch.as_tensor"):
        restyle_patches(**VALID | {argument: wrong}, grid=GRID)
    with expect_error(ConfigError, argument, torch.int64):
        restyle_patches(**VALID | {argument: VALID[argument].long()}, grid=GRID)


@pytest.mark.parametrize("wrong", ["half", None, [0.5], 1j, np.full((2, 4, 1, 1), 0.5)])
def test_rejects_alpha_of_other_types(wrong):
    with expect_error(ConfigError, "alpha", type(wrong).__name__, "Convert"):
        restyle_patches(**VALID | {"alpha": wrong}, grid=GRID)


@pytest.mark.parametrize("wrong", [2.0, -0.5, float("nan")])
def test_rejects_alpha_out_of_range(wrong):
    for alpha in (wrong, torch.tensor(wrong), torch.full((2, 3, 1, 1), wrong)):
        with expect_error(ConfigError, "alpha", f"{wrong:g}", "own statistics"):
            restyle_patches(**VALID | {"alpha": alpha}, grid=GRID)


def test_accepts_numpy_integers_and_numbers():
    expected = restyle_patches(**VALID | {"alpha": 0.5}, grid=GRID)
    got = restyle_patches(**VALID | {"alpha": np.float32(0.5)}, grid=np.array(GRID))
    torch.testing.assert_close(got, expected)
