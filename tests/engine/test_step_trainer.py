"""Training steps: under autocast off CUDA too, in parts, and with losses that are not finite."""

import copy

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage
from torch import nn

from famix.config import add_famix_config
from famix.engine.step_trainer import StepTrainer, build_step_trainer
from famix.utils.errors import TrainingError


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
    return StepTrainer(model, batches, sgd(model), device_type="cpu", dtype=dtype)


def run(trainer, steps):
    with EventStorage() as storage:
        for trainer.iter in range(steps):
            trainer.run_step()
    return storage


def config(enabled=True, dtype="bfloat16", device="cpu"):
    cfg = get_cfg()
    add_famix_config(cfg)
    cfg.MODEL.DEVICE = device
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


def test_without_amp_its_steps_are_those_of_detectron2s_trainer(model, batches):
    reference = copy.deepcopy(model)
    run(SimpleTrainer(reference, batches, sgd(reference)), steps=3)
    run(build_step_trainer(config(enabled=False), model, batches, sgd(model)), steps=3)
    assert model.dtypes == [torch.float32] * 3
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), reference.parameters(), strict=True))


def test_with_amp_it_has_the_configs_precision(model, batches):
    trainer = build_step_trainer(config(), model, batches, sgd(model))
    assert (trainer.device_type, trainer.precision, trainer.grad_scaler.is_enabled()) == ("cpu", torch.bfloat16, False)


def test_float16_scales_gradients_where_the_device_is_a_gpu(model, batches, monkeypatch):
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    trainer = build_step_trainer(config(dtype="float16", device="cuda:1"), model, batches, sgd(model))
    assert (trainer.device_type, trainer.precision, trainer.grad_scaler.is_enabled()) == ("cuda", torch.float16, True)


# Parts of a batch


def test_gradients_of_parts_add_up_to_that_of_the_whole(model, batches):
    whole = copy.deepcopy(model)
    trainer = StepTrainer(whole, batches, sgd(whole), device_type="cpu")
    run(trainer, steps=2)
    before = copy.deepcopy(whole.state_dict())
    with EventStorage():
        trainer.run_step()
    storage = run(StepTrainer(model, batches, sgd(model), device_type="cpu", accumulate=4), steps=3)
    assert len(model.dtypes) == 12 and len(whole.dtypes) == 3
    for got, expected in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(got, expected)
    expected = Model()
    expected.load_state_dict({name: value.clone() for name, value in before.items()})
    assert storage.latest()["total_loss"][0] == pytest.approx(sum(expected(batches[2]).values()).item(), rel=1e-5)


# Losses that are not finite


class FileModel(nn.Module):
    """Takes Detectron2's samples; its loss is infinite where a pixel is."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, batch):
        return {"loss": (self.scale * torch.stack([sample["image"] for sample in batch])).mean()}


def samples(*values):
    return [[{"file_name": f"image_{value}.png", "image": torch.full((1, 2, 2), value)}] for value in values]


def test_a_loss_that_is_not_finite_stops_with_the_files_and_what_reproduces_it(tmp_path):
    model = FileModel()
    trainer = StepTrainer(model, samples(1.0, float("nan")), sgd(model), device_type="cpu", folder=str(tmp_path))
    run(trainer, steps=1)
    before = model.scale.detach().clone()
    trainer.iter = 1
    with (
        EventStorage(),
        pytest.raises(TrainingError, match=r"iteration 1: the loss is not finite \(loss nan\).*image_nan"),
    ):
        trainer.run_step()
    assert torch.equal(model.scale, before)
    saved = torch.load(tmp_path / "not_finite_0000001_rank0.pth", weights_only=True)
    assert saved["samples"][0]["file_name"] == "image_nan.png" and saved["iteration"] == 1
    assert torch.equal(saved["model"]["scale"], before)


def test_some_batches_may_be_left_out(tmp_path, caplog):
    model, clean = FileModel(), FileModel()
    loader = samples(1.0, float("inf"), 2.0, float("nan"))
    trainer = StepTrainer(model, loader, sgd(model), device_type="cpu", folder=str(tmp_path), max_skipped=1)
    run(trainer, steps=3)
    run(StepTrainer(clean, samples(1.0, 2.0), sgd(clean), device_type="cpu"), steps=2)
    assert torch.equal(model.scale, clean.scale)
    assert "image_inf.png; skipped, 1 of at most 1 (SOLVER.MAX_SKIPPED_BATCHES)" in caplog.text
    with EventStorage(), pytest.raises(TrainingError, match="image_nan"):
        trainer.run_step()


@pytest.mark.parametrize(("before", "after"), [("float16", "float32"), ("float32", "float16"), ("float16", "float16")])
def test_a_training_goes_on_in_another_precision(before, after):
    saved, model = FileModel(), FileModel()
    dtypes = {"float16": torch.float16, "float32": torch.float32}
    first = StepTrainer(saved, samples(1.0), sgd(saved), device_type="cpu", dtype=dtypes[before])
    if before == "float16":
        first.grad_scaler.scale(torch.ones(1))  # which makes the scale
        first.grad_scaler.update(1024.0)
    second = StepTrainer(model, samples(1.0), sgd(model), device_type="cpu", dtype=dtypes[after])
    fresh = second.grad_scaler.get_scale()
    second.load_state_dict(first.state_dict())
    assert second.grad_scaler.get_scale() == (1024.0 if before == after else fresh)


class NormModel(nn.Module):
    """Has a batch norm, whose statistics every forward pass changes."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)

    def forward(self, batch):
        return {"loss": self.norm(torch.stack([sample["image"] for sample in batch])).square().mean()}


def test_a_batch_that_is_left_out_leaves_no_trace_in_batch_norms():
    model = NormModel()
    trainer = StepTrainer(model, samples(1.0, float("nan")), sgd(model), device_type="cpu", max_skipped=1)
    run(trainer, steps=1)
    before = copy.deepcopy(model.state_dict())
    run(trainer, steps=1)
    assert trainer.skipped == 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_full_disk_does_not_hide_a_loss_that_is_not_finite(tmp_path):
    (tmp_path / "file").touch()
    model = FileModel()
    trainer = StepTrainer(model, samples(float("nan")), sgd(model), device_type="cpu", folder=str(tmp_path / "file"))
    with pytest.raises(TrainingError, match=r"loss is not finite .*cannot be written"):
        run(trainer, steps=1)
