from pathlib import Path

import pytest

from famix.utils.messages import counted, file_size


@pytest.mark.parametrize(
    ("number", "noun", "expected"),
    [(1, "style", "1 style"), (0, "style", "0 styles"), (2, "class", "2 classes"), (1, "class", "1 class"), (3, "batch", "3 batches")],
)  # fmt: skip
def test_counted(number: int, noun: str, expected: str) -> None:
    assert counted(number, noun) == expected


@pytest.mark.parametrize(("size", "text"), [(512, "0.5 KiB"), (1 << 20, "1.0 MiB"), (3 << 19, "1.5 MiB")])
def test_sizes_of_files(size: int, text: str, tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.truncate(size)
    assert file_size(tmp_path / "file") == text
