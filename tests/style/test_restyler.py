import logging
import math

import pytest
import torch

from error_matching import expect_error
from famix.engine import load_config
from famix.style import (
    BankStyles,
    MixStyle,
    NoiseStyles,
    PatchRestyler,
    StyleBank,
    patch_classes,
    patch_mean_std,
    restyle_patches,
)
from famix.style.restyler import sample_alpha
from famix.utils.errors import ConfigError
from model_factory import make_strategies

GRID = (2, 3)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def bank_of(*class_ids, channels=4):
    bank = StyleBank({"class_names": '["road", "sky", "tree"]'})
    mean = torch.rand(len(class_ids), channels, generator=seeded(8)) + 1
    bank.add(torch.tensor(class_ids), mean, mean / 2)
    return bank


def restyler(strategy="bank", bank=None, **settings):
    made = PatchRestyler(strategies=make_strategies(strategy), grid=GRID, **{"beta": 0.1, **settings})
    made.use_bank(bank_of(0, 0, 0, 1, 1, 2, 255) if bank is None else bank)
    made.reseed(5)
    return made


@pytest.fixture
def features():
    return torch.rand(3, 4, 7, 8, generator=seeded(1))


@pytest.fixture
def labels():
    """Full resolution labels, whose patches have the classes 0 to 2 or none."""
    cells = torch.tensor([0, 1, 2, 255])[torch.randint(4, (3, *GRID), generator=seeded(2))]
    return cells.repeat_interleave(14, 1).repeat_interleave(11, 2)


def test_equals_restyle_patches_with_the_same_draws(features, labels):
    bank, generator = bank_of(0, 0, 0, 1, 1, 2, 255), seeded(5)
    got = restyler(bank=bank)(features, labels)
    mean, std = (x.movedim(-1, 1) for x in bank.sample(patch_classes(labels, GRID, 255), generator))
    alpha = sample_alpha((3, 4), 0.1, generator).float()
    torch.testing.assert_close(got, restyle_patches(features, mean, std, alpha, GRID))
    assert not torch.allclose(got, features)


@pytest.mark.parametrize("strategy", ["bank", "noise", "mixstyle"])
def test_seed_determines_the_draws(features, labels, strategy):
    draw, before = restyler(strategy), torch.get_rng_state()
    first, second = draw(features, labels), draw(features, labels)
    draw.reseed(5)
    assert torch.equal(draw(features, labels), first)
    draw.reseed(6)
    assert not torch.equal(first, second) and not torch.equal(draw(features, labels), first)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("strategy", "bank", "needs_labels"),
    [("bank", True, True), ("noise", False, False), ("none", False, False), ("mixstyle,bank", True, True)],
)
def test_needs_are_those_of_the_strategies(features, labels, strategy, bank, needs_labels):
    made = restyler(strategy)
    assert (made.needs("bank"), made.needs("labels"), made.active) == (bank, needs_labels, strategy != "none")
    if not needs_labels:
        assert torch.equal(made(features, None), restyler(strategy)(features, labels))
    assert (made(features, labels) is features) == (strategy == "none")


def test_strategies_run_in_order_and_are_mixed_once(features, labels):
    bank, generator, own = bank_of(0, 1, 2, 255), seeded(5), patch_mean_std(features, GRID)
    drawn = BankStyles(bank).sample(own, patch_classes(labels, GRID, 255), generator)
    drawn = NoiseStyles(0.5).sample(drawn, None, generator)
    expected = restyle_patches(features, drawn.mean, drawn.std, sample_alpha((3, 4), 0.1, generator), GRID)
    assert torch.equal(restyler("bank,noise", bank)(features, labels), expected)


def test_mixstyle_leaves_a_batch_of_one_unchanged(features, labels):
    torch.testing.assert_close(restyler("mixstyle")(features[:1], labels[:1]), features[:1])


def test_alpha_is_drawn_per_image_and_channel(features, labels):
    """With one style for all classes, own and drawn means are known, so that alpha can be computed."""
    bank, features = bank_of(255), features.double()
    own = patch_mean_std(features, GRID).mean
    new = patch_mean_std(restyler(bank=bank, beta=1.0)(features, labels, rectify=False), GRID).mean
    drawn = bank.mean.double().view(1, 4, 1, 1)
    alpha = (new - drawn) / (own - drawn)
    torch.testing.assert_close(alpha, alpha[:, :, :1, :1].expand_as(alpha))
    assert alpha[:, :, 0, 0].unique().numel() == 12, "one draw for each of 3 images and 4 channels"


