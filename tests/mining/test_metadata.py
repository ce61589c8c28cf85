import json
import logging

import pytest
import torch

import famix
from error_matching import expect_error, explains
from famix.clip import IMAGENET_TEMPLATES, OPEN_CLIP_TEXT, TextDesign
from famix.engine import load_config
from famix.mining import bank_metadata, check_bank
from famix.style import StyleBank
from famix.utils.errors import BankError, ConfigError

NAMES = ("road", "sky")


@pytest.fixture
def cfg():
    cfg = load_config("")
    cfg.DATASETS.TRAIN = ("town_train", "town_more")
    cfg.INPUT.CROP.SIZE = [768, 512]
    cfg.STYLE_MINING.MAX_BATCHES = 5
    cfg.STYLE_MINING.STYLES = ["Foggy style", "Pop Art style"]
    return cfg


@pytest.fixture
def expected(cfg):
    return bank_metadata(cfg, "abc123", NAMES)


def bank_with(metadata, channels=32, **changes):
    bank = StyleBank({**metadata, **changes})
    bank.add(torch.tensor([0, 1]), torch.rand(2, channels), torch.rand(2, channels))
    return bank


def without(metadata, *keys):
    return {key: value for key, value in metadata.items() if key not in keys}


def test_metadata_lists_all_settings_of_the_styles(expected):
    prompts = ["Foggy style road", "Pop Art style road", "Foggy style sky", "Pop Art style sky", "photo"]
    assert expected == {
        "clip_hash": "abc123", "activation": "quick_gelu", "causal": "true", "stage": "res2", "grid": "[3, 3]",
        "class_names": '["road", "sky"]', "prompts": json.dumps(prompts), "templates": json.dumps(IMAGENET_TEMPLATES),
        "pool_size": "0", "steps": "100", "lr": "1.0", "momentum": "0.9", "weight_decay": "0.0001",
        "metric": "euclidean", "parametrization": "", "dtype": "float32", "seed": "1", "images_per_batch": "16", "max_batches": "5",
        "crop_size": "[768, 512]", "source": '["town_train", "town_more"]', "famix_version": famix.__version__,
    }  # fmt: skip


def test_metadata_rejects_invalid_settings(cfg):
    cfg.STYLE_MINING.TEMPLATES = ["no placeholder"]
    with expect_error(ConfigError, "STYLE_MINING.TEMPLATES", "no placeholder"):
        bank_metadata(cfg, "", NAMES)


@pytest.mark.parametrize(
    ("key", "other", "remedy"),
    [
        ("clip_hash", "def456", "MODEL.CLIP.WEIGHTS"),
        ("stage", "res3", "MODEL.STYLE.STAGE"),
        ("grid", "[2, 3]", "MODEL.STYLE.GRID"),
        ("class_names", '["road", "tree"]', "source dataset"),
        ("activation", "gelu", "MODEL.CLIP.ARCHITECTURE"),
        ("causal", "false", "MODEL.CLIP.ARCHITECTURE"),
    ],
)
def test_check_bank_rejects_binding_differences(expected, key, other, remedy):
    subject, got = (key, other) if key not in ("activation", "causal") else ("some/bank", None)
    with expect_error(BankError, subject, got, remedy) as error:
        check_bank(bank_with(expected, **{key: other}), expected, "some/bank", 32)
    explains(str(error.value), "some/bank", remedy="MODEL.STYLE.BANK")
    if subject == key:
        explains(str(error.value), key, expected[key])
    if key in ("stage", "grid", "class_names"):
        with expect_error(BankError, key, "missing"):
            check_bank(bank_with(without(expected, key)), expected, "bank", 32)


def test_check_bank_rejects_other_channels(expected):
    with expect_error(BankError, "bank", 256, "MODEL.CLIP.WEIGHTS") as error:
        check_bank(bank_with(expected), expected, "bank", 256)
    explains(str(error.value), "res2", 32)
    with expect_error(BankError, "bank", 0):
        check_bank(StyleBank(expected), expected, "bank", 32)


@pytest.mark.parametrize(("mined", "used"), [("true", False), ("false", True)])
def test_check_bank_rejects_styles_of_other_features(expected, mined, used):
    for metadata in (expected, without(expected, "clip_hash")):  # also of released banks, which record no CLIP
        with expect_error(BankError, "some/bank", "rectified", "MODEL.CLIP.WEIGHTS") as error:
            check_bank(bank_with(metadata, rectified=mined), metadata, "some/bank", 32, used)
        explains(str(error.value), "signed", remedy="MODEL.STYLE.BANK")
    for rectified in (not used, None):
        check_bank(bank_with(expected, rectified=mined), expected, "some/bank", 32, rectified)
    check_bank(bank_with(expected), expected, "some/bank", 32, used)


def test_check_bank_accepts_equal_and_unknown_values(cfg, expected, tmp_path, caplog):
    bank_with(expected).save(tmp_path / "bank")
    check_bank(StyleBank.load(tmp_path / "bank"), expected, "bank", 32)
    check_bank(bank_with(expected), bank_metadata(cfg, "", NAMES), "bank", 32)
    check_bank(bank_with(expected), bank_metadata(cfg, "abc123", NAMES, TextDesign()), "bank", 32)
    of_open_clip = bank_metadata(cfg, "abc123", NAMES, OPEN_CLIP_TEXT)
    check_bank(bank_with(of_open_clip), of_open_clip, "bank", 32)
    assert not caplog.records


def test_banks_of_version_01_were_mined_with_openais_tower(cfg, expected, caplog):
    old, of_open_clip = without(expected, "activation", "causal"), bank_metadata(cfg, "abc123", NAMES, OPEN_CLIP_TEXT)
    check_bank(bank_with(old), expected, "some/bank", 32)
    with expect_error(BankError, "some/bank", "gelu", "MODEL.CLIP.ARCHITECTURE"):
        check_bank(bank_with(old), of_open_clip, "some/bank", 32)
    check_bank(bank_with(without(old, "prompts")), of_open_clip, "some/bank", 32)  # measured, not mined
    assert not caplog.records


def test_check_bank_warns_about_a_missing_clip(expected, caplog):
    check_bank(bank_with(without(expected, "clip_hash")), expected, "some/bank", 32)
    (record,) = caplog.records
    assert all(part in record.getMessage() for part in ("some/bank", "CLIP"))


FREE = (
    "prompts", "templates", "pool_size", "steps", "lr", "momentum", "weight_decay", "metric", "parametrization", "dtype", "seed", "images_per_batch",
    "max_batches", "crop_size", "source",
)  # fmt: skip


def test_check_bank_warns_about_other_differences(expected, caplog):
    binding = {"clip_hash", "activation", "causal", "stage", "grid", "class_names"}
    assert set(expected) == {*binding, *FREE, "famix_version"}
    for keys in (*((key,) for key in FREE), FREE):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="famix"):
            check_bank(
                bank_with(expected, famix_version="0", **dict.fromkeys(keys, "other")), expected, "some/bank", 32
            )
        (record,) = caplog.records
        message = record.getMessage()
        assert "some/bank" in message and "famix_version" not in message
        assert len(message) < 250 * len(keys), "long values are cut"
        assert all(f"{key} other (config: {expected[key][:70]}" in message for key in keys)
