"""Files of tensors that try to run code, fill the memory, overflow the stack or never end."""

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from error_matching import expect_error
from famix.clip.export import save_compact
from famix.clip.openai import CLIP
from famix.clip.weights import load_clip_state_dict
from famix.engine import SafeCheckpointer
from famix.io import load_pickled_tensors, load_tensors, read_torchscript
from famix.mining.partial_results import PartialResults
from famix.style import StyleBank
from famix.utils.errors import CorruptFileError, FAMixError, WeightsError
from released_factory import RELEASED_NAMES
from robustness.hostile_files import ONE_FLOAT, PICKLE_READERS, READERS, Calls, packed

# Pickles

SHARED_TUPLES = b"".join(b"q%c0h%ch%c\x86" % (place, place, place) for place in range(60))
FLAT = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ"
ENDLESS = (
    b"ctorch._utils\n_rebuild_tensor_v2\n("
    + FLAT
    + b"K\x00\x8a\x06"
    + (10**12).to_bytes(6, "little")
    + b"\x85K\x00\x85tR"
)
HOSTILE = {
    "a deep tuple as a key": b"\x80\x02})" + b"\x85" * 100_000 + b"K\x01s.",
    "tuples that share tuples as a key": b"\x80\x02})" + SHARED_TUPLES + b"K\x01s.",
    "tuples that share tuples in a set": b"\x80\x04\x8f()" + SHARED_TUPLES + b"\x90.",
    "tuples that share tuples in a frozenset": b"\x80\x04()" + SHARED_TUPLES + b"\x91.",
    "two gigabytes out of nothing": b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
    "bytes that it does not contain": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",
    "a text of a terabyte": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"abc.",
    "a megabyte copied again and again": b"\x80\x02c_codecs\nencode\nq\x010X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20)
        + b"X\x06\x00\x00\x00latin1\x86q\x020" + b"h\x01h\x02R" * 10_000 + b".",
    "a list copied again and again": b"\x80\x02ccollections\nOrderedDict\nq\x010](" + b"N" * 100_000 + b"e\x85q\x020"
        + b"h\x01h\x02R" * 10_000 + b".",
    "arguments without an end": b"\x80\x02ccollections\nOrderedDict\n" + ENDLESS + b"R.",
    "items without an end": b"\x80\x02ccollections\nOrderedDict\n" + ENDLESS + b"\x85R.",
    "values set without an end": b"\x80\x02" + ENDLESS + b"NK\x01s.",
    "attributes of a function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb.",
    "an early end": b"\x80\x02}(X\x01\x00\x00\x00a",
    "an empty stack": b"\x80\x02tR.",
}  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "pickle"])
@pytest.mark.parametrize("attack", HOSTILE)
def test_pickles_end_soon_with_an_error(attack: str, zipped: bool) -> None:
    content = HOSTILE[attack]
    load, file = (load_tensors, packed(content, **{"data/0": bytes(4)})) if zipped else (load_pickled_tensors, content)
    with pytest.raises((CorruptFileError, pickle.UnpicklingError) if zipped else Exception):
        load(io.BytesIO(file))