def test_patches_without_any_style_are_unchanged(features):
    labels = torch.zeros(3, 14, 12, dtype=torch.int64)
    labels[:, :7, :4] = 1
    restyled = restyler(bank=bank_of(0, 0))(features.requires_grad_(), labels)
    assert torch.equal(restyled[..., :4, :3], features[..., :4, :3])
    assert (restyled != features)[..., 4:, 3:].flatten(2).any(2).all()
    restyled.sum().backward()
    assert (features.grad != 0).any() and features.grad.isfinite().all()


@pytest.mark.parametrize("ignore_label", [-1, 11])
def test_unlabeled_patches_draw_from_255(features, labels, ignore_label):
    other = labels.masked_fill(labels == 255, ignore_label)
    assert torch.equal(restyler(ignore_label=ignore_label)(features, other), restyler()(features, labels))


@pytest.mark.parametrize(
    ("bank", "fallback"), [(bank_of(1, 255), "styles of unlabeled patches"), (bank_of(1), "their own statistics")]
)
def test_warns_about_missing_classes_once(caplog, features, labels, bank, fallback):
    with caplog.at_level(logging.WARNING, logger="famix"):
        draw = restyler(bank=bank)
        for _ in range(3):
            draw(features, labels)
    (record,) = caplog.records
    assert "no styles for: road, tree. " in record.getMessage() and fallback in record.getMessage()


@pytest.mark.parametrize(
    ("settings", "key"),
    [({"beta": value}, "BETA") for value in (0.0, -1.0, math.nan)]
    + [({"probability": value}, "PROBABILITY") for value in (-0.1, 1.5, math.nan)]
    + [({"grid": value}, "GRID") for value in ((3,), (3, 3, 3), (0, 3), (2, -1))],
)
def test_rejects_settings_out_of_range(settings, key):
    (value,) = settings.values()
    with expect_error(ConfigError, f"MODEL.STYLE.{key}", value):
        PatchRestyler(**{"strategies": make_strategies("noise"), "grid": GRID, "beta": 0.1, **settings})


def test_unmixed_patches_get_the_drawn_style(features, labels):
    own = patch_mean_std(features, GRID)
    drawn = MixStyle().sample(own, None, seeded(5))
    expected = restyle_patches(features, drawn.mean, drawn.std, 0.0, GRID)
    assert torch.equal(restyler("mixstyle", mix=False)(features, labels), expected)


@pytest.mark.parametrize("settings", [{}, {"mix": False}])
def test_probability_restyles_a_share_of_the_images(settings):
    images, labels = torch.rand(400, 4, 4, 6, generator=seeded(1)), torch.zeros(400, 8, 12, dtype=torch.int64)
    restyled = restyler(probability=0.25, **settings)(images, labels)
    changed = (restyled != images).flatten(1).any(1)
    assert changed.float().mean().item() == pytest.approx(0.25, abs=0.05)
    assert torch.equal(restyled[changed], restyler(**settings)(images, labels)[changed])
    assert torch.equal(restyler(probability=0.0, **settings)(images, labels), images)


def test_from_config():
    cfg = load_config("")
    keys = ["STRATEGY", "noise", "GRID", [4, 5], "BETA", 0.7, "STAGE", "res3", "NOISE_SCALE", 0.25, "MIX", False]
    keys += ["PROBABILITY", 0.75]
    cfg.merge_from_list([f"MODEL.STYLE.{k}" if i % 2 == 0 else k for i, k in enumerate(keys)])
    cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = 11
    made = PatchRestyler(cfg)
    assert (made.grid, made.beta, made.stage, made.mix) == ((4, 5), 0.7, "res3", False)
    (noise,) = made.strategies
    assert (made.ignore_label, noise.scale, made.probability) == (11, 0.25, 0.75)


@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0, 3.0])
def test_alpha_has_the_moments_of_beta(beta):
    alpha = sample_alpha((200, 200), beta, seeded())
    assert alpha.shape == (200, 200, 1, 1) and alpha.dtype == torch.float64
    assert alpha.min() >= 0 and alpha.max() <= 1
    assert alpha.mean().item() == pytest.approx(0.5, abs=0.01)
    assert alpha.var().item() == pytest.approx(1 / (4 * (2 * beta + 1)), rel=0.02)
    fourth = ((alpha - 0.5) ** 4).mean() / alpha.var() ** 2
    assert fourth.item() == pytest.approx(3 - 6 / (2 * beta + 3), rel=0.03)
