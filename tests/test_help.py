"""--help and mistakes on the command line need no PyTorch, and the examples of --help are accepted."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from famix import config_file
from famix.clip import ARCHITECTURES
from famix.data.images import MAX_PIXELS
from famix.inference.video import DEFAULT_RATE
from famix.inference.views import VIEWS
from famix.mining.miner import METRICS
from famix.reports.comparison import GROUPINGS
from famix_minitown.clip.contrastive import DTYPES, TrainingPlan
from famix_minitown.clip.crops import RECORD
from famix_minitown.datasets import CLIP_TRAIN_FIRST_SEED, CLIP_VAL_FIRST_SEED
from famix_minitown.rendering.conditions import CONDITIONS, DEVELOPMENT_CONDITIONS
from famix_minitown.rendering.scene import SIZE
from run_factory import ROOT, load_benchmark, load_tool, parser_of

PROJECT = ROOT / "projects/FAMix"
BENCHMARKS = (
    "bench", "demo_video", "evaluation", "export", "gpu", "mining_direction", "minitown",
    "minitown_looks", "minitown_rendering", "panoptic", "protocols", "soak", "streets", "towers",
)  # fmt: skip
COMMANDS = [
    PROJECT / "train_net.py", PROJECT / "demo.py", *sorted((PROJECT / "tools").glob("*.py")),
    *(path for path in sorted((ROOT / "datasets").glob("*.py")) if "__main__" in path.read_text()),
    *(ROOT / f"benchmarks/{name}.py" for name in BENCHMARKS),
]  # fmt: skip


@pytest.fixture(scope="module")
def no_torch(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("stubs")
    for name in ("torch", "detectron2", "torchvision", "famix"):
        (folder / f"{name}.py").write_text(f"raise RuntimeError('{name} was imported')")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(PROJECT)])}


def call(script: Path, environment: dict[str, str], *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(script), *words],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("script", COMMANDS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_help_and_errors_need_no_torch(script: Path, no_torch: dict[str, str]) -> None:
    shown = call(script, no_torch, "--help")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith(f"usage: {script.name}")
    mistaken = call(script, no_torch, "--no-such-option")
    assert mistaken.returncode == 2
    assert "was imported" not in mistaken.stderr
    assert mistaken.stderr.splitlines()[-1].startswith(f"{script.name}")


def test_all_benchmarks_are_covered() -> None:
    scripts = [path for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text()]
    assert {path.stem for path in scripts} == set(BENCHMARKS)


def examples(text: str, name: str) -> list[list[str]]:
    """Return the words of every command line of a script in a text, with indented continuation lines."""
    joined = re.sub(r"\n {20,}", " ", text)
    return [shlex.split(line.split("   ")[0]) for line in re.findall(rf"{re.escape(name)} (.*)", joined)]


@pytest.mark.parametrize("script", COMMANDS[: -len(BENCHMARKS)], ids=lambda path: f"{path.parent.name}/{path.name}")
def test_examples_parse(script: Path) -> None:
    parser = parser_of(script)
    found = examples((parser.epilog or "").replace("%(prog)s", script.name), script.name)
    assert found or "xample" not in (parser.epilog or "")
    for words in found:
        words = ["0" if word == "0|1" else word for word in words]
        if script.name == "inspect_bank.py" and words[0] not in ("merge", "filter", "validate"):
            words.insert(0, "show")  # which the command adds itself
        parser.parse_args(words)  # exits if it does not take them
        for word in words:
            if word.startswith("famix://"):
                assert Path(config_file(word)).is_file(), word
            elif word.endswith(".yaml"):
                assert (PROJECT / word).is_file() or (ROOT / word).is_file(), word


def test_parsers_match_package() -> None:
    # Parsers cannot import these values.
    options = {
        path.name: {option: action for action in parser_of(path)._actions for option in action.option_strings}
        for path in COMMANDS
        if path.name in ("compare_runs.py", "make_random_clip.py", "demo.py", "check.py", "minitown.py")
        and path.parent.name != "benchmarks"
    }
    assert options["compare_runs.py"]["--group-by"].choices == GROUPINGS
    assert options["make_random_clip.py"]["--architecture"].choices == tuple(ARCHITECTURES)
    assert set(options["demo.py"]["--view"].choices or ()) == {*VIEWS, "all"}
    assert f"default: {DEFAULT_RATE:g}" in str(options["demo.py"]["--rate"].help)
    assert options["check.py"]["--max-pixels"].default == MAX_PIXELS
    assert options["minitown.py"]["--condition"].choices == (*CONDITIONS, *DEVELOPMENT_CONDITIONS)
    assert options["minitown.py"]["--size"].default == SIZE


def test_benchmark_parsers_match_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))  # which the soak sets for itself
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert load_benchmark("mining_direction").METRICS == METRICS
    assert load_benchmark("minitown_rendering").SIZE == SIZE


def test_clip_parser_matches_package() -> None:
    tool = load_tool("train_mini_clip")
    plan = TrainingPlan()
    assert {name: getattr(plan, name) for name in tool.DEFAULTS} == tool.DEFAULTS
    assert (tuple(DTYPES), plan.dtype) == (tool.DTYPES, tool.DTYPES[0])
    assert tool.TRAIN_CROPS.looks * tool.TRAIN_CROPS.crops == tool.CROPS_PER_SCENE
    assert pytest.approx(tool.MEGABYTES_PER_SCENE) == tool.CROPS_PER_SCENE * RECORD.itemsize / 1e6
    assert tool.MOST_SCENES == CLIP_VAL_FIRST_SEED - CLIP_TRAIN_FIRST_SEED
