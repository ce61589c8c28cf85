"""Documents name existing keys, options, error classes, files and commands; the SLURM script; the citation."""

import os
import re
import stat
import subprocess
from pathlib import Path

import pytest
import yaml

from command_lines import DOCUMENTS
from famix.config import flat_settings
from famix.engine import load_config
from famix.utils import errors
from run_factory import ROOT, load_tool

DOCS = ROOT / "docs"
KEY = re.compile(
    r"\b(?:MODEL|SOLVER|STYLE_MINING|DATASETS|INPUT|TEST|DATALOADER|MODEL_SELECTION)\.[A-Z][A-Z0-9_.]*[A-Z0-9]"
)
OPTIONS_OF_OTHERS = {"--no-deps"}  # pip's


@pytest.mark.parametrize("path", [*DOCUMENTS, ROOT / "CHANGELOG.md"], ids=lambda path: str(path.relative_to(ROOT)))
def test_config_keys_exist(path: Path) -> None:
    text = path.read_text()
    known = set(flat_settings(load_config("")))
    named = set(KEY.findall(text))
    nodes = {key.rsplit(".", depth)[0] for key in known for depth in range(1, key.count(".") + 1)}
    assert named <= known | nodes


def test_troubleshooting_names_existing_errors_and_options() -> None:
    text = (DOCS / "TROUBLESHOOTING.md").read_text()
    named = set(re.findall(r"`(\w+Error)`", text))
    assert named and named <= set(errors.__all__)
    sources = [*(ROOT / "projects/FAMix").rglob("*.py"), *(ROOT / "datasets").glob("*.py")]
    known = set(re.findall(r'"(--[a-z-]+)"', "".join(file.read_text() for file in sources)))
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
    assert options and options <= known | OPTIONS_OF_OTHERS


def test_the_reference_of_keys_is_up_to_date() -> None:
    tool = load_tool("config_reference")
    assert (DOCS / "CONFIG.md").read_text() == tool.write_reference(), "run projects/FAMix/tools/config_reference.py"


def test_comments_are_found_wherever_a_node_is_named() -> None:
    source = (
        "def add(cfg):\n    one = cfg.A.ONE = CN()\n    one.KEY = 1  # first\n    two = cfg.B\n"
        "    two.C.KEY = [1]  # second\n    other.KEY = 2  # not ours\n    cfg.D = 3\n"
    )
    assert load_tool("config_reference").read_comments(source) == {"A.ONE.KEY": "first", "B.C.KEY": "second", "D": ""}


def test_a_stale_reference_has_a_status_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tool, file = load_tool("config_reference"), tmp_path / "CONFIG.md"
    tool.main(["--output", str(file)])
    tool.main(["--output", str(file), "--check"])
    file.write_text(file.read_text() + "\n")
    with pytest.raises(SystemExit) as exit_info:
        tool.main(["--output", str(file), "--check"])
    assert exit_info.value.code == 1
    assert "not up to date" in capsys.readouterr().err


def run_job(folder: Path, status: int, *arguments: str) -> tuple[int, list[str]]:
    """Run the SLURM script where SLURM and Python are scripts that write down how they were called.

    Args:
        folder: of these scripts.
        status: that the training ends with.
        arguments: of the script.

    Returns:
        Its exit status, and the calls.
    """
    calls = folder / "calls"
    scripts = {
        "srun": 'SLURM_NODEID=1 "$@"',
        "scontrol": f'echo "scontrol $*" >>{calls}; echo node1; echo node2',
        "python": f'printf "%s\\n" "python $*" >>{calls}; exit {status}',
    }
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod((folder / name).stat().st_mode | stat.S_IXUSR)
    job = {"SLURM_GPUS_ON_NODE": "4", "SLURM_NNODES": "2", "SLURM_JOB_ID": "50007", "SLURM_JOB_NODELIST": "node[1-2]"}
    environment = {**os.environ, **job, "SLURM_ARRAY_TASK_ID": "3", "PYTHON": str(folder / "python")}
    environment["PATH"] = f"{folder}:{os.environ['PATH']}"
    done = subprocess.run(["bash", str(DOCS / "famix.sbatch"), *arguments], env=environment, check=False, timeout=60)
    return done.returncode, calls.read_text().splitlines()


def test_a_stopped_job_goes_back_into_the_queue(tmp_path: Path) -> None:
    status, calls = run_job(
        tmp_path, 143, "a.yaml", "SEED", "$SLURM_ARRAY_TASK_ID", "OUTPUT_DIR", "out put/$SLURM_ARRAY_TASK_ID"
    )
    assert status == 143
    assert calls[-1] == "scontrol requeue 50007"
    expected = (
        "python projects/FAMix/train_net.py --config-file a.yaml --resume --num-gpus 4 --num-machines 2 --machine-rank 1 "
        "--dist-url tcp://node1:30007 SEED 3 OUTPUT_DIR out put/3"
    )
    assert calls[-2] == expected


@pytest.mark.parametrize("status", [0, 2])
def test_a_job_that_is_done_or_has_a_mistake_is_not_repeated(tmp_path: Path, status: int) -> None:
    ended, calls = run_job(tmp_path, status, "a.yaml")
    assert ended == status
    assert not [call for call in calls if "requeue" in call]


def test_citation_is_complete_and_that_of_the_readme() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "license", "version"} <= citation.keys()
    paper = citation["preferred-citation"]
    assert paper["type"] == "conference-paper" and paper["year"] == 2024
    readme = (ROOT / "README.md").read_text()
    assert paper["title"] in readme and paper["url"] in readme
    names = [author["family-names"] for author in paper["authors"]]
    assert names == ["Fahes", "Vu", "Bursuc", "Pérez", "Charette"]
    version = re.search(r"^version = (\S+)", (ROOT / "setup.cfg").read_text(), flags=re.MULTILINE)
    assert version is not None and citation["version"] == version[1]
    assert f"## {version[1]}" in (ROOT / "CHANGELOG.md").read_text()
