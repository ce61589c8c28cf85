"""Small towns: a few scenes as datasets of their own, and experiments without a training."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_factory import write_definition
from famix.data import CITYSCAPES_CLASSES
from famix_minitown.writer import write_tree

__all__ = ["SCRIPT_HEAD", "write_run", "write_town"]

SCRIPT_HEAD = """import json, os, sys, time
from pathlib import Path
output = Path(sys.argv[sys.argv.index('OUTPUT_DIR') + 1])
"""  # of a script in the place of train_net.py


def write_town(
    folder: Path, name: str, splits: Mapping[str, tuple[str, Sequence[int]]], size: tuple[int, int] = (64, 128)
) -> Path:
    """Render datasets `<name>_<split>`, split -> (condition, seeds), and return their definition."""
    for split, (condition, seeds) in splits.items():
        write_tree(folder, split, [condition], seeds, size)
    return write_definition(
        folder,
        name=name,
        images="leftImg8bit/{split}/{key}_leftImg8bit.png",
        labels="gtFine/{split}/{key}_gtFine_labelTrainIds.png",
        label_ids={index: entry.name for index, entry in enumerate(CITYSCAPES_CLASSES)} | {255: "ignore"},
        splits={split: {} for split in splits},
    )


def write_run(folder: Path, results: Mapping[str, Any], **record: Any) -> None:
    """Write the record and the scores of a finished run."""
    folder.mkdir(parents=True)
    (folder / "experiment.json").write_text(json.dumps(record))
    (folder / "results.json").write_text(json.dumps(results))
