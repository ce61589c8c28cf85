"""FAMix for panoptic segmentation with centers and offsets."""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.projects.panoptic_deeplab import PanopticDeepLab

from famix.data.sampling.class_weights import read_class_weights
from famix.modeling.style_mixin import PatchStyleMixin
from famix.style.restyler import PatchRestyler
from famix.utils.errors import ConfigError


@META_ARCH_REGISTRY.register()
class FAMixPanopticDeepLab(PatchStyleMixin, PanopticDeepLab):
    """Detectron2's PanopticDeepLab with restyled patches in training.

    The heads pool over the whole image and accept images of any size, unlike Detectron2's heads, which pool over windows
    of the training crop size.

    Args:
        cfg: the config for PanopticDeepLab.
        class_weights: weights of the classes in the semantic loss; None for equal weights.
        restyler: style randomizer (see PatchStyleMixin).
    """

    TRAINS_ON = frozenset({"sem_seg", "centers"})
    PREDICTS = frozenset({"sem_seg", "panoptic_seg", "instances"})

    @configurable
    def __init__(
        self,
        *,
        cfg: CfgNode,
        class_weights: Sequence[float] | None = None,
        restyler: PatchRestyler | None = None,
    ) -> None:
        super().__init__(cfg)
        if class_weights is not None:
            # Registered again, because the loss would store it in checkpoints.
            head: Any = self.sem_seg_head
            cross_entropy = head.loss.criterion
            del cross_entropy.weight
            cross_entropy.register_buffer("weight", torch.tensor(class_weights), persistent=False)
        self.use_restyler(restyler)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read the config. Raises ConfigError if the semantic head's loss does not accept pixel weights."""
        loss = cfg.MODEL.SEM_SEG_HEAD.LOSS_TYPE
        if loss != "hard_pixel_mining":
            raise ConfigError(
                f"MODEL.SEM_SEG_HEAD.LOSS_TYPE must be hard_pixel_mining, the only loss that accepts pixel weights, got {loss}. "
                "Set MODEL.SEM_SEG_HEAD.LOSS_TYPE to hard_pixel_mining."
            )
        global_pooling = cfg.clone()
        global_pooling.defrost()
        global_pooling.INPUT.CROP.ENABLED = False  # the only key of INPUT that the heads read
        return {"cfg": global_pooling, "class_weights": read_class_weights(cfg), "restyler": PatchRestyler(cfg)}
