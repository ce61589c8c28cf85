"""Which datasets are sources and which are targets, by what their definitions state or by their names."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import MetadataCatalog

from data_factory import data_config, registered, write_definition
from error_matching import expect_error, explains
from famix.data import load_definition
from famix.data.definition import changed_entry, describe_dataset
from famix.data.domains import domain_of, is_source, require_known_sources, roles_of
from famix.utils.errors import ConfigError, DatasetError
from panoptic_factory import write_recipe


@pytest.fixture(scope="module", autouse=True)
def builtin_datasets() -> Iterator[None]:
    """Registers them."""
    with registered():
        yield


@pytest.mark.parametrize(
    ("name", "domain"),
    [
        ("gta5_train", "gta5"), ("gta5_all", "gta5"), ("acdc_night_val", "acdc_night"), ("camvid_val_dusk", "camvid_dusk"),
        ("minitown_clear_val", "minitown_clear"), ("minitown_train", "minitown"), ("own_city_val", "own_city"),
        ("val", "val"),
    ],
)  # fmt: skip
def test_domain_of_a_name(name: str, domain: str) -> None:
    assert domain_of(name) == domain


@pytest.mark.parametrize(
    ("train", "sources", "targets"),
    [
        ("gta5_train", ["gta5_val", "gta5_all"], ["cityscapes_val", "acdc_fog_val"]),
        ("camvid_train_day", ["camvid_val_day"], ["camvid_val_dusk"]),
        ("minitown_train", ["minitown_clear_val"], ["minitown_night_val", "minitown_dusk_val"]),
        ("acdc_fog_train", ["acdc_fog_val"], ["acdc_night_val"]),
    ],
)
def test_what_is_of_the_domain_that_was_trained_on(train: str, sources: list[str], targets: list[str]) -> None:
    cfg = data_config(train=(train,))
    assert [name for name in (*sources, *targets) if is_source(cfg, name)] == sources
    cfg.TEST.SOURCE = targets[:1]
    assert [name for name in (*sources, *targets) if is_source(cfg, name)] == targets[:1]


@pytest.mark.parametrize("kind", ["semantic", "panoptic"])
def test_definitions_state_domains(tmp_path: Path, kind: str) -> None:
    write: Any = write_definition if kind == "semantic" else write_recipe
    suffix = "" if kind == "semantic" else "_panoptic"
    splits = {"train": {}, "val": {}, "foggy": {"domain": "fog"}}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    town = write(tmp_path / "a", name="town", domain="rome", splits=splits)
    drive = write(tmp_path / "b", name="drive", splits={"val": {"domain": "rome"}, "clear": {"domain": "rome_clear"}})
    with registered(town, drive):
        cfg = data_config(train=(f"town_train{suffix}",))
        cfg.DATASETS.TEST = tuple(f"{name}{suffix}" for name in ("town_val", "town_foggy", "drive_val", "drive_clear"))
        roles = roles_of(cfg)
        assert roles.sources == (f"town_train{suffix}",)
        assert roles.held_out == (f"town_val{suffix}", f"drive_val{suffix}")
        assert roles.targets == (f"town_foggy{suffix}", f"drive_clear{suffix}")
        assert roles.decided_by == "domain"
        assert [domain_of(name) for name in cfg.DATASETS.TEST] == ["rome", "fog", "rome", "rome_clear"]
        assert MetadataCatalog.get(f"town_foggy{suffix}").domain == "fog"
        cfg.TEST.SOURCE = [f"town_foggy{suffix}"]
        assert (roles_of(cfg).held_out, roles_of(cfg).decided_by) == ((f"town_foggy{suffix}",), "TEST.SOURCE")


@pytest.mark.parametrize("kind", ["semantic", "panoptic"])
def test_a_domain_may_be_stated_after_the_training(tmp_path: Path, kind: str) -> None:
    write: Any = write_definition if kind == "semantic" else write_recipe
    name = "tiny_val" if kind == "semantic" else "tiny_val_panoptic"
    with registered(write(tmp_path, splits={"val": {}})):
        before = describe_dataset(name)
    with registered(write(tmp_path, splits={"val": {"domain": "rome"}})):
        assert changed_entry(name, before) is None


@pytest.mark.parametrize(
    "changes", [{"domain": "a b"}, {"domain": ""}, {"domain": 5}, {"splits": {"val": {"domain": "/"}}}]
)
def test_a_domain_that_is_not_a_name_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    value = changes.get("domain", "/")
    for write in (write_definition, write_recipe):
        with expect_error(DatasetError, "splits.val.domain" if "splits" in changes else "domain", value):
            load_definition(write(tmp_path, **changes))


def test_roles_are_told_in_one_line() -> None:
    cfg = data_config(train=("gta5_train",))
    cfg.DATASETS.TEST = ("gta5_val", "acdc_fog_val")
    line = str(roles_of(cfg))
    explains(line, "gta5_train", "acdc_fog_val", "domain")
    assert line.index("acdc_fog_val") < line.index("gta5_val") and "\n" not in line


def test_a_mistyped_source_is_named() -> None:
    cfg = data_config()
    cfg.TEST.SOURCE = ["gta5_vall"]
    with expect_error(ConfigError, "TEST.SOURCE", "gta5_vall", "gta5_val"):
        require_known_sources(cfg)
