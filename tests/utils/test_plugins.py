"""Plugins: programs load them, the library does not, and a name of an absent one explains itself."""

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog

from error_matching import expect_error
from famix.clip import load_clip_state_dict, weights
from famix.data import get_dataset_dicts, register_datasets
from famix.utils import plugins
from famix.utils.errors import ConfigError, DatasetError, WeightsError

REMEDY = "famix.utils.plugins.load_plugins"


def test_load_plugins_registers_the_town(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_REGISTERED", {})
    for _ in range(2):  # a hook may run more than once
        plugins.load_plugins()
    assert {"minitown_train", "minitown_night_val_panoptic"} <= set(DatasetCatalog)
    assert load_clip_state_dict("minitown")


@pytest.mark.parametrize("installed", [True, False])
def test_clone_works_installed_or_not(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    town = EntryPoint("minitown", "famix_minitown.datasets:register", plugins.GROUP)
    assert plugins._of_clone() == [town]
    monkeypatch.setattr(plugins, "entry_points", lambda group: (town,) if installed else ())
    if installed:
        monkeypatch.setattr(plugins, "_CLONE_METADATA", Path("absent/setup.cfg"))
    plugins.load_plugins()
    assert "minitown_train" in DatasetCatalog


def test_names_of_an_absent_plugin_explain_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_REGISTERED", {})
    register_datasets()
    with expect_error(DatasetError, "minitown_train", remedy=REMEDY):
        get_dataset_dicts(["minitown_train"])
    with expect_error(WeightsError, "MODEL.CLIP.WEIGHTS", "minitown", remedy=REMEDY):
        load_clip_state_dict("minitown")
    assert plugins.absent_plugin_remedy("cityscapes_val") == ""


@pytest.mark.parametrize(
    ("mistyped", "name"), [("minitown_vti", "minitown_vit"), ("RN5O", "RN50"), ("ViT-B/61", "ViT-B/16")]
)
def test_mistyped_weights_get_the_nearest_name(mistyped: str, name: str) -> None:
    plugins.load_plugins()
    with expect_error(WeightsError, "MODEL.CLIP.WEIGHTS", mistyped, remedy=name) as caught:
        load_clip_state_dict(mistyped)
    assert REMEDY not in str(caught.value)


def test_broken_plugin_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = EntryPoint("other", "absent_package:register", plugins.GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda group: (broken,))
    with expect_error(ConfigError, "absent_package:register", remedy="uninstall"):
        plugins.load_plugins()
