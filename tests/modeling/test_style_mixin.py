"""Restyling around an unchanged meta-architecture."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.modeling.backbone import FPN
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead

from error_matching import expect_error
from famix.clip import CLIPResNet
from famix.style import BankStyles, PatchRestyler, StyleBank
from famix.utils.errors import ConfigError
from model_factory import NUM_CLASSES, make_batch, make_restyler, tiny_backbone, tiny_segmentor

CHANNELS = {"res2": 32, "res3": 64, "res4": 128}  # of tiny_backbone


def loss_of(model, batch, seed=0):
    """The training loss, with the same styles for the same seed."""
    model.train()
    if model.restyler is not None:
        model.restyler.reseed(seed)
    return model(batch)["loss_sem_seg"]


def make_bank(class_ids):
    bank = StyleBank()
    mean = torch.randn(len(class_ids), CHANNELS["res2"], generator=torch.Generator().manual_seed(0))
    bank.add(torch.tensor(class_ids), mean, mean.abs() + 0.5)
    return bank


class SpyingRestyler(PatchRestyler):
    """Remembers what it was called with."""

    def __call__(self, features, labels, rectify=True):
        self.features, self.labels = features, labels
        return super().__call__(features, labels, rectify)


class PlainBackbone(Backbone):
    """A backbone that is not CLIP's."""

    def __init__(self):
        super().__init__()
        self.convs = torch.nn.ModuleDict(
            {"res2": torch.nn.Conv2d(3, 8, 1, stride=4), "res5": torch.nn.Conv2d(3, 8, 1, stride=16)}
        )

    def forward(self, x):
        return {name: conv(x) for name, conv in self.convs.items()}

    def output_shape(self):
        return {"res2": ShapeSpec(channels=8, stride=4), "res5": ShapeSpec(channels=8, stride=16)}


# Effect


@pytest.mark.parametrize(
    ("strategy", "stage"), [("noise", "res2"), ("noise", "res3"), ("noise", "res4"), ("mixstyle", "res2")]
)
def test_styles_change_the_training_loss(strategy, stage):
    batch = make_batch(*[(32, 48)] * 4)
    plain = loss_of(tiny_segmentor(), batch)
    model = tiny_segmentor(make_restyler(strategy, stage=stage))
    styled = loss_of(model, batch)
    assert not torch.equal(styled, plain)
    assert torch.equal(loss_of(model, batch), styled)  # the same seed
    assert not torch.equal(loss_of(model, batch, seed=1), styled)


@pytest.mark.parametrize("restyler", [None, make_restyler("none")], ids=["no restyler", "strategy none"])
def test_without_styles_it_is_detectron2s_own_training(restyler):
    model = tiny_segmentor(restyler)
    loss_of(model, make_batch((64, 96)))
    assert not model.backbone._taps


def test_styles_come_from_the_bank_of_a_patchs_class():
    batch = make_batch((64, 96), (64, 96))
    plain = loss_of(tiny_segmentor(), batch)
    model = tiny_segmentor(make_restyler("bank"))
    with expect_error(ConfigError, "MODEL.STYLE.STRATEGY", "bank", "use_bank"):
        loss_of(model, batch)
    assert not model.backbone._taps, "the failed step leaves no tap"
    model.restyler.use_bank(make_bank([NUM_CLASSES]))  # a class that no patch has, and none for unlabelled patches
    torch.testing.assert_close(loss_of(model, batch), plain, rtol=1e-4, atol=0)
    model.restyler.use_bank(make_bank(range(NUM_CLASSES)))
    assert (loss_of(model, batch) - plain).abs() > 1e-3 * plain


def test_gradients_reach_what_lies_before_the_styles():
    model = tiny_segmentor(make_restyler())
    loss_of(model, make_batch((64, 96))).backward()
    assert model.backbone.conv1.weight.grad.any()


