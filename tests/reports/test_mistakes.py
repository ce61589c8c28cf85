"""Mistakes of users and damaged files: one line and exit status 2 of every command."""

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from error_matching import error_line, explains, line_of_mistake
from report_factory import make_run_folder
from reports.banks import make_bank
from run_factory import Workspace, load_tool

Output = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("tool", "words", "key", "remedy"),
    [
        ("compare_runs", "nowhere", "nowhere", "OUTPUT_DIR"),
        ("compare_runs", "empty", "empty", "OUTPUT_DIR"),
        ("compare_runs", "loop", "loop", ""),
        ("compare_runs", "run copy", "seeds", "SEED"),
        ("compare_runs", "run --baseline nothing", "--baseline", "famix"),
        ("compare_runs", "run --metric PQ", "--metric", "mIoU"),
        ("compare_runs", "run --output table.txt", "--output", "table.txt"),
        ("compare_runs", "run --output run/results.json/table.md", "run/results.json", ""),
        ("report", "nowhere --examples 0 --output out", "nowhere", "OUTPUT_DIR"),
        ("report", "loop --examples 0 --output out", "loop", ""),
        ("report", "run copy --examples 0 --output out", "seeds", "SEED"),
        ("inspect_bank", "none.safetensors", "none.safetensors", ""),
        ("inspect_bank", "bank --clip none.pt", "none.pt", ""),
        ("inspect_bank", "filter bank --class skye --output out", "--class", "Did you mean 'sky'?"),
        ("inspect_bank", "merge bank other --output out", "stage", "same CLIP"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output, tool: str, words: str, key: str, remedy: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(make_run_folder(tmp_path / "run"), "copy")
    os.symlink("loop", "loop")
    os.mkdir("empty")
    make_bank().save("bank")
    make_bank(stage="res3").save("other")
    explains(line_of_mistake(capsys, load_tool(tool).main, *words.split()), key, remedy=remedy)
    assert not os.path.exists("out")


@pytest.mark.parametrize(
    ("arguments", "options", "key"),
    [
        (["--bank", "none.safetensors"], [], "none.safetensors"),
        ([], ["MODEL.STYLE.GRID", "[1, 1]"], "MODEL.STYLE.GRID"),
        ([], ["MODEL.CLIP.WEIGHTS", ""], "MODEL.CLIP.WEIGHTS"),
        (["--weights", "none.pth"], [], "none.pth"),
        (["--own-weight", "2"], [], "--own-weight"),
    ],
)
def test_mistakes_of_previews_are_one_line(
    workspace: Workspace, capsys: Output, arguments: list[str], options: list[str], key: str
) -> None:
    config, *overrides = workspace.arguments("run", *options)[1:]
    image = str(workspace.folder / "data/images/val/0.png")
    words = ["preview", "--config-file", config, "--image", image, *arguments, "--", *overrides]
    with workspace.registered():
        assert load_tool("inspect_bank").main(words) == 2
    explains(error_line(capsys), key)


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 12)
)
DAMAGED = [
    *(("config.yaml", text) for text in ("[1, 2]", "a: [", BOMB, "a: 2001-99-99", "a: " + "9" * 5000, b"a: \xff", "[" * 9999)),
    *(("results.json", text) for text in ("{}x", "[]", '{"a', b"\xff", "{" * 9999, '{"a": {"b": {"c": NaN}}}')),
]  # fmt: skip
CHANGES: dict[str, Callable[[dict], object]] = {
    "an infinite score": lambda plain: plain["gta5_val"]["sem_seg"].update(mIoU=math.inf),
    "a score that is a list": lambda plain: plain["gta5_val"]["sem_seg"].update(mIoU=[]),
    "a file that is a number": lambda plain: plain["report"]["run"]["weights"].update(file=5),
    "a seed that is a text": lambda plain: plain["report"]["run"].update(seed="1"),
    "a method that is a list": lambda plain: plain["report"]["run"].update(method=["famix"]),
    "a missing date": lambda plain: plain["report"]["run"].pop("date"),
    "versions that are a list": lambda plain: plain["report"]["run"].update(versions=["1"]),
    "classes that are a text": lambda plain: plain["report"]["data_sets"]["gta5_val"].update(classes="road"),
    "a heading that is null": lambda plain: plain["report"]["data_sets"]["gta5_val"].update(heading=None),
    "half a character": lambda plain: plain["report"]["run"].update(method="famix \ud800"),
    "a version of two lines": lambda plain: plain["report"].update(format_version="1\n2"),
    "a run that is a list": lambda plain: plain["report"].update(run=[1]),
    "no run": lambda plain: plain["report"].pop("run"),
    "no datasets": lambda plain: plain["report"].pop("data_sets"),
    "another format": lambda plain: plain["report"].update(format_version=3),
    **{f"the rule {rule}": lambda plain, rule=rule: plain["report"]["data_sets"]["gta5_val"].update(absent_classes=rule)
       for rule in ("none", 3, None)},
}  # fmt: skip


@pytest.mark.parametrize(("file", "content"), [*DAMAGED, *(("results.json", change) for change in CHANGES)])
def test_damaged_files_are_one_line(tmp_path: Path, capsys: Output, file: str, content: str | bytes) -> None:
    folder = make_run_folder(tmp_path / "a")
    if content in CHANGES:
        plain = json.loads((folder / "results.json").read_text())
        CHANGES[str(content)](plain)
        content = json.dumps(plain)
    (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)
    commands = [("report", ["--output", str(tmp_path / "page.html"), "--examples", "0"])]
    commands += [("compare_runs", [])] if file == "results.json" else []
    for command, options in commands:
        line = line_of_mistake(capsys, load_tool(command).main, folder, *options)
        assert len(line) < 1500
        explains(line, str(folder / file), remedy="--eval-only" if file == "results.json" else "")
    assert not (tmp_path / "page.html").exists()
