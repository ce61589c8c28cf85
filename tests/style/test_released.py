"""Banks of the released program: a pickled dict of 40 lists of tensors, read without executing anything."""

import io
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from famix.errors import BankError
from famix.style import StyleBank
from famix.style.released import RELEASED_CLASSES


def released(count: int = 2) -> dict[str, list[torch.Tensor]]:
    """What saved_params.pkl holds: "<class>_mu" and "<class>_std", lists of tensors (256, 1, 1)."""
    generator = torch.Generator().manual_seed(0)
    names = [*RELEASED_CLASSES, "255"]
    return {
        f"{name}_{kind}": [torch.rand(256, 1, 1, generator=generator) for _ in range(count)]
        for name in names
        for kind in ("mu", "std")
    }


def write(path: Path, content: Any) -> Path:
    path.write_bytes(pickle.dumps(content))
    return path


class Calls:
    """An object whose unpickling calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def test_styles_come_with_their_classes(tmp_path: Path) -> None:
    content = released()
    bank = StyleBank.from_released_pickle(write(tmp_path / "saved_params.pkl", content))
    assert bank.counts() == dict.fromkeys([*range(19), 255], 2)
    for class_id, name in [(0, "road"), (6, "traffic light"), (18, "bicycle"), (255, "255")]:
        rows = bank.class_ids == class_id
        assert torch.equal(bank.mean[rows], torch.stack(content[f"{name}_mu"]).flatten(1))
        assert torch.equal(bank.std[rows], torch.stack(content[f"{name}_std"]).flatten(1))


def test_a_class_without_styles_and_an_imported_bank_saved_anew(tmp_path: Path) -> None:
    content = released() | {"train_mu": [], "train_std": []}
    bank = StyleBank.from_released_pickle(write(tmp_path / "saved_params.pkl", content))
    bank.save(tmp_path / "bank.safetensors")
    loaded = StyleBank.load(tmp_path / "bank.safetensors")
    assert 16 not in loaded.counts() and loaded.class_names()[16] == "train"
    assert torch.equal(loaded.mean, bank.mean)
    assert (loaded.metadata["stage"], loaded.metadata["grid"]) == ("res2", "[3, 3]")


@pytest.mark.parametrize("nested", [False, True], ids=["in the pickle", "in the bytes of a tensor's storage"])
def test_a_pickle_that_would_run_code_is_refused_and_runs_none(tmp_path: Path, nested: bool) -> None:
    trace = tmp_path / "executed"
    hostile: Any = Calls(os.mkdir, str(trace))
    if nested:
        buffer = io.BytesIO()
        torch.save(hostile, buffer)
        hostile = Calls(torch.storage._load_from_bytes, buffer.getvalue())
    path = write(tmp_path / "saved_params.pkl", released() | {"road_mu": [hostile]})
    with pytest.raises(BankError, match=r"mkdir|no pickle of tensors"):
        StyleBank.from_released_pickle(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, expected a dict"),
        ({}, "lacks a list of tensors .* 'road_mu'"),
        (released() | {"sky_std": "blue"}, "'sky_std'"),
        (released() | {"sky_std": [torch.rand(256)]}, "'sky_std'"),
        (released() | {"sky_std": []}, "2 means and 0 standard deviations of 'sky'"),
        (released(0), "holds no style"),
    ],
)
def test_another_content_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(BankError, match=message):
        StyleBank.from_released_pickle(write(tmp_path / "saved_params.pkl", content))


def test_missing_and_truncated_files(tmp_path: Path) -> None:
    with pytest.raises(BankError, match="does not exist"):
        StyleBank.from_released_pickle(tmp_path / "saved_params.pkl")
    path = write(tmp_path / "saved_params.pkl", released())
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(BankError, match="no pickle of tensors"):
        StyleBank.from_released_pickle(path)
