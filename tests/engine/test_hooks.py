"""Hooks without a training: seeds of iterations, the style bank, scores of the source, and the average of the weights."""

import copy
import io
import math
from types import SimpleNamespace

import pytest
import torch
from detectron2.engine import TrainerBase
from detectron2.utils import comm
from torch import nn

from error_matching import expect_error
from famix import StyleMiningHook
from famix.engine import SourceValidation
from famix.engine.hooks import IterationSeed, WeightAverageHook, changing_tensors
from famix.engine.model_selection import borrowed_weights
from famix.style import StyleBank
from famix.utils.errors import ConfigError
from famix.utils.seeding import derive_seed
from model_factory import make_batch, make_restyler, tiny_backbone, tiny_head, tiny_segmentor

# Seeds and the style bank


def seed_iteration(seed, iteration, reseed_styles=lambda seed: None):
    hook = IterationSeed(seed, reseed_styles)
    hook.trainer = SimpleNamespace(iter=iteration)
    hook.before_step()


def draws(seed, iteration):
    """Numbers that dropout and the styles draw in an iteration, whatever was drawn before."""
    torch.rand(3)
    restyler = make_restyler()
    torch.rand(3, generator=restyler.generator)
    seed_iteration(seed, iteration, restyler.reseed)
    return torch.rand(4), torch.rand(4, generator=restyler.generator)


@pytest.mark.parametrize(("seed", "iteration", "rank"), [(1, 7, 0), (1, 8, 0), (2, 7, 0), (7, 1, 0), (1, 7, 1)])
def test_iteration_seed_depends_on_seed_iteration_and_rank(monkeypatch, seed, iteration, rank):
    dropout, styles = draws(1, 7)
    assert not torch.equal(dropout, styles)
    monkeypatch.setattr(comm, "get_rank", lambda: rank)
    for got, first in zip(draws(seed, iteration), (dropout, styles), strict=True):
        assert torch.equal(got, first) == ((seed, iteration, rank) == (1, 7, 0))


@pytest.mark.parametrize(("strategy", "dropout"), [("noise", 0.0), ("none", 0.5)], ids=["styles", "dropout"])
def test_iteration_seed_determines_loss(strategy, dropout):
    backbone = tiny_backbone()
    head = tiny_head(backbone, aspp_dropout=dropout)
    model = tiny_segmentor(make_restyler(strategy), backbone=backbone, sem_seg_head=head)
    batch = make_batch((48, 64), (48, 64))
    losses = []
    for iteration in (5, 6, 5):
        seed_iteration(3, iteration, model.restyler.reseed)
        losses.append(model(batch)["loss_sem_seg"].item())
    assert losses[0] == losses[2] != losses[1]


def test_derived_seeds():
    assert derive_seed(1, 2, 3) == derive_seed(1, 2, 3)
    seeds = {derive_seed(*keys) for keys in [(1, 2), (2, 1), (1, 2, 1), (1,), (12,), (0,), (2**40, 1)]}
    assert len(seeds) == 7
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_bank_is_obtained_once_before_training():
    events, bank = [], StyleBank()
    hook = StyleMiningHook(obtain=lambda: events.append("obtain") or bank, use=events.append)
    assert events == []
    for _ in range(2):
        hook.before_train()
        assert events == ["obtain", bank]


# Scores of the source


class Run(TrainerBase):
    """A training that only calls the hook; `scored` are iterations, `kept` pairs of (iterations, score)."""

    def __init__(self, scores, period):
        super().__init__()
        self.scores, self.scored, self.kept = iter(scores), [], []
        self.hook = SourceValidation("gta5_val", period, evaluate=self.evaluate, keep=lambda *of: self.kept.append(of))
        self.register_hooks([self.hook])

    def run_step(self):
        """Do nothing."""

    def evaluate(self):
        self.scored.append(self.storage.iter)
        return next(self.scores)


@pytest.mark.parametrize(
    ("scores", "period", "end", "scored", "kept"),
    [
        ([10.0, 30.0, 30.0, 20.0], 3, 10, [2, 5, 8, 9], [(3, 10.0), (6, 30.0)]),  # the earlier of equal scores
        ([10.0, 30.0], 2, 4, [1, 3], [(2, 10.0), (4, 30.0)]),  # the last iteration once
        ([1.0], 2, 2, [1], [(2, 1.0)]),  # nothing before the first iteration
    ],
)
def test_source_validation_keeps_best(scores, period, end, scored, kept):
    run = Run(scores, period)
    run.train(0, end)
    assert run.scored == scored and run.kept == kept
    assert run.hook.state_dict() == {"scored": end, "best": kept[-1][1], "best_at": kept[-1][0]}


