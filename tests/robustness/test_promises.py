"""The page of promises names tests that are there, for every promise."""

import ast
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/PROMISES.md"
SURVIVES, _, DOES_NOT = PAGE.read_text().partition("## What does not survive")
LINKS = re.findall(r"\[(test_\w+)\]\((\S+?\.py)\)", PAGE.read_text())


def promises(text: str) -> list[str]:
    return re.findall(r"^- (.+?)(?=\n- |\n\n|\Z)", text, flags=re.MULTILINE | re.DOTALL)


def functions(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("promise", promises(SURVIVES), ids=lambda text: text[:40])
def test_every_promise_has_a_test(promise: str) -> None:
    assert re.search(r"\[test_\w+\]\(\.\./tests/\S+\.py\)", promise)


@pytest.mark.parametrize(("name", "file"), LINKS, ids=[name for name, _ in LINKS])
def test_every_test_is_where_the_page_says(name: str, file: str) -> None:
    assert name in functions(PAGE.parent / file)


def test_the_page_is_read_whole() -> None:
    assert PAGE.read_text().count("](../tests/") == len(LINKS) > 50
    assert len(promises(SURVIVES)) > 20 and promises(DOES_NOT)
