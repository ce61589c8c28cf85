"""The decoder: names and outputs of the reference implementation, and cases beyond it."""

from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_sem_seg_head
from torch import nn
from torchvision.models.segmentation.deeplabv3 import ASPP

from error_matching import expect_error
from famix.engine import load_config
from famix.modeling import CLIPDeepLabV3PlusHead, deeplab_head
from famix.utils.errors import ConfigError

NORMED = ("project", *(f"aspp.convs.{i}" for i in range(4)), "aspp.project", "classifier")  # convolution 0, norm 1
NORM_ENTRIES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def shapes(low=256, high=2048):
    return {"res2": ShapeSpec(channels=low, stride=4), "res5": ShapeSpec(channels=high, stride=16)}


def make_head(low=16, high=32, **kwargs):
    kwargs = {"aspp_channels": 8, "conv_dims": 8, "project_channels": 4, "aspp_dropout": 0.0, **kwargs}
    torch.manual_seed(0)
    return CLIPDeepLabV3PlusHead(shapes(low, high), in_features=("res2", "res5"), num_classes=5, **kwargs)


def make_features(batch=2, low=(16, 24), high=(4, 6)):
    generator = torch.Generator().manual_seed(1)
    sizes = {"res2": (16, *low), "res5": (32, *high)}
    return {name: torch.randn(batch, *size, generator=generator) for name, size in sizes.items()}


def test_class_weights_scale_the_loss_of_their_pixels():
    weights = [0.5, 0.0, 2.0, 1.0, 1.0]
    head, plain = make_head(class_weights=weights).train(), make_head()
    assert head.state_dict().keys() == plain.state_dict().keys()
    logits, targets = torch.randn(2, 5, 16, 24), torch.randint(5, (2, 64, 96))
    upsampled = F.interpolate(logits, (64, 96), mode="bilinear", align_corners=False)
    expected = F.cross_entropy(upsampled, targets, torch.tensor(weights), label_smoothing=0.1)
    torch.testing.assert_close(head.losses(logits, targets)["loss_sem_seg"], expected)


def test_default_head_is_that_of_the_reference_implementation():
    torch.manual_seed(0)
    head = CLIPDeepLabV3PlusHead(shapes(), in_features=("res2", "res5"), num_classes=19)
    expected = {f"{name}.0.weight" for name in NORMED} | {f"{name}.1.{e}" for name in NORMED for e in NORM_ENTRIES}
    expected |= {"aspp.convs.4.1.weight"} | {f"aspp.convs.4.2.{entry}" for entry in NORM_ENTRIES}
    expected |= {"classifier.3.weight", "classifier.3.bias"}
    assert head.state_dict().keys() == expected
    assert {name: tuple(value.shape) for name, value in head.state_dict().items() if value.dim() == 4} == {
        "project.0.weight": (48, 256, 1, 1),
        "aspp.convs.0.0.weight": (256, 2048, 1, 1),
        **{f"aspp.convs.{i}.0.weight": (256, 2048, 3, 3) for i in (1, 2, 3)},
        "aspp.convs.4.1.weight": (256, 2048, 1, 1),
        "aspp.project.0.weight": (256, 1280, 1, 1),
        "classifier.0.weight": (256, 304, 3, 3),
        "classifier.3.weight": (19, 256, 1, 1),
    }
    assert [m.p for m in head.modules() if isinstance(m, nn.Dropout)] == [0.1]
    assert [branch[0].dilation[0] for branch in head.aspp.convs[1:4]] == [6, 12, 18]
    for name, module in head.named_modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight.detach()
            std = (2 / weight[0].numel()) ** 0.5
            assert weight.std().item() == pytest.approx(std, rel=0.05), name
            assert weight.abs().max() > 2.5 * std, f"{name} is not normal"
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all(), name


@pytest.mark.parametrize("training", [True, False])
def test_logits_equal_torchvisions_aspp_and_a_plain_decoder(training):
    head = make_head().train(training)
    reference = ASPP(32, [6, 12, 18], 8).train(training)
    reference.load_state_dict(head.aspp.state_dict())
    reference.project[3].p = 0.0
    features = make_features(high=(20, 22), low=(40, 44))
    low = head.project(features["res2"])
    high = F.interpolate(reference(features["res5"]), (40, 44), mode="bilinear", align_corners=False)
    expected = head.classifier(torch.cat([low, high], dim=1))
    torch.testing.assert_close(make_head().train(training).layers(features), expected)


@pytest.mark.parametrize(("low", "high"), [((16, 24), (4, 6)), ((17, 23), (4, 5)), ((5, 7), (1, 1))])
def test_inference_upsamples_by_the_stride(low, high):
    logits, losses = make_head().eval()(make_features(low=low, high=high))
    assert logits.shape == (2, 5, low[0] * 4, low[1] * 4) and losses == {}


def test_loss_is_smoothed_cross_entropy_at_the_resolution_of_the_labels():
    head, features = make_head(loss_weight=2.0), make_features(low=(17, 23), high=(4, 5))
    targets = torch.randint(5, (2, 70, 93))
    targets[:, :30] = 255
    nothing, losses = head(features, targets)
    assert nothing is None and losses.keys() == {"loss_sem_seg"}
    assert head.aspp.convs[4][2].num_batches_tracked == 1
    logits = F.interpolate(make_head().layers(features), (70, 93), mode="bilinear", align_corners=False)
    expected = F.cross_entropy(logits, targets, ignore_index=255, label_smoothing=0.1)
    torch.testing.assert_close(losses["loss_sem_seg"], 2 * expected)


