"""The example of a dataset: its files pass the check, and a run trains and scores on them."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_factory import registered, write_image, write_label
from famix.data.check import check_dataset
from run_factory import ROOT, Workspace

DEFINITION = ROOT / "projects/FAMix/examples/extending/dataset.yaml"
SIZE = (72, 96)


@pytest.fixture
def fields(tmp_path: Path) -> Path:
    """Definition of the example, with files in a temporary folder."""
    rng = np.random.default_rng(0)
    for key in ("2024/south/0016", "2024/south/0017", "2024/north/0001", "2025/south/0001"):
        ids = np.repeat(rng.permutation([1, 2, 3, 7]), SIZE[1] // 4)[None].repeat(SIZE[0], 0).astype(np.uint8)
        write_image(tmp_path / f"fields/photos/{key}.jpg", rng.integers(0, 255, (*SIZE, 3)).astype(np.uint8))
        write_label(tmp_path / f"fields/masks/{key}_mask.png", ids)
    (tmp_path / "fields/holdout.txt").write_text("north/0001\n")
    definition = tmp_path / "dataset.yaml"
    definition.write_text(DEFINITION.read_text().replace("root: /data/fields", f"root: {tmp_path / 'fields'}"))
    return definition


def test_example_is_checked_trained_and_scored(fields: Path, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.definition = fields
    with registered(fields):
        found = {name: check_dataset(name) for name in ("fields_2024", "fields_2024_holdout", "fields_2025")}
    assert {name: (report.problems, report.num_pairs) for name, (report, _) in found.items()} == {
        "fields_2024": ([], 2), "fields_2024_holdout": ([], 1), "fields_2025": ([], 1),
    }  # fmt: skip
    workspace.run(
        "run", "SOLVER.MAX_ITER", "2", "MODEL.STYLE.STRATEGY", "noise", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "3",
        "DATASETS.TRAIN", "('fields_2024',)", "DATASETS.TEST", "('fields_2024_holdout', 'fields_2025')",
    )  # fmt: skip
    scored = json.loads((tmp_path / "run/results.json").read_text())["report"]["data_sets"]
    assert {name: entry["is_source"] for name, entry in scored.items()} == {
        "fields_2024_holdout": True, "fields_2025": False,
    }  # fmt: skip
