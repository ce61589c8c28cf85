"""Damaged files of every kind load or are refused by the package's own error; `make soak` tries hundreds of each."""

import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from famix.utils.errors import BankError
from robustness import fuzzing
from robustness.formats import FORMATS
from robustness.fuzzing import LOADED, REFUSED, WRONG, Trials, digest
from robustness.mutations import Format

TRIED = 12
SLOW = ("CLIP", "released checkpoint", "checkpoint")  # to load, by tens of milliseconds


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_load_or_are_refused(tmp_path: Path, name: str) -> None:
    trials = Trials(name, tmp_path, seed=0)
    outcomes = [trials.run(number) for number in range(TRIED // 2 if name.startswith(SLOW) else TRIED)]
    assert not [(number, outcome) for number, outcome in enumerate(outcomes) if outcome.kind == WRONG]
    assert any(outcome.kind == REFUSED for outcome in outcomes) == FORMATS[name].refuses


def raise_key_error(path: Path) -> Any:
    raise KeyError("mean")


def take_memory(path: Path) -> Any:
    """Take 512 MiB more than ever: some systems keep the peak of earlier tests, or reclaim idle pages meanwhile."""
    status = Path("/proc/self/status").read_text()
    peak, now = (int(re.search(rf"{name}:\s*(\d+) kB", status)[1]) for name in ("VmHWM", "VmRSS"))
    return torch.ones((peak - now + (512 << 10)) << 8)  # kB to float32


def raise_long_error(path: Path) -> Any:
    raise BankError("Traceback (most recent call last)" + "x" * 3000)


@pytest.mark.parametrize(
    ("load", "says"),
    [
        (raise_key_error, "KeyError: 'mean'"),
        (lambda path: time.sleep(5), "not done after 1 s"),
        (take_memory, r"took \d+ MiB"),
        (raise_long_error, "a message of 3033 characters"),
        (Path.read_bytes, "damage went unnoticed"),
    ],
)
def test_trials_find_faulty_loaders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: Any, says: str) -> None:
    make = FORMATS["style bank"].make
    monkeypatch.setitem(FORMATS, "style bank", Format(make, Path.read_bytes, has_checksum=True))
    monkeypatch.setattr(fuzzing, "_SECONDS", 1)
    monkeypatch.setattr(fuzzing, "_BYTES", 8 << 20)
    trials = Trials("style bank", tmp_path, seed=0)
    trials.format = Format(make, load, has_checksum=True)
    outcome = trials.run(0)
    assert outcome.kind == WRONG and re.search(says, outcome.detail)


def test_trials_follow_from_their_number(tmp_path: Path) -> None:
    trials = Trials("results.json", tmp_path, seed=3)
    written = []
    for number in (4, 5, 4):
        trials.run(number)
        written.append(trials.path.read_bytes())
    assert written[0] == written[2] != written[1]


def test_digests_distinguish_bits_types_and_shapes() -> None:
    values = [
        torch.zeros(2), torch.zeros(2, 1), torch.zeros(2, dtype=torch.int32), torch.tensor([0.0, -0.0]), {"a": 1},
        {"a": 2}, {"b": 1}, [1, 2], [[1], 2], "1", 1, LOADED,
    ]  # fmt: skip
    assert len({digest(value) for value in values}) == len(values)