def test_batch_without_labels_has_zero_gradients():
    head = make_head()
    _, losses = head(make_features(), torch.full((2, 64, 96), 255))
    losses["loss_sem_seg"].backward()
    assert losses["loss_sem_seg"].item() == 0
    assert all(not p.grad.any() for p in head.parameters())  # fails for NaN


def test_batch_of_one_image_trains():
    head = make_head()
    pooling = head.aspp.convs[4][2]
    with torch.no_grad():
        pooling.running_mean.fill_(-0.5)
        pooling.running_var.fill_(2.0)
    before = {name: value.clone() for name, value in head.state_dict().items()}
    _, losses = head(make_features(batch=1), torch.zeros(1, 64, 96, dtype=torch.int64))
    losses["loss_sem_seg"].backward()
    assert losses["loss_sem_seg"].isfinite() and pooling.weight.grad.any()
    changed = {name for name, value in head.state_dict().items() if not torch.equal(value, before[name])}
    norms = {f"{name}.1.{entry}" for name in NORMED for entry in NORM_ENTRIES[2:]}
    assert changed == norms, "all norms except that of the pooling branch must update their statistics"
    features = make_features(batch=1)["res5"]
    torch.testing.assert_close(head.aspp.convs[4].train()(features), head.aspp.convs[4].eval()(features))


def test_dropout_is_active_in_training_only():
    head, features = make_head(aspp_dropout=0.5), make_features()
    assert not torch.equal(head.layers(features), head.layers(features))
    head.eval()
    assert torch.equal(head.layers(features), head.layers(features))


def test_from_config():
    cfg = load_config("")
    settings = cfg.MODEL.SEM_SEG_HEAD
    settings.NAME, settings.IN_FEATURES, settings.NUM_CLASSES = "CLIPDeepLabV3PlusHead", ["res2", "res5"], 7
    settings.PROJECT_CHANNELS, settings.ASPP_CHANNELS, settings.CONVS_DIM, settings.NORM = [3], 6, 4, "BN"
    settings.ASPP_DILATIONS, settings.ASPP_DROPOUT = [2, 3], 0.25
    settings.IGNORE_VALUE, settings.LABEL_SMOOTHING, settings.LOSS_WEIGHT = 9, 0.2, 3.0
    head = build_sem_seg_head(cfg, shapes(16, 32))
    assert isinstance(head, CLIPDeepLabV3PlusHead)
    assert (head.ignore_value, head.label_smoothing, head.loss_weight, head.common_stride) == (9, 0.2, 3.0, 4)
    assert head.project[0].weight.shape == (3, 16, 1, 1)
    assert [branch[0].dilation for branch in head.aspp.convs[1:3]] == [(2, 2), (3, 3)]
    assert head.aspp.project[0].weight.shape == (6, 4 * 6, 1, 1) and head.aspp.project[3].p == 0.25
    assert head.classifier[3].weight.shape == (7, 4, 1, 1)


@pytest.mark.parametrize(("norm", "kind"), [("BN", nn.BatchNorm2d), ("GN", nn.GroupNorm), ("", nn.Identity)])
def test_norms(norm, kind):
    head = make_head(norm=norm, project_channels=64, aspp_channels=64, conv_dims=64)
    assert {type(head.get_submodule(f"{name}.1")) for name in NORMED} == {kind}
    convs = {name: module for name, module in head.named_modules() if isinstance(module, nn.Conv2d)}
    biased = {name for name, module in convs.items() if module.bias is not None}
    assert biased == ({"classifier.3"} if norm else set(convs)), "a norm replaces the bias"
    _, losses = head(make_features(batch=1), torch.zeros(1, 64, 96, dtype=torch.int64))
    assert losses["loss_sem_seg"].isfinite()


def test_requires_two_features():
    with expect_error(ConfigError, "MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res5"], "stages of the backbone"):
        CLIPDeepLabV3PlusHead(shapes(), in_features=["res5"], num_classes=5)


def test_channels_last_is_kept_up_to_the_logits():
    head, orders = make_head(), []
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(
                lambda _, x: orders.append(x[0].is_contiguous(memory_format=torch.channels_last))
            )
    features = make_features()
    logits = head.layers({name: x.contiguous(memory_format=torch.channels_last) for name, x in features.items()})
    assert all(orders) and len(orders) == 9
    weights = [module.weight for module in head.modules() if isinstance(module, nn.Conv2d)]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    assert logits.is_contiguous(), "channels first is faster for reductions over classes"
    torch.testing.assert_close(logits, head.layers(features), rtol=1e-4, atol=1e-5)


def test_training_builds_joined_maps_again_instead_of_keeping_them(monkeypatch):
    rebuilt, built = deeplab_head.rebuilt_in_backward, []

    def gradients(context):
        monkeypatch.setattr(deeplab_head, "rebuilt_in_backward", context)
        head = make_head()
        loss = head(make_features(), torch.arange(2 * 64 * 96).view(2, 64, 96) % 5)[1]["loss_sem_seg"]
        built.append("backward")
        loss.backward()
        return [parameter.grad for parameter in head.parameters()]

    @contextmanager
    def keep(build):
        yield build()

    ours = gradients(lambda build: rebuilt(lambda: built.append("joined") or build()))
    assert built == ["joined", "joined", "backward", "joined", "joined"], "in the ASPP and before the last block"
    assert all(map(torch.equal, ours, gradients(keep)))
