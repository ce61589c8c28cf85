"""Adapter-only checkpoints on backbones with and without a text tower."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone
from torch import nn

from clip_factory import save_tiny_clip
from error_matching import expect_error, explains
from famix.clip import clip_weights_hash, load_clip_state_dict
from famix.clip.adapter_files import with_base, without_base
from famix.clip.adapters import LowRank
from famix.engine import load_config
from famix.io.checkpointer import BASE, SafeCheckpointer
from famix.utils.errors import ConfigError, WeightsError


def config(weights: Path, trainable: list[str], **adapters: Any) -> CfgNode:
    cfg = load_config("")
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.CLIP.TRAINABLE = "build_clip_backbone", trainable
    cfg.MODEL.CLIP.WEIGHTS = str(weights)
    for key, value in {"RANK": 2, "PATTERNS": ["layer*.conv?.weight"], **adapters}.items():
        cfg.MODEL.ADAPTERS[key] = value
    return cfg


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip") / "clip.pt")


@pytest.fixture(params=["resnet", "timm"])
def cfg(request: pytest.FixtureRequest, clip: Path, tmp_path: Path) -> CfgNode:
    if request.param == "resnet":
        return config(clip, ["layer4"])
    cfg = config(clip, [], PATTERNS=["*attn*"])
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.TIMM.NAME = "build_timm_backbone", "test_vit"
    cfg.MODEL.TIMM.WEIGHTS = str(tmp_path / "timm.pt")
    torch.save(timm.create_model("test_vit").state_dict(), cfg.MODEL.TIMM.WEIGHTS)
    return cfg


def trained_network(cfg: CfgNode) -> nn.Module:
    """Return a backbone and a head after a step that changes all parameters that are trained, and the norms."""
    network = nn.ModuleDict({"backbone": build_backbone(cfg), "head": nn.Linear(2, 3)}).train()
    network["backbone"](torch.randn(2, 3, 64, 64))
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter += torch.randn_like(parameter)
    return network


def other_weights(cfg: CfgNode) -> str:
    """Change the base weights of a config in place, and return the config key."""
    if cfg.MODEL.BACKBONE.NAME == "build_timm_backbone":
        torch.save(timm.create_model("test_vit").state_dict(), cfg.MODEL.TIMM.WEIGHTS)
        return "MODEL.TIMM.WEIGHTS"
    cfg.MODEL.CLIP.WEIGHTS = str(save_tiny_clip(Path(cfg.MODEL.CLIP.WEIGHTS).with_name("other.pt"), seed=1))
    return "MODEL.CLIP.WEIGHTS"


def test_round_trip_restores_every_tensor(cfg: CfgNode) -> None:
    network = trained_network(cfg)
    state = network.state_dict()
    content = without_base(network, cfg)
    parts = ("head.", "backbone.layer4.", "backbone.fpn", "backbone.simfp")
    expected = {name for name in state if ".adapters." in name or name.startswith(parts)}
    assert expected >= set(content["model"]) >= {name for name in expected if not name.endswith("num_batches_tracked")}
    restored = with_base({**content, "iteration": 7}, "file", cfg=cfg)
    assert restored["iteration"] == 7 and BASE not in restored and restored["model"].keys() == state.keys()
    assert all(torch.equal(restored["model"][name], value) for name, value in state.items())
    assert with_base(restored, "file", cfg=cfg) == restored


def test_hash_is_the_one_in_banks(clip: Path) -> None:
    cfg = config(clip, [])
    content = without_base(trained_network(cfg), cfg)
    assert content[BASE]["hash"] == clip_weights_hash(load_clip_state_dict(str(clip)))


def test_other_base_is_refused(cfg: CfgNode) -> None:
    content = without_base(trained_network(cfg), cfg)
    key = other_weights(cfg)
    with expect_error(WeightsError, key, content[BASE]["hash"], f"Set {key}") as caught:
        with_base(content, "file.pth", cfg=cfg)
    explains(str(caught.value), "'file.pth'")
    found = without_base(trained_network(cfg), cfg)[BASE]["hash"]
    explains(str(caught.value), found)
    assert found != content[BASE]["hash"] and "\n" not in str(caught.value)


def test_frozen_weights_of_another_base_are_refused(cfg: CfgNode) -> None:
    network = trained_network(cfg)
    key = other_weights(cfg)
    with expect_error(WeightsError, key, remedy=f"Set {key}"):
        without_base(network, cfg)


@pytest.mark.parametrize("entry", [None, 3, {}, {"hash": "0"}])
def test_damaged_entries_are_refused(clip: Path, entry: object) -> None:
    with expect_error(WeightsError, BASE, "'file.pth'", "tools/export.py"):
        with_base({"model": {}, BASE: entry}, "file.pth", cfg=config(clip, []))


def test_missing_base_and_adapters(cfg: CfgNode) -> None:
    network = trained_network(cfg)
    content = without_base(network, cfg)
    cfg.MODEL.CLIP.WEIGHTS = cfg.MODEL.TIMM.WEIGHTS = ""
    key = "MODEL.TIMM.WEIGHTS" if "timm" in cfg.MODEL.BACKBONE.NAME else "MODEL.CLIP.WEIGHTS"
    with expect_error(ConfigError, key, "''", f"Set {key}"):
        with_base(content, "file", cfg=cfg)
    cfg.MODEL.ADAPTERS.RANK = 0
    with expect_error(ConfigError, "MODEL.ADAPTERS.RANK", 0, "--format stripped"):
        without_base(network, cfg)


def test_checkpointers_without_a_base_refuse_adapters(clip: Path, tmp_path: Path) -> None:
    cfg = config(clip, [])
    network = trained_network(cfg)
    torch.save(without_base(network, cfg), tmp_path / "adapters.pth")
    with expect_error(WeightsError, str(tmp_path / "adapters.pth"), remedy="--format stripped"):
        SafeCheckpointer(network).load(str(tmp_path / "adapters.pth"))


def test_convolutions_of_any_size_are_adapted(clip: Path) -> None:
    backbone = build_backbone(config(clip, []))
    sizes = {tuple(part.original.shape[2:]) for part in backbone.modules() if hasattr(part, "original")}
    assert sizes == {(1, 1), (3, 3)} and sum(isinstance(part, LowRank) for part in backbone.modules()) == 12