@pytest.mark.parametrize(
    ("scores", "state", "scored", "kept"),
    [
        ([25.0, 35.0], {"scored": 4, "best": 30.0, "best_at": 2}, 2, [(8, 35.0)]),
        ([31.0, 1.0, 2.0], {"scored": 2, "best": 30.0, "best_at": 2}, 3, [(4, 31.0)]),  # missing in the checkpoint
    ],
)
def test_source_validation_resumes(scores, state, scored, kept):
    run = Run(scores, period=2)
    run.hook.load_state_dict(state)
    run.train(4, 8)
    assert run.kept == kept and len(run.scored) == scored


def test_source_validation_needs_labels():
    with expect_error(ConfigError, "MODEL_SELECTION.SOURCE_VAL", "gta5_val", "another"):
        Run([math.nan], period=1).train(0, 1)


def test_source_scores_are_logged(caplog):
    run = Run([10.0, 5.0], period=1)
    with caplog.at_level("INFO", logger="famix"):
        run.train(0, 2)
    assert "after 2 iterations: mIoU 5.00 on gta5_val; best 10.00 after 1." in caplog.text
    assert run.storage.history("source/gta5_val/mIoU").values() == [(10.0, 0), (5.0, 1)]


# The average of the weights


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.trained = nn.Linear(2, 1, bias=False)
        self.norm = nn.BatchNorm1d(1)
        self.frozen_norm = nn.BatchNorm1d(2).requires_grad_(False)
        self.plain_norm = nn.BatchNorm1d(2, affine=False)
        self.register_buffer("constant", torch.ones(1), persistent=False)


NAMES = {
    "trained.weight", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var",
    "plain_norm.running_mean", "plain_norm.running_var",
}  # fmt: skip


def started(model, decay):
    hook = WeightAverageHook(model, decay)
    hook.before_train()
    return hook


def update(model, value, *hooks):
    for tensor in changing_tensors(model).values():
        tensor.fill_(value)
    for hook in hooks:
        hook.after_step()


def test_average_by_hand():
    model = Model()
    average = WeightAverageHook(model, decay=0.2)
    update(model, 10.0)  # as a checkpoint would, after the hook was made
    average.before_train()
    assert average.tensors.keys() == changing_tensors(model).keys() == NAMES
    expected = 10.0
    for value, decay in ((20.0, 1 / 10), (30.0, 2 / 11), (40.0, 0.2)):  # min(0.2, t / (9 + t))
        update(model, value, average)
        expected = decay * expected + (1 - decay) * value
        for tensor in average.tensors.values():
            assert tensor.unique().item() == pytest.approx(expected)
    assert model.trained.weight.unique().item() == 40


def test_borrowed_weights_are_restored():
    model = Model()
    before = copy.deepcopy(model.state_dict())
    other = {name: torch.full_like(value, 5.0) for name, value in changing_tensors(model).items()}

    def borrow(fails):
        with borrowed_weights(model, other):
            assert model.norm.running_mean.item() == 5 and model.trained.weight.unique().item() == 5
            assert torch.equal(model.frozen.weight, before["frozen.weight"])
            if fails:
                raise KeyError

    borrow(fails=False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(KeyError):
        borrow(fails=True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_average_resumes_bit_for_bit():
    torch.manual_seed(0)
    model, values = Model(), [torch.rand(1).item() for _ in range(6)]
    undisturbed, first = started(model, 0.7), started(model, 0.7)
    for value in values[:3]:
        update(model, value, undisturbed, first)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = WeightAverageHook(model, 0.7)
    second.load_state_dict(torch.load(file, weights_only=True))
    second.before_train()
    for value in values[3:]:
        update(model, value, undisturbed, second)
    assert second.updates == undisturbed.updates == 6
    assert all(torch.equal(tensor, second.tensors[name]) for name, tensor in undisturbed.tensors.items())


def test_average_rejects_state_of_different_weights():
    other = Model()
    other.frozen.requires_grad_(True)
    with expect_error(ConfigError, "MODEL.CLIP.TRAINABLE", "frozen.bias", "MODEL.CLIP.TRAINABLE"):
        WeightAverageHook(Model(), 0.9).load_state_dict(started(other, 0.9).state_dict())
