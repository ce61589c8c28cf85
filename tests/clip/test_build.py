import pytest
import torch
from detectron2.modeling import build_backbone

from clip_factory import save_tiny_clip, tiny_clip
from error_matching import expect_error
from famix.clip import ARCHITECTURES, CLIPArchitecture, CLIPResNet
from famix.engine import load_config
from famix.utils.errors import ConfigError

LAYERS = (1, 1, 2, 3)


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory):
    return str(save_tiny_clip(tmp_path_factory.mktemp("clip") / "clip.pt", layers=LAYERS))


def config(**clip):
    cfg = load_config("")
    cfg.MODEL.BACKBONE.NAME = "build_clip_resnet_backbone"
    for key, value in clip.items():
        cfg.MODEL.CLIP[key] = value
    return cfg


@pytest.mark.parametrize("name", ["RN50", "RN101"])
def test_without_weights_the_architecture_decides(name):
    with torch.device("meta"):
        backbone = build_backbone(config(ARCHITECTURE=name))
    assert isinstance(backbone, CLIPResNet)
    assert backbone.architecture == ARCHITECTURES[name]
    assert backbone.output_shape()["res5"].channels == 2048


def test_with_weights_the_file_decides(clip_file):
    backbone = build_backbone(config(WEIGHTS=clip_file, ARCHITECTURE="RN101"))
    assert backbone.architecture == CLIPArchitecture(LAYERS, 8, 16, 64)
    expected = tiny_clip(LAYERS).visual.state_dict()
    for name, value in backbone.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-3)  # the file is in half precision


@pytest.mark.parametrize(
    ("settings", "stride", "trainable"),
    [({}, 16, "layer4.2."), ({"OUTPUT_STRIDE": 8, "TRAINABLE": ["layer4.1"]}, 8, "layer4.1.")],
    ids=["the recipe's defaults", "the config's"],
)
def test_stride_and_trainable_parts(clip_file, settings, stride, trainable):
    backbone = build_backbone(config(WEIGHTS=clip_file, **settings))
    assert backbone.output_shape()["res5"].stride == stride
    trained = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert trained and all(name.startswith(trainable) for name in trained)


def test_unknown_architecture():
    with expect_error(ConfigError, "MODEL.CLIP.ARCHITECTURE", "RN34", "MODEL.CLIP.WEIGHTS"):
        build_backbone(config(ARCHITECTURE="RN34"))
