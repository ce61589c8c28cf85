from typing import ClassVar

import pytest
import torch

from error_matching import expect_error
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

LABELS = torch.tensor([[[0, 1], [4, 255]], [[1, 1], [0, 4]]])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def own_statistics(batch=2, channels=3, grid=(2, 2)):
    return Statistics(*(torch.rand(2, batch, channels, *grid, generator=seeded(9)) + 0.5))


def bank_of(*class_ids, channels=3):
    bank = StyleBank()
    mean = torch.rand(len(class_ids), channels, generator=seeded(8)) + 10
    bank.add(torch.tensor(class_ids, dtype=torch.int64), mean, mean + 1)
    return bank


def test_bank_styles_match_the_class_of_each_patch():
    bank, own = bank_of(0, 1, 4, 255), own_statistics()
    drawn = BankStyles(bank).sample(own, LABELS, seeded())
    assert drawn.mean.shape == drawn.std.shape == (2, 3, 2, 2)
    for image, row, col in torch.cartesian_prod(*map(torch.arange, (2, 2, 2))).tolist():
        style = bank.class_ids.tolist().index(LABELS[image, row, col])
        assert torch.equal(drawn.mean[image, :, row, col], bank.mean[style])
        assert torch.equal(drawn.std[image, :, row, col], bank.std[style])


@pytest.mark.parametrize("class_ids", [(0,), ()])
def test_classes_without_styles_keep_their_own(class_ids):
    own = own_statistics()
    drawn = BankStyles(bank_of(*class_ids)).sample(own, LABELS, seeded())
    keeps = (LABELS != 0) | (not class_ids)
    for got, kept in ((drawn.mean, own.mean), (drawn.std, own.std)):
        assert torch.equal((got == kept).all(1), keeps) and got.isfinite().all()


def test_noise_is_relative_to_the_statistics():
    own = own_statistics(batch=50, channels=40)
    unchanged = NoiseStyles(0.0).sample(own, None, seeded())
    assert torch.equal(unchanged.mean, own.mean) and torch.equal(unchanged.std, own.std)
    drawn = NoiseStyles(0.1).sample(own, LABELS, seeded())
    noise = torch.stack([drawn.mean / own.mean, drawn.std / own.std]).flatten(1) - 1
    assert noise.mean(1).abs().max() < 0.005
    assert ((noise.std(1) - 0.1).abs() < 0.005).all()
    assert torch.corrcoef(noise)[0, 1].abs() < 0.05, "mean and std get independent noise"
    strong = NoiseStyles(5.0).sample(own, LABELS, seeded())
    assert strong.std.min() == pytest.approx(1e-5**0.5) and (strong.mean < 0).any()
    for scale in (-0.5, float("nan")):
        with expect_error(ConfigError, "MODEL.STYLE.NOISE_SCALE", scale):
            NoiseStyles(scale)


def test_mixstyle_permutes_the_images():
    own = own_statistics(batch=5)
    drawn = MixStyle().sample(own, LABELS, seeded(2))
    order = [int((own.mean == mean).flatten(1).all(1).nonzero()) for mean in drawn.mean]
    assert sorted(order) == list(range(5)) and order != list(range(5))
    assert torch.equal(drawn.std, own.std[order]), "mean and std come from one image"


@pytest.mark.parametrize("strategy", [BankStyles(bank_of(0, 0, 0, 0, 255, 255)), NoiseStyles(0.5), MixStyle()])
def test_draws_depend_on_the_generator_alone(strategy):
    own = own_statistics(batch=8)
    labels, before = LABELS.repeat(4, 1, 1), torch.get_rng_state()
    first, again, other = (strategy.sample(own, labels, seeded(seed)).mean for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


class Shifted(StyleStrategy):
    """A strategy from outside the package."""

    defaults: ClassVar = {"BY": 1.5}

    def __init__(self, by):
        self.by = by

    @classmethod
    def from_config(cls, cfg):
        return cls(cfg.MODEL.STYLE.SHIFTED.BY)

    def sample(self, own, patch_labels, generator):
        return Statistics(own.mean + self.by, own.std)


def test_registered_strategies_have_a_config_node(monkeypatch):
    monkeypatch.setitem(STYLE_STRATEGY_REGISTRY._obj_map, "Shifted", Shifted)
    cfg = load_config("", ["MODEL.STYLE.STRATEGY", "Shifted", "MODEL.STYLE.SHIFTED.BY", "2.5"])
    (strategy,) = build_strategies(cfg)
    assert isinstance(strategy, Shifted) and strategy.by == 2.5 and not needs_bank(cfg)
    assert load_config("").MODEL.STYLE.SHIFTED.BY == 1.5


@pytest.mark.parametrize("written", ["[bank, noise]", "['bank', 'noise']", "bank,noise", "bank, noise"])
def test_lists_of_names_keep_their_order(tmp_path, written):
    file = tmp_path / "config.yaml"
    file.write_text(f"MODEL: {{STYLE: {{STRATEGY: {written if written[0] == '[' else repr(written)}}}}}")
    assigned = load_config("")
    assigned.MODEL.STYLE.STRATEGY = ["bank", "noise"]
    for cfg in (load_config(str(file)), load_config("", ["MODEL.STYLE.STRATEGY", written]), assigned):
        assert [type(strategy) for strategy in build_strategies(cfg)] == [BankStyles, NoiseStyles]
        assert needs_bank(cfg)


@pytest.mark.parametrize("written", ["fog", "mixstile", "nonee", "bank,none", ""])
def test_rejects_unknown_names(written):
    wrong = written.split(",")[-1]
    with expect_error(
        ConfigError, "MODEL.STYLE.STRATEGY", wrong, {"mixstile": "'mixstyle'", "nonee": "'none'"}.get(wrong, "")
    ):
        build_strategies(load_config("", ["MODEL.STYLE.STRATEGY", written]))
