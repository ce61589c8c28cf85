import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from famix.files import whole_file


def test_appears_only_when_complete(tmp_path: Path) -> None:
    target = tmp_path / "deeper" / "file.txt"
    with whole_file(target) as part:
        part.write_text("half")
        assert not target.exists() and part.parent == target.parent and part.suffix == ".txt"
    assert target.read_text() == "half"
    assert os.listdir(target.parent) == ["file.txt"]


def test_an_error_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")

    def write_and_fail() -> None:
        with whole_file(target) as part:
            part.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_and_fail()
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["file.txt"]


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with whole_file(tmp_path / "ours.safetensors") as part:
        save_file({"a": torch.zeros(1)}, part)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "ours.safetensors")]
    assert modes[0] == modes[1]
