"""FAMix for panoptic segmentation with boxes and masks."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY, PanopticFPN
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from torch import Tensor

from famix.data.classes import PanopticClasses, panoptic_classes
from famix.data.sampling.class_weights import read_class_weights
from famix.modeling.style_mixin import PatchStyleMixin
from famix.style.restyler import PatchRestyler
from famix.utils.errors import ConfigError

_NUM_LABELS = 256  # values of an 8-bit label


@SEM_SEG_HEADS_REGISTRY.register()
class StuffSemSegFPNHead(SemSegFPNHead):
    """Detectron2's SemSegFPNHead for stuff. All things share class 0, because boxes and masks segment them.

    The training labels still contain all classes, since styles are drawn by class.

    Args:
        input_shape: shapes of the backbone's features.
        classes: classes of the dataset.
        class_weights: weights of all classes in the semantic loss, by train id; None for equal weights.
        **kwargs: arguments of SemSegFPNHead, except `num_classes`.
    """

    class_weights: Tensor | None

    @configurable
    def __init__(
        self,
        input_shape: Any,
        *,
        classes: PanopticClasses,
        class_weights: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(input_shape, num_classes=len(classes.stuff) + 1, **kwargs)
        labels = torch.full((_NUM_LABELS,), self.ignore_value)
        for train_id, label in classes.stuff_labels().items():
            labels[train_id] = label
        self.register_buffer("stuff_labels", labels, persistent=False)
        weights = None if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("class_weights", weights, persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Any) -> dict[str, Any]:
        """Read MODEL.SEM_SEG_HEAD and the metadata of the dataset."""
        arguments = super().from_config(cfg, input_shape)
        del arguments["num_classes"]
        classes = panoptic_classes(cfg.DATASETS.TRAIN[0])
        return {**arguments, "classes": classes, "class_weights": read_class_weights(cfg)}

    def losses(self, predictions: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Compute the cross-entropy over stuff classes and the shared thing class, or 0 for a batch without labels.

        Args:
            predictions: logits (B, 1 + number of stuff classes, h, w).
            targets: (B, H, W) int64 train ids of all classes, or the ignore label.
        """
        labels = self.stuff_labels[targets]
        if not (labels != self.ignore_value).any():
            return {"loss_sem_seg": predictions.sum() * 0}  # the mean over zero pixels is NaN
        if self.class_weights is None:
            return super().losses(predictions, labels)
        stride = self.common_stride
        logits = F.interpolate(predictions.float(), scale_factor=stride, mode="bilinear", align_corners=False)
        # A pixel of a thing has the weight of its own class, although all things share one class here.
        weights = self.class_weights[targets.clamp(max=len(self.class_weights) - 1)] * (labels != self.ignore_value)
        losses = F.cross_entropy(logits, labels, ignore_index=self.ignore_value, reduction="none") * weights
        total = weights.sum()
        return {"loss_sem_seg": self.loss_weight * losses.sum() / total.where(total > 0, 1)}


@META_ARCH_REGISTRY.register()
class FAMixPanopticFPN(PatchStyleMixin, PanopticFPN):
    """Detectron2's PanopticFPN with restyled patches in training, and with train ids in all outputs.

    Detectron2 numbers things and stuff separately. Here "panoptic_seg", "instances" and the channels of "sem_seg" use train
    ids, as in Panoptic-DeepLab.

    Args:
        classes: classes of the dataset.
        restyler: style randomizer (see PatchStyleMixin).
        **kwargs: arguments of PanopticFPN.
    """

    TRAINS_ON = frozenset({"sem_seg", "instances"})
    PREDICTS = frozenset({"sem_seg", "panoptic_seg", "instances"})

    @configurable
    def __init__(self, *, classes: PanopticClasses, restyler: PatchRestyler | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.classes = classes
        self.use_restyler(restyler)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read the config. Raises ConfigError if its head, classes or masks do not suit panoptic segmentation."""
        classes, model = panoptic_classes(cfg.DATASETS.TRAIN[0]), cfg.MODEL
        for key, got, expected in (
            ("MODEL.SEM_SEG_HEAD.NAME", model.SEM_SEG_HEAD.NAME, StuffSemSegFPNHead.__name__),
            ("MODEL.ROI_HEADS.NUM_CLASSES", model.ROI_HEADS.NUM_CLASSES, len(classes.things)),
            ("MODEL.MASK_ON", model.MASK_ON, True),
        ):
            if got != expected:
                raise ConfigError(
                    f"{key} must be {expected} for FAMixPanopticFPN on {cfg.DATASETS.TRAIN[0]}, got {got}. Set {key} to {expected}."
                )
        return {**super().from_config(cfg), "classes": classes, "restyler": PatchRestyler(cfg)}

    def inference(self, batched_inputs: list[dict[str, Any]], do_postprocess: bool = True) -> Any:
        """Run inference as in PanopticFPN.

        Returns:
            One dict per image. "panoptic_seg" and "instances" differ from Detectron2's only in the class ids. "sem_seg"
            (K, height, width) contains scores for all K classes. The highest score belongs to the class of the instance
            or, outside instances, to the best stuff class.
        """
        results = super().inference(batched_inputs, do_postprocess)
        return [self._renumber(result) for result in results] if do_postprocess else results

    def _renumber(self, result: dict[str, Any]) -> dict[str, Any]:
        things, stuff = self.classes.things, self.classes.stuff
        panoptic, segments = result["panoptic_seg"]
        stuff_scores = result["sem_seg"][1:]
        scores = stuff_scores.new_full((len(things) + len(stuff), *stuff_scores.shape[1:]), -torch.inf)
        scores[list(stuff)] = stuff_scores
        highest = stuff_scores.max() + 1
        for segment in segments:
            place = segment["category_id"]
            segment["category_id"] = things[place] if segment["isthing"] else stuff[place - 1]
            if segment["isthing"]:
                scores[segment["category_id"]][panoptic == segment["id"]] = highest
        instances = result["instances"]
        instances.pred_classes = torch.tensor(things, device=instances.pred_classes.device)[instances.pred_classes]
        return {**result, "sem_seg": scores}
