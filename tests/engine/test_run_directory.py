"""One run at a time writes into a run directory, and none over another unless it is told to."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from error_matching import expect_error
from famix.io.atomic import FileLock
from famix.utils.errors import BankError, ConfigError, WeightsError
from run_factory import Workspace

QUICK = ("SOLVER.MAX_ITER", "1", "MODEL.STYLE.STRATEGY", "noise", "DATASETS.TEST", "('tiny_val',)")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """With a finished run in "finished"."""
    workspace = Workspace(tmp_path_factory.mktemp("workspace"))
    workspace.run("finished", *QUICK)
    return workspace


def contents(folder: Path) -> dict[str, bytes]:
    # The log is still open in this process, and a refused run may log what it checks.
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != "log.txt"}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Another process writes into a run directory."""
    folder.mkdir(exist_ok=True)
    (ready, tell), (wait, done) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        FileLock(folder / "run.lock")
        os.write(tell, b"x")
        os.close(done)
        os.read(wait, 1)  # until the other end is closed
        os._exit(0)
    os.read(ready, 1)
    try:
        yield
    finally:
        os.close(done)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("left", ["all", "model_final.pth", "model_best.pth", "model_0000001.pth", "metrics.json"])
def test_existing_run_is_not_replaced(workspace: Workspace, left: str) -> None:
    folder = workspace.folder / "finished"
    if left != "all":
        folder = workspace.folder / f"left_{left}"
        folder.mkdir()
        (folder / left).write_text("content")
    before = contents(folder)
    for remedy in ("--resume", "--overwrite", "OUTPUT_DIR"):
        with expect_error(ConfigError, "OUTPUT_DIR", folder, remedy):
            workspace.run(folder.name, *QUICK)
    assert contents(folder) == before


@pytest.mark.parametrize("flags", [(), ("--resume",), ("--eval-only",), ("--mine-styles-only",), ("--overwrite",)])
def test_directory_in_use_is_refused(workspace: Workspace, flags: tuple[str, ...]) -> None:
    folder = workspace.folder / "in_use"
    with locked(folder), expect_error(ConfigError, "OUTPUT_DIR", folder, "OUTPUT_DIR"):
        workspace.run("in_use", *QUICK, flags=flags)
    assert os.listdir(folder) == ["run.lock"]


def test_directory_with_bank_and_configs_is_free(workspace: Workspace) -> None:
    folder = workspace.folder / "free"
    folder.mkdir()
    for name in ("style_bank.safetensors", "config.yaml", "log.txt", "notes.md", "model.pth", "run.lock"):
        (folder / name).write_text("content")
    (folder / "metrics.json").touch()  # of a run that failed before its first iteration
    workspace.run("free", *QUICK)
    assert (folder / "model_final.pth").exists() and not (folder / "run.lock").exists()


def test_overwrite_keeps_foreign_files(workspace: Workspace) -> None:
    folder = workspace.folder / "overwritten"
    options = (*QUICK, "SOLVER.MAX_ITER", "2", "SOLVER.CHECKPOINT_PERIOD", "1")
    workspace.run("overwritten", *options)
    old = [path for path in folder.iterdir() if path.name.startswith(("events.", "model_", "results."))]
    kept = [folder / "style_bank.safetensors", folder / "notes.md", folder / "my_model.pth"]
    for path in kept:
        path.write_text("kept")
    workspace.run("overwritten", *QUICK, "SEED", "5", flags=("--overwrite",))
    assert workspace.checkpoint("overwritten")["iteration"] == 0
    assert {path.name for path in folder.glob("model_*.pth")} == {"model_final.pth"}
    assert len(list(folder.glob("events.*"))) == 1 and len(old) > 4
    assert [path.read_text() for path in kept] == ["kept"] * len(kept)
    assert (folder / "metrics.json").read_text().count("lr") == 1


@pytest.mark.parametrize("wrong", ["bank", "weights", "weights of the run"])
def test_failed_overwrite_removes_nothing(workspace: Workspace, wrong: str) -> None:
    folder = workspace.folder / "finished"
    own, bank, missing = folder / "model_final.pth", workspace.folder / "bank.safetensors", workspace.folder / "no.pth"
    bank.write_bytes(b"damaged")
    options, error, named = {
        "bank": (("MODEL.STYLE.STRATEGY", "bank", "MODEL.STYLE.BANK", str(bank)), BankError, bank),
        "weights": (("MODEL.WEIGHTS", str(missing)), WeightsError, missing),
        "weights of the run": (("MODEL.WEIGHTS", str(own)), ConfigError, own),
    }[wrong]
    before = contents(folder)
    with expect_error(error, str(named)):
        workspace.run("finished", *QUICK, "SEED", "9", *options, flags=("--overwrite",))
    assert contents(folder) == before


def test_refused_resume_of_old_run_writes_nothing(workspace: Workspace) -> None:
    folder = workspace.folder / "of_0.1"
    shutil.copytree(workspace.folder / "finished", folder)
    torch.save(workspace.checkpoint("of_0.1"), folder / "model_final.pth")  # without settings
    before = contents(folder)
    with locked(folder), expect_error(ConfigError, "OUTPUT_DIR", folder, "OUTPUT_DIR"):
        workspace.run(folder.name, *QUICK, "SOLVER.MAX_ITER", "2", flags=("--resume",))
    assert contents(folder).keys() - {"run.lock"} == before.keys()


@pytest.mark.parametrize("flag", ["--eval-only", "--mine-styles-only"])
def test_evaluation_keeps_settings_of_run(workspace: Workspace, flag: str) -> None:
    folder, kept = workspace.folder / "finished", ("config.yaml", "model_final.pth")
    before = [(folder / name).read_bytes() for name in kept]
    weights = ("MODEL.WEIGHTS", str(folder / "model_final.pth"))
    workspace.run("finished", *QUICK, *weights, "TEST.PROTOCOL", "flip", "SOLVER.BASE_LR", "0.5", flags=(flag,))
    assert [(folder / name).read_bytes() for name in kept] == before
    assert not (folder / "run.lock").exists()


def test_directory_of_any_name(workspace: Workspace) -> None:
    name = " 100% [#*]\na?b "
    workspace.run(name, *QUICK)
    workspace.run(name, *QUICK, "SOLVER.MAX_ITER", "2", flags=("--resume",))
    assert workspace.checkpoint(name)["iteration"] == 1
    results = workspace.run(
        name, *QUICK, "MODEL.WEIGHTS", f"{workspace.folder}/{name}/model_final.pth", flags=("--eval-only",)
    )
    assert results.keys() == {"tiny_val"} and (workspace.folder / name / "results.md").exists()
