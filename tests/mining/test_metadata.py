import json
import logging
from importlib.metadata import version

import pytest
import torch

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


def bank_with(metadata, channels=32):
    bank = StyleBank(metadata)
    bank.add(torch.tensor([0, 1]), torch.rand(2, channels), torch.rand(2, channels))
    return bank


def test_metadata_tells_all_that_the_styles_depend_on(expected):
    assert expected == {
        "clip_hash": "abc123",
        "activation": "quick_gelu",
        "causal": "true",
        "stage": "res2",
        "grid": "[3, 3]",
        "class_names": '["road", "sky"]',
        "prompts": json.dumps(
            ["Foggy style road", "Pop Art style road", "Foggy style sky", "Pop Art style sky", "photo"]
        ),
        "templates": json.dumps(IMAGENET_TEMPLATES),
        "pool_size": "0",
        "steps": "100",
        "lr": "1.0",
        "momentum": "0.9",
        "weight_decay": "0.0001",
        "metric": "euclidean",
        "dtype": "float32",
        "seed": "1",
        "images_per_batch": "16",
        "max_batches": "5",
        "crop_size": "[768, 512]",
        "source": '["town_train", "town_more"]',
        "famix_version": version("famix"),
    }


def test_metadata_of_broken_settings_is_refused(cfg):
    cfg.STYLE_MINING.TEMPLATES = ["no placeholder"]
    with expect_error(ConfigError, "STYLE_MINING.TEMPLATES", "no placeholder"):
        bank_metadata(cfg, "", NAMES)


def test_metadata_survives_the_file(expected, tmp_path, caplog):
    bank_with(expected).save(tmp_path / "bank")
    check_bank(StyleBank.load(tmp_path / "bank"), expected, "bank", 32)
    assert not caplog.records


@pytest.mark.parametrize(
    ("key", "other", "remedy"),
    [
        ("clip_hash", "def456", "MODEL.CLIP.WEIGHTS"),
        ("stage", "res3", "MODEL.STYLE.STAGE"),
        ("grid", "[2, 3]", "MODEL.STYLE.GRID"),
        ("class_names", '["road", "tree"]', "source dataset"),
    ],
)
def test_a_bank_for_something_else_is_refused(expected, key, other, remedy):
    with expect_error(BankError, key, other, remedy) as error:
        check_bank(bank_with({**expected, key: other}), expected, "some/bank", 32)
    for value in ("some/bank", expected[key]):
        explains(str(error.value), value, remedy="MODEL.STYLE.BANK")
    if key != "clip_hash":
        silent = {name: value for name, value in expected.items() if name != key}
        with expect_error(BankError, key, "nothing"):
            check_bank(bank_with(silent), expected, "bank", 32)


def test_a_bank_of_another_text_tower_is_refused(cfg, expected):
    for key, other in (("activation", "gelu"), ("causal", "false")):
        with expect_error(BankError, "some/bank", other if key == "activation" else None, "MODEL.CLIP.ARCHITECTURE"):
            check_bank(bank_with({**expected, key: other}), expected, "some/bank", 32)
    of_open_clip = bank_metadata(cfg, "abc123", NAMES, OPEN_CLIP_TEXT)
    check_bank(bank_with(of_open_clip), of_open_clip, "some/bank", 32)


def test_banks_of_version_01_were_mined_with_openais_tower(cfg, expected, caplog):
    old = {name: value for name, value in expected.items() if name not in ("activation", "causal")}
    check_bank(bank_with(old), expected, "some/bank", 32)
    with expect_error(BankError, "some/bank", "gelu", "MODEL.CLIP.ARCHITECTURE"):
        check_bank(bank_with(old), bank_metadata(cfg, "abc123", NAMES, OPEN_CLIP_TEXT), "some/bank", 32)
    measured = {name: value for name, value in old.items() if name != "prompts"}
    check_bank(bank_with(measured), bank_metadata(cfg, "abc123", NAMES, OPEN_CLIP_TEXT), "some/bank", 32)
    check_bank(bank_with(expected), bank_metadata(cfg, "abc123", NAMES, TextDesign()), "some/bank", 32)
    assert not caplog.records


def test_a_bank_that_does_not_say_its_clip_is_taken_with_a_warning(expected, caplog):
    metadata = {name: value for name, value in expected.items() if name != "clip_hash"}
    check_bank(bank_with(metadata), expected, "some/bank", 32)
    (record,) = caplog.records
    assert all(part in record.getMessage() for part in ("some/bank", "CLIP"))


def test_an_unknown_clip_is_not_compared(cfg, expected, caplog):
    check_bank(bank_with(expected), bank_metadata(cfg, "", NAMES), "bank", 32)
    assert not caplog.records


def test_other_channels_are_refused(expected):
    with expect_error(BankError, "bank", 256, "MODEL.CLIP.WEIGHTS") as error:
        check_bank(bank_with(expected), expected, "bank", 256)
    explains(str(error.value), "res2", 32)


def test_an_empty_bank_is_refused(expected):
    with expect_error(BankError, "bank", 0):
        check_bank(StyleBank(expected), expected, "bank", 32)


FREE = (
    "prompts", "templates", "pool_size", "steps", "lr", "momentum", "weight_decay", "metric", "dtype", "seed", "images_per_batch",
    "max_batches", "crop_size", "source",
)  # fmt: skip


@pytest.mark.parametrize("key", FREE)
def test_other_differences_are_warned_of(expected, caplog, key):
    with caplog.at_level(logging.WARNING, logger="famix"):
        check_bank(bank_with({**expected, key: "other"}), expected, "some/bank", 32)
    (record,) = caplog.records
    message = record.getMessage()
    assert "some/bank" in message and len(message) < 250, "long values are cut"
    assert f"{key} other (config: {expected[key][:70]}" in message


def test_all_differences_are_warned_of_but_the_version(expected, caplog):
    with caplog.at_level(logging.WARNING, logger="famix"):
        check_bank(bank_with({**expected, "famix_version": "0", "lr": "9", "seed": "9"}), expected, "bank", 32)
    (record,) = caplog.records
    assert "lr 9 (config: " in record.getMessage() and "; seed 9 (config: " in record.getMessage()
    assert "famix_version" not in record.getMessage()


def test_every_fact_is_either_binding_or_warned_of(expected):
    binding = {"clip_hash", "activation", "causal", "stage", "grid", "class_names"}
    assert set(expected) == {*binding, *FREE, "famix_version"}
