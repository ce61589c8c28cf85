"""Imports between the folders of famix, and knowledge of CLIP families outside famix/clip."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import famix

ROOT = Path(famix.__file__).parent
COMMAND_LINES = ROOT.parent / "famix_cli"
FAMILY_NAMES = re.compile(
    r"\b(CLIPResNet|ModifiedResNet|attnpool|conv[1-3]|layer[1-4]|famix\.clip\.(resnet|architecture))\b"
)
MAY_NAME_FAMILIES = ("__init__.py", "config/defaults.py", "io/released_checkpoint.py")  # defaults are like YAML


def imports_between_folders() -> Iterator[tuple[str, str]]:
    """Pairs (importing, imported) of folders, also for imports in functions and under TYPE_CHECKING."""
    for file in ROOT.rglob("*.py"):
        folder = file.relative_to(ROOT).parts[0].removesuffix(".py")
        if folder == "__init__":  # the table of contents
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0 and node.module is not None, f"{file}: relative import"
                modules = [f"{node.module}.{alias.name}" for alias in node.names]
            for module in modules:
                package, *names = module.split(".")
                if package == "famix" and names and names[0] != folder and names[0].islower():
                    yield folder, names[0]


def test_folders_import_in_the_order_of_the_architecture_document() -> None:
    document = (ROOT.parents[2] / "docs/ARCHITECTURE.md").read_text(encoding="utf-8")
    order = re.findall(r"^\| `(\w+)/` \|", document, flags=re.MULTILINE)
    folders = {file.relative_to(ROOT).parts[0] for file in ROOT.rglob("*.py")}
    assert sorted(order) == sorted(folders - {"__init__.py"})
    assert not {(one, other) for one, other in imports_between_folders() if order.index(other) >= order.index(one)}


def test_command_lines_parse_without_slow_imports_and_only_they_import_the_programs() -> None:
    parsers = sorted(COMMAND_LINES.glob("*.py"))
    assert {path.stem for path in parsers} >= {path.stem for path in (COMMAND_LINES / "programs").glob("*.py")}
    for file in parsers:
        assert imported_packages(file) <= {*sys.stdlib_module_names, "famix_cli"}, file
    for file in ROOT.rglob("*.py"):
        assert "famix_cli.programs" not in file.read_text(encoding="utf-8"), file


def imported_packages(file: Path) -> set[str]:
    """Top-level names of all absolute imports of a module."""
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.partition(".")[0] for name in names}


def test_only_clip_names_its_families() -> None:
    named = []
    for file in ROOT.rglob("*.py"):
        place = file.relative_to(ROOT).as_posix()
        if place.startswith("clip/") or place in MAY_NAME_FAMILIES:
            continue
        lines = file.read_text(encoding="utf-8").splitlines()
        named += [
            f"{place}:{number}: {line.strip()}" for number, line in enumerate(lines, 1) if FAMILY_NAMES.search(line)
        ]
    assert not named
