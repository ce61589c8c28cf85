"""CLIPs and banks that claim what they do not hold, archives with hostile modules, and paths that lead to no file."""

import io
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from error_matching import expect_error
from famix.clip.export import save_compact
from famix.clip.openai import CLIP
from famix.clip.weights import load_clip_state_dict
from famix.io import read_torchscript
from famix.mining.partial_results import PartialResults
from famix.utils.errors import CorruptFileError, FAMixError, WeightsError
from robustness.hostile_files import READERS, packed


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
def test_archives_are_read_as_torch_reads_them(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(Plain()), str(tmp_path / "plain.pt"))
    with (tmp_path / "plain.pt").open("rb") as file:
        ours = read_torchscript(file).tensors
    theirs = torch.jit.load(str(tmp_path / "plain.pt")).state_dict()
    assert ours.keys() == theirs.keys() and "loose" not in ours
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


MODULE = b"\x80\x02c__torch__\nM\nq\x00)\x81q\x01}("
CODE = {"code/__torch__.py": b'class M(Module):\n  __parameters__ = ["a", ]\n  __buffers__ = []\n'}


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (b"X\x01\x00\x00\x00ah\x01ub.", "contain each other"),  # a module that is its own submodule
        (b"X\x01\x00\x00\x00acos\nmkdir\nub.", "refers to os.mkdir"),
        (b"X\x01\x00\x00\x00a(X\x01\x00\x00\x00sctorch\nFloatStorage\nX\x01\x00\x00\x000NJ\xff\xff\xff\x7ftQub.", "has another size"),
        (b"X\x01\x00\x00\x00a(X\x01\x00\x00\x00sctorch\nFloatStorage\nX\x01\x00\x00\x001NK\x01tQub.", "There is no item"),
    ],
)  # fmt: skip
def test_hostile_archives(state: bytes, says: str) -> None:
    with pytest.raises(CorruptFileError, match=says):
        read_torchscript(io.BytesIO(packed(MODULE + state, **CODE, **{"data/0": bytes(4)})))


def small_clip(**changes: tuple[int, ...]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    state = CLIP(16, 64, (1, 1, 1, 1), 8, None, 77, 100, 4, 1, 1).state_dict()
    return {**state, **{name: torch.zeros(shape) for name, shape in changes.items()}}


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("visual.attnpool.positional_embedding", (0, 256)),
        ("visual.layer1.0.conv1.weight", (10**12, 0)),
        ("visual.layer1.0.conv1.weight", (0, 8, 1, 1)),
        ("visual.attnpool.c_proj.weight", (10**12, 0)),
        ("positional_embedding", (10**9, 0)),
        ("positional_embedding", (0, 4)),
        ("token_embedding.weight", (0, 4)),
        ("token_embedding.weight", ()),
    ],
)
def test_clips_of_impossible_sizes(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    save_file(small_clip(**{name: shape}), tmp_path / "clip.safetensors")
    with expect_error(WeightsError, str(tmp_path / "clip.safetensors"), "CLIP weights"):
        load_clip_state_dict(str(tmp_path / "clip.safetensors"))


def test_a_clip_of_hundreds_of_blocks(tmp_path: Path) -> None:
    blocks = {f"visual.layer1.{number}.x": (0,) for number in range(300)}
    save_file(small_clip(**blocks), tmp_path / "clip.safetensors")
    with expect_error(WeightsError, str(tmp_path / "clip.safetensors"), "(300, 1, 1, 1)", "RN50"):
        load_clip_state_dict(str(tmp_path / "clip.safetensors"))


@pytest.mark.parametrize(
    ("rows", "shape"), [((0,), (0, 10**6)), ((1,), (1, 10**5)), ((), ()), ((4,), (4,)), ((1,), (1, 0))]
)
def test_compact_clips_that_would_unfold_to_gigabytes(
    tmp_path: Path, rows: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    path = tmp_path / "clip.safetensors"
    save_compact(small_clip(), path, range(4), {})
    state = {"token_rows": torch.zeros(rows, dtype=torch.int32), "token_embedding.weight": torch.zeros(shape)}
    save_file({**small_clip(), **state}, path)
    with expect_error(WeightsError, "token_rows", remedy="train_mini_clip.py"):
        load_clip_state_dict(str(path))


# Safetensors, and files that are none


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 1 << 40) + b"{",
        struct.pack("<Q", 120)
        + b'{"mean":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'.ljust(120),
        struct.pack("<Q", 100) + b'{"mean":{"dtype":"F32","shape":[1000000000000,0],"data_offsets":[0,0]}}'.ljust(100),
        struct.pack("<Q", 200_000) + b"{" + b'"a":{' * 39_999 + b"    ",
    ],
    ids=["a header of a terabyte", "a tensor of terabytes", "terabytes of nothing", "a deep header"],
)
@pytest.mark.parametrize("reader", ["bank", "CLIP", "mined batch"])
def test_safetensors_that_claim_what_they_do_not_hold(tmp_path: Path, reader: str, content: bytes) -> None:
    folder = PartialResults(tmp_path / "bank", {}).folder
    folder.mkdir()
    path = folder / "000001.safetensors"
    path.write_bytes(content)
    with pytest.raises(FAMixError, match=r"000001\.safetensors"):
        PartialResults(tmp_path / "bank", {}).read(1) if reader == "mined batch" else READERS[reader](path)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "nothing"])
def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path, reader: str, kind: str) -> None:
    path = tmp_path / "file.pth"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    with pytest.raises(FAMixError, match=r"file\.pth"):
        READERS[reader](path)
