"""Checkpoints: what is saved comes back, what could run code does not, what does not fit is said."""

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


@pytest.fixture
def checkpoint(tmp_path):
    SafeCheckpointer(make_model(), str(tmp_path)).save("model_final", iteration=7)
    return tmp_path / "model_final.pth"


# Round trips


@pytest.mark.parametrize("strict", [False, True])
def test_model_and_extra_data_come_back(checkpoint, strict):
    model = make_model(seed=1)
    assert not same(model, make_model())
    rest = SafeCheckpointer(model, strict=strict).load(str(checkpoint))
    assert same(model, make_model())
    assert rest["iteration"] == 7


def test_optimizer_and_schedule_come_back(tmp_path):
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


def test_weights_without_a_wrapper(tmp_path):
    torch.save(make_model().state_dict(), tmp_path / "weights.pth")
    model = make_model(seed=1)
    SafeCheckpointer(model, strict=True).load(str(tmp_path / "weights.pth"))
    assert same(model, make_model())


def test_without_a_file_the_model_stays_as_it_is():
    model = make_model()
    assert SafeCheckpointer(model).resume_or_load("", resume=True) == {}
    assert same(model, make_model())


# Files that are refused


@pytest.mark.parametrize("name", ["model.pth", "model.pkl", "model.pyth"])
@pytest.mark.parametrize("saver", ["torch", "pickle"])
def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path, name, saver):
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


def test_a_missing_file(tmp_path):
    with expect_error(WeightsError, str(tmp_path / "gone.pth"), remedy="MODEL.WEIGHTS"):
        SafeCheckpointer(make_model()).load(str(tmp_path / "gone.pth"))


def test_a_last_checkpoint_that_is_gone(checkpoint, tmp_path):
    checkpoint.unlink()
    with expect_error(WeightsError, str(checkpoint), remedy="OUTPUT_DIR"):
        SafeCheckpointer(make_model(), str(tmp_path)).resume_or_load("", resume=True)


