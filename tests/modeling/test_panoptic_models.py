"""Panoptic meta-architectures: restyling, frozen parts, and class numbers."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.data import MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, PanopticFPN, build_model
from detectron2.modeling.backbone import FPN
from detectron2.projects.panoptic_deeplab import PanopticDeepLab
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from clip_factory import save_tiny_clip
from data_factory import registered
from error_matching import expect_error
from famix.clip import CLIPResNet, build_clip_resnet_fpn_backbone
from famix.data import build_train_loader
from famix.data.classes import PanopticClasses
from famix.engine import build_optimizer, load_config
from famix.evaluation.panoptic import require_panopticapi
from famix.modeling import FAMixPanopticDeepLab, FAMixPanopticFPN, PatchStyleMixin, StuffSemSegFPNHead
from famix.style import PatchRestyler
from famix.utils.errors import ConfigError
from panoptic_factory import CONFIGS, make_panoptic

LOSSES = {
    "deeplab": {"loss_sem_seg", "loss_center", "loss_offset"},
    "fpn": {"loss_sem_seg", "loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"},
}
both_heads = pytest.mark.parametrize("head", ["deeplab", "fpn"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder of a registered panoptic dataset and a CLIP."""
    folder = tmp_path_factory.mktemp("panoptic")
    save_tiny_clip(folder / "clip.pt")
    with registered(make_panoptic(folder)):
        yield folder


def config(folder: Path, head: str, *options: str) -> Any:
    options = ("MODEL.CLIP.WEIGHTS", str(folder / "clip.pt"), "MODEL.STYLE.STRATEGY", "noise", *options)
    return load_config(str(CONFIGS / f"famix_panoptic_{head}.yaml"), options)


def make_model(cfg: Any) -> nn.Module:
    """Build the model of a config without dropout, with the same weights each time."""
    torch.manual_seed(0)
    model = build_model(cfg)
    for module in model.modules():
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0
    return model


def losses(model: nn.Module, batch: list[dict[str, Any]], seed: int = 0) -> dict[str, torch.Tensor]:
    model.train()
    torch.manual_seed(0)  # for the sampling of proposals
    if model.restyler is not None:
        model.restyler.reseed(seed)
    with EventStorage(), torch.no_grad():
        return model(batch)


@both_heads
def test_styles_change_all_losses_and_no_prediction(head: str, folder: Path) -> None:
    cfg = config(folder, head)
    model, batch = make_model(cfg), next(iter(build_train_loader(cfg)))
    styled, other = losses(model, batch), losses(model, batch, seed=1)
    restyler, model.restyler = model.restyler, None
    plain = losses(model, batch)
    assert styled.keys() == LOSSES[head]
    for name in styled:
        assert styled[name].isfinite() and not torch.equal(styled[name], plain[name]), name
    assert not torch.equal(styled["loss_sem_seg"], other["loss_sem_seg"])
    model.eval()
    inputs = [{"image": sample["image"], "height": 75, "width": 101} for sample in batch]
    with torch.no_grad():
        without = model(inputs)
        model.restyler = restyler
        active = model(inputs)
    for one, two in zip(without, active, strict=True):
        assert torch.equal(one["sem_seg"], two["sem_seg"]) and one["sem_seg"].shape == (19, 75, 101)
        assert torch.equal(one["panoptic_seg"][0], two["panoptic_seg"][0])


