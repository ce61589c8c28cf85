"""The wheel: its content, its console commands in an empty folder, and its metadata."""

import configparser
import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

import famix
from run_factory import ROOT, Workspace, load_script

ADDRESS = "https://example.org/famix"
COMMANDS = ("train", "demo", "report", "compare", "bank", "export", "import", "publish", "check", "town", "app")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the repository, in which REPOSITORY_URL is set."""
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "projects/FAMix", source / "projects/FAMix", symlinks=True, ignore=ignored)
    settings = (source / "setup.cfg").read_text()
    assert settings.count("REPOSITORY_URL =\n") == 1, "the committed setting is empty"
    (source / "setup.cfg").write_text(settings.replace("REPOSITORY_URL =\n", f"REPOSITORY_URL = {ADDRESS}\n"))
    pip(source, "wheel", "--no-build-isolation", "--wheel-dir", "dist", ".")
    (file,) = (source / "dist").glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into a folder, with its commands in bin/."""
    folder = tmp_path_factory.mktemp("installed")
    pip(folder, "install", "--target", str(folder), str(wheel))
    return folder


def pip(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check", *arguments]
    done = subprocess.run(
        [*command, "--no-deps", "--no-index"], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


def call(installed: Path, folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run Python with the installed package, which precedes the clone, in another folder."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-P", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_content(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    configs = ROOT / "projects/FAMix/configs"
    expected = {f"famix/configs/{file.relative_to(configs)}" for file in configs.rglob("*") if file.is_file()}
    for package in ("famix", "famix_app", "famix_cli", "famix_minitown"):
        files = (ROOT / "projects/FAMix" / package).rglob("*")
        expected |= {str(file.relative_to(ROOT / "projects/FAMix")) for file in files if file.is_file()}
    expected = {name for name in expected if not name.endswith((".pyc", "README.md"))}
    assert not expected - names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {
        "famix", "famix_app", "famix_cli", "famix_minitown"
    }  # fmt: skip


def test_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    assert metadata["Version"] == famix.__version__
    links = metadata.get_all("Project-URL", [])
    assert links and all(link.split(", ")[1].startswith(ADDRESS) for link in links)
    assert {"open-clip", "queries", "onnx", "hub"} <= {
        extra.replace("_", "-") for extra in metadata.get_all("Provides-Extra")
    }


def test_links_are_left_out_without_an_address(tmp_path: Path) -> None:
    shutil.copy(ROOT / "setup.py", tmp_path)
    (tmp_path / "setup.cfg").write_text("[famix]\nREPOSITORY_URL =\n[metadata]\nname = x\n")
    subprocess.run([sys.executable, "setup.py", "-q", "egg_info"], cwd=tmp_path, check=True, timeout=60)
    assert "URL" not in (tmp_path / "x.egg-info/PKG-INFO").read_text()


def test_badges_and_issue_templates_follow_the_address(tmp_path: Path) -> None:
    update_links = load_script(ROOT / "dev/repository_links.py").update_links
    readme, templates = (ROOT / "README.md").read_text(), tmp_path / ".github/ISSUE_TEMPLATE"
    assert not (ROOT / ".github/ISSUE_TEMPLATE").exists()
    (tmp_path / "README.md").write_text(readme)
    for address in ("", ADDRESS, f"{ADDRESS}/", "https://example.org/other", ""):
        (tmp_path / "setup.cfg").write_text(f"[famix]\nREPOSITORY_URL = {address}\n")
        update_links(tmp_path)
        files = [tmp_path / "README.md", *templates.glob("*")]
        assert len(files) == (3 if address else 1)
        for file in files:
            assert not address or file.read_text().count(f"{address.rstrip('/')}/") >= 1, file
            assert file.suffix != ".yml" or yaml.safe_load(file.read_text())
    assert (tmp_path / "README.md").read_text() == readme


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_show_help_under_their_name(installed: Path, tmp_path: Path, name: str) -> None:
    done = call(installed, tmp_path, str(installed / f"bin/famix-{name}"), "--help")
    assert done.returncode == 0 and done.stdout.startswith(f"usage: famix-{name} ")
    module = call(installed, tmp_path, "-m", "famix_cli." + name.replace("import", "import_released"), "--help")
    assert module.returncode == 0 and module.stdout.startswith("usage: ")


def test_all_commands_are_covered() -> None:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    scripts = parser["options.entry_points"]["console_scripts"].split("\n")[1:]
    assert {script.partition(" =")[0] for script in scripts} == {f"famix-{name}" for name in COMMANDS}


def test_training_with_an_installed_config_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    (tmp_path / "own.yaml").write_text("_BASE_: famix://Tiny/famix_tiny.yaml\nSOLVER:\n  MAX_ITER: 1\n")
    arguments = workspace.arguments("run")[2:]
    (empty := tmp_path / "empty").mkdir()
    script = str(installed / "bin/famix-train")
    done = call(installed, empty, script, "--config-file", "../own.yaml", *arguments)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/model_final.pth").is_file() and not list(empty.iterdir())
    assert f"FAMix {famix.__version__}" in done.stdout
    assert "famix-report" in done.stdout and ".py" not in done.stdout.partition("Done:")[2]


def test_without_detectron2_commands_say_how_to_get_it(tmp_path: Path) -> None:
    code = "import sys; sys.modules['detectron2'] = None; from famix_cli.report import main; sys.exit(main())"
    done = call(ROOT / "projects/FAMix", tmp_path, "-c", code, "run", "--output", "page.html")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "Detectron2" in line and "github.com/facebookresearch/detectron2" in line
