"""What set-up installs must be what the package needs, and the command line that the README names must exist."""

import ast
import configparser
import re
import shutil
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import famix

ROOT = Path(__file__).resolve().parents[1]
PROJECT = ROOT / "projects" / "FAMix"
PACKAGE = PROJECT / "famix"


def read_pins(name: str) -> dict[str, Requirement]:
    """The requirements of one file, without its comments, hashes and includes, by canonical name."""
    lines = [re.split(r"\s+#|\s+--hash", line)[0].strip() for line in (ROOT / name).read_text().splitlines()]
    pins = [Requirement(line) for line in lines if line and not line.startswith(("#", "-r"))]
    return {canonicalize_name(pin.name): pin for pin in pins}


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


@pytest.fixture(scope="module")
def install_requires(setup_cfg: configparser.ConfigParser) -> dict[str, Requirement]:
    listed = setup_cfg["options"]["install_requires"], *setup_cfg["options.extras_require"].values()
    requirements = map(Requirement, "\n".join(listed).split())
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


@cache
def imported_modules(folder: Path) -> set[str]:
    """Top-level names of everything that the Python files below a folder import, relative imports aside."""
    names: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            if isinstance(node, ast.Import):
                names.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("name", ["requirements.txt", "dev/requirements.txt", "dev/no-deps.txt", "dev/docs.txt"])
def test_every_requirement_is_pinned(name: str) -> None:
    for pin in read_pins(name).values():
        assert [specifier.operator for specifier in pin.specifier] == ["=="], f"{pin} in {name} is not a pin"


def test_pins_satisfy_the_metadata(install_requires: dict[str, Requirement]) -> None:
    pins = read_pins("requirements.txt") | read_pins("dev/requirements.txt") | read_pins("dev/docs.txt")
    for name, requirement in install_requires.items():
        assert name in pins, f"setup.cfg requires {name}, which no file of requirements pins"
        (pin,) = pins[name].specifier
        assert requirement.specifier.contains(pin.version), f"{pins[name]} does not satisfy {requirement}"


def test_metadata_names_everything_that_the_package_imports(install_requires: dict[str, Requirement]) -> None:
    installed_elsewhere = {"detectron2", "panopticapi"}  # see setup.cfg
    distributions = metadata.packages_distributions()
    own = {"famix", "famix_app", "famix_cli", "famix_minitown"}
    imported = set().union(*(imported_modules(PROJECT / name) for name in ("famix", "famix_app", "famix_cli")))
    for module in imported - sys.stdlib_module_names - installed_elsewhere - own:
        candidates = {canonicalize_name(name) for name in distributions.get(module, [module])}
        assert candidates & install_requires.keys(), f"famix imports {module}; setup.cfg requires none of {candidates}"


def test_nothing_imports_the_tools_package_of_the_detectron2_wheel() -> None:
    assert "tools" not in imported_modules(PROJECT) | imported_modules(ROOT / "tests")


def test_library_imports_no_plugin_and_nothing_installed_imports_the_benchmarks() -> None:
    assert "famix_minitown" not in imported_modules(PACKAGE)
    scripts = {path.stem for path in (ROOT / "benchmarks").iterdir()}
    assert not imported_modules(PROJECT) & {"benchmarks", *scripts}


def test_every_folder_with_modules_is_a_package() -> None:
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    missing = [folder for folder in folders if not (folder / "__init__.py").is_file()]
    assert not missing, "set-up would not find the modules of folders without an __init__.py"


def test_data_files_are_part_of_the_package(setup_cfg: configparser.ConfigParser) -> None:
    patterns = setup_cfg["options.package_data"]["famix"].split()
    packaged = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    data = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert not data - packaged, "setup.cfg's package_data does not cover these files"


@pytest.mark.parametrize("target", ["setup", "test", "lint", "format", "bench", "clean"])
def test_make_help_lists_target(target: str) -> None:
    listing = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.search(rf"^  make {target} ", listing, re.MULTILINE)


def test_ci_runs_the_check_that_contributors_run() -> None:
    assert re.findall(r"^make (.*)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE) == ["check"]
    assert "make check" in (ROOT / "README.md").read_text()
    plan = subprocess.run(["make", "--dry-run", "check"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "pytest" in plan and "ruff check" in plan and "mypy" in plan


def test_setup_rejects_an_old_python_in_one_line(tmp_path: Path) -> None:
    old_python = tmp_path / "python3.9"
    old_python.write_text('#!/bin/sh\n[ "$1" = -V ] && echo "Python 3.9.0"\nexit 1\n')
    old_python.chmod(0o755)
    run = subprocess.run(
        ["bash", "install.sh"],
        cwd=copy_of_installer(tmp_path),
        env={"PATH": "/usr/bin:/bin", "PYTHON": str(old_python)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert run.stderr.splitlines() == [
        f"make setup: Python 3.11 or newer is required, but '{old_python}' is Python 3.9.0. "
        "Use another one: make setup PYTHON=..."
    ]


def copy_of_installer(folder: Path) -> Path:
    """Copy dev/install.sh, which works in its parent's parent, to where it can do no harm."""
    destination = folder / "project" / "dev"
    destination.mkdir(parents=True)
    shutil.copy(ROOT / "dev" / "install.sh", destination)
    return destination


NAMES = (
    "CLIPResNet", "PromptEncoder", "Predictor", "StyleBank", "Trainer", "add_famix_config", "channel_mean_std",
    "dominant_labels", "load_clip_state_dict", "load_released_checkpoint", "optimize_styles", "register_datasets",
    "restyle_patches",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_that_scripts_of_users_rely_on(name: str) -> None:
    assert name in famix.__all__ and callable(getattr(famix, name))
