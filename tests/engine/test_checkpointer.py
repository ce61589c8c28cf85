"""Checkpoints: round trips, refused files, and the checkpoint before a damaged one."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR

from error_matching import expect_error, explains
from famix.engine import SafeCheckpointer
from famix.engine.hooks import KeepingCheckpointer
from famix.utils.errors import WeightsError
from robustness.hostile_files import Calls


def make_model(classes=3, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, classes, 1))


def same(model, other):
    return all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def save(folder, *iterations, seed=0):
    """Save checkpoints of the model with a seed and return the path of the last one."""
    for iteration in iterations:
        SafeCheckpointer(make_model(seed=seed), str(folder)).save(f"model_{iteration:07d}", iteration=iteration)
    return Path(folder, f"model_{iterations[-1]:07d}.pth")


def resume(model, folder):
    return SafeCheckpointer(model, str(folder)).resume_or_load("", resume=True)


# Round trips


@pytest.mark.parametrize("strict", [False, True])
def test_model_and_extra_data(tmp_path, strict):
    model, file = make_model(seed=1), save(tmp_path, 7)
    assert not same(model, make_model())
    assert SafeCheckpointer(model, strict=strict).load(str(file))["iteration"] == 7
    assert same(model, make_model())
    torch.save(make_model(seed=2).state_dict(), file)  # without a wrapper
    SafeCheckpointer(model, strict=strict).load(str(file))
    assert same(model, make_model(seed=2))
    assert SafeCheckpointer(model).resume_or_load("", resume=True) == {}
    assert same(model, make_model(seed=2))


def test_optimizer_and_schedule(tmp_path):
    def make(seed):
        model = make_model(seed=seed)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        scheduler = StepLR(optimizer, 1)
        return model, optimizer, SafeCheckpointer(model, str(tmp_path), optimizer=optimizer, scheduler=scheduler)

    model, optimizer, checkpointer = make(0)
    model(torch.randn(2, 3, 4, 4)).sum().backward()
    optimizer.step()
    checkpointer.checkpointables["scheduler"].step()
    checkpointer.save("model_0000001", iteration=1)
    other, other_optimizer, other_checkpointer = make(1)
    assert other_checkpointer.resume_or_load("", resume=True)["iteration"] == 1
    assert same(other, model)
    assert other_optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
    momenta = [[s["momentum_buffer"] for s in o.state_dict()["state"].values()] for o in (optimizer, other_optimizer)]
    assert len(momenta[0]) == 6 and all(torch.equal(a, b) for a, b in zip(*momenta, strict=True))


# Refused files


@pytest.mark.parametrize("name", ["model.pth", "model.pkl", "model.pyth"])
@pytest.mark.parametrize("saver", ["torch", "pickle"])
def test_file_with_code_is_refused(tmp_path, name, saver):
    trace, path = tmp_path / "trace", tmp_path / name
    content = {"model": {"0.weight": torch.zeros(4, 3, 1, 1), "evil": Calls(os.mkdir, str(trace))}}
    if saver == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    model = make_model()
    with expect_error(WeightsError, str(path), "GLOBAL", "nothing was executed"):
        SafeCheckpointer(model).load(str(path))
    assert not trace.exists()
    assert same(model, make_model())
    pickle.loads(pickle.dumps(Calls(os.mkdir, str(trace))))
    assert trace.exists(), "the attack itself does not work, so that the test proves nothing"


@pytest.mark.parametrize(
    "content",
    [
        {"cur_itrs": 40000, "model_state": {"backbone.conv1.weight": torch.zeros(1)}},
        {"model": {"0.weight": "text"}},
        {"model": [1, 2]},
        [torch.zeros(1)],
    ],
)
def test_checkpoint_of_different_program(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    checkpointer = SafeCheckpointer(make_model(seed=1))
    with expect_error(WeightsError, str(tmp_path / "other.pth")):
        checkpointer.load(str(tmp_path / "other.pth"))
    checkpointer.load(str(save(tmp_path, 1)))  # which a refusal does not prevent
    assert same(checkpointer.model, make_model())


def test_missing_files(tmp_path):
    with expect_error(WeightsError, str(tmp_path / "gone.pth"), remedy="MODEL.WEIGHTS"):
        SafeCheckpointer(make_model()).load(str(tmp_path / "gone.pth"))
    with expect_error(WeightsError, "MODEL.WEIGHTS", remedy="MODEL.WEIGHTS"):
        SafeCheckpointer(make_model(), strict=True).resume_or_load("", resume=True)
    last = save(tmp_path, 1)
    last.unlink()
    with expect_error(WeightsError, str(last), remedy="OUTPUT_DIR"):
        resume(make_model(), tmp_path)
    (tmp_path / "last_checkpoint").unlink()
    os.mkfifo(tmp_path / "last_checkpoint")  # reading it would never end
    with expect_error(WeightsError, str(tmp_path / "last_checkpoint"), remedy="OUTPUT_DIR"):
        resume(make_model(), tmp_path)


def test_checkpoint_of_different_model(tmp_path):
    file = str(save(tmp_path, 1))
    with expect_error(WeightsError, "2.weight", "2.bias", "Evaluate"):
        SafeCheckpointer(make_model(classes=5), strict=True).load(file)
    larger = nn.Sequential(*make_model(), nn.Linear(2, 2))
    with expect_error(WeightsError, "3.weight", "3.bias", "config"):
        SafeCheckpointer(larger, strict=True).load(file)
    with expect_error(WeightsError, "3.weight", "3.bias", "config"):
        resume(larger, tmp_path)
    model = make_model(classes=5, seed=1)
    SafeCheckpointer(model).load(file)  # not strict: as a start of the training
    assert torch.equal(model[0].weight, make_model()[0].weight)
    assert model[2].weight.shape[0] == 5


# Damaged and removed checkpoints


def test_damaged_checkpoint_falls_back(tmp_path, caplog):
    torn = save(tmp_path, 1, 3, 5)
    torn.write_bytes(torn.read_bytes()[:-200])
    with caplog.at_level("WARNING"):
        assert resume(make_model(seed=1), tmp_path)["iteration"] == 3
    explains(caplog.text, str(tmp_path / "model_0000003.pth"), torn)


def test_no_readable_checkpoint(tmp_path):
    last = save(tmp_path, 1, 3)
    for file in tmp_path.glob("*.pth"):
        file.write_bytes(b"torn")
    with expect_error(WeightsError, str(last)):
        resume(make_model(), tmp_path)


@pytest.mark.parametrize(
    "name", ["a?b", "a\nb", "a#b", "a%20b", "[a]", "a*", " a ", "~", "a:b", "A:b", "ü", "a;b", "a\tb", "$A"]
)
def test_folder_of_any_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for folder in (name, str(tmp_path / name)):
        save(folder, 3, 5, seed=3).write_bytes(b"torn")
        model = make_model(seed=1)
        assert resume(model, folder)["iteration"] == 3
        assert same(model, make_model(seed=3))
        assert SafeCheckpointer(model).load(f"{folder}/model_0000003.pth")["iteration"] == 3


def test_failed_save_keeps_previous_checkpoint(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def full(content, path):
        path.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with expect_error(WeightsError, str(tmp_path / "model_0000003.pth"), "No space left on device", "--resume"):
        save(tmp_path, 3)
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last_checkpoint", "model_0000001.pth"]
    assert resume(make_model(), tmp_path)["iteration"] == 1


def test_oldest_checkpoints_are_removed(tmp_path):
    keeping = KeepingCheckpointer(SafeCheckpointer(make_model(), str(tmp_path)), period=2, kept=2)
    keeping.max_iter = 9
    (tmp_path / "model_best.pth").touch()
    for iteration in range(9):
        keeping.step(iteration)
    names = sorted(path.name for path in tmp_path.glob("*.pth"))
    assert names == ["model_0000005.pth", "model_0000007.pth", "model_best.pth", "model_final.pth"]