def test_styles_never_touch_inference():
    batch = make_batch((64, 96), (70, 93))
    model, plain = tiny_segmentor(make_restyler()).eval(), tiny_segmentor().eval()
    with torch.no_grad():
        for got, expected in zip(model(batch), plain(batch), strict=True):
            assert torch.equal(got["sem_seg"], expected["sem_seg"])
    bare = tiny_segmentor(make_restyler("bank")).eval()  # not even a bank is needed
    assert len(bare(make_batch((64, 96), labels=False))) == 1


# Labels


@pytest.mark.parametrize("divisibility", [0, 32])
def test_labels_are_padded_as_the_images_are(monkeypatch, divisibility):
    monkeypatch.setattr(CLIPResNet, "size_divisibility", property(lambda self: divisibility))
    spy = SpyingRestyler(strategies=[BankStyles(make_bank([255]))], grid=(2, 3), beta=1.0)
    model, targets = tiny_segmentor(spy), []
    model.sem_seg_head.register_forward_pre_hook(lambda head, args: targets.append(args[1]))
    batch = make_batch((40, 60), (52, 36))
    loss_of(model, batch)
    size = (64, 64) if divisibility else (52, 60)
    assert spy.labels.shape == (2, *size)
    assert spy.features.shape[-2:] == (size[0] // 4, size[1] // 4)
    assert torch.equal(spy.labels, targets[0]), "styles and loss must see the same labels"
    for labels, inputs in zip(spy.labels, batch, strict=True):
        height, width = inputs["sem_seg"].shape
        assert torch.equal(labels[:height, :width], inputs["sem_seg"])
        assert (labels[height:] == 255).all() and (labels[:, width:] == 255).all()


def test_labels_are_needed_by_strategies_that_draw_by_class():
    model = tiny_segmentor(make_restyler("bank"))
    batch = make_batch((64, 96), (64, 96))
    del batch[1]["sem_seg"]
    with expect_error(ConfigError, "'sem_seg'", remedy="noise"):
        loss_of(model, batch)


# Backbones


def test_a_feature_pyramid_around_clip_is_restyled():
    def build(restyler):
        torch.manual_seed(0)
        pyramid = FPN(tiny_backbone(output_stride=32), ["res2", "res3", "res4", "res5"], out_channels=8)
        head = SemSegFPNHead(
            pyramid.output_shape(), num_classes=NUM_CLASSES, conv_dims=8, common_stride=4, ignore_value=255
        )
        return tiny_segmentor(restyler, backbone=pyramid, sem_seg_head=head)

    model, plain = build(make_restyler()), build(None)
    assert model.clip_backbone is model.backbone.bottom_up
    batch = make_batch((50, 96), (64, 80))
    assert not torch.equal(loss_of(model, batch), loss_of(plain, batch))
    assert [r["sem_seg"].shape for r in model.eval()(batch)] == [(NUM_CLASSES, 50, 96), (NUM_CLASSES, 64, 80)]


def test_styles_on_another_backbone_are_refused():
    with expect_error(ConfigError, "MODEL.BACKBONE.NAME", "PlainBackbone", "MODEL.STYLE.STRATEGY"):
        tiny_segmentor(make_restyler(), backbone=PlainBackbone())


def test_another_backbone_trains_without_styles():
    model = tiny_segmentor(make_restyler("none"), backbone=PlainBackbone())
    assert loss_of(model, make_batch((64, 96))).isfinite()


def test_unknown_stages_are_refused():
    with expect_error(ConfigError, "MODEL.STYLE.STAGE", "res1", "stage of the backbone"):
        tiny_segmentor(make_restyler(stage="res1"))


def test_nothing_of_the_styles_enters_a_checkpoint():
    model = tiny_segmentor(make_restyler("bank"))
    model.restyler.use_bank(make_bank(range(NUM_CLASSES)))
    loss_of(model, make_batch((64, 96), (64, 96)))
    assert model.state_dict().keys() == tiny_segmentor().state_dict().keys()
