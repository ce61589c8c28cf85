"""Checkpoints of other programs and of wrapped models: NumPy numbers, names of torch.compile and DataParallel."""

import argparse
import io
import pickle
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from error_matching import expect_error
from famix.clip.files import read_clip
from famix.engine import SafeCheckpointer
from famix.inference.loading import load_model
from famix.io import load_tensors, unwrapped_names
from famix.utils.errors import CorruptFileError, WeightsError
from inference.inference_factory import make_run
from robustness.hostile_files import Calls
from run_factory import CONFIG, assert_equal_state

STATE = {"weight": torch.ones(1, 2), "bias": torch.zeros(1)}


def loaded(value: Any, zipped: bool = True) -> Any:
    file = io.BytesIO()
    torch.save({"model": STATE, "value": value}, file, _use_new_zipfile_serialization=zipped)
    return load_tensors(file)["value"]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_tensors_load_as_torch_loads_them(zipped: bool) -> None:
    matrix, model = torch.arange(12.0).reshape(3, 4), nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.rand(4, 2)).sum().backward()
    optimizer.step()
    dtypes = [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.complex64, torch.uint8]
    content = {
        "views": [matrix, matrix.t()[1:], matrix[::2, 1]], "dtypes": [torch.ones(2).to(dtype) for dtype in dtypes],
        "newer dtypes": torch.ones(2).to(torch.float8_e4m3fn).view(torch.uint8), "empty": torch.zeros(0, 3),
        "state": model.state_dict(), "optimizer": optimizer.state_dict(), "milestones": Counter([3, 5]),
        "plain": (None, True, 1, 10**18, 0.5, "text", b"bytes", b"", [[1]]), "shape": matrix.shape, "dtype": torch.float32,
    }  # fmt: skip
    found = loaded(content, zipped)
    assert_equal_state(found, content)
    assert isinstance(found["state"], OrderedDict) and found["state"]._metadata == content["state"]._metadata
    assert torch.equal(loaded(model[0].weight, zipped), model[0].weight.detach())
    assert found["views"][0].untyped_storage().data_ptr() == found["views"][1].untyped_storage().data_ptr()


def test_float8_tensors_load() -> None:
    values = torch.tensor([0.5, 2.0]).to(torch.float8_e4m3fn)
    assert torch.equal(loaded(values).float(), values.float())


# NumPy


@pytest.mark.parametrize(
    "value",
    [
        np.float64(0.4851), np.float32(0.5), np.float16(0.25), np.int64(-7), np.int32(7), np.uint8(200), np.bool_(True),
        np.complex64(1 + 2j), np.str_("night"), np.array(3.5)[()], np.dtype(">f8").type(2.5),
    ],
    ids=repr,
)  # fmt: skip
def test_numpy_numbers_load_as_python_numbers(value: Any) -> None:
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
def test_numpy_arrays_load_as_tensors(value: Any) -> None:
    (found,) = loaded((value,))
    assert isinstance(found, torch.Tensor)
    assert found.shape == value.shape and found.tolist() == value.tolist()


@pytest.mark.parametrize("core", ["core", "_core"])
def test_files_of_both_generations_of_numpy_load(core: str) -> None:
    file = io.BytesIO()
    torch.save({"value": np.float64(1.5)}, file, _use_new_zipfile_serialization=False)
    content = file.getvalue()
    written = b"numpy._core" if b"numpy._core" in content else b"numpy.core"
    assert load_tensors(io.BytesIO(content.replace(written, b"numpy." + core.encode())))["value"] == 1.5


@pytest.mark.parametrize(
    "value",
    [
        np.datetime64("2026-01-01"), np.array([{}]), np.array([None]), Calls(np.dtype, "V1000000000"),
        Calls(np.dtype, [("a", "f8")]), Calls(np.float64(1).__reduce__()[0], np.dtype("f8"), b"short"),
        Calls(np.float64(1).__reduce__()[0], np.dtype("f8"), bytes(80)),
    ],
)  # fmt: skip
def test_other_numpy_values_are_refused(value: Any) -> None:
    with pytest.raises(CorruptFileError):
        loaded(value)