def test_a_memo_of_four_billion_takes_no_memory() -> None:
    assert load_tensors(io.BytesIO(packed(b"\x80\x02Nr\xf0\xff\xff\xff."))) is None


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "pickle"])
@pytest.mark.parametrize(
    "attack", ["tuples that share tuples as a key", "two gigabytes out of nothing", "an early end"]
)
@pytest.mark.parametrize("reader", PICKLE_READERS)
def test_readers_refuse_hostile_pickles(tmp_path: Path, reader: str, attack: str, zipped: bool) -> None:
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
    says = ".*nothing was executed" if "checkpoint" in reader else ""
    with pytest.raises(FAMixError, match=r"file\.pth" + says):
        READERS[reader](path)
    assert not canary.exists()


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("content", ["code", "module", "onnx", "script", "text", "nothing", "safetensors"])
@pytest.mark.filterwarnings("ignore")
def test_no_reader_tells_how_to_read_a_file_unsafely(tmp_path: Path, reader: str, content: str) -> None:
    path = tmp_path / "file.pth"
    if content in ("code", "module"):
        torch.save(Calls(os.mkdir, "x") if content == "code" else nn.Linear(1, 1), path)
    elif content == "script":
        torch.jit.script(nn.Linear(1, 1)).save(path)
    elif content == "safetensors":
        save_file({"a": torch.zeros(1)}, path)
    else:
        path.write_bytes(
            {"onnx": b"\x08\x08\x12\x07pytorch\x1a\x052.6.0:\x90", "text": b"words", "nothing": b""}[content]
        )
    with pytest.raises(FAMixError, match=r"file\.pth") as caught:
        READERS[reader](path)
    advice = ("weights_only", "arbitrary code", "trust the source", "trusted source", "safe_globals", "\033")
    assert not [words for words in advice if words in str(caught.value)]


def test_numpy_numbers_cannot_claim_memory(tmp_path: Path) -> None:
    torch.save({"model_state": {}, "best_score": Calls(np.dtype, "V2000000000", False, True)}, tmp_path / "r.pth")
    with pytest.raises(WeightsError, match=r"NumPy .*'V2000000000'"):
        READERS["released checkpoint"](tmp_path / "r.pth")


def test_one_style_cannot_be_listed_a_million_times(tmp_path: Path) -> None:
    path, style = tmp_path / "saved_params.pkl", torch.rand(1000, 1, 1)
    content = {f"{name}_{kind}": [style] * 1000 * (name == "road") for name in RELEASED_NAMES for kind in ("mu", "std")}
    path.write_bytes(pickle.dumps(content))
    with expect_error(FAMixError, str(path), 1000, "saved_params.pkl"):
        StyleBank.from_released_pickle(path)


# Archives


@pytest.mark.parametrize("reader", PICKLE_READERS)
def test_zip_bombs_are_refused(tmp_path: Path, reader: str) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(packed(ONE_FLOAT, zipfile.ZIP_DEFLATED, **{"data/0": bytes(80 << 20)}))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(
        FAMixError, match=r"file\.pth.*(entries claim 838\d+ bytes, but the file has|cannot be unpickled)"
    ):
        READERS[reader](path)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_pickles_are_refused(method: int) -> None:
    with pytest.raises(CorruptFileError, match="compression"):
        load_tensors(io.BytesIO(packed(ONE_FLOAT, method)))


def saved(content: Any, zipped: bool = True) -> io.BytesIO:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=zipped)
    stream.seek(0)
    return stream


@pytest.mark.parametrize("zipped", [True, False])
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
def test_tensors_larger_than_their_file_are_refused(tensor: Tensor, zipped: bool) -> None:
    with pytest.raises(
        (CorruptFileError, pickle.UnpicklingError), match=r"its tensors claim 4000000000000 bytes|GLOBAL"
    ):
        load_tensors(saved({"a": tensor}, zipped))


def test_storages_larger_than_their_file_are_refused() -> None:
    content = saved({"a": torch.zeros(300)}, zipped=False).getvalue()
    count = b"M" + struct.pack("<H", 300)
    assert content.count(count) == 2  # of the storage, and of the view
    with pytest.raises(CorruptFileError, match="tensors claim"):
        load_tensors(io.BytesIO(content.replace(count, b"J\xff\xff\xff\x7f")))


def test_one_tensor_under_many_names_is_refused() -> None:
    tensor = torch.zeros(1 << 18, dtype=torch.float16)  # as float32 each name would take a megabyte
    with pytest.raises(CorruptFileError, match="its tensors claim"):
        load_tensors(saved({str(number): tensor for number in range(100)}))
    assert len(load_tensors(saved({"a": tensor, "tied": tensor}))) == 2


