"""Training steps: precision on any device, batches in parts, and losses that are not finite."""

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
    """A model with two losses that records its precision."""

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


def make_trainer(model, batches, dtype=torch.float32, **options):
    return StepTrainer(model, batches, sgd(model), device_type="cpu", dtype=dtype, **options)


def run(trainer, steps=1):
    with EventStorage() as storage:
        for trainer.iter in range(steps):
            trainer.run_step()
    return storage


def build(model, batches, enabled=True, dtype="bfloat16", device="cpu"):
    cfg = get_cfg()
    add_famix_config(cfg)
    cfg.MODEL.DEVICE = device
    cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.AMP.DTYPE = enabled, dtype
    return build_step_trainer(cfg, model, batches, sgd(model))


def assert_same_parameters(model, reference, **tolerance):
    for got, expected in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(got, expected, **(tolerance or {"rtol": 0, "atol": 0}))


# Precision


def test_bfloat16_steps_equal_plain_loop(model, batches):
    reference = copy.deepcopy(model)
    optimizer = sgd(reference)
    for batch in batches:
        with torch.autocast("cpu", torch.bfloat16):
            losses = reference(batch)
        optimizer.zero_grad()
        (losses["loss_a"] + losses["loss_b"]).backward()
        optimizer.step()
    storage = run(make_trainer(model, batches, torch.bfloat16), steps=3)
    assert model.dtypes == [torch.bfloat16] * 3
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert_same_parameters(model, reference)
    assert storage.latest()["loss_a"][0] == pytest.approx(losses["loss_a"].item())


def test_float32_steps_equal_detectron2(model, batches):
    reference = copy.deepcopy(model)
    run(SimpleTrainer(reference, batches, sgd(reference)), steps=3)
    run(build(model, batches, enabled=False), steps=3)
    assert model.dtypes == [torch.float32] * 3
    assert_same_parameters(model, reference)


def test_float16_scales_losses_but_not_steps(model, batches):
    """On a CPU the scaler works as well, although the config rejects it."""
    plain, scaled = copy.deepcopy(model), []
    model.linear.weight.register_hook(lambda gradient: scaled.append(gradient.abs().max()))
    run(make_trainer(model, batches, torch.float16))
    assert scaled[0] > 1000
    assert model.dtypes == [torch.float16]
    run(make_trainer(plain, batches, torch.bfloat16))
    assert_same_parameters(model, plain, rtol=1e-2, atol=1e-3)


def test_precision_of_config(model, batches, monkeypatch):
    trainer = build(model, batches)
    assert (trainer.device_type, trainer.precision, trainer.grad_scaler.is_enabled()) == ("cpu", torch.bfloat16, False)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    trainer = build(model, batches, dtype="float16", device="cuda:1")
    assert (trainer.device_type, trainer.precision, trainer.grad_scaler.is_enabled()) == ("cuda", torch.float16, True)


@pytest.mark.parametrize("after", [torch.float16, torch.float32])
@pytest.mark.parametrize("before", [torch.float16, torch.float32])
def test_state_resumes_in_any_precision(model, batches, before, after):
    trainer = make_trainer(model, batches, before)
    run(trainer, steps=2)
    trainer.grad_scaler.update(1024.0)
    resumed = make_trainer(copy.deepcopy(model), batches, after)
    fresh = resumed.grad_scaler.get_scale()
    resumed.load_state_dict(copy.deepcopy(trainer.state_dict()))
    assert resumed.grad_scaler.get_scale() == (1024.0 if before == after == torch.float16 else fresh)
    momenta = [[s["momentum_buffer"] for s in t.optimizer.state.values()] for t in (trainer, resumed)]
    assert all(torch.equal(a, b) for a, b in zip(*momenta, strict=True))


# Parts of a batch


def test_gradients_of_parts_add_up(model, batches):
    whole = copy.deepcopy(model)
    run(make_trainer(whole, batches), steps=3)
    reference = copy.deepcopy(model)
    run(make_trainer(reference, batches), steps=2)
    storage = run(make_trainer(model, batches, accumulate=4), steps=3)
    assert len(model.dtypes) == 12 and len(whole.dtypes) == 3
    assert_same_parameters(model, whole, rtol=1.3e-6, atol=1e-5)
    expected = sum(reference(batches[2]).values()).item()
    assert storage.latest()["total_loss"][0] == pytest.approx(expected, rel=1e-5)


# Losses that are not finite


class FileModel(nn.Module):
    """A model of Detectron2's samples with a batch norm, whose loss is not finite for such pixels."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.norm = nn.BatchNorm2d(1, affine=False)

    def forward(self, batch):
        images = torch.stack([sample["image"] for sample in batch])
        self.norm(images)
        return {"loss": (self.scale * images).mean()}


def samples(*values):
    return [[{"file_name": f"image_{value}.png", "image": torch.full((1, 2, 2), value)}] for value in values]


def test_not_finite_loss_stops(tmp_path):
    model = FileModel()
    trainer = make_trainer(model, samples(1.0, float("nan")), folder=str(tmp_path))
    run(trainer)
    before = model.scale.detach().clone()
    trainer.iter = 1
    message = r"loss is not finite at iteration 1 \(loss nan\) for image_nan"
    with EventStorage(), pytest.raises(TrainingError, match=message):
        trainer.run_step()
    assert torch.equal(model.scale, before)
    saved = torch.load(tmp_path / "not_finite_0000001_rank0.pth", weights_only=True)
    assert saved["samples"][0]["file_name"] == "image_nan.png" and saved["iteration"] == 1
    assert torch.equal(saved["model"]["scale"], before)


def test_batches_are_skipped(tmp_path, caplog):
    model, clean = FileModel(), FileModel()
    loader = samples(1.0, float("inf"), 2.0, float("nan"))
    trainer = make_trainer(model, loader, folder=str(tmp_path), max_skipped=1)
    run(trainer, steps=3)
    run(make_trainer(clean, samples(1.0, 2.0)), steps=2)
    assert trainer.skipped == 1
    assert all(torch.equal(value, clean.state_dict()[name]) for name, value in model.state_dict().items())
    assert "image_inf.png. Skipped batch 1 of at most 1 (SOLVER.MAX_SKIPPED_BATCHES)." in caplog.text
    with EventStorage(), pytest.raises(TrainingError, match="image_nan"):
        trainer.run_step()


def test_full_disk_does_not_hide_loss(tmp_path):
    (tmp_path / "file").touch()
    trainer = make_trainer(FileModel(), samples(float("nan")), folder=str(tmp_path / "file"))
    with pytest.raises(TrainingError, match=r"loss is not finite .*cannot be written"):
        run(trainer)
