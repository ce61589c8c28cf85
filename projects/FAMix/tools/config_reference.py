#!/usr/bin/env python
"""Write docs/CONFIG.md, the config key reference, with defaults from a config and meanings from code comments."""

# ruff: noqa: E402, the parser precedes slow imports

import argparse
import ast
import io
import sys
import tokenize
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[3]
DOCUMENT = ROOT / "docs/CONFIG.md"


def make_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--output", default=DOCUMENT, type=Path, metavar="FILE", help="output file (default: docs/CONFIG.md)"
    )
    check = "write nothing; exit with status 1 if the file is not up to date"
    parser.add_argument("--check", action="store_true", help=check)
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # fast --help and usage errors

from famix.config import defaults, flat_settings, load_config
from famix.io.atomic import whole_file
from famix.utils.errors import ConfigError, FAMixError
from famix.utils.paths import expand_arguments

# isort: split
from detectron2.config import get_cfg

BASE = ROOT / "projects/FAMix/configs/Base-FAMix.yaml"
STALE, USER_ERROR = 1, 2  # exit statuses

HEAD = """# Config keys

This page lists all keys that FAMix adds to
[Detectron2's](https://detectron2.readthedocs.io/en/latest/modules/config.html). It is generated from `add_famix_config`
by `python projects/FAMix/tools/config_reference.py`. Set keys in a YAML file or as `KEY VALUE` at the end of a command.
On the command line, text with spaces, brackets or braces needs quotes: `STYLE_MINING.STYLES "['foggy', 'rainy']"`.
`OUTPUT_DIR/config.yaml` stores the effective config.

`~`, environment variables and famix:// (the installed configs, e.g. `famix://GTA5/famix_RN50.yaml`) are expanded in every
path: in `OUTPUT_DIR`, `MODEL.WEIGHTS`, `MODEL.CLIP.WEIGHTS`,
`MODEL.STYLE.BANK` and `DATASETS.FILES`, in `--config-file`, `_BASE_` and the paths on command lines, and in the variables
`DETECTRON2_DATASETS` and `FAMIX_CACHE`. An unset variable is an error. `OUTPUT_DIR/config.yaml` stores the expanded
paths. Paths must be local; URLs are rejected.
"""
PROJECTS = """## Keys of Detectron2's DeepLab and Panoptic-DeepLab projects

FAMix's heads use the keys that apply to them. For their meaning, see the code of the projects
[DeepLab](https://github.com/facebookresearch/detectron2/tree/main/projects/DeepLab) and
[Panoptic-DeepLab](https://github.com/facebookresearch/detectron2/tree/main/projects/Panoptic-DeepLab).
"""
RECIPE = """## Settings of the recipe

[Base-FAMix.yaml](../projects/FAMix/configs/Base-FAMix.yaml), the base of all shipped configs, changes these defaults:
"""


def read_comments(source: str) -> dict[str, str]:
    """Return a mapping from each config key that a module assigns, directly or through a node, to its comment."""
    lines = {
        token.start[0]: token.string.removeprefix("#").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found: dict[str, str] = {}
    for function in ast.parse(source).body:
        if isinstance(function, ast.FunctionDef):
            nodes = {"cfg": ""}
            for statement in ast.walk(function):
                if isinstance(statement, ast.Assign):
                    rows = range(statement.lineno, (statement.end_lineno or statement.lineno) + 1)
                    comment = " ".join(lines[row] for row in rows if row in lines)
                    found |= {key: comment for key in _assigned(statement, nodes)}
    return found


def _assigned(statement: ast.Assign, nodes: dict[str, str]) -> list[str]:
    """Return the keys that a statement assigns, and record the names that it gives to config nodes in `nodes`."""
    places = [place for target in statement.targets if (place := _place(target, nodes)) is not None]
    names = [target.id for target in statement.targets if isinstance(target, ast.Name)]
    prefix = places[0] if places else _place(statement.value, nodes)
    if names and prefix is not None:
        nodes |= dict.fromkeys(names, f"{prefix}.")
        return []
    return places


def _place(target: ast.expr, nodes: Mapping[str, str]) -> str | None:
    """Return e.g. "MODEL.CLIP" for cfg.MODEL.CLIP, or None for anything but an attribute of a config node."""
    parts: list[str] = []
    while isinstance(target, ast.Attribute):
        parts.append(target.attr)
        target = target.value
    if not (parts and isinstance(target, ast.Name) and target.id in nodes):
        return None
    return nodes[target.id] + ".".join(reversed(parts))


def write_reference() -> str:
    """Return the document. Raises ConfigError if the source assigns a key that the config lacks or without a comment."""
    comments = read_comments(Path(defaults.__file__).read_text())
    before, after = flat_settings(get_cfg()), flat_settings(load_config(""))
    gone = [key for key in comments if key not in after]
    if gone:
        raise ConfigError(
            f"'{defaults.__file__}' assigns {', '.join(gone)}, which the config lacks. Remove the assignment."
        )
    unexplained = [key for key, comment in comments.items() if not comment]
    if unexplained:
        raise ConfigError(
            f"'{defaults.__file__}' assigns {', '.join(unexplained)} without a comment. Add their meaning."
        )
    groups: dict[str, list[list[str]]] = {}
    for key, comment in comments.items():
        groups.setdefault(key.rpartition(".")[0], []).append([f"`{key}`", show(after[key]), comment])
    parts = [HEAD]
    parts += [
        f"## {group or 'Run'}\n\n{format_table(['key', 'default', 'meaning'], rows)}" for group, rows in groups.items()
    ]
    projects = [[f"`{key}`", show(value)] for key, value in after.items() if key not in before and key not in comments]
    parts += [PROJECTS, format_table(["key", "default"], sorted(projects))]
    recipe = flat_settings(load_config(str(BASE)))
    changed = [[f"`{key}`", show(after[key]), show(value)] for key, value in recipe.items() if value != after[key]]
    parts += [RECIPE, format_table(["key", "default", "recipe"], sorted(changed))]
    return "\n".join(parts)


def show(value: object) -> str:
    """Format a value as code."""
    return f"`{value}`" if value != "" else '`""`'


def format_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table in Markdown."""
    lines = ["| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]]) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line. A user error prints one line and exits with status 2."""
    arguments = make_parser().parse_args(argv)
    try:
        expand_arguments(arguments)
        text = write_reference()
        if not arguments.check:
            with whole_file(arguments.output) as part:
                part.write_text(text)
        elif not arguments.output.is_file() or arguments.output.read_text() != text:
            stale = f"'{arguments.output}' is not up to date. Run projects/FAMix/tools/config_reference.py."
            print(stale, file=sys.stderr)
            sys.exit(STALE)
    except (FAMixError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)


if __name__ == "__main__":
    main()
