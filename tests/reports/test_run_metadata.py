"""Metadata of a run."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from data_factory import data_config
from famix.reports import ScoredWeights
from famix.reports.report import describe_run, file_sha256, method_name


@pytest.mark.parametrize(
    ("output_dir", "name"),
    [
        ("output/famix", "famix"), ("output/famix/seed1", "famix"), ("output/famix_seed12/", "famix"),
        ("output/famix-seed=3", "famix"), ("/runs/GTA5_RN50/seed_2", "GTA5_RN50"), ("output/seeds", "seeds"),
        ("output/seed1/seed2", "output"),
    ],
)  # fmt: skip
def test_name_of_a_method(output_dir: str, name: str) -> None:
    assert method_name(output_dir) == name


def hashes(**changes: Any) -> tuple[str, str]:
    cfg = data_config()
    cfg.merge_from_list([word for key, value in changes.items() for word in (key.replace("__", "."), value)])
    run = describe_run(cfg, ScoredWeights())
    return run.config_hash, run.method_hash


@pytest.mark.parametrize(
    ("change", "config_differs", "method_differs"),
    [
        ({"OUTPUT_DIR": "elsewhere"}, False, False),
        *((change, True, False) for change in (
            {"SEED": 7}, {"STYLE_MINING__SEED": 7}, {"MODEL__STYLE__BANK": "a.safetensors"}, {"TEST__PROTOCOL": "half"},
            {"TEST__ABSENT_CLASSES": "zero"}, {"MODEL__DEVICE": "cpu"}, {"DATASETS__TEST": ("a_val",)},
            {"MODEL_SELECTION__USE": "ema"}, {"MODEL__WEIGHTS": "a.pth"},
        )),
        *((change, True, True) for change in (
            {"SOLVER__BASE_LR": 0.5}, {"MODEL__STYLE__STRATEGY": "none"}, {"DATASETS__TRAIN": ("other_train",)},
        )),
    ],
)  # fmt: skip
def test_hashes_ignore_paths_and_that_of_the_method_seeds_and_evaluation(
    change: dict[str, Any], config_differs: bool, method_differs: bool
) -> None:
    differs = [one != other for one, other in zip(hashes(**change), hashes(), strict=True)]
    assert differs == [config_differs, method_differs]


def test_hash_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"weights" * 1000)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(b"weights" * 1000).hexdigest()


@pytest.mark.parametrize(
    ("weights", "label", "words"),
    [
        (ScoredWeights("last", "model_final.pth", None, 40), "last", "last, 40 iterations"),
        (ScoredWeights("ema", "model_ema.pth", None, 40), "ema", "moving average, 40 iterations"),
        (
            ScoredWeights("best", "model_best.pth", None, 30, "gta5_val", 71.26),
            "best", "best on gta5_val (71.3), 30 iterations",
        ),
        (ScoredWeights("file", "model_0000019.pth"), "model_0000019", "model_0000019.pth"),
        (ScoredWeights(iterations=20), "memory", "in memory, 20 iterations"),
    ],
)  # fmt: skip
def test_description_of_weights(weights: ScoredWeights, label: str, words: str) -> None:
    assert (weights.label, weights.describe()) == (label, words)
