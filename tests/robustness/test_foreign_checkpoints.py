"""Checkpoints as other programs and other wrappers write them: numbers of NumPy, names of torch.compile and DataParallel."""

import argparse
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from error_matching import explains
from famix.clip.files import read_clip
from famix.engine import SafeCheckpointer
from famix.inference.loading import load_model
from famix.io import load_tensors, unwrapped_names
from famix.utils.errors import CorruptFileError, WeightsError
from inference.inference_factory import make_run
from robustness.hostile_files import Calls
from run_factory import CONFIG

STATE = {"weight": torch.ones(1, 2), "bias": torch.zeros(1)}


def loaded(value: Any) -> Any:
    file = io.BytesIO()
    torch.save({"model": STATE, "value": value}, file)
    return load_tensors(file)["value"]


# NumPy


@pytest.mark.parametrize(
    "value",
    [
        np.float64(0.4851), np.float32(0.5), np.float16(0.25), np.int64(-7), np.int32(7), np.uint8(200), np.bool_(True),
        np.complex64(1 + 2j), np.str_("night"), np.array(3.5)[()], np.dtype(">f8").type(2.5),
    ],
    ids=repr,
)  # fmt: skip
def test_numbers_of_numpy_load_as_those_of_python(value: Any) -> None:
    found = loaded({"scores": [value, (value,)]})
    assert found == {"scores": [value.item(), (value.item(),)]}
    assert type(found["scores"][0]) is type(value.item())


@pytest.mark.parametrize(
    "value",
    [
        np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3)), np.array([True, False]),
        np.arange(3, dtype=">i4"), np.zeros((0, 4), np.float32), np.array(2.5), np.arange(8)[::2],
    ],
    ids=lambda value: f"{value.dtype.str} {value.shape}",
)  # fmt: skip
def test_arrays_of_numpy_load_as_tensors(value: Any) -> None:
    (found,) = loaded((value,))
    assert isinstance(found, torch.Tensor)
    assert found.shape == value.shape
    assert found.tolist() == value.tolist()


@pytest.mark.parametrize("protocol", ["core", "_core"])
def test_files_of_both_generations_of_numpy_load(protocol: str) -> None:
    file = io.BytesIO()
    torch.save({"value": np.float64(1.5)}, file, _use_new_zipfile_serialization=False)
    content = file.getvalue()
    written = b"numpy._core" if b"numpy._core" in content else b"numpy.core"
    assert load_tensors(io.BytesIO(content.replace(written, b"numpy." + protocol.encode())))["value"] == 1.5


@pytest.mark.parametrize("value", [np.datetime64("2026-01-01"), np.array([{}]), np.array([None])], ids=repr)
def test_values_that_are_no_numbers_are_refused(value: Any) -> None:
    with pytest.raises(CorruptFileError, match="NumPy"):
        loaded(value)


@pytest.mark.parametrize(
    "value",
    [
        Calls(np.dtype, "V1000000000"),
        Calls(np.dtype, [("a", "f8")]),
        Calls(np.float64(1).__reduce__()[0], np.dtype("f8"), b"short"),
        Calls(np.zeros(1).__reduce__()[0], np.ndarray, (1 << 40,), b"b"),
    ],
    ids=["a huge type", "a record", "a short number", "an empty array"],
)
def test_what_claims_more_than_it_holds_is_refused(value: Any) -> None:
    with pytest.raises(CorruptFileError, match="NumPy"):
        loaded(value)


