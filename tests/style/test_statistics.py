import pytest
import torch

from error_matching import expect_error
from famix.style import Statistics, channel_mean_std, patch_mean_std, statistics
from famix.utils.errors import ConfigError


def mean_std_by_loop(x, grid, eps=1e-5):
    mean, std = torch.empty(2, *x.shape[:2], *grid, dtype=x.dtype)
    for image in range(x.shape[0]):
        for channel in range(x.shape[1]):
            for row, band in enumerate(x[image, channel].tensor_split(grid[0], 0)):
                for col, patch in enumerate(band.tensor_split(grid[1], 1)):
                    center = patch.sum() / patch.numel()
                    variance = ((patch - center) ** 2).sum() / (patch.numel() - 1)
                    mean[image, channel, row, col] = center
                    std[image, channel, row, col] = (variance + eps).sqrt()
    return mean, std


def draw(batch, channels, size):
    return torch.randn(batch, channels, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("size", "grid"), [((6, 6), (3, 3)), ((8, 12), (2, 3)), ((7, 5), (3, 2)), ((4, 11), (4, 3)), ((9, 4), (1, 1))]
)
@pytest.mark.parametrize(("batch", "channels"), [(1, 1), (3, 4)])
def test_equals_plain_loop(size, grid, batch, channels):
    x = draw(batch, channels, size)
    got, (mean, std) = patch_mean_std(x, grid), mean_std_by_loop(x, grid)
    assert got.mean.shape == got.std.shape == (batch, channels, *grid)
    torch.testing.assert_close(got.mean, mean)
    torch.testing.assert_close(got.std, std)
    torch.testing.assert_close(channel_mean_std(x), mean_std_by_loop(x, (1, 1)))


def test_hand_computed_example():
    """Mean 2; squared distances 1 + 1 + 1 + 9 = 12, by 3 gives a variance of 4."""
    x = torch.tensor([[[[1.0, 1.0], [1.0, 5.0]]]])
    mean, std = channel_mean_std(x)
    assert (mean.item(), std.item()) == (2.0, pytest.approx(4.00001**0.5))
    assert channel_mean_std(x, eps=5.0)[1].item() == pytest.approx(3.0)
    assert patch_mean_std(x, (1, 1), eps=5.0).std.item() == pytest.approx(3.0)


def test_small_spread_around_large_mean():
    x = 1000 + 0.01 * torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = x.double().unflatten(-1, (2, -1)).unflatten(-3, (2, -1)).var((-3, -1)).sqrt()
    torch.testing.assert_close(patch_mean_std(x, (2, 2), eps=0.0).std.double(), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_slabs_and_memory_formats_agree(monkeypatch, memory_format):
    x = draw(2, 8, (7, 9))
    expected, channels = patch_mean_std(x, (3, 2)).std, channel_mean_std(x)
    x = x.contiguous(memory_format=memory_format)
    torch.testing.assert_close(patch_mean_std(x, (3, 2)).std, expected)
    torch.testing.assert_close(channel_mean_std(x), channels)
    monkeypatch.setattr(statistics, "_SLAB", 16)
    torch.testing.assert_close(patch_mean_std(x, (3, 2)).std, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    x = (400 * draw(2, 3, (9, 9))).to(dtype)  # squares overflow float16
    for got, expected in zip(channel_mean_std(x), channel_mean_std(x.float()), strict=True):
        assert got.dtype == torch.float32 and torch.equal(got, expected)
    assert torch.equal(patch_mean_std(x, (3, 3)).std, patch_mean_std(x.float(), (3, 3)).std)


def test_single_cells_have_no_spread():
    x = torch.rand(1, 2, 3, 2)
    got = patch_mean_std(x, (3, 2))
    assert torch.equal(got.mean, x)
    torch.testing.assert_close(got.std, torch.full_like(x, 1e-5**0.5))
    torch.testing.assert_close(channel_mean_std(x[..., :1, :1])[1], torch.full((1, 2, 1, 1), 1e-5**0.5))
    beside_larger = patch_mean_std(torch.tensor([[[[1.0, 3.0, 7.0]]]]), (1, 2), eps=0.0)
    assert beside_larger.mean.flatten().tolist() == [2.0, 7.0]
    assert beside_larger.std.flatten().tolist() == pytest.approx([2.0**0.5, 0.0])


def test_gradients_reach_features():
    x = draw(1, 2, (5, 4)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: tuple(vars(patch_mean_std(x, (2, 3))).values()), (x,))
    assert torch.autograd.gradcheck(channel_mean_std, (x,))


def test_rejects_wrong_shapes_and_types():
    x = draw(2, 3, (6, 6))
    with expect_error(ConfigError, "mean and std", (2, 3, 3, 1)):
        Statistics(torch.rand(2, 3, 3, 2), torch.rand(2, 3, 3, 1))
    for function in (channel_mean_std, lambda x: patch_mean_std(x, (1, 1))):
        for wrong in (x[0], x[None], x.flatten(2)):
            with expect_error(ConfigError, "x", tuple(wrong.shape)):
                function(wrong)
        with expect_error(ConfigError, "x", torch.int64, ".float()"):
            function(x.long())