@pytest.mark.parametrize("place", ["in the data", "in the pickle"])
def test_a_flipped_bit_is_noticed(place: str) -> None:
    values = torch.arange(1000.0)
    content = bytearray(saved({"a": values}).getvalue())
    start = content.find(values.numpy().tobytes() if place == "in the data" else b"torch._utils")
    content[start + 5] ^= 16
    with pytest.raises(CorruptFileError, match="CRC"):
        load_tensors(io.BytesIO(bytes(content)))


# TorchScript


class Plain(nn.Module):
    """With tensors that belong to no state_dict, and a module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.loose = torch.ones(3)
        self.numbers = [1, 2]
        self.linear = nn.Linear(2, 3)
        self.again = self.linear
        self.register_buffer("view", torch.arange(6.0).reshape(2, 3).t()[1:])

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.loose + self.numbers[0]


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_torchscript_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(Plain()), str(tmp_path / "plain.pt"))
    with (tmp_path / "plain.pt").open("rb") as file:
        ours = read_torchscript(file).tensors
    theirs = torch.jit.load(str(tmp_path / "plain.pt")).state_dict()
    assert ours.keys() == theirs.keys() and "loose" not in ours
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (b"h\x01", "contain each other"),  # a module that is its own submodule
        (b"cos\nmkdir\n", "GLOBAL os.mkdir"),
        (FLAT.replace(b"K\x01tQ", b"J\xff\xff\xff\x7ftQ"), "claims 2147483647 values"),
        (FLAT.replace(b"\x000X", b"\x001X"), "There is no item"),
    ],
)
def test_hostile_torchscript_is_refused(value: bytes, says: str) -> None:
    content = packed(
        b"\x80\x02c__torch__\nM\nq\x00)\x81q\x01}(X\x01\x00\x00\x00a" + value + b"ub.",
        **{"data/0": bytes(4), "code/__torch__.py": b"class M(Module):\n  __parameters__ = []\n  __buffers__ = []\n"},
    )
    with pytest.raises(CorruptFileError, match=says):
        read_torchscript(io.BytesIO(content))


# CLIP, safetensors, and other things than files


def small_clip(**changes: tuple[int, ...]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    state = CLIP(16, 64, (1, 1, 1, 1), 8, None, 77, 100, 4, 1, 1).state_dict()
    return {**state, **{name: torch.zeros(shape) for name, shape in changes.items()}}


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("visual.attnpool.positional_embedding", (0, 256)), ("visual.layer1.0.conv1.weight", (10**12, 0)),
        ("visual.layer1.0.conv1.weight", (0, 8, 1, 1)), ("visual.attnpool.c_proj.weight", (10**12, 0)),
        ("positional_embedding", (10**9, 0)), ("positional_embedding", (0, 4)), ("token_embedding.weight", (0, 4)),
        ("token_embedding.weight", ()),
    ],
)  # fmt: skip
def test_clips_of_impossible_sizes_are_refused(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    save_file(small_clip(**{name: shape}), tmp_path / "clip.safetensors")
    with expect_error(WeightsError, str(tmp_path / "clip.safetensors"), "CLIP weights"):
        load_clip_state_dict(str(tmp_path / "clip.safetensors"))


def test_a_clip_of_hundreds_of_blocks_is_refused(tmp_path: Path) -> None:
    save_file(small_clip(**{f"visual.layer1.{number}.x": (0,) for number in range(300)}), tmp_path / "clip.safetensors")
    with expect_error(WeightsError, str(tmp_path / "clip.safetensors"), "(300, 1, 1, 1)", "RN50"):
        load_clip_state_dict(str(tmp_path / "clip.safetensors"))


@pytest.mark.parametrize(
    ("rows", "shape"), [((0,), (0, 10**6)), ((1,), (1, 10**5)), ((), ()), ((4,), (4,)), ((1,), (1, 0))]
)
def test_compact_clips_do_not_expand_to_gigabytes(
    tmp_path: Path, rows: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    path = tmp_path / "clip.safetensors"
    save_compact(small_clip(), path, range(4), {})
    state = {"token_rows": torch.zeros(rows, dtype=torch.int32), "token_embedding.weight": torch.zeros(shape)}
    save_file({**small_clip(), **state}, path)
    with expect_error(WeightsError, "token_rows", remedy="train_mini_clip.py"):
        load_clip_state_dict(str(path))


def safetensors_header(text: bytes, length: int) -> bytes:
    return struct.pack("<Q", length) + text.ljust(min(length, 200_000))


@pytest.mark.parametrize(
    "content",
    [
        safetensors_header(b"{", 1 << 40)[:9],
        safetensors_header(b'{"mean":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}', 120),
        safetensors_header(b'{"mean":{"dtype":"F32","shape":[1000000000000,0],"data_offsets":[0,0]}}', 100),
        safetensors_header(b"{" + b'"a":{' * 39_999, 200_000),
    ],
    ids=["a header of a terabyte", "a tensor of terabytes", "terabytes of nothing", "a deep header"],
)
@pytest.mark.parametrize("reader", ["bank", "CLIP", "mined batch"])
def test_safetensors_with_false_claims_are_refused(tmp_path: Path, reader: str, content: bytes) -> None:
    results = PartialResults(tmp_path / "bank", {})
    path = results.folder / "000001.safetensors"
    results.folder.mkdir()
    path.write_bytes(content)
    with pytest.raises(FAMixError, match=r"000001\.safetensors"):
        results.read(1) if reader == "mined batch" else READERS[reader](path)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "nothing"])
def test_readers_refuse_folders_pipes_and_devices(tmp_path: Path, reader: str, kind: str) -> None:
    path = tmp_path / "file.pth"
    make = {"folder": Path.mkdir, "pipe": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero")}
    make.get(kind, lambda path: None)(path)
    with pytest.raises(FAMixError, match=r"file\.pth"):
        READERS[reader](path)


# Resuming


class Counter:
    """An object that is saved along with a model."""

    def __init__(self) -> None:
        self.state = {"count": 1}

    def state_dict(self) -> dict[str, int]:
        return self.state

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.state = {"count": state["count"]}


def resume(folder: Path) -> dict[str, int]:
    checkpointer = SafeCheckpointer(nn.Linear(1, 1), str(folder), trainer=Counter())
    checkpointer.resume_or_load("", resume=True)
    return checkpointer.checkpointables["trainer"].state


@pytest.fixture
def checkpoint(tmp_path: Path) -> dict[str, Any]:
    content = {"model": nn.Linear(1, 1).state_dict(), "trainer": {"count": 7}}
    torch.save(content, tmp_path / "model_0000001.pth")
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    return content


@pytest.mark.parametrize(
    ("change", "key", "value", "remedy"),
    [
        ({"trainer": None}, "trainer", None, ""),
        ({"model": {"weight": torch.zeros(1, 1)}}, "bias", None, "config"),
        ({"trainer": {}}, "model_0000001.pth", "KeyError: 'count'", ""),
    ],
)
def test_resume_rejects_incomplete_checkpoints(
    tmp_path: Path, checkpoint: dict[str, Any], change: Any, key: str, value: str | None, remedy: str
) -> None:
    assert resume(tmp_path) == {"count": 7}
    changed = {name: entry for name, entry in {**checkpoint, **change}.items() if entry is not None}
    torch.save(changed, tmp_path / "model_0000001.pth")
    with expect_error(WeightsError, key, value, remedy):
        resume(tmp_path)


@pytest.mark.parametrize("text", [b"\xff\xfe\xff", b"", b"../../elsewhere\0", b"."])
@pytest.mark.usefixtures("checkpoint")
def test_resume_ignores_a_damaged_name_of_the_last_checkpoint(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "last_checkpoint").write_bytes(text)
    assert resume(tmp_path) == {"count": 7}
