"""FAMixSemanticSegmentor: built from configs, with Detectron2's heads, and its inference."""

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
    "MODEL.STYLE.STRATEGY": "noise",
    "MODEL.STYLE.BETA": 1.0,
    "MODEL.STYLE.GRID": [2, 3],
    "MODEL.SEM_SEG_HEAD.NAME": "CLIPDeepLabV3PlusHead",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res5"],
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": NUM_CLASSES,
    "MODEL.SEM_SEG_HEAD.NORM": "BN",
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 8,
    "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS": 8,
    "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS": [4],
    "MODEL.SEM_SEG_HEAD.LOSS_TYPE": "cross_entropy",
}


def build(clip_file, changes=None):
    settings = {**SETTINGS, "MODEL.CLIP.WEIGHTS": clip_file, **(changes or {})}
    torch.manual_seed(0)
    return build_model(load_config("", [str(item) for pair in settings.items() for item in pair]))


def forward(model, batch):
    with torch.no_grad():
        return [result["sem_seg"] for result in model.eval()(batch)]


# Building


def test_from_config(clip_file):
    model = build(clip_file, {"MODEL.PIXEL_MEAN": [1.0, 2.0, 3.0], "MODEL.STYLE.STAGE": "res3"})
    assert isinstance(model, FAMixSemanticSegmentor)
    assert isinstance(model.backbone, CLIPResNet) and isinstance(model.sem_seg_head, CLIPDeepLabV3PlusHead)
    assert model.pixel_mean.flatten().tolist() == [1, 2, 3]
    styles = model.restyler
    assert (len(styles.strategies), styles.grid, styles.beta, styles.stage) == (1, (2, 3), 1.0, "res3")
    assert styles.ignore_label == 255


@pytest.mark.parametrize(
    ("changes", "head"),
    [
        ({"NAME": "CLIPDeepLabV3PlusHead"}, CLIPDeepLabV3PlusHead),
        ({"NAME": "SemSegFPNHead", "IN_FEATURES": ["res2", "res3", "res4", "res5"]}, SemSegFPNHead),
        ({"NAME": "DeepLabV3PlusHead"}, DeepLabV3PlusHead),
    ],
    ids=lambda value: value.get("NAME") if isinstance(value, dict) else "",
)
def test_ours_and_detectron2s_heads_plug_in(clip_file, changes, head):
    settings = {f"MODEL.SEM_SEG_HEAD.{key}": value for key, value in changes.items()}
    model, plain = (build(clip_file, {**settings, "MODEL.STYLE.STRATEGY": s}) for s in ("noise", "none"))
    assert isinstance(model.sem_seg_head, head)
    for module in (*model.modules(), *plain.modules()):
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
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


# Inference


def detectron2s(model):
    """Detectron2's own meta-architecture around the same modules."""
    return SemanticSegmentor(
        backbone=model.backbone,
        sem_seg_head=model.sem_seg_head,
        pixel_mean=model.pixel_mean.flatten().tolist(),
        pixel_std=model.pixel_std.flatten().tolist(),
    )


@pytest.mark.parametrize("sizes", [[(64, 96)], [(64, 96), (64, 96)], [(96, 64), (64, 112)]])
def test_equals_detectron2_where_sizes_are_multiples_of_16(sizes):
    model, batch = tiny_segmentor(), make_batch(*sizes, labels=False)
    batch[0].update(height=50, width=77)
    for got, expected in zip(forward(model, batch), forward(detectron2s(model), batch), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("size", [(70, 93), (65, 66), (37, 131), (67, 64)])
def test_any_size_gives_logits_of_exactly_that_size(size):
    model, batch = tiny_segmentor().eval(), make_batch(size, labels=False)
    (logits,) = forward(model, batch)
    image = (batch[0]["image"] - model.pixel_mean) / model.pixel_std
    with torch.no_grad():
        coarse = model.sem_seg_head.layers(model.backbone(image[None]))
    assert coarse.shape[-2:] == (-(-size[0] // 2) // 2, -(-size[1] // 2) // 2)
    torch.testing.assert_close(logits, F.interpolate(coarse, size, mode="bilinear", align_corners=False)[0])


def test_predictions_have_the_size_that_is_asked_for():
    batch = make_batch((70, 93), (48, 61), labels=False)
    batch[0].update(height=141, width=187)
    got = forward(tiny_segmentor(), batch)
    assert [tuple(logits.shape) for logits in got] == [(NUM_CLASSES, 141, 187), (NUM_CLASSES, 48, 61)]


def test_logits_of_the_images_own_size_are_enlarged_once(monkeypatch):
    """Twice would hold a second copy of the largest tensor there is."""
    sizes, interpolate = [], F.interpolate

    def counting(x, size=None, **kwargs):
        sizes.append(size)
        return interpolate(x, size, **kwargs)

    monkeypatch.setattr(F, "interpolate", counting)
    forward(tiny_segmentor(), make_batch((64, 96), (64, 96), labels=False))
    assert sizes.count((64, 96)) == 2, "once for each image"


def test_padding_is_cut_off():
    """Each image of a padded batch keeps its own corner of the logits, not a squeezed copy of all of them."""
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


def test_a_head_without_layers_is_called():
    model, batch = tiny_segmentor().eval(), make_batch((64, 96), labels=False)
    expected = forward(model, batch)

    class Opaque(torch.nn.Module):
        ignore_value = 255

        def __init__(self, head):
            super().__init__()
            self.head = head

        def forward(self, features, targets=None):
            return self.head(features, targets)

    torch.testing.assert_close(forward(tiny_segmentor(sem_seg_head=Opaque(model.sem_seg_head)), batch), expected)
