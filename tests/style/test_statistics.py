import pytest
import torch

from famix.style import channel_mean_std, patch_mean_std, statistics

SIZES_AND_GRIDS = [((6, 6), (3, 3)), ((8, 12), (2, 3)), ((7, 5), (3, 2)), ((4, 11), (4, 3)), ((9, 4), (1, 1))]


def mean_std_by_loop(x, grid, eps=1e-5):
    """The definition, cell by cell of the grid."""
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


@pytest.fixture
def features():
    return lambda batch, channels, size: torch.randn(
        batch, channels, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )


@pytest.mark.parametrize(("size", "grid"), SIZES_AND_GRIDS)
@pytest.mark.parametrize(("batch", "channels"), [(1, 1), (3, 4)])
def test_patch_statistics_equal_a_plain_loop(features, size, grid, batch, channels):
    x = features(batch, channels, size)
    got, (mean, std) = patch_mean_std(x, grid), mean_std_by_loop(x, grid)
    assert got.mean.shape == got.std.shape == (batch, channels, *grid)
    torch.testing.assert_close(got.mean, mean)
    torch.testing.assert_close(got.std, std)


def test_channel_statistics_equal_a_plain_loop(features):
    x = features(2, 3, (5, 7))
    mean, std = channel_mean_std(x)
    assert mean.shape == std.shape == (2, 3, 1, 1)
    torch.testing.assert_close((mean, std), mean_std_by_loop(x, (1, 1)))


def test_hand_computed_example():
    """Mean 2; squared distances 1 + 1 + 1 + 9 = 12, by 3 gives a variance of 4."""
    x = torch.tensor([[[[1.0, 1.0], [1.0, 5.0]]]])
    mean, std = channel_mean_std(x)
    assert mean.item() == 2.0
    assert std.item() == pytest.approx(4.00001**0.5)
    assert channel_mean_std(x, eps=5.0)[1].item() == pytest.approx(3.0)
    assert patch_mean_std(x, (1, 1), eps=5.0).std.item() == pytest.approx(3.0)


def test_a_small_spread_around_a_large_mean_is_seen():
    x = 1000 + 0.01 * torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = x.double().unflatten(-1, (2, -1)).unflatten(-3, (2, -1)).var((-3, -1)).sqrt()
    torch.testing.assert_close(patch_mean_std(x, (2, 2), eps=0.0).std.double(), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_large_maps_are_squared_slab_by_slab(features, monkeypatch, memory_format):
    x = features(2, 8, (7, 9)).contiguous(memory_format=memory_format)
    expected = patch_mean_std(x, (3, 2)).std
    monkeypatch.setattr(statistics, "_SLAB", 16)
    torch.testing.assert_close(patch_mean_std(x, (3, 2)).std, expected)


def test_memory_format_does_not_matter(features):
    x = features(2, 8, (7, 9))
    last = x.to(memory_format=torch.channels_last)
    assert not last.is_contiguous()
    torch.testing.assert_close(patch_mean_std(last, (3, 2)).std, patch_mean_std(x, (3, 2)).std)
    torch.testing.assert_close(channel_mean_std(last), channel_mean_std(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(features, dtype):
    x = (400 * features(2, 3, (9, 9))).to(dtype)  # squares overflow float16
    for got, expected in (
        (channel_mean_std(x), channel_mean_std(x.float())),
        ((patch_mean_std(x, (3, 3)).std,), (patch_mean_std(x.float(), (3, 3)).std,)),
    ):
        assert all(tensor.dtype == torch.float32 for tensor in got)
        torch.testing.assert_close(got, expected, atol=0, rtol=0)


def test_a_single_cell_has_no_spread():
    x = torch.rand(1, 2, 3, 2)
    got = patch_mean_std(x, (3, 2))
    assert torch.equal(got.mean, x)
    torch.testing.assert_close(got.std, torch.full_like(x, 1e-5**0.5))
    torch.testing.assert_close(channel_mean_std(x[..., :1, :1])[1], torch.full((1, 2, 1, 1), 1e-5**0.5))


def test_single_cells_beside_larger_patches():
    """A side of 3 cells in 2 patches: one of 2 cells and one of 1."""
    got = patch_mean_std(torch.tensor([[[[1.0, 3.0, 7.0]]]]), (1, 2), eps=0.0)
    assert got.mean.flatten().tolist() == [2.0, 7.0]
    assert got.std.flatten().tolist() == pytest.approx([2.0**0.5, 0.0])


def test_gradients_reach_the_features(features):
    x = features(1, 2, (5, 4)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: tuple(vars(patch_mean_std(x, (2, 3))).values()), (x,))
    assert torch.autograd.gradcheck(channel_mean_std, (x,))
