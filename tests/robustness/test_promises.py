"""docs/PROMISES.md names an existing test for every promise."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs/PROMISES.md").read_text()
ROWS = [line for line in PAGE.partition("## Limits")[0].splitlines() if re.match(r"\| (?!event)", line)]
NAMED = re.findall(r"`([\w/]+\.py)::(test_\w+)`", PAGE)


def test_every_promise_has_a_test() -> None:
    assert len(ROWS) > 30 and len(NAMED) > 50
    assert not [row for row in ROWS if not re.search(r"\.py::test_\w+` \|$", row)]


@pytest.mark.parametrize("file", sorted({file for file, _ in NAMED}))
def test_named_tests_exist(file: str) -> None:
    existing = {node.name for node in ast.parse((TESTS / file).read_text()).body if isinstance(node, ast.FunctionDef)}
    assert {name for path, name in NAMED if path == file} <= existing
