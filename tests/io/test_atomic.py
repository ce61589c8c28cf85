import errno
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from famix.io import atomic as files
from famix.io.atomic import FileLock, remove_stale_parts, whole_file
from robustness.faults import kill_own_process, run_and_kill


def test_whole_file_appears_when_complete(tmp_path: Path) -> None:
    target = tmp_path / "deeper" / f"{'ü' * 120}.txt"
    with whole_file(target) as part:
        part.write_text("half")
        assert not target.exists() and part.parent == target.parent and part.suffix == ".txt"
    assert target.read_text() == "half" and os.listdir(target.parent) == [target.name]


def test_error_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), whole_file(target) as part:  # noqa: PT012
        part.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["file.txt"]


def test_folder_without_files_is_an_error_at_the_first_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    names = iter(["once"])
    monkeypatch.setattr(files.secrets, "token_hex", lambda size: next(names))
    with pytest.raises(FileNotFoundError), whole_file("/proc/file"):
        pass


def test_permissions_are_the_default(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with whole_file(tmp_path / "ours.safetensors") as part:
        save_file({"a": torch.zeros(1)}, part)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "ours.safetensors")]
    assert modes[0] == modes[1]


LOCK = """
import fcntl, os, sys, time
fcntl.flock(os.open(sys.argv[1], os.O_RDWR | os.O_CREAT), fcntl.LOCK_EX)
print(flush=True)
time.sleep(60)
"""


@contextmanager
def locked_by_another_process(path: Path) -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-c", LOCK, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "\n"
        try:
            yield
        finally:
            process.kill()


def test_parts_of_killed_processes_are_removed(tmp_path: Path) -> None:
    def write_and_die() -> None:
        with whole_file(tmp_path / "results.json") as part:
            part.write_text("half")
            kill_own_process()

    assert run_and_kill(write_and_die) == -signal.SIGKILL
    (stale,) = tmp_path.iterdir()
    living = tmp_path / f".video.{'0' * 16}.part.mp4"
    foreign = [tmp_path / ".video.part", tmp_path / f"{'0' * 16}.part", tmp_path / ".hidden"]
    for path in foreign:
        path.touch()
    with locked_by_another_process(living):
        files._remove_stale_parts_once.cache_clear()
        with whole_file(tmp_path / "other.txt") as part:  # the first of a process in this folder
            remove_stale_parts(tmp_path)  # keeps the part of its own process
            part.write_text("whole")
        assert not stale.exists() and living.exists() and all(path.exists() for path in foreign)
    remove_stale_parts(tmp_path)
    assert not living.exists() and (tmp_path / "other.txt").read_text() == "whole"


def test_planted_links_are_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    precious, target = tmp_path / "precious", tmp_path / "out.txt"
    precious.write_text("precious")
    names = set()
    for _ in range(2):
        with whole_file(target) as part:
            names.add(part.name)
    tokens = iter(["a" * 16, "b" * 16])
    (tmp_path / f".out.{'a' * 16}.part.txt").symlink_to(precious)
    monkeypatch.setattr(files.secrets, "token_hex", lambda size: next(tokens))
    with whole_file(target) as part:
        part.write_text("new")
    assert len(names) == 2 and target.read_text() == "new" and precious.read_text() == "precious"


def test_a_lock_ends_with_its_process_but_not_with_its_forks(tmp_path: Path) -> None:
    path, (read, write) = tmp_path / "lock", os.pipe()
    holder = os.fork()
    if holder == 0:
        FileLock(path)
        if os.fork() == 0:
            os.write(write, str(os.getpid()).encode())
        time.sleep(60)
        os._exit(0)
    worker = int(os.read(read, 10))
    try:
        with pytest.raises(BlockingIOError):
            FileLock(path)
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        lock = FileLock(path)  # although its fork, such as a worker of a loader, lives on
    finally:
        os.kill(worker, signal.SIGKILL)
    with pytest.raises(BlockingIOError):
        FileLock(path)
    lock.close(remove=True)
    lock.close()
    assert not path.exists()
    FileLock(path).close()


def test_file_systems_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(files.fcntl, "flock", fail)
    stale = tmp_path / f".video.{'0' * 16}.part.mp4"
    stale.touch()
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert not first.is_held and not second.is_held
    remove_stale_parts(tmp_path)
    with whole_file(tmp_path / "file") as part:
        part.write_text("content")
    assert stale.exists() and (tmp_path / "file").read_text() == "content"
