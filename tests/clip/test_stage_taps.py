"""The scoped tap on a stage: seen by all that follows, gone with its context."""

import pytest
import torch

from error_matching import expect_error
from famix.clip import STAGES
from famix.utils.errors import ConfigError
from model_factory import tiny_backbone

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def make(output_stride=16):
    return tiny_backbone(output_stride=output_stride, with_embedding=True).eval()


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("output_stride", [32, 16])
@pytest.mark.parametrize("stage", STAGES)
def test_a_tap_changes_its_stage_and_all_later_ones(stage, output_stride):
    model = make(output_stride)
    plain, seen = model(IMAGES), []

    def transform(features):
        seen.append(features.clone())
        return features * 2 + 1

    with model.transform_stage(stage, transform):
        tapped = model(IMAGES)
    assert torch.equal(model(IMAGES)["res5"], plain["res5"]), "the tap ends with its context"
    assert len(seen) == 1 and torch.equal(seen[0], plain[stage])
    index = STAGES.index(stage)
    assert all(torch.equal(tapped[earlier], plain[earlier]) for earlier in STAGES[:index])
    assert torch.equal(tapped[stage], plain[stage] * 2 + 1)
    assert not any(torch.equal(tapped[later], plain[later]) for later in STAGES[index:])
    if output_stride == 32:
        torch.testing.assert_close(model.attnpool(tapped["res5"]), model.encode_from(stage, tapped[stage]))


def test_a_tap_ends_with_an_exception_from_inside_the_forward():
    model = make()
    plain = model(IMAGES)

    def fail(features):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), model.transform_stage("res3", fail):
        model(IMAGES)
    assert torch.equal(model(IMAGES)["res5"], plain["res5"])
    with model.transform_stage("res3", torch.zeros_like):  # and the stage is free again
        assert not model(IMAGES)["res3"].any()


def test_taps_of_one_stage_do_not_nest_and_those_of_two_do():
    model = make()
    with model.transform_stage("res2", torch.ones_like):
        inner = model.transform_stage("res2", torch.zeros_like)
        with expect_error(ConfigError, "transform_stage", "res2", "Compose"), inner:
            pass
        with model.transform_stage("res4", torch.zeros_like):
            features = model(IMAGES)
        assert (features["res2"] == 1).all() and not features["res4"].any()
        assert (model(IMAGES)["res2"] == 1).all()  # the outer tap has survived both


def test_unknown_stages_are_refused():
    model = make()
    for call in (
        lambda stage: model.transform_stage(stage, torch.zeros_like).__enter__(),
        lambda stage: model.features_at(stage, IMAGES),
        lambda stage: model.encode_from(stage, IMAGES),
        model.input_side,
    ):
        with expect_error(ConfigError, "MODEL.STYLE.STAGE", "layer1", "res2, res3, res4, res5"):
            call("layer1")


def test_taps_do_not_apply_to_clips_own_embedding():
    model = make()
    embedding, features = model.encode_image(IMAGES), model.features_at("res2", IMAGES)
    with model.transform_stage("res2", torch.zeros_like):
        assert torch.equal(model.encode_image(IMAGES), embedding)
        assert torch.equal(model.features_at("res2", IMAGES), features)
