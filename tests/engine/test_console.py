"""What a run shows to its user: on a terminal, in a file, and in log.txt."""

import fcntl
import os
import pty
import re
import shlex
import struct
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from detectron2.utils import comm

from famix.utils.progress import on_terminal
from famix_minitown.runs.runner import _STATUS
from run_factory import Workspace, parser_of

DUMPS = ("Environment info", "Command line arguments", "Running with full config", "Model:\n", "from scratch")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("console"))


@contextmanager
def terminal() -> Iterator[Callable[[], str]]:
    """Gives the process a terminal of 100 columns as its standard error; what it gives returns what was written there."""
    screen, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    os.set_blocking(screen, False)

    def read() -> str:
        parts = []
        while True:
            try:
                parts.append(os.read(screen, 1 << 16))
            except BlockingIOError:
                return b"".join(parts).decode()

    with os.fdopen(side, "w") as stream, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stderr", stream)
        yield read
    os.close(screen)


def table(text: str, head: str) -> dict[str, str]:
    """Rows of a summary, name -> value."""
    lines = text.split(f"{head}\n", 1)[1].splitlines()
    rows = [re.fullmatch(r"  (\S+(?: \S+)?)\s{2,}(\S.*)", line) for line in lines]
    end = rows.index(None) if None in rows else len(rows)
    return {row[1]: row[2] for row in reversed(rows[:end]) if row}  # of several rows of one name, the first


def assert_parsed_by_its_script(command: str) -> None:
    python, script, *words = shlex.split(command)
    assert python.startswith("python")
    path = Path(os.getcwd(), script)
    parser_of(path).parse_args(words if path.name != "inspect_bank.py" else ["show", *words])


def test_a_run_in_a_file(workspace: Workspace, capfd: pytest.CaptureFixture[str]) -> None:
    workspace.run("run", "SEED", "3")
    printed = capfd.readouterr().out
    log, output = (workspace.folder / "run/log.txt").read_text(), str(workspace.folder / "run")
    assert not [words for words in DUMPS if words in printed]
    assert all(words in log for words in DUMPS[:-1]) and DUMPS[-1] not in log
    assert "\033" not in printed + log
    assert "Total inference pure compute time" in log and "inference" not in printed
    assert [f"scoring {name}: 2 batches" in printed for name in ("tiny_val", "tiny_night")] == [True, True]
    assert len(printed.splitlines()) < 90, "beside the tables of 19 classes"

    start = table(printed, "training and evaluation:")
    expected = {
        "source": "tiny_train", "targets": "tiny_night (by name", "CLIP": str(workspace.clip),
        "also scored": "tiny_val", "network": "FAMixSemanticSegmentor", "trainable": "million parameters (layer4 of CLIP",
        "styles": f"{output}/style_bank.safetensors (to be mined first)", "iterations": "4 with 2 images each", "run": output,
        "device": "cpu", "seed": "3",
    }  # fmt: skip
    assert list(start) == [name for name in start if name in expected] and start.keys() == expected.keys()
    assert all(value in start[name] for name, value in expected.items())
    assert len(start) <= 12

    matches = [match.groupdict() for match in _STATUS.finditer(printed)]  # as the town's runner reads it
    assert matches[0]["mined"] and matches[-1]["scoring"]
    assert [match["iteration"] for match in matches if match["iteration"]] == ["0", "3"]

    end = table(printed, "Done:")
    for file in (*end["results"].split(" and "), end["checkpoint"], end["style bank"], end["log"]):
        assert Path(file).is_file()
    commands = re.findall(r"^  next +(.*)$", printed, re.MULTILINE)
    assert ["report.py" in commands[0], "demo.py" in commands[1]] == [True, True]
    for command in commands:
        assert_parsed_by_its_script(command)


def test_a_run_on_a_terminal(workspace: Workspace, capfd: pytest.CaptureFixture[str]) -> None:
    with terminal() as written:
        workspace.run("terminal")
        bars, printed = written(), capfd.readouterr().out
    for name, steps in (("mining styles", 3), ("training", 4), ("scoring tiny_val", 2), ("scoring tiny_night", 2)):
        assert re.search(rf"{name}: +\d+%\|.*\| \d+/{steps} \[", bars), name
    assert re.search(r"training: 100%.*4/4 \[.*loss=\d", bars)
    assert not _STATUS.search(printed), "a bar and lines say the same"
    assert printed.startswith("Checked "), "no time before every line"
    assert "iter: 3" in (workspace.folder / "terminal/log.txt").read_text()
    assert "Done:" in printed and "Results in percent:" in printed


def test_a_resumed_run_says_from_where(workspace: Workspace, capfd: pytest.CaptureFixture[str]) -> None:
    workspace.run("resumed", "SOLVER.MAX_ITER", "2")
    capfd.readouterr()
    workspace.run("resumed", flags=("--resume",))
    start = table(capfd.readouterr().out, "training and evaluation:")
    assert start["iterations"].endswith("resuming at iteration 2")
    assert "existing" in start["styles"]


def test_mining_alone_and_scoring_alone(workspace: Workspace, capfd: pytest.CaptureFixture[str]) -> None:
    workspace.run("alone", flags=("--mine-styles-only",))
    printed = capfd.readouterr().out
    assert "iterations" not in table(printed, "style mining:") and "results" not in table(printed, "Done:")
    assert len(re.findall(r"no styles for: .*\bpole\b", printed)) == 1, "as in a training run"
    for command in re.findall(r"^  next +(.*)$", printed, re.MULTILINE):
        assert_parsed_by_its_script(command)
    workspace.run("trained", "MODEL.STYLE.STRATEGY", "none", "SOLVER.MAX_ITER", "1")
    weights = str(workspace.folder / "trained/model_final.pth")
    capfd.readouterr()
    workspace.run("scored", "MODEL.WEIGHTS", weights, flags=("--eval-only",))
    printed = capfd.readouterr().out
    assert not {"styles", "trainable", "iterations"} & table(printed, "evaluation:").keys()
    assert f"--weights {weights} " in printed
    assert "checkpoint" not in table(printed, "Done:")


def test_other_processes_and_terminals_without_width_show_no_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal() as written:
        assert on_terminal()
        with monkeypatch.context() as other:
            other.setattr(comm, "get_rank", lambda: 1)
            assert not on_terminal()
        fcntl.ioctl(sys.stderr.fileno(), termios.TIOCSWINSZ, struct.pack("HHHH", 0, 0, 0, 0))
        assert not on_terminal(), "a bar of no width is not to be seen"
        assert written() == ""
