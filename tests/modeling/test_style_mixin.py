"""Restyling inside an unchanged meta-architecture."""

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


def loss_of(model, batch, seed=0):
    """Return the training loss, with the same styles for the same seed."""
    model.train()
    if model.restyler is not None:
        model.restyler.reseed(seed)
    return model(batch)["loss_sem_seg"]


def make_bank(class_ids):
    bank = StyleBank()
    mean = torch.randn(
        len(class_ids), 32, generator=torch.Generator().manual_seed(0)
    )  # channels of tiny_backbone's res2
    bank.add(torch.tensor(class_ids), mean, mean.abs() + 0.5)
    return bank


class SpyingRestyler(PatchRestyler):
    """Remembers its last arguments."""

    def __call__(self, features, labels, rectify=True):
        self.features, self.labels = features, labels
        return super().__call__(features, labels, rectify)


class PlainBackbone(Backbone):
    """A backbone other than CLIP."""

    def __init__(self):
        super().__init__()
        strides = {"res2": 4, "res5": 16}
        self.shapes = {name: ShapeSpec(channels=8, stride=stride) for name, stride in strides.items()}
        self.convs = torch.nn.ModuleDict({name: torch.nn.Conv2d(3, 8, 1, stride) for name, stride in strides.items()})

    def forward(self, x):
        return {name: conv(x) for name, conv in self.convs.items()}

    def output_shape(self):
        return self.shapes


@pytest.mark.parametrize(
    ("strategy", "stage"), [("noise", "res2"), ("noise", "res3"), ("noise", "res4"), ("mixstyle", "res2")]
)
def test_styles_change_the_training_loss(strategy, stage):
    batch = make_batch(*[(32, 48)] * 4)
    model = tiny_segmentor(make_restyler(strategy, stage=stage))
    styled = loss_of(model, batch)
    assert not torch.equal(styled, loss_of(tiny_segmentor(), batch))
    assert torch.equal(loss_of(model, batch), styled)
    assert not torch.equal(loss_of(model, batch, seed=1), styled)
    styled.backward()
    assert model.backbone.conv1.weight.grad.any(), "gradients reach the layers before the styles"


@pytest.mark.parametrize("restyler", [None, make_restyler("none")], ids=["no restyler", "strategy none"])
def test_without_styles_the_backbone_has_no_tap(restyler):
    model = tiny_segmentor(restyler)
    loss_of(model, make_batch((64, 96)))
    assert not model.backbone._taps


def test_bank_styles_are_drawn_by_class():
    batch = make_batch((64, 96), (64, 96))
    plain = loss_of(tiny_segmentor(), batch)
    model = tiny_segmentor(make_restyler("bank"))
    with expect_error(ConfigError, "MODEL.STYLE.STRATEGY", "bank", "use_bank"):
        loss_of(model, batch)
    assert not model.backbone._taps, "the failed step leaves no tap"
    model.restyler.use_bank(make_bank([NUM_CLASSES]))  # a class without patches
    torch.testing.assert_close(loss_of(model, batch), plain, rtol=1e-4, atol=0)
    model.restyler.use_bank(make_bank(range(NUM_CLASSES)))
    assert (loss_of(model, batch) - plain).abs() > 1e-3 * plain
    assert model.state_dict().keys() == tiny_segmentor().state_dict().keys(), "checkpoints contain no styles"
    del batch[1]["sem_seg"]
    with expect_error(ConfigError, "'sem_seg'", remedy="noise"):
        loss_of(model, batch)


def test_inference_has_no_styles():
    batch = make_batch((64, 96), (70, 93))
    model, plain = tiny_segmentor(make_restyler("bank")).eval(), tiny_segmentor().eval()  # no bank is needed
    with torch.no_grad():
        for got, expected in zip(model(batch), plain(batch), strict=True):
            assert torch.equal(got["sem_seg"], expected["sem_seg"])


@pytest.mark.parametrize("divisibility", [0, 32])
def test_labels_are_padded_like_the_images(monkeypatch, divisibility):
    monkeypatch.setattr(CLIPResNet, "size_divisibility", property(lambda self: divisibility))
    spy = SpyingRestyler(strategies=[BankStyles(make_bank([255]))], grid=(2, 3), beta=1.0)
    model, targets = tiny_segmentor(spy), []
    model.sem_seg_head.register_forward_pre_hook(lambda head, args: targets.append(args[1]))
    batch = make_batch((40, 60), (52, 36))
    loss_of(model, batch)
    size = (64, 64) if divisibility else (52, 60)
    assert spy.labels.shape == (2, *size)
    assert spy.features.shape[-2:] == (size[0] // 4, size[1] // 4)
    assert torch.equal(spy.labels, targets[0]), "styles and loss must use the same labels"
    for labels, inputs in zip(spy.labels, batch, strict=True):
        height, width = inputs["sem_seg"].shape
        assert torch.equal(labels[:height, :width], inputs["sem_seg"])
        assert (labels[height:] == 255).all() and (labels[:, width:] == 255).all()


def test_feature_pyramid_around_clip_is_restyled():
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


def test_rejects_other_backbones_and_unknown_stages():
    with expect_error(ConfigError, "MODEL.BACKBONE.NAME", "PlainBackbone", "MODEL.STYLE.STRATEGY"):
        tiny_segmentor(make_restyler(), backbone=PlainBackbone())
    without_styles = tiny_segmentor(make_restyler("none"), backbone=PlainBackbone())
    assert loss_of(without_styles, make_batch((64, 96))).isfinite()
    with expect_error(ConfigError, "MODEL.STYLE.STAGE", "res1", "stage of the backbone"):
        tiny_segmentor(make_restyler(stage="res1"))
