"""FAMixSemanticSegmentor: construction from configs, Detectron2's heads, and inference."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import SemanticSegmentor, build_model
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from detectron2.projects.deeplab import DeepLabV3PlusHead

from famix.clip import CLIPResNet
from famix.engine import load_config
from famix.modeling import CLIPDeepLabV3PlusHead, FAMixSemanticSegmentor
from model_factory import NUM_CLASSES, make_batch, tiny_segmentor

SETTINGS = {
    "MODEL.DEVICE": "cpu",
    "MODEL.META_ARCHITECTURE": "FAMixSemanticSegmentor",
    "MODEL.BACKBONE.NAME": "build_clip_resnet_backbone",
    "MODEL.CLIP.TRAINABLE": ["layer4"],
    "MODEL.STYLE.BETA": 1.0,
    "MODEL.STYLE.GRID": [2, 3],
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res5"],
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": NUM_CLASSES,
    "MODEL.SEM_SEG_HEAD.NORM": "BN",
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 8,
    "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS": 8,
    "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS": [4],
    "MODEL.SEM_SEG_HEAD.LOSS_TYPE": "cross_entropy",
}


def build(clip_file, head, strategy="noise", **changes):
    settings = {**SETTINGS, "MODEL.CLIP.WEIGHTS": clip_file, "MODEL.SEM_SEG_HEAD.NAME": head.__name__}
    settings |= {"MODEL.STYLE.STRATEGY": strategy} | {f"MODEL.{key}": value for key, value in changes.items()}
    torch.manual_seed(0)
    model = build_model(load_config("", [str(item) for pair in settings.items() for item in pair]))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def forward(model, batch):
    with torch.no_grad():
        return [result["sem_seg"] for result in model.eval()(batch)]


def test_from_config(clip_file):
    options = {"PIXEL_MEAN": [1.0, 2.0, 3.0], "STYLE.STAGE": "res3"}
    model = build(clip_file, CLIPDeepLabV3PlusHead, **options)
    assert isinstance(model, FAMixSemanticSegmentor)
    assert isinstance(model.backbone, CLIPResNet) and isinstance(model.sem_seg_head, CLIPDeepLabV3PlusHead)
    assert model.pixel_mean.flatten().tolist() == [1, 2, 3]
    styles = model.restyler
    assert (len(styles.strategies), styles.grid, styles.beta, styles.stage) == (1, (2, 3), 1.0, "res3")
    assert styles.ignore_label == 255


@pytest.mark.parametrize("head", [CLIPDeepLabV3PlusHead, SemSegFPNHead, DeepLabV3PlusHead])
def test_trains_and_predicts_with_any_head(clip_file, head):
    options = {"SEM_SEG_HEAD.IN_FEATURES": ["res2", "res3", "res4", "res5"]} if head is SemSegFPNHead else {}
    model, plain = (build(clip_file, head, strategy, **options) for strategy in ("noise", "none"))
    assert isinstance(model.sem_seg_head, head)
    batch = make_batch((64, 96), (64, 96))
    losses = model.train()(batch)
    losses["loss_sem_seg"].backward()
    assert losses.keys() == {"loss_sem_seg"}
    assert not torch.equal(losses["loss_sem_seg"], plain.train()(batch)["loss_sem_seg"])
    assert {name for name, p in model.named_parameters() if p.grad is None} == {
        name for name, _ in model.named_parameters() if name.startswith("backbone.") and ".layer4." not in name
    }
    # SemSegFPNHead adds up maps that it has doubled, so it needs multiples of 16, from a crop or a feature pyramid.
    sizes = [(64, 96), (64, 80) if head is SemSegFPNHead else (70, 93)]
    assert [logits.shape[1:] for logits in forward(model, make_batch(*sizes, labels=False))] == sizes


@pytest.mark.parametrize("sizes", [[(64, 96)], [(64, 96), (64, 96)], [(96, 64), (64, 112)]])
def test_equals_detectron2_for_multiples_of_16(sizes):
    model, batch = tiny_segmentor(), make_batch(*sizes, labels=False)
    theirs = SemanticSegmentor(
        backbone=model.backbone,
        sem_seg_head=model.sem_seg_head,
        pixel_mean=model.pixel_mean.flatten().tolist(),
        pixel_std=model.pixel_std.flatten().tolist(),
    )
    batch[0].update(height=50, width=77)
    for got, expected in zip(forward(model, batch), forward(theirs, batch), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("size", [(70, 93), (65, 66), (37, 131), (67, 64)])
def test_logits_have_the_exact_size_of_the_image(size):
    model, batch = tiny_segmentor().eval(), make_batch(size, labels=False)
    (logits,) = forward(model, batch)
    image = (batch[0]["image"] - model.pixel_mean) / model.pixel_std
    with torch.no_grad():
        coarse = model.sem_seg_head.layers(model.backbone(image[None]))
    assert coarse.shape[-2:] == (-(-size[0] // 2) // 2, -(-size[1] // 2) // 2)
    torch.testing.assert_close(logits, F.interpolate(coarse, size, mode="bilinear", align_corners=False)[0])
    batch[0].update(height=141, width=187)
    assert forward(model, [*batch, *batch])[0].shape == (NUM_CLASSES, 141, 187)


def test_logits_are_upsampled_once(monkeypatch):
    """A second time would need a copy of the largest tensor."""
    sizes, interpolate = [], F.interpolate
    monkeypatch.setattr(F, "interpolate", lambda x, size=None, **kw: sizes.append(size) or interpolate(x, size, **kw))
    forward(tiny_segmentor(), make_batch((64, 96), (64, 96), labels=False))
    assert sizes.count((64, 96)) == 2, "once for each image"


def test_padding_is_cut_off():
    model, batch = tiny_segmentor().eval(), make_batch((64, 96), (32, 48), labels=False)
    images = torch.zeros(2, 3, 64, 96)
    for padded, inputs in zip(images, batch, strict=True):
        height, width = inputs["image"].shape[1:]
        padded[:, :height, :width] = (inputs["image"] - model.pixel_mean) / model.pixel_std
    with torch.no_grad():
        logits, _ = model.sem_seg_head(model.backbone(images))
    got = forward(model, batch)
    torch.testing.assert_close(got[0], logits[0])
    torch.testing.assert_close(got[1], logits[1, :, :32, :48])


def test_head_without_layers_is_called():
    model, batch = tiny_segmentor().eval(), make_batch((64, 96), labels=False)

    class Opaque(torch.nn.Module):
        ignore_value = 255

        def forward(self, features, targets=None):
            return model.sem_seg_head(features, targets)

    torch.testing.assert_close(forward(tiny_segmentor(sem_seg_head=Opaque()), batch), forward(model, batch))
