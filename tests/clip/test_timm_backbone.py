"""Backbones of timm without a text tower."""

import sys
from pathlib import Path

import pytest
import timm
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone

from error_matching import expect_error
from famix.engine import load_config
from famix.utils.errors import ConfigError, WeightsError


def config(name: str, weights: str = "", **adapters: object) -> CfgNode:
    cfg = load_config("")
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    cfg.MODEL.TIMM.NAME, cfg.MODEL.TIMM.WEIGHTS, cfg.MODEL.CLIP.TRAINABLE = name, weights, []
    for key, value in adapters.items():
        cfg.MODEL.ADAPTERS[key] = value
    return cfg


# A ConvNeXt, a ViT with a class token, one with register tokens, DINOv2 (patch 14) and DINOv3 (rotary positions).
@pytest.mark.parametrize(
    "name", ["test_convnext", "test_vit", "test_vit2", "vit_small_patch14_dinov2", "vit_small_patch16_dinov3"]
)
def test_maps_equal_timms_at_its_own_patch_size(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    reference = (
        timm.create_model(name, num_classes=0, dynamic_img_size=True) if "vit" in name else timm.create_model(name)
    )
    for parameter in reference.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    torch.save(reference.state_dict(), tmp_path / "weights.pt")
    cfg = config(name, str(tmp_path / "weights.pt"))
    cfg.MODEL.CLIP.OUTPUT_STRIDE = 32 if "convnext" in name else 16
    backbone = build_backbone(cfg).eval()
    tower = getattr(backbone, "bottom_up", backbone)
    side = 14 * 7 if "14" in name else 96
    images = torch.randn(1, 3, side, side + (14 if "14" in name else 32))
    with torch.no_grad():
        (expected,) = reference.eval().forward_intermediates(images, indices=1, intermediates_only=True)
        got = tower.features_at(tower.stages[-1], images)
        assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
        features = backbone(torch.randn(1, 3, 64, 96))
    assert features["p2" if "vit" in name else "res2"].shape[-2:] == (16, 24)


def test_adapters_are_added_to_backbones() -> None:
    backbone = build_backbone(config("test_vit", RANK=2))
    trained = [name for name, x in backbone.bottom_up.named_parameters() if x.requires_grad]
    assert trained and all(".0." in name for name in trained)
    assert "net.adapters.trunk.blocks.0.attn.qkv.weight.up" in backbone.state_dict()
    with expect_error(ConfigError, "MODEL.ADAPTERS.PATTERNS", ["*lora*"], "trunk.patch_embed.proj.weight"):
        build_backbone(config("test_vit", RANK=2, PATTERNS=["*lora*"]))


@pytest.mark.parametrize(("name", "remedy"), [("test_vitt", "test_vit"), ("test_resnet", "vit_base_patch14_dinov2")])
def test_unsupported_models_are_rejected(name: str, remedy: str) -> None:
    with expect_error(ConfigError, "MODEL.TIMM.NAME", name, remedy):
        build_backbone(config(name))


def test_weights_of_another_model_are_rejected(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_vit3").state_dict(), tmp_path / "other.pt")
    with expect_error(WeightsError, "MODEL.TIMM.WEIGHTS", str(tmp_path / "other.pt"), "Correct") as caught:
        build_backbone(config("test_vit", str(tmp_path / "other.pt")))
    assert str(caught.value).count(" instead of ") == 3 and "\n" not in str(caught.value)
    with expect_error(WeightsError, "MODEL.TIMM.WEIGHTS", str(tmp_path / "absent.pt"), "pretrained"):
        build_backbone(config("test_vit", str(tmp_path / "absent.pt")))


def test_missing_timm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with expect_error(ConfigError, "MODEL.TIMM.NAME", "test_vit", "famix[open_clip]"):
        build_backbone(config("test_vit"))


def test_failed_downloads_name_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with expect_error(
        WeightsError, "MODEL.TIMM.WEIGHTS", "pretrained", "https://huggingface.co/timm/vit_small_patch14_dinov2.lvd142m"
    ):
        build_backbone(config("vit_small_patch14_dinov2", "pretrained"))