def test_a_numpy_array_without_content_is_empty() -> None:
    assert loaded(Calls(np.zeros(1).__reduce__()[0], np.ndarray, (1 << 40,), b"b")).numel() == 0


def test_other_objects_are_refused_by_name(tmp_path: Path) -> None:
    torch.save({"model": STATE, "args": argparse.Namespace(lr=1)}, tmp_path / "other.pth")
    with expect_error(WeightsError, str(tmp_path / "other.pth"), "argparse.Namespace"):
        SafeCheckpointer(nn.Linear(2, 1)).load(str(tmp_path / "other.pth"))
    with pytest.raises(pickle.UnpicklingError, match=r"torch\.nn\.modules\.linear\.Linear"):
        loaded(nn.Linear(1, 1))


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


@pytest.mark.parametrize("form", [*WRAPPED, "visual._orig_mod.{}"])
def test_wrapped_clips_load(form: str, tmp_path: Path) -> None:
    torch.save({form.format(name): value for name, value in STATE.items()}, tmp_path / "clip.pt")
    expected = {f"visual.{name}" if form.startswith("visual") else name for name in STATE}
    assert set(read_clip(tmp_path / "clip.pt")) == expected


class Compiled(nn.Module):
    """Contains a module as torch.compile does, whose first call takes seconds."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._orig_mod = module


def test_unwrapped_names_of_a_compiled_part() -> None:
    part = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model = nn.ModuleDict({"backbone": part, "head": nn.Linear(2, 1)})
    names = list(model.state_dict())
    model["backbone"] = Compiled(part)
    assert list(model.state_dict()) != names
    assert list(unwrapped_names(model.state_dict())) == names


def test_unwrapped_names_keep_a_prefix_of_some_weights() -> None:
    assert list(unwrapped_names({"module.a": STATE["bias"], "b": STATE["bias"]})) == ["module.a", "b"]


def test_weights_with_and_without_wrapper_are_refused(tmp_path: Path) -> None:
    torch.save({**STATE, "_orig_mod.weight": STATE["weight"]}, tmp_path / "twice.pth")
    with expect_error(WeightsError, str(tmp_path / "twice.pth")):
        SafeCheckpointer(nn.Linear(2, 1)).load(str(tmp_path / "twice.pth"))


def test_compiled_models_are_saved_and_loaded_under_plain_names(tmp_path: Path) -> None:
    plain, inner = nn.Linear(2, 1), nn.Linear(2, 1)
    compiled = Compiled(inner)
    SafeCheckpointer(compiled, str(tmp_path)).save("model_0000001", iteration=1)
    assert set(torch.load(tmp_path / "model_0000001.pth", weights_only=True)["model"]) == set(STATE)
    SafeCheckpointer(plain, str(tmp_path), strict=True).load(str(tmp_path / "model_0000001.pth"))
    assert torch.equal(plain.weight, inner.weight)
    torch.save(STATE, tmp_path / "plain.pth")
    SafeCheckpointer(compiled, strict=True).load(str(tmp_path / "plain.pth"))
    assert torch.equal(inner.weight, STATE["weight"])


def test_predictor_loads_compiled_networks(tmp_path: Path) -> None:
    run = make_run(tmp_path, CONFIG)
    content = torch.load(run / "model_final.pth", weights_only=True)
    names = {name: f"_orig_mod.{name}".replace("backbone.", "backbone._orig_mod.") for name in content["model"]}
    wrapped = {names[name]: value for name, value in content["model"].items()}
    torch.save({"model": wrapped, "iteration": 3}, run / "model_final.pth")
    model = load_model(run, device="cpu").model
    assert all(torch.equal(value, content["model"][name]) for name, value in model.state_dict().items())
