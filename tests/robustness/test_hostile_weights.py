"""Files of tensors made to run code, fill the memory, overflow the stack or last for ever."""

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from error_matching import expect_error
from famix.engine import SafeCheckpointer
from famix.io import load_tensors
from famix.io.released_checkpoint import load_released_checkpoint
from famix.style import StyleBank
from famix.utils.errors import CorruptFileError, FAMixError, WeightsError
from released_factory import RELEASED_NAMES
from robustness.hostile_files import ONE_FLOAT, PICKLE_READERS, READERS, Calls, packed


def nested_tuples(depth: int) -> bytes:
    """A pickle of {tuple in a tuple in a tuple ...: 1}."""
    return b"\x80\x02})" + b"\x85" * depth + b"K\x01s."


def shared_tuples(depth: int) -> bytes:
    """A pickle of {t: 1} with t = (u, u), u = (v, v) and so on: a hash of it takes 2**depth steps."""
    steps = b"".join(
        b"q" + bytes([place]) + b"0h" + bytes([place]) + b"h" + bytes([place]) + b"\x86" for place in range(depth)
    )
    return b"\x80\x02})" + steps + b"K\x01s."


HOSTILE = {
    "a tuple a million deep": nested_tuples(1_000_000),
    "tuples that share tuples": shared_tuples(60),
    "a memo of four billion": b"\x80\x02Nr\xf0\xff\xff\xff.",
    "two gigabytes out of nothing": b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
    "a text of a terabyte": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"abc.",
    "one that ends early": b"\x80\x02}(X\x01\x00\x00\x00a",
    "one that takes from an empty stack": b"\x80\x02tR.",
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "pickle"])
@pytest.mark.parametrize("attack", HOSTILE)
@pytest.mark.parametrize("reader", PICKLE_READERS)
def test_pickles_that_would_never_end_or_crash(tmp_path: Path, reader: str, attack: str, zipped: bool) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(packed(HOSTILE[attack]) if zipped else HOSTILE[attack])
    with pytest.raises(FAMixError, match=r"file\.pth"):
        READERS[reader](path)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("saver", ["torch", "torch before 1.6", "pickle"])
def test_no_reader_runs_code(tmp_path: Path, reader: str, saver: str) -> None:
    canary, path = tmp_path / "canary", tmp_path / "file.pth"
    content = {
        "model": {"a": torch.zeros(1)},
        "model_state": Calls(os.mkdir, str(canary)),
        "road_mu": Calls(os.mkdir, "x"),
    }
    if saver == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=saver == "torch")
    says = ".*nothing was executed" if "checkpoint" in reader and saver != "pickle" else ""
    with pytest.raises(FAMixError, match=r"file\.pth" + says):
        READERS[reader](path)
    assert not canary.exists()


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("content", ["code", "module", "onnx", "script", "text", "nothing", "safetensors"])
@pytest.mark.filterwarnings("ignore")
def test_no_reader_passes_on_how_to_read_a_file_unsafely(tmp_path: Path, reader: str, content: str) -> None:
    """torch says that an error goes away with weights_only=False, which runs the code of the file."""
    path = tmp_path / "file.pth"
    if content in ("code", "module"):
        torch.save(Calls(os.mkdir, "x") if content == "code" else torch.nn.Linear(1, 1), path)
    elif content == "script":
        torch.jit.script(torch.nn.Linear(1, 1)).save(path)
    elif content == "safetensors":
        safetensors.torch.save_file({"a": torch.zeros(1)}, path)
    else:
        path.write_bytes(
            {"onnx": b"\x08\x08\x12\x07pytorch\x1a\x052.6.0:\x90", "text": b"words", "nothing": b""}[content]
        )
    with pytest.raises(FAMixError, match=r"file\.pth") as caught:
        READERS[reader](path)
    advice = ("weights_only", "arbitrary code", "trust the source", "trusted source", "safe_globals", "\033")
    assert not [words for words in advice if words in str(caught.value)]


@pytest.mark.parametrize("reader", PICKLE_READERS)
def test_a_zip_bomb_is_refused_by_what_it_claims(tmp_path: Path, reader: str) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(packed(ONE_FLOAT, zipfile.ZIP_DEFLATED, **{"data/0": bytes(80 << 20)}))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(
        FAMixError, match=r"file\.pth.*(entries claim 838\d+ bytes, but the file has|cannot be unpickled)"
    ):
        READERS[reader](path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressions_that_unfold_without_a_bound_are_refused(method: int) -> None:
    with pytest.raises(CorruptFileError, match="compression"):
        load_tensors(io.BytesIO(packed(ONE_FLOAT, method)))


def test_two_entries_of_one_name_are_refused() -> None:
    with pytest.raises(CorruptFileError, match="share a name"):
        load_tensors(io.BytesIO(packed(ONE_FLOAT, **{"DATA.pkl": HOSTILE["tuples that share tuples"]})))


def saved(content: Any) -> io.BytesIO:
    stream = io.BytesIO()
    torch.save(content, stream)
    stream.seek(0)
    return stream


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(10**12),
        torch.sparse_coo_tensor(torch.zeros(1, 0, dtype=torch.long), torch.zeros(0), (10**12,), check_invariants=True),
        torch.zeros(10**12, device="meta"),
    ],
    ids=["stride 0", "sparse", "without data"],
)
@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_tensors_that_are_larger_than_their_file(tensor: Tensor) -> None:
    with pytest.raises(CorruptFileError, match=r"its tensors show 4000000000000 bytes|dense ones"):
        load_tensors(saved({"a": tensor}))


