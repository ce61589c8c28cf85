from typing import ClassVar

import pytest
import torch
from detectron2.config import get_cfg

from error_matching import expect_error
from famix import add_famix_config
from famix.engine import load_config
from famix.style import (
    STYLE_STRATEGY_REGISTRY,
    BankStyles,
    MixStyle,
    NoiseStyles,
    Statistics,
    StyleBank,
    StyleStrategy,
    build_strategies,
    needs_bank,
)
from famix.utils.errors import ConfigError


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def own_statistics(batch=2, channels=3, grid=(2, 2)):
    mean, std = torch.rand(2, batch, channels, *grid, generator=seeded(9)) + 0.5
    return Statistics(mean, std)


def bank_of(*class_ids, channels=3):
    bank = StyleBank()
    mean = torch.rand(len(class_ids), channels, generator=seeded(8)) + 10
    bank.add(torch.tensor(class_ids, dtype=torch.int64), mean, mean + 1)
    return bank


LABELS = torch.tensor([[[0, 1], [4, 255]], [[1, 1], [0, 4]]])


def test_bank_styles_put_channels_where_features_have_them():
    bank, own = bank_of(0, 1, 4, 255), own_statistics()
    drawn = BankStyles(bank).sample(own, LABELS, seeded())
    assert drawn.mean.shape == drawn.std.shape == (2, 3, 2, 2)
    for image, row, col in torch.cartesian_prod(*map(torch.arange, (2, 2, 2))).tolist():
        style = bank.class_ids.tolist().index(LABELS[image, row, col])
        assert torch.equal(drawn.mean[image, :, row, col], bank.mean[style])
        assert torch.equal(drawn.std[image, :, row, col], bank.std[style])


@pytest.mark.parametrize("class_ids", [(0,), ()])
def test_a_class_that_finds_no_style_keeps_its_own(class_ids):
    own = own_statistics()
    drawn = BankStyles(bank_of(*class_ids)).sample(own, LABELS, seeded())
    keeps = (LABELS != 0) | (not class_ids)
    for got, kept in ((drawn.mean, own.mean), (drawn.std, own.std)):
        assert torch.equal((got == kept).all(1), keeps)
        assert got.isfinite().all()


def test_noise_of_scale_0_changes_nothing():
    own = own_statistics()
    drawn = NoiseStyles(0.0).sample(own, LABELS, seeded())
    assert torch.equal(drawn.mean, own.mean) and torch.equal(drawn.std, own.std)


def test_noise_is_relative_to_the_statistics():
    own = own_statistics(batch=50, channels=40)
    drawn = NoiseStyles(0.1).sample(own, LABELS, seeded())
    noise = torch.stack([drawn.mean / own.mean, drawn.std / own.std]).flatten(1) - 1
    assert noise.mean(1).abs().max() < 0.005
    assert ((noise.std(1) - 0.1).abs() < 0.005).all()
    assert torch.corrcoef(noise)[0, 1].abs() < 0.05, "mean and std get noise of their own"


def test_noise_keeps_standard_deviations_positive():
    own = own_statistics(batch=20)
    drawn = NoiseStyles(5.0).sample(own, LABELS, seeded())
    assert drawn.std.min() == pytest.approx(1e-5**0.5)
    assert (drawn.mean < 0).any()


def test_mixstyle_takes_the_same_patch_of_another_image():
    own = own_statistics(batch=5)
    drawn = MixStyle().sample(own, LABELS, seeded(2))
    order = [int((own.mean == mean).flatten(1).all(1).nonzero()) for mean in drawn.mean]
    assert sorted(order) == list(range(5)) and order != list(range(5))
    assert torch.equal(drawn.std, own.std[order]), "mean and std come from one image"


@pytest.mark.parametrize("strategy", [BankStyles(bank_of(0, 0, 0, 0, 255, 255)), NoiseStyles(0.5), MixStyle()])
def test_draws_follow_the_generator_alone(strategy):
    own = own_statistics(batch=8)
    labels, before = LABELS.repeat(4, 1, 1), torch.get_rng_state()
    first, again, other = (strategy.sample(own, labels, seeded(seed)).mean for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture
def registered():
    """A strategy from outside with one setting; registered under its class name while the test runs."""

    class Shifted(StyleStrategy):
        defaults: ClassVar = {"BY": 1.5}

        def __init__(self, by):
            self.by = by

        @classmethod
        def from_config(cls, cfg):
            return cls(cfg.MODEL.STYLE.SHIFTED.BY)

        def sample(self, own, patch_labels, generator):
            return Statistics(own.mean + self.by, own.std)

    STYLE_STRATEGY_REGISTRY.register(Shifted)
    yield Shifted
    del STYLE_STRATEGY_REGISTRY._obj_map["Shifted"]


def test_a_registered_class_is_named_in_the_config_and_has_its_own_node(registered):
    cfg = load_config("", ["MODEL.STYLE.STRATEGY", "Shifted", "MODEL.STYLE.SHIFTED.BY", "2.5"])
    (strategy,) = build_strategies(cfg)
    assert isinstance(strategy, registered) and strategy.by == 2.5 and not needs_bank(cfg)
    assert load_config("").MODEL.STYLE.SHIFTED.BY == 1.5


@pytest.mark.parametrize(
    "written", ["[bank, noise]", "['bank', 'noise']", "bank,noise", "bank, noise", ("bank", "noise")]
)
def test_a_list_of_names_gives_the_strategies_in_their_order(tmp_path, written):
    file = tmp_path / "config.yaml"
    if isinstance(written, str):
        file.write_text(f"MODEL: {{STYLE: {{STRATEGY: {written if written[0] == '[' else repr(written)}}}}}")
        read = [load_config(str(file)), load_config("", ["MODEL.STYLE.STRATEGY", written])]
    else:
        read = [get_cfg()]
        add_famix_config(read[0])
        read[0].MODEL.STYLE.STRATEGY = list(written)
    for cfg in read:
        assert [type(strategy) for strategy in build_strategies(cfg)] == [BankStyles, NoiseStyles]
        assert needs_bank(cfg)


@pytest.mark.parametrize("written", ["fog", "mixstile", "bank,none", ""])
def test_unknown_names_and_none_in_company_are_refused(written):
    wrong = written.split(",")[-1]
    with expect_error(ConfigError, "MODEL.STYLE.STRATEGY", wrong, "Did you mean" if wrong == "mixstile" else ""):
        build_strategies(load_config("", ["MODEL.STYLE.STRATEGY", written]))


@pytest.mark.parametrize("scale", [-0.5, float("nan")])
def test_a_noise_scale_out_of_range_is_refused(scale):
    with expect_error(ConfigError, "MODEL.STYLE.NOISE_SCALE", scale):
        NoiseStyles(scale)
