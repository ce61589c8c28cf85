"""Training steps under autocast, off CUDA too."""

import copy

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage
from torch import nn

from famix.config import add_famix_config
from famix.engine.mixed_precision import MixedPrecisionTrainer, build_step_trainer
from famix.errors import ConfigError


class Model(nn.Module):
    """A model of Detectron2's manner that remembers in what precision it computed."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.dtypes = []

    def forward(self, batch):
        out = self.linear(batch)
        self.dtypes.append(out.dtype)
        return {"loss_a": out.float().square().mean(), "loss_b": 0.1 * out.float().abs().mean()}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model()


@pytest.fixture
def batches():
    return list(torch.randn(3, 8, 4, generator=torch.Generator().manual_seed(1)))


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def make_trainer(model, batches, dtype=torch.bfloat16):
    return MixedPrecisionTrainer(model, batches, sgd(model), device_type="cpu", dtype=dtype)


def run(trainer, steps):
    with EventStorage() as storage:
        for trainer.iter in range(steps):
            trainer.run_step()
    return storage


def config(enabled=True, dtype="bfloat16"):
    cfg = get_cfg()
    add_famix_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.AMP.DTYPE = enabled, dtype
    return cfg


def test_bfloat16_steps_equal_those_written_by_hand(model, batches):
    reference = copy.deepcopy(model)
    optimizer = sgd(reference)
    for batch in batches:
        with torch.autocast("cpu", torch.bfloat16):
            losses = reference(batch)
        optimizer.zero_grad()
        (losses["loss_a"] + losses["loss_b"]).backward()
        optimizer.step()
    storage = run(make_trainer(model, batches), steps=3)
    assert model.dtypes == [torch.bfloat16] * 3
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    for got, expected in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert storage.latest()["loss_a"][0] == pytest.approx(losses["loss_a"].item())


def test_float16_losses_are_scaled_and_the_step_is_not(model, batches):
    """On a CPU, where the scaler works too; the config keeps users from it, since it is slow there."""
    plain, scaled = copy.deepcopy(model), []
    model.linear.weight.register_hook(lambda gradient: scaled.append(gradient.abs().max()))
    trainer = make_trainer(model, batches, torch.float16)
    run(trainer, steps=1)
    assert scaled[0] > 1000
    assert model.dtypes == [torch.float16]
    run(make_trainer(plain, batches), steps=1)
    for got, expected in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_state_survives_a_round_trip(model, batches, dtype):
    trainer = make_trainer(model, batches, dtype)
    run(trainer, steps=2)
    state = copy.deepcopy(trainer.state_dict())
    assert ("scale" in state["grad_scaler"]) == (dtype == torch.float16)
    restored = make_trainer(copy.deepcopy(model), batches, dtype)
    if dtype == torch.float16:
        restored.grad_scaler.load_state_dict({**state["grad_scaler"], "scale": 8.0, "_growth_tracker": 0})
    restored.load_state_dict(state)
    assert restored.grad_scaler.state_dict() == trainer.grad_scaler.state_dict()
    momenta = [[s["momentum_buffer"] for s in t.optimizer.state.values()] for t in (trainer, restored)]
    assert all(torch.equal(a, b) for a, b in zip(*momenta, strict=True))


# Choice of the trainer


def test_without_amp_it_is_detectron2s_trainer(model, batches):
    trainer = build_step_trainer(config(enabled=False), model, batches, sgd(model))
    assert type(trainer) is SimpleTrainer
    run(trainer, steps=1)
    assert model.dtypes == [torch.float32]


def test_with_amp_it_has_the_configs_precision(model, batches):
    trainer = build_step_trainer(config(), model, batches, sgd(model))
    assert (trainer.device_type, trainer.precision, trainer.grad_scaler.is_enabled()) == ("cpu", torch.bfloat16, False)


def test_float16_scales_gradients_where_the_device_is_a_gpu(model, batches, monkeypatch):
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    cfg = config(dtype="float16")
    cfg.MODEL.DEVICE = "cuda:1"
    trainer = build_step_trainer(cfg, model, batches, sgd(model))
    assert (trainer.device_type, trainer.precision) == ("cuda", torch.float16)
    assert trainer.grad_scaler.is_enabled()


@pytest.mark.parametrize("dtype", ["float16", "float32", "half"])
def test_what_the_device_lacks_is_refused(model, batches, dtype):
    with pytest.raises(ConfigError, match=rf"DTYPE must be float16 \(not on.*bfloat16; got '{dtype}'.*DEVICE cpu"):
        build_step_trainer(config(dtype=dtype), model, batches, sgd(model))
