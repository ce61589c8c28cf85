"""Banks of the reference implementation: a pickled dict of 40 lists of tensors, read without executing anything."""

import io
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from error_matching import expect_error
from famix.data import CITYSCAPES_CLASSES
from famix.style import StyleBank
from famix.style.released import RELEASED_CLASSES
from famix.utils.errors import BankError
from released_factory import released_styles, write_bank
from robustness.hostile_files import Calls


def read(tmp_path: Path, content: Any) -> StyleBank:
    return StyleBank.from_released_pickle(write_bank(tmp_path / "saved_params.pkl", content))


def test_styles_come_with_their_classes(tmp_path: Path) -> None:
    content = released_styles()
    bank = read(tmp_path, content)
    assert bank.counts() == dict.fromkeys([*range(19), 255], 2)
    for class_id, name in [(0, "road"), (6, "traffic light"), (18, "bicycle"), (255, "255")]:
        rows = bank.class_ids == class_id
        assert torch.equal(bank.mean[rows], torch.stack(content[f"{name}_mu"]).flatten(1))
        assert torch.equal(bank.std[rows], torch.stack(content[f"{name}_std"]).flatten(1))
    assert tuple(entry.name for entry in CITYSCAPES_CLASSES) == RELEASED_CLASSES


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_reads_every_pickle_protocol(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "saved_params.pkl"
    path.write_bytes(pickle.dumps(released_styles(channels=8), protocol))
    assert torch.equal(StyleBank.from_released_pickle(path).mean, read(tmp_path, released_styles(channels=8)).mean)


def test_reads_parameters_halves_and_views(tmp_path: Path) -> None:
    batch = torch.rand(3, 256, 1, 1)
    styles = [torch.nn.Parameter(batch[0]), batch[1].half(), batch[2]]
    bank = read(tmp_path, released_styles(0) | {"road_mu": styles, "road_std": styles})
    torch.testing.assert_close(bank.mean, batch.flatten(1), rtol=0, atol=5e-4)
    assert bank.mean.dtype == torch.float32 and not bank.mean.requires_grad


def test_imported_bank_can_be_saved(tmp_path: Path) -> None:
    bank = read(tmp_path, released_styles() | {"train_mu": [], "train_std": []})
    bank.save(tmp_path / "bank.safetensors")
    loaded = StyleBank.load(tmp_path / "bank.safetensors")
    assert 16 not in loaded.counts() and loaded.class_names()[16] == "train"
    assert torch.equal(loaded.mean, bank.mean)
    assert (loaded.metadata["stage"], loaded.metadata["grid"]) == ("res2", "[3, 3]")


@pytest.mark.parametrize("nested", [False, True], ids=["in the pickle", "in the bytes of a tensor's storage"])
def test_hostile_pickle_runs_no_code(tmp_path: Path, nested: bool) -> None:
    trace = tmp_path / "executed"
    hostile: Any = Calls(os.mkdir, str(trace))
    if nested:
        buffer = io.BytesIO()
        torch.save(hostile, buffer)
        hostile = Calls(torch.storage._load_from_bytes, buffer.getvalue())
    with pytest.raises(BankError, match=r"saved_params.pkl.*(mkdir.*nothing was executed|cannot be unpickled)"):
        read(tmp_path, released_styles() | {"road_mu": [hostile]})
    assert not trace.exists()


def test_hostile_pickle_cannot_change_torch_functions(tmp_path: Path) -> None:
    rebuild = torch._utils._rebuild_tensor_v2
    before = rebuild.__defaults__, dict(vars(rebuild))
    set_defaults = [
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n",  # the function
        b"N}X\x0c\x00\x00\x00__defaults__)s\x86b.",  # its state: no dictionary, but attributes {"__defaults__": ()}
    ]
    path = tmp_path / "saved_params.pkl"
    path.write_bytes(b"".join(set_defaults))
    assert pickle.loads(path.read_bytes()) is rebuild and rebuild.__defaults__ == ()  # an unrestricted reader
    rebuild.__defaults__ = before[0]
    with expect_error(BankError, str(path), "unpickled", "--mine-styles-only"):
        StyleBank.from_released_pickle(path)
    assert (rebuild.__defaults__, vars(rebuild)) == before


@pytest.mark.parametrize(
    ("content", "got"),
    [
        ([1, 2], "list"),
        ({}, "road_mu"),
        (released_styles() | {"sky_std": "blue"}, "sky_std"),
        (released_styles() | {"sky_std": [torch.rand(256)]}, "sky_std"),
        (released_styles() | {"sky_std": [torch.rand(())]}, "sky_std"),
        (released_styles() | {"sky_std": [torch.rand(16, 4, 4)]}, "sky_std"),
        (released_styles() | {"sky_std": [torch.ones(256, 1, 1, dtype=torch.int64)] * 2}, "sky_std"),
        (released_styles() | {"sky_std": [torch.rand(1).expand(10**12, 1, 1)] * 2}, "sky_std"),
        (released_styles() | {"sky_std": []}, "sky"),
        (released_styles() | {"tree_mu": []}, "tree_mu"),
        (released_styles() | {"sky_std": [torch.rand(64, 1, 1)] * 2}, [64, 256]),
        (released_styles() | {"sky_std": [torch.full((256, 1, 1), torch.nan)] * 2}, "NaN"),
        (released_styles(0), "no styles"),
    ],
)
def test_rejects_other_contents(tmp_path: Path, content: Any, got: Any) -> None:
    with expect_error(BankError, str(tmp_path / "saved_params.pkl"), got, "saved_params.pkl"):
        read(tmp_path, content)


def test_rejects_missing_and_truncated_files(tmp_path: Path) -> None:
    path = tmp_path / "saved_params.pkl"
    with expect_error(BankError, str(path), remedy="saved_params.pkl"):
        StyleBank.from_released_pickle(path)
    write_bank(path, released_styles())
    path.write_bytes(path.read_bytes()[:5000])
    with expect_error(BankError, str(path), "unpickled", "--mine-styles-only"):
        StyleBank.from_released_pickle(path)