@pytest.mark.parametrize(
    "content",
    [
        {"cur_itrs": 40000, "model_state": {"backbone.conv1.weight": torch.zeros(1)}},
        {"model": {"0.weight": "text"}},
        {"model": [1, 2]},
        [torch.zeros(1)],
    ],
)
def test_other_programs_dictionaries(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    with expect_error(WeightsError, str(tmp_path / "other.pth")):
        SafeCheckpointer(make_model()).load(str(tmp_path / "other.pth"))


def test_after_a_refusal_another_file_can_be_loaded(checkpoint, tmp_path):
    (tmp_path / "broken.pth").write_bytes(b"broken")
    checkpointer = SafeCheckpointer(make_model(seed=1))
    with pytest.raises(WeightsError):
        checkpointer.load(str(tmp_path / "broken.pth"))
    checkpointer.load(str(checkpoint))
    assert same(checkpointer.model, make_model())


# Checkpoints of other models


def test_strict_names_other_shapes(checkpoint):
    with expect_error(WeightsError, "2.weight", "2.bias", "Evaluate"):
        SafeCheckpointer(make_model(classes=5), strict=True).load(str(checkpoint))


def test_strict_names_missing_entries(checkpoint):
    model = nn.Sequential(*make_model(), nn.Linear(2, 2))
    with expect_error(WeightsError, "3.weight", "3.bias", "config"):
        SafeCheckpointer(model, strict=True).load(str(checkpoint))


def test_a_run_does_not_resume_from_a_part_of_its_model(checkpoint):
    model = nn.Sequential(*make_model(), nn.Linear(2, 2))
    with expect_error(WeightsError, key="3.weight", remedy="config"):
        SafeCheckpointer(model, str(checkpoint.parent)).resume_or_load("", resume=True)


def test_strict_needs_a_checkpoint():
    with expect_error(WeightsError, "MODEL.WEIGHTS", remedy="MODEL.WEIGHTS"):
        SafeCheckpointer(make_model(), strict=True).resume_or_load("", resume=True)


def test_otherwise_a_partial_checkpoint_is_taken(checkpoint):
    model = make_model(classes=5, seed=1)
    SafeCheckpointer(model).load(str(checkpoint))
    assert torch.equal(model[0].weight, make_model()[0].weight)
    assert model[2].weight.shape[0] == 5


# Whole files, and what was before a damaged one


def test_a_damaged_last_checkpoint_gives_way_to_the_one_before(tmp_path, caplog):
    saver = SafeCheckpointer(make_model(seed=3), str(tmp_path))
    for iteration in (1, 3, 5):
        saver.save(f"model_{iteration:07d}", iteration=iteration)
    torn = tmp_path / "model_0000005.pth"
    torn.write_bytes(torn.read_bytes()[:-200])
    with caplog.at_level("WARNING"):
        rest = SafeCheckpointer(make_model(seed=1), str(tmp_path)).resume_or_load("", resume=True)
    assert rest["iteration"] == 3
    explains(caplog.text, str(tmp_path / "model_0000003.pth"), torn)


def test_where_no_checkpoint_can_be_read_the_last_is_named(tmp_path):
    saver = SafeCheckpointer(make_model(), str(tmp_path))
    for iteration in (1, 3):
        saver.save(f"model_{iteration:07d}", iteration=iteration)
        (tmp_path / f"model_{iteration:07d}.pth").write_bytes(b"torn")
    with expect_error(WeightsError, str(tmp_path / "model_0000003.pth")):
        saver.resume_or_load("", resume=True)


@pytest.mark.parametrize(
    "name", ["a?b", "a\nb", "a#b", "a%20b", "[a]", "a*", " a ", "~", "a:b", "A:b", "ü", "a;b", "a\tb", "$A"]
)
def test_a_folder_of_any_name_can_be_resumed(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for folder in (name, str(tmp_path / name)):
        SafeCheckpointer(make_model(seed=3), folder).save("model_0000003", iteration=3)
        SafeCheckpointer(make_model(seed=3), folder).save("model_0000005", iteration=5)
        Path(folder, "model_0000005.pth").write_bytes(b"torn")
        model = make_model(seed=1)
        checkpointer = SafeCheckpointer(model, folder)
        assert checkpointer.resume_or_load("", resume=True)["iteration"] == 3
        assert same(model, make_model(seed=3))
        assert SafeCheckpointer(model).load(f"{folder}/model_0000003.pth")["iteration"] == 3


def test_a_save_that_fails_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    saver = SafeCheckpointer(make_model(), str(tmp_path))
    saver.save("model_0000001", iteration=1)

    def full(content, path):
        path.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with expect_error(WeightsError, str(tmp_path / "model_0000003.pth"), "No space left on device", "--resume"):
        saver.save("model_0000003", iteration=3)
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last_checkpoint", "model_0000001.pth"]
    assert SafeCheckpointer(make_model(), str(tmp_path)).resume_or_load("", resume=True)["iteration"] == 1


def test_only_the_newest_checkpoints_stay(tmp_path):
    keeping = KeepingCheckpointer(SafeCheckpointer(make_model(), str(tmp_path)), period=2, kept=2)
    keeping.max_iter = 9
    (tmp_path / "model_best.pth").touch()
    for iteration in range(9):
        keeping.step(iteration)
    names = sorted(path.name for path in tmp_path.glob("*.pth"))
    assert names == ["model_0000005.pth", "model_0000007.pth", "model_best.pth", "model_final.pth"]


def test_a_pipe_in_place_of_the_name_of_the_last_checkpoint(checkpoint):
    """It would be waited for without end."""
    named = checkpoint.with_name("last_checkpoint")
    named.unlink()
    os.mkfifo(named)
    with expect_error(WeightsError, str(named), remedy="OUTPUT_DIR"):
        SafeCheckpointer(make_model(), str(checkpoint.parent)).resume_or_load("", resume=True)
