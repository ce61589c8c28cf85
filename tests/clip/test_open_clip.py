"""Families of open_clip against open_clip's own forward."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from detectron2.modeling import build_backbone
from torch import Tensor

from error_matching import expect_error, explains
from famix.clip import CLIPConvNeXt, CLIPImageTower, CLIPTimmViT, CLIPViT, PromptEncoder, load_clip_state_dict
from famix.clip.build import complete_backbone_settings
from famix.clip.open_clip import models
from famix.engine import load_config
from famix.style import restyle_patches
from famix.style.statistics import patch_mean_std
from famix.utils.errors import ConfigError, WeightsError
from open_clip_factory import CONFIGS, TinyCLIP, tiny_open_clip
from run_factory import ROOT

CLASSES = {
    "convnext": CLIPConvNeXt,
    **dict.fromkeys(("vit", "vit14"), CLIPViT),
    **dict.fromkeys(("eva02", "pe_core", "siglip", "siglip2"), CLIPTimmViT),
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("open_clip")


@pytest.fixture(params=CONFIGS)
def tiny(request: pytest.FixtureRequest, folder: Path) -> TinyCLIP:
    return tiny_open_clip(request.param, folder)


def tower_of(tiny: TinyCLIP, **kwargs: Any) -> CLIPImageTower:
    return CLIPImageTower.from_state_dict(load_clip_state_dict(str(tiny.file), tiny.architecture), **kwargs)


def images_of(side: int | tuple[int, int], count: int = 2) -> Tensor:
    size = (side, side) if isinstance(side, int) else side
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(0))


def assert_equal(got: Tensor, expected: Tensor) -> None:
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


@torch.no_grad()
def test_embeddings_equal_open_clips(tiny):
    tower = tower_of(tiny)
    assert type(tower) is CLASSES[tiny.file.stem]
    images = images_of(tower.input_resolution)
    expected = tiny.model.encode_image(images)
    assert_equal(tower.encode_image(images), expected)
    for stage in tower.stages:
        features = tower.features_at(stage, images)
        assert_equal(tower.encode_from(stage, features), expected)
        assert_equal(tower.encode_from(stage, tower.replace_map(features, features + 0)), expected)


@torch.no_grad()
def test_stage_maps_equal_open_clips(tiny):
    tower = tower_of(tiny, output_stride=32 if tiny.file.stem == "convnext" else 16)
    images = images_of(tower.input_resolution)
    expected = tiny.model.visual.forward_intermediates(images, intermediates_only=True)["image_intermediates"]
    for stage, features in zip(tower.stages, expected, strict=True):
        assert_equal(tower.features_at(stage, images), features)
    if tiny.file.stem not in ("vit14", "eva02"):  # their dense patches are resampled
        for got, features in zip(tower(images).values(), expected, strict=True):
            assert_equal(got, features)


@torch.no_grad()
@pytest.mark.parametrize("size", [(96, 160), (70, 101)], ids=str)
def test_maps_cover_images_of_any_size(tiny, size):
    tower = tower_of(tiny, output_stride=16, with_embedding=False).eval()
    features = tower(images_of(size, 1))
    for stage, shape in tower.output_shape().items():
        assert shape.stride is not None
        padded = [-(-side // 16) * 16 // shape.stride for side in size]
        assert features[stage].shape == (1, shape.channels, *padded)
        assert features[stage].isfinite().all()


@torch.no_grad()
def test_other_sizes_equal_timm_with_dynamic_sizes(folder):
    tiny = tiny_open_clip("eva02", folder)
    reference = timm.create_model("small_eva02", num_classes=32, global_pool="token", dynamic_img_size=True)
    reference.load_state_dict(tiny.model.visual.trunk.state_dict())
    images = images_of((140, 280))
    assert_equal(tower_of(tiny).encode_image(images), reference.eval()(images))


@torch.no_grad()
@pytest.mark.parametrize("stride", [8, 16])
def test_dilated_convnext_equals_timms(folder, stride):
    tiny = tiny_open_clip("convnext", folder)
    reference = timm.create_model("test_convnext", features_only=True, output_stride=stride)
    weights = {
        name.replace("stages.", "stages_").replace("stem.", "stem_"): x
        for name, x in tiny.model.visual.trunk.state_dict().items()
    }
    reference.load_state_dict({name: weights[name] for name in reference.state_dict()})
    images = images_of(96)
    for got, expected in zip(
        tower_of(tiny, output_stride=stride)(images).values(), reference.eval()(images), strict=True
    ):
        assert_equal(got, expected)


@torch.no_grad()
def test_resampled_patches_keep_the_embedding_of_resized_images(folder):
    kernel = tiny_open_clip("vit14", folder).model.visual.conv1.weight
    patches = torch.randn(4, 3, 14, 14, generator=torch.Generator().manual_seed(0))
    resized = torch.nn.functional.interpolate(patches, (16, 16), mode="bicubic", antialias=True)
    from famix.clip.open_clip.vit import resample_kernel, resampling

    got = torch.nn.functional.conv2d(resized, resample_kernel(kernel, resampling(14, 16)))
    torch.testing.assert_close(got, torch.nn.functional.conv2d(patches, kernel), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_text_equals_open_clips(tiny):
    config = tiny.config["text_cfg"]
    encoder = PromptEncoder(load_clip_state_dict(str(tiny.file), tiny.architecture), chunk_size=3)
    if "hf_tokenizer_name" in config:
        tokens = torch.randint(config["vocab_size"], (7, config["context_length"]))
        return assert_equal(encoder.tower(tokens), tiny.model.encode_text(tokens))
    texts, templates = (
        ["road", "Urban Grit style car", "sky", "a", "traffic light"],
        ["a {}.", "the old {} here.", "{}", "{}!"],
    )
    tokenize = open_clip.tokenizer.SimpleTokenizer(context_length=config["context_length"])
    tokens = tokenize([template.format(text) for text in texts for template in templates])
    means = tiny.model.encode_text(tokens).unflatten(0, (5, 4)).mean(1)
    assert_equal(encoder(texts, templates), torch.nn.functional.normalize(means, dim=1))


def test_taps_reach_later_blocks_and_the_result(tiny):
    tower = tower_of(tiny, with_embedding=False)
    images, stage = images_of(64, 1), tower.stages[0]
    plain = tower(images)
    with tower.transform_stage(stage, lambda x: 2 * x):
        doubled = tower(images)
    torch.testing.assert_close(doubled[stage], 2 * plain[stage])
    assert not torch.allclose(doubled[tower.stages[-1]], plain[tower.stages[-1]])


def test_freezing_keeps_drop_path_of_trained_blocks_only(folder):
    tower = tower_of(tiny_open_clip("convnext", folder), trainable=["trunk.stages.3"], with_embedding=False).train()
    assert {name for name, x in tower.named_parameters() if x.requires_grad} == {
        name for name, _ in tower.named_parameters() if name.startswith("trunk.stages.3")
    }
    assert tower.trunk.stages[3].training and not tower.trunk.stages[2].training
    with expect_error(ConfigError, "MODEL.CLIP.TRAINABLE", "layer4", "trunk.stages.3"):
        tower.freeze_except(["layer4"])


def config(tiny: TinyCLIP, **clip: Any) -> Any:
    cfg = load_config("")
    cfg.MODEL.BACKBONE.NAME = "build_clip_backbone"
    for key, value in {"WEIGHTS": str(tiny.file), "ARCHITECTURE": tiny.architecture, "TRAINABLE": [], **clip}.items():
        cfg.MODEL.CLIP[key] = value
    return cfg


def test_backbones_are_built_with_and_without_weights(tiny):
    backbone = build_backbone(config(tiny))
    untrained = build_backbone(config(tiny, WEIGHTS=""))
    assert untrained.state_dict().keys() == backbone.state_dict().keys()
    features = backbone(images_of((64, 96), 1))
    for name, shape in backbone.output_shape().items():
        assert features[name].shape == (1, shape.channels, 64 // shape.stride, 96 // shape.stride)
    if tiny.file.stem != "convnext":
        assert list(features) == ["p2", "p3", "p4", "p5"] and backbone.size_divisibility == 32
        assert type(backbone.bottom_up) is CLASSES[tiny.file.stem]


@torch.no_grad()
def test_own_statistics_change_nothing(tiny):
    tower = tower_of(tiny)
    for stage in (tower.stages[0], tower.stages[-1]):
        features = tower.features_at(stage, images_of(tower.input_resolution)) + 0
        grid = (1, 2)
        own = patch_mean_std(features, grid)
        kept = restyle_patches(features, own.mean, own.std, 0.0, grid, rectify=tower.rectified)
        torch.testing.assert_close(kept, features, rtol=0, atol=1e-5 * float(features.abs().max()))


@pytest.mark.parametrize(
    ("weights", "architecture", "mean"),
    [
        ("RN50", "", 122.7709383),  # the file determines it
        ("ViT-B/16", "ViT-B/16", 122.7709383),
        ("open_clip:ViT-B-16-SigLIP/webli", "open_clip:ViT-B-16-SigLIP", 127.5),
    ],
)
def test_config_of_named_weights_suffices_to_rebuild_the_backbone(weights, architecture, mean):
    cfg = load_config(str(ROOT / "projects/FAMix/configs/Base-FAMix.yaml"))
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.CLIP.WEIGHTS = "build_clip_backbone", weights
    complete_backbone_settings(cfg)
    assert (cfg.MODEL.CLIP.ARCHITECTURE, cfg.MODEL.PIXEL_MEAN[0]) == (architecture, mean)


# Errors


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return


def test_unknown_models_are_rejected_with_the_nearest_name():
    with expect_error(ConfigError, "MODEL.CLIP.ARCHITECTURE", "open_clip:ViT-B-61", "ViT-B-16"):
        models.find_model("open_clip:ViT-B-61")
    with expect_error(ConfigError, "MODEL.CLIP.WEIGHTS", "open_clip:ViT-B-16/laion2b", "laion2b_s34b_b88k"):
        load_clip_state_dict("open_clip:ViT-B-16/laion2b")


def test_unsupported_text_towers_are_rejected(folder):
    model = "open_clip:roberta-ViT-B-32"  # its text tower is a model of transformers
    with expect_error(ConfigError, "MODEL.CLIP.ARCHITECTURE", model, "MODEL.CLIP.WEIGHTS"):
        build_backbone(config(tiny_open_clip("vit", folder), WEIGHTS="", ARCHITECTURE=model))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"embed_dim": 8, "vision_cfg": 1, "text_cfg": {}}'])
def test_invalid_config_files_are_rejected(tmp_path, content):
    path = tmp_path / "open_clip_config.json"
    path.write_text(content)
    with expect_error(ConfigError, "MODEL.CLIP.ARCHITECTURE", f"open_clip:{path}", "vision_cfg"):
        models.find_model(f"open_clip:{path}")


def test_weights_of_another_model_are_rejected(folder, tmp_path):
    vit = tiny_open_clip("vit", folder)
    with expect_error(ConfigError, "MODEL.CLIP.ARCHITECTURE", "", "open_clip:ViT-B-16"):
        load_clip_state_dict(str(vit.file))
    with expect_error(WeightsError, str(vit.file), remedy="MODEL.CLIP.ARCHITECTURE") as caught:
        load_clip_state_dict(str(vit.file), tiny_open_clip("vit14", folder).architecture)
    explains(str(caught.value), "visual.conv1.weight: (64, 3, 16, 16) instead of (64, 3, 14, 14)")
    assert str(caught.value).count(" instead of ") == 3 and "\n" not in str(caught.value)
    with expect_error(ConfigError, "MODEL.CLIP.ARCHITECTURE", tiny_open_clip("eva02", folder).architecture, "Set"):
        load_clip_state_dict(str(vit.file), tiny_open_clip("eva02", folder).architecture)
    weights = torch.load(vit.file, weights_only=True)
    torch.save({name: x for name, x in weights.items() if name.startswith("visual.")}, tmp_path / "visual.pt")
    with expect_error(WeightsError, "ln_final.bias", remedy="MODEL.CLIP.ARCHITECTURE"):
        load_clip_state_dict(str(tmp_path / "visual.pt"), vit.architecture)


def test_offline_downloads_name_the_file_and_the_settings(offline):
    with expect_error(WeightsError, "MODEL.CLIP.WEIGHTS", remedy="open_clip:convnext_base_w") as caught:
        load_clip_state_dict("open_clip:convnext_base_w/laion2b_s13b_b82k")
    explains(str(caught.value), "https://huggingface.co/laion/CLIP-convnext_base_w-laion2B-s13B-b82K")


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    models.find_model.cache_clear()
    with expect_error(ConfigError, "MODEL.CLIP.ARCHITECTURE", "open_clip:ViT-B-16", "famix[open_clip]"):
        models.find_model("open_clip:ViT-B-16")


def test_pixel_statistics_come_with_the_model(folder):
    assert models.find_model("open_clip:ViT-B-16-SigLIP").pixel_mean == (127.5,) * 3
    assert tower_of(tiny_open_clip("siglip", folder)).pixel_std == (127.5,) * 3
    assert tower_of(tiny_open_clip("vit", folder)).pixel_mean == pytest.approx(CLIPImageTower.pixel_mean, abs=1e-4)


def test_openais_names_are_open_clips_with_quick_gelu():
    model = models.find_model("ViT-L/14@336px")
    assert model is not None and model.image_size == 336 and model.text_design.activation == "quick_gelu"