@both_heads
def test_class_weights_equal_a_plain_loss(head: str, folder: Path) -> None:
    weights = [float(train_id % 4) for train_id in range(19)]  # 0 for road, 2 for sky, 3 for persons and 1 for cars
    options = ("MODEL.STYLE.STRATEGY", "none", "MODEL.SEM_SEG_HEAD.CLASS_WEIGHTS")
    plain, weighted = (make_model(config(folder, head, *options, str(value))).train() for value in ([], weights))
    assert plain.state_dict().keys() == weighted.state_dict().keys()
    batch = next(iter(build_train_loader(config(folder, head, *options, "[]", "INPUT.CROP.SIZE", "[32, 48]"))))
    targets = torch.stack([sample["sem_seg"] for sample in batch])
    logits = torch.randn(len(batch), weighted.sem_seg_head.predictor.out_channels, *(s // 4 for s in targets.shape[1:]))
    upsampled = F.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)
    losses, total = [], 0.0
    for scores, target in zip(upsampled, targets, strict=True):
        for place in (target != 255).nonzero().tolist():
            train_id = int(target[tuple(place)])
            label = train_id if head == "deeplab" else int(weighted.sem_seg_head.stuff_labels[train_id])
            losses.append(-weights[train_id] * scores[:, place[0], place[1]].log_softmax(0)[label])
            total += weights[train_id]
    result, loss_weight = weighted.sem_seg_head.losses(logits, targets), weighted.sem_seg_head.loss_weight
    if head == "deeplab":  # the mean over the hardest pixels
        hardest = int(weighted.sem_seg_head.loss.top_k_percent_pixels * targets.numel())
        zeros = [torch.zeros(())] * (targets.numel() - len(losses))
        expected = torch.stack(losses + zeros).topk(hardest).values.mean()
    else:
        expected = torch.stack(losses).sum() / total
    torch.testing.assert_close(result["loss_sem_seg"], loss_weight * expected, rtol=1e-5, atol=1e-6)


@both_heads
def test_styles_use_padded_semantic_labels(head: str, folder: Path) -> None:
    cfg = config(folder, head, "INPUT.CROP.SIZE", "[50, 70]")
    model, batch = make_model(cfg), next(iter(build_train_loader(cfg)))
    seen = {}

    class Spy(PatchRestyler):
        def needs(self, what: str) -> bool:
            return what == "labels"

        def __call__(self, features: torch.Tensor, labels: torch.Tensor, rectify: bool = True) -> torch.Tensor:
            seen.update(features=features.shape, labels=labels)
            return super().__call__(features, labels, rectify)

    model.restyler = Spy(cfg)
    losses(model, batch)
    assert seen["features"][-2:] == (16, 24) and seen["labels"].shape == (2, 64, 96)
    for labels, sample in zip(seen["labels"], batch, strict=True):
        assert torch.equal(labels[:50, :70], sample["sem_seg"])
        assert (labels[50:] == 255).all() and (labels[:, 70:] == 255).all()


@both_heads
def test_trained_parts_and_learning_rates(head: str, folder: Path) -> None:
    cfg = config(folder, head)
    model = make_model(cfg).train()
    clip = "backbone.bottom_up." if head == "fpn" else "backbone."
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in trained if name.startswith(clip)} == {
        name for name, _ in model.named_parameters() if name.startswith(f"{clip}layer4.")
    }
    for name, module in model.clip_backbone.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.training == name.startswith("layer4.")
    names = {parameter: name for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(cfg, model)
    rates = {names[parameter]: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    assert rates.keys() == trained
    for name, rate in rates.items():
        assert rate == pytest.approx(cfg.SOLVER.BASE_LR * (0.1 if name.startswith(clip) else 1.0))


def test_forward_is_that_of_detectron2(folder: Path) -> None:
    for ours, theirs, head in (
        (FAMixPanopticDeepLab, PanopticDeepLab, "deeplab"),
        (FAMixPanopticFPN, PanopticFPN, "fpn"),
    ):
        assert ours.__mro__[1] is PatchStyleMixin and issubclass(ours, theirs)
        assert ours.forward is PatchStyleMixin.forward
        assert isinstance(make_model(config(folder, head)), META_ARCH_REGISTRY.get(ours.__name__))


def test_mixin_works_with_other_architectures(folder: Path) -> None:
    """The example of docs/PANOPTIC.md."""

    class FAMixMaskRCNN(PatchStyleMixin, GeneralizedRCNN):
        @configurable
        def __init__(self, *, restyler: PatchRestyler | None = None, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.use_restyler(restyler)

        @classmethod
        def from_config(cls, cfg: Any) -> dict[str, Any]:
            return {**super().from_config(cfg), "restyler": PatchRestyler(cfg)}

    cfg = config(folder, "fpn")
    batch = next(iter(build_train_loader(cfg)))
    torch.manual_seed(0)
    model = FAMixMaskRCNN(cfg)
    styled = losses(model, batch)
    model.restyler = None
    assert not torch.equal(styled["loss_mask"], losses(model, batch)["loss_mask"])


def test_pyramid_wraps_clip(folder: Path) -> None:
    backbone = build_clip_resnet_fpn_backbone(config(folder, "fpn"))
    assert isinstance(backbone, FPN) and isinstance(backbone.bottom_up, CLIPResNet)
    shapes = {name: tuple(value.shape) for name, value in backbone(torch.zeros(1, 3, 64, 96)).items()}
    assert shapes == {f"p{level}": (1, 16, 64 // 2**level, 96 // 2**level) for level in (2, 3, 4, 5)} | {
        "p6": (1, 16, 1, 2)
    }
    with expect_error(ConfigError, "MODEL.CLIP.OUTPUT_STRIDE", 16, "MODEL.CLIP.OUTPUT_STRIDE to 32"):
        build_clip_resnet_fpn_backbone(config(folder, "fpn", "MODEL.CLIP.OUTPUT_STRIDE", "16"))


@pytest.mark.parametrize(
    ("head", "key", "value", "remedy"),
    [
        ("deeplab", "MODEL.SEM_SEG_HEAD.LOSS_TYPE", "cross_entropy", "hard_pixel_mining"),
        ("fpn", "MODEL.ROI_HEADS.NUM_CLASSES", "80", "MODEL.ROI_HEADS.NUM_CLASSES to 8"),
        ("fpn", "MODEL.MASK_ON", "False", "MODEL.MASK_ON to True"),
        ("fpn", "MODEL.SEM_SEG_HEAD.NAME", "SemSegFPNHead", "StuffSemSegFPNHead"),
    ],
)
def test_rejects_unsuitable_settings(head: str, key: str, value: str, remedy: str, folder: Path) -> None:
    with expect_error(ConfigError, key, value, remedy):
        make_model(config(folder, head, key, value))


def test_stuff_head_merges_all_things() -> None:
    head = StuffSemSegFPNHead(
        {"res2": ShapeSpec(channels=4, stride=4)},
        classes=PanopticClasses(things=(1, 3), stuff=(0, 2)), conv_dims=4, common_stride=4, ignore_value=9,
    )  # fmt: skip
    head.common_stride = 1
    logits = torch.randn(1, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 1, 2, 3, 9]).expand(1, 4, 5)
    expected = nn.functional.cross_entropy(logits[..., :4], torch.tensor([1, 0, 2, 0]).expand(1, 4, 4))
    assert torch.allclose(head.losses(logits, targets)["loss_sem_seg"], expected)
    assert head.losses(logits, torch.full_like(targets, 9))["loss_sem_seg"] == 0


def test_panoptic_fpn_returns_train_ids(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(config(folder, "fpn", "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", "1")).eval()
    stuff = torch.full((1, 12, 32, 32), -1.0)  # the things, then Cityscapes' 11 stuff classes
    stuff[0, 1], stuff[0, 11, :16] = 0.0, 5.0  # road, and sky above
    box = Instances((32, 32))
    box.pred_boxes, box.scores = Boxes(torch.tensor([[4.0, 10.0, 14.0, 20.0]])), torch.tensor([0.9])
    box.pred_classes, box.pred_masks = torch.tensor([2]), torch.ones(1, 1, 28, 28)  # cars are the third of the things
    monkeypatch.setattr(model.sem_seg_head, "forward", lambda *_: (stuff, {}))
    monkeypatch.setattr(model.proposal_generator, "forward", lambda *_: ([None], {}))
    monkeypatch.setattr(model.roi_heads, "forward", lambda *_: ([box], {}))
    with torch.no_grad():
        (result,) = model([{"image": torch.zeros(3, 32, 32)}])
    panoptic, segments = result["panoptic_seg"]
    car, road, sky = (next(s["id"] for s in segments if s["category_id"] == train_id) for train_id in (13, 0, 10))
    assert [segment["isthing"] for segment in segments] == [True, False, False]
    assert (panoptic[10:20, 4:14] == car).all() and panoptic[0, 0] == sky and panoptic[31, 31] == road
    assert result["instances"].pred_classes.tolist() == [13]
    classes = result["sem_seg"].argmax(dim=0)
    assert classes.shape == (32, 32) and classes.unique().tolist() == [0, 10, 13]
    assert (classes[panoptic == car] == 13).all() and (classes[panoptic == sky] == 10).all()
    assert MetadataCatalog.get("tiny_train_panoptic").thing_dataset_id_to_contiguous_id[13] == 13


def test_panopticapi_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "detectron2.projects.panoptic_deeplab", None)
    monkeypatch.setitem(sys.modules, "panopticapi.evaluation", None)
    assert "PANOPTIC_DEEPLAB" not in load_config(str(CONFIGS / "famix_tiny.yaml")).MODEL
    with expect_error(ConfigError, "panopticapi", remedy="make setup"):
        require_panopticapi()
