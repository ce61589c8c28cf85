import pytest
import torch

from error_matching import expect_error
from famix.style import optimize_styles, source_basis
from famix.utils.errors import ConfigError


def correlated(count=4000):
    """Three statistics: two that always change together, and one that hardly changes."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(count, generator=generator)
    small = 0.1 * torch.randn(count, generator=generator)
    return torch.stack([2 * common, common, small], dim=1)


def test_product_is_the_covariance_with_its_ridge():
    statistics = correlated()
    basis = source_basis(statistics, ridge=0.5)
    covariance = torch.cov(statistics.t())
    expected = covariance + 0.5 * covariance.diagonal().mean() * torch.eye(3)
    got = basis @ basis.t()
    torch.testing.assert_close(got / got[0, 0], expected / expected[0, 0])
    assert basis.square().sum().item() == pytest.approx(3)


def test_a_gradient_step_follows_common_changes():
    basis = source_basis(correlated(), ridge=0.01)
    only_first = basis @ basis.t() @ torch.tensor([1.0, 0.0, 0.0])
    assert only_first[1] / only_first[0] == pytest.approx(0.5, abs=0.02), "the second moves along, half as much"
    assert only_first[2].abs() < 0.05 * only_first[0]


@pytest.mark.parametrize("statistics", [torch.cat([torch.eye(3), -torch.eye(3)]), torch.ones(5, 3)])
def test_statistics_that_vary_alike_or_never_leave_steps_unchanged(statistics):
    torch.testing.assert_close(source_basis(statistics), torch.eye(3))


def _problem():
    generator = torch.Generator().manual_seed(1)
    patches = torch.randn(3, 2, 6, 6, generator=generator) + 0.5
    texts = torch.nn.functional.normalize(torch.randn(3, 4, generator=generator), dim=1)
    weight = torch.linspace(0, 9, 16).view(4, 4).sin()
    return patches, texts, lambda x: torch.tanh(torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1) @ weight)


def test_optimising_in_the_unit_basis_equals_optimising_the_statistics():
    patches, texts, encode = _problem()
    settings = {"steps": 10, "lr": 0.5, "momentum": 0.9, "weight_decay": 0.0}
    plain = optimize_styles(patches, texts, encode, **settings)
    inside = optimize_styles(patches, texts, encode, basis=torch.eye(4), **settings)
    torch.testing.assert_close(inside.mean, plain.mean)
    torch.testing.assert_close(inside.std, plain.std)
    torch.testing.assert_close(inside.style_losses, plain.style_losses)


def test_styles_stay_in_the_directions_of_the_basis():
    patches, texts, encode = _problem()
    basis = torch.zeros(4, 4)
    basis[:, 0] = torch.tensor([1.0, -1.0, 0.5, 0.0])
    styles = optimize_styles(patches, texts, encode, steps=5, lr=0.5, momentum=0.9, weight_decay=0.0, basis=basis)
    start = optimize_styles(patches, texts, encode, steps=0, lr=0.5, momentum=0.9, weight_decay=0.0)
    change = torch.cat([styles.mean - start.mean, styles.std - start.std], dim=1)
    assert change[:, 0].abs().min() > 1e-3
    torch.testing.assert_close(change, change[:, :1] * basis[:, 0])


def test_weight_decay_pulls_changes_back_to_the_patch():
    patches, texts, encode = _problem()
    settings = {"steps": 40, "lr": 0.5, "momentum": 0.0, "basis": torch.eye(4)}
    start = optimize_styles(patches, texts, encode, **{**settings, "steps": 0}, weight_decay=0.0)
    free, pulled = (optimize_styles(patches, texts, encode, weight_decay=decay, **settings) for decay in (0.0, 0.5))
    assert (pulled.mean - start.mean).norm() < 0.5 * (free.mean - start.mean).norm()


def test_statistics_of_another_shape_are_refused():
    for wrong in (torch.rand(4), torch.rand(2, 3, 4), torch.rand(1, 4)):
        with expect_error(ConfigError, "statistics"):
            source_basis(wrong)
