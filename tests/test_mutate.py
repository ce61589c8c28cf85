"""Mutation testing: every listed mutation fits its file, and outcomes are distinguished."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "dev"))
import mutate

LISTED = [mutate.Mutation(**entry) for entry in yaml.safe_load(mutate.LIST.read_text())]


def test_list_covers_ten_places():
    assert len({one.id for one in LISTED}) == len(LISTED)
    for origin in ("hand", "drawn"):
        places = Counter(one.place for one in LISTED if one.origin.startswith(origin) and not one.equivalent)
        assert len(places) == 10 and min(places.values()) >= 3


@pytest.mark.parametrize("one", LISTED, ids=[one.id for one in LISTED])
def test_mutation_fits_its_file(one):
    mutated = one.mutated(mutate.ROOT)
    assert mutated is not None, (
        f"adapt `file` and `find` of {one.id} in dev/mutations.yaml and keep the fault: {one.breaks}"
    )
    assert one.find != one.replace
    if one.file.endswith(".py"):
        compile(mutated, one.file, "exec")
        assert one.function.rpartition(".")[2] in mutated
    assert bool(one.tests) != bool(one.equivalent)
    assert all((mutate.ROOT / test.partition("::")[0]).is_file() for test in one.tests)


@pytest.fixture
def fork_server() -> Iterator[None]:
    """Stop the fork server of this process, which forks of later tests could not use."""
    yield
    forkserver._forkserver._stop()


@pytest.mark.usefixtures("fork_server")
def test_killed_surviving_stale_and_equivalent_mutants(tmp_path, monkeypatch):
    monkeypatch.setattr(mutate, "PRELOADED", ())
    (tmp_path / "toy.py").write_text("def area(a, b):\n    return a * b\n")
    (tmp_path / "test_toy.py").write_text("import toy\n\n\ndef test_area():\n    assert toy.area(2, 2) == 4\n")
    (tmp_path / "conftest.py").write_text("import os, sys\nsys.path.insert(0, os.getcwd())\n")
    subprocess.run("git init -q && git add .", shell=True, cwd=tmp_path, check=True)

    def mutation(name, find, replace, **more):
        return mutate.Mutation(
            name, "toy", "hand", "toy.py", "area", find, replace, "the area", ["test_toy.py"], **more
        )

    outcomes = mutate.run_mutations(
        [
            mutation("minus", "a * b", "a - b"),
            mutation("plus", "a * b", "a + b"),
            mutation("broken", "return", "retrun"),
            mutation("gone", "a / b", "a"),
            mutation("swapped", "a * b", "b * a", equivalent="the product commutes"),
        ],
        root=tmp_path,
        jobs=2,
    )
    assert outcomes == {
        "minus": "test_toy.py::test_area",
        "plus": mutate.SURVIVED,
        "broken": "test_toy.py",
        "gone": mutate.STALE,
        "swapped": mutate.EQUIVALENT,
    }
    assert mutate.run_tests(tmp_path, ["test_renamed.py"], seconds=60) == mutate.STALE
    (tmp_path / "test_hang.py").write_text("import time\n\ntime.sleep(60)\n")
    assert mutate.run_tests(tmp_path, ["test_hang.py"], seconds=2) == mutate.TIMEOUT
    assert (tmp_path / "toy.py").read_text() == "def area(a, b):\n    return a * b\n"
