"""CLIPResNet against the clip package's own network."""

import copy
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

from clip_factory import tiny_clip
from error_matching import expect_error
from famix.clip import ARCHITECTURES, STAGES, CLIPResNet
from famix.clip.export import random_clip
from famix.utils.errors import ConfigError, WeightsError

LAYERS = {"RN50": (3, 4, 6, 3), "RN101": (3, 4, 23, 3), "narrow": (1, 2, 1, 1), "deep": (1, 2, 4, 5)}
LAYERS["full"] = LAYERS["RN50"]


def reference_stages(visual, images):
    """Outputs of layer1 .. layer4 of clip's ModifiedResNet, which need not reach its attention pool."""
    for conv, norm in ((visual.conv1, visual.bn1), (visual.conv2, visual.bn2), (visual.conv3, visual.bn3)):
        images = norm(conv(images)).relu()
    x, stages = visual.avgpool(images), {}
    for stage, layer in zip(STAGES, (visual.layer1, visual.layer2, visual.layer3, visual.layer4), strict=True):
        x = stages[stage] = layer(x)
    return stages


def dilated(visual, output_stride):
    """Clip's network at another output stride: written out block by block, as the released program has it."""
    visual = copy.deepcopy(visual)
    dilations = {16: {"layer4": (1, 2)}, 8: {"layer3": (1, 2), "layer4": (2, 4)}}[output_stride]
    for name, (middle_blocks, last_block) in dilations.items():
        layer = getattr(visual, name)
        layer[0].avgpool = layer[0].downsample[0] = nn.Identity()
        for block in layer:
            value = last_block if block is layer[-1] else 1 if block is layer[0] else middle_blocks
            block.conv2.dilation = block.conv2.padding = (value, value)
    return visual


def assert_close(got, expected):
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


def random_images(*size, count=2):
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(1))


@cache
def clip_of(layers):
    if layers == "full":  # width 64
        small_text = {"text_width": 64, "text_layers": 1, "random_norms": True}
        return random_clip(replace(ARCHITECTURES["RN50"], input_resolution=64), **small_text)
    return tiny_clip(LAYERS[layers])


def make(layers="narrow", output_stride=16, **kwargs):
    clip = clip_of(layers)
    return clip, CLIPResNet.from_state_dict(clip.state_dict(), output_stride, **kwargs).eval()


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


# CLIP itself


@pytest.mark.parametrize("layers", LAYERS)
def test_equals_clip_stage_by_stage_at_its_own_stride(layers):
    clip, model = make(layers, output_stride=32)
    images = random_images(64, 64)
    expected = reference_stages(clip.visual, images)
    assert_close(clip.visual.attnpool(expected["res5"]), clip.encode_image(images))  # the reference is CLIP's
    features = model(images)
    assert tuple(features) == STAGES
    for stage in STAGES:
        assert_close(features[stage], expected[stage])


@pytest.mark.parametrize(
    ("layers", "output_stride"), [("RN50", 32), ("full", 32), ("RN50", 8), ("RN101", 16), ("narrow", 8)]
)
def test_encode_image_is_clips_whatever_the_output_stride(layers, output_stride):
    clip, model = make(layers, output_stride)
    images = random_images(64, 64)
    assert_close(model.encode_image(images), clip.encode_image(images))


@pytest.mark.parametrize("stage", STAGES)
def test_encoding_in_two_parts(stage):
    _, model = make("RN50", output_stride=8)
    _, plain = make("RN50", output_stride=32)
    images = random_images(64, 64)
    features = model.features_at(stage, images)
    assert features.shape[-2:] == (model.input_side(stage), model.input_side(stage))
    assert_close(features, plain(images)[stage])
    assert_close(model.encode_from(stage, features), model.encode_image(images))


def test_images_of_another_shape_with_as_many_cells():
    clip, model = make()
    images = random_images(32, 128)
    assert_close(model.encode_image(images), clip.encode_image(images))


def test_images_with_another_number_of_cells_are_refused():
    _, model = make()
    with expect_error(ConfigError, "4 cells", "3 x 2", "64 x 64 pixels"):
        model.encode_image(random_images(96, 64))


def test_an_embedding_needs_the_attention_pool():
    _, model = make(with_embedding=False)
    with expect_error(ConfigError, "CLIPResNet", remedy="with_embedding=True"):
        model.encode_image(random_images(64, 64))


# Weights


@pytest.mark.parametrize(("layers", "width"), [((1, 1, 1, 1), 16), ((2, 1, 3, 1), 8), ((1, 2, 1, 4), 4)])
def test_any_width_and_depth_is_read_from_the_shapes(layers, width):
    sd = tiny_clip(layers, width, resolution=96, embed_dim=24).state_dict()
    model = CLIPResNet.from_state_dict(sd)
    visual = {name: value for name, value in sd.items() if name.startswith("visual.")}
    assert {f"visual.{name}" for name in model.state_dict()} == visual.keys()
    assert all(torch.equal(value, visual[f"visual.{name}"]) for name, value in model.state_dict().items())
    assert model.eval().encode_image(random_images(96, 96)).shape == (2, 24)


def test_without_attention_pool_only_its_parameters_are_gone():
    sd = tiny_clip().state_dict()
    whole, part = CLIPResNet.from_state_dict(sd), CLIPResNet.from_state_dict(sd, with_embedding=False)
    gone = whole.state_dict().keys() - part.state_dict().keys()
    assert gone == {name for name in whole.state_dict() if name.startswith("attnpool.")} != set()


def test_another_network_is_refused():
    with expect_error(WeightsError, "ResNet image tower", "1 tensors", "RN50"):
        CLIPResNet.from_state_dict({"fc.weight": torch.zeros(2, 2)})


# Dense features


@pytest.mark.parametrize("output_stride", [16, 8])
@pytest.mark.parametrize(
    ("layers", "size"), [("RN50", (64, 96)), ("RN50", (70, 93)), ("RN101", (38, 51)), ("deep", (70, 93))]
)
def test_dilated_stages_are_the_released_programs(output_stride, layers, size):
    clip, model = make(layers, output_stride, with_embedding=False)
    images = random_images(*size)
    features, expected = model(images), reference_stages(dilated(clip.visual, output_stride), images)
    for stage in STAGES:
        assert_close(features[stage], expected[stage])


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_the_smallest_side_is_what_the_network_can_take(output_stride):
    _, model = make(output_stride=output_stride)
    smallest = model.smallest_side
    assert model(random_images(smallest, smallest))["res5"].shape[-2:] == (1, 1)
    with pytest.raises(RuntimeError):
        model(random_images(smallest - 1, 64))


@pytest.mark.parametrize(("output_stride", "strides"), [(32, (4, 8, 16, 32)), (16, (4, 8, 16, 16)), (8, (4, 8, 8, 8))])
def test_channels_and_strides(output_stride, strides):
    _, model = make("RN50", output_stride)
    shapes = model.output_shape()
    assert tuple(shapes) == STAGES
    features = model(random_images(128, 192, count=1))
    for stage, stride, channels in zip(STAGES, strides, (32, 64, 128, 256), strict=True):
        assert (shapes[stage].channels, shapes[stage].stride) == (channels, stride)
        assert features[stage].shape == (1, channels, 128 // stride, 192 // stride)
