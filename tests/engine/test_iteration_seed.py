"""All randomness of a step is a function of the seed, the process and the iteration."""

from types import SimpleNamespace

import pytest
import torch
from detectron2.utils import comm

from famix.engine.hooks import IterationSeed
from famix.utils.seeding import derive_seed
from model_factory import make_batch, make_restyler, tiny_backbone, tiny_head, tiny_segmentor


def seed_iteration(seed, iteration, reseed_styles=lambda seed: None):
    hook = IterationSeed(seed, reseed_styles)
    hook.trainer = SimpleNamespace(iter=iteration)
    hook.before_step()


def draws(seed, iteration):
    """What dropout and the styles would draw in an iteration, whatever was drawn before."""
    torch.rand(3)
    restyler = make_restyler()
    torch.rand(3, generator=restyler.generator)
    seed_iteration(seed, iteration, restyler.reseed)
    return torch.rand(4), torch.rand(4, generator=restyler.generator)


@pytest.mark.parametrize(("seed", "iteration", "rank"), [(1, 7, 0), (1, 8, 0), (2, 7, 0), (7, 1, 0), (1, 7, 1)])
def test_seed_iteration_and_process_decide_what_is_drawn(monkeypatch, seed, iteration, rank):
    dropout, styles = draws(1, 7)
    assert not torch.equal(dropout, styles)
    monkeypatch.setattr(comm, "get_rank", lambda: rank)
    for got, other in zip(draws(seed, iteration), (dropout, styles), strict=True):
        assert torch.equal(got, other) == ((seed, iteration, rank) == (1, 7, 0))


@pytest.mark.parametrize(("strategy", "dropout"), [("noise", 0.0), ("none", 0.5)], ids=["styles", "dropout"])
def test_a_models_steps_follow(strategy, dropout):
    backbone = tiny_backbone()
    head = tiny_head(backbone, aspp_dropout=dropout)
    model = tiny_segmentor(make_restyler(strategy), backbone=backbone, sem_seg_head=head)
    batch = make_batch((48, 64), (48, 64))

    def loss(iteration):
        seed_iteration(3, iteration, model.restyler.reseed)
        return model(batch)["loss_sem_seg"].item()

    first, other, again = loss(5), loss(6), loss(5)
    assert first == again != other


def test_derived_seeds():
    assert derive_seed(1, 2, 3) == derive_seed(1, 2, 3)
    seeds = {derive_seed(*keys) for keys in [(1, 2), (2, 1), (1, 2, 1), (1,), (12,), (0,), (2**40, 1)]}
    assert len(seeds) == 7
    assert all(0 <= seed < 2**63 for seed in seeds)