def test_a_checkpoint_with_a_score_of_numpy_loads(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    SafeCheckpointer(model, str(tmp_path)).save("model_0000001", iteration=1, best=np.float64(61.5), table=np.eye(2))
    found = SafeCheckpointer(nn.Linear(2, 1), str(tmp_path)).resume_or_load("", resume=True)
    assert found["best"] == 61.5 and found["table"].tolist() == [[1, 0], [0, 1]]


def test_other_objects_are_refused_by_name(tmp_path: Path) -> None:
    torch.save({"model": STATE, "args": argparse.Namespace(lr=1)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError) as caught:
        SafeCheckpointer(nn.Linear(2, 1)).load(str(tmp_path / "other.pth"))
    explains(str(caught.value), str(tmp_path / "other.pth"), "argparse.Namespace")


# Wrappers

WRAPPED = [
    "_orig_mod.{}", "module.{}", "module._orig_mod.{}", "_orig_mod.module.{}", "module.module.{}",
    "_fsdp_wrapped_module.{}",
]  # fmt: skip


@pytest.mark.parametrize("form", WRAPPED)
@pytest.mark.parametrize("inside", [False, True], ids=["bare", "under model"])
def test_weights_of_wrapped_models_load(form: str, inside: bool, tmp_path: Path) -> None:
    state = {form.format(name): value for name, value in STATE.items()}
    torch.save({"model": state, "iteration": 3} if inside else state, tmp_path / "wrapped.pth")
    model = nn.Linear(2, 1)
    SafeCheckpointer(model, strict=True).load(str(tmp_path / "wrapped.pth"))
    assert torch.equal(model.weight, STATE["weight"])


class Compiled(nn.Module):
    """Holds a module as torch.compile does, whose first call takes seconds."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._orig_mod = module


def test_weights_of_a_model_with_a_compiled_part_load() -> None:
    part = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model = nn.ModuleDict({"backbone": part, "head": nn.Linear(2, 1)})
    names = list(model.state_dict())
    model["backbone"] = Compiled(part)
    assert list(model.state_dict()) != names
    assert list(unwrapped_names(model.state_dict())) == names


def test_a_name_that_only_some_weights_have_stays() -> None:
    assert list(unwrapped_names({"module.a": STATE["bias"], "b": STATE["bias"]})) == ["module.a", "b"]


def test_weights_that_are_there_twice_are_refused(tmp_path: Path) -> None:
    torch.save({**STATE, "_orig_mod.weight": STATE["weight"]}, tmp_path / "twice.pth")
    with pytest.raises(WeightsError) as caught:
        SafeCheckpointer(nn.Linear(2, 1)).load(str(tmp_path / "twice.pth"))
    explains(str(caught.value), str(tmp_path / "twice.pth"))


def test_a_compiled_model_is_saved_and_loaded_under_its_own_names(tmp_path: Path) -> None:
    plain, inner = nn.Linear(2, 1), nn.Linear(2, 1)
    compiled = Compiled(inner)
    SafeCheckpointer(compiled, str(tmp_path)).save("model_0000001", iteration=1)
    assert set(torch.load(tmp_path / "model_0000001.pth", weights_only=True)["model"]) == set(STATE)
    SafeCheckpointer(plain, str(tmp_path), strict=True).load(str(tmp_path / "model_0000001.pth"))
    assert torch.equal(plain.weight, inner.weight)
    torch.save(STATE, tmp_path / "plain.pth")
    SafeCheckpointer(compiled, strict=True).load(str(tmp_path / "plain.pth"))
    assert torch.equal(inner.weight, STATE["weight"])


def test_a_predictor_takes_a_compiled_network(tmp_path: Path) -> None:
    run = make_run(tmp_path, CONFIG)
    content = torch.load(run / "model_final.pth", weights_only=True)
    wrapped = {
        f"_orig_mod.{name}".replace("backbone.", "backbone._orig_mod."): v for name, v in content["model"].items()
    }
    torch.save({"model": wrapped, "iteration": 3}, run / "model_final.pth")
    model = load_model(run, device="cpu").model
    assert all(torch.equal(value, content["model"][name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("form", [*WRAPPED, "visual._orig_mod.{}"])
def test_a_clip_that_was_wrapped_loads(form: str, tmp_path: Path) -> None:
    torch.save({form.format(name): value for name, value in STATE.items()}, tmp_path / "clip.pt")
    expected = {f"visual.{name}" if form.startswith("visual") else name for name in STATE}
    assert set(read_clip(tmp_path / "clip.pt")) == expected