def test_one_tensor_under_many_names(tmp_path: Path) -> None:
    tensor = torch.zeros(1 << 18, dtype=torch.float16)  # as float32 each name would take a megabyte
    with pytest.raises(CorruptFileError, match="its tensors show"):
        load_tensors(saved({str(number): tensor for number in range(100)}))
    assert len(load_tensors(saved({"a": tensor, "tied": tensor}))) == 2


@pytest.mark.parametrize("place", ["in the data", "in the pickle"])
def test_a_flipped_bit_is_noticed(place: str) -> None:
    values = torch.arange(1000.0)
    content = bytearray(saved({"a": values}).getvalue())
    start = content.find(values.numpy().tobytes() if place == "in the data" else b"torch._utils")
    content[start + 5] ^= 16
    with pytest.raises(CorruptFileError, match="checksum"):
        load_tensors(io.BytesIO(bytes(content)))


# Resuming


class Counter:
    """Something that is saved along with a model."""

    def __init__(self) -> None:
        self.state = {"count": 1}

    def state_dict(self) -> dict[str, int]:
        return self.state

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.state = {"count": state["count"]}


def resume(folder: Path, content: Any) -> SafeCheckpointer:
    torch.save(content, folder / "model_0000001.pth")
    (folder / "last_checkpoint").write_text("model_0000001.pth")
    checkpointer = SafeCheckpointer(nn.Linear(1, 1), str(folder), trainer=Counter())
    checkpointer.resume_or_load("", resume=True)
    return checkpointer


def test_a_checkpoint_without_a_part_of_the_run_is_not_gone_on_from(tmp_path: Path) -> None:
    """Detectron2 would load the weights and start at iteration 0."""
    model = nn.Linear(1, 1).state_dict()
    assert resume(tmp_path, {"model": model, "trainer": {"count": 7}}).checkpointables["trainer"].state == {"count": 7}
    with expect_error(WeightsError, "trainer"):
        resume(tmp_path, {"model": model, "trajner": {"count": 7}})
    with expect_error(WeightsError, "bias", remedy="config"):
        resume(tmp_path, {"model": {"weight": model["weight"]}, "trainer": {"count": 7}})
    with pytest.raises(WeightsError, match=r"model_0000001\.pth does not fit this run \(KeyError: 'count'\)"):
        resume(tmp_path, {"model": model, "trainer": {}})


@pytest.mark.parametrize("text", [b"\xff\xfe\xff", b"", b"../../elsewhere\0", b"."])
def test_a_damaged_name_of_the_last_checkpoint_gives_way_to_the_one_before(tmp_path: Path, text: bytes) -> None:
    resume(tmp_path, {"model": nn.Linear(1, 1).state_dict(), "trainer": {"count": 7}})
    (tmp_path / "last_checkpoint").write_bytes(text)
    checkpointer = SafeCheckpointer(nn.Linear(1, 1), str(tmp_path), trainer=Counter())
    checkpointer.resume_or_load("", resume=True)
    assert checkpointer.checkpointables["trainer"].state == {"count": 7}


def test_numpy_numbers_cannot_claim_memory(tmp_path: Path) -> None:
    large = Calls(np.dtype, "V2000000000", False, True)
    torch.save({"model_state": {}, "best_score": large}, tmp_path / "r.pth")
    with pytest.raises(WeightsError, match=r"NumPy .*'V2000000000'"):
        load_released_checkpoint(tmp_path / "r.pth")


def test_a_list_of_one_style_a_million_times(tmp_path: Path) -> None:
    style = torch.rand(1000, 1, 1)
    content = {f"{name}_{kind}": [style] * 1000 for name in ("road",) for kind in ("mu", "std")}
    rest = {f"{name}_{kind}": [] for name in RELEASED_NAMES if name != "road" for kind in ("mu", "std")}
    path = tmp_path / "saved_params.pkl"
    path.write_bytes(pickle.dumps({**content, **rest}))
    with expect_error(FAMixError, str(path), 1000, "saved_params.pkl"):
        StyleBank.from_released_pickle(path)
