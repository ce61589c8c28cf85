"""Restyling inside any Detectron2 meta-architecture, without changes to its forward pass."""

from typing import Any

import torch
from detectron2.structures import ImageList
from torch import Tensor, nn

from famix.clip import CLIPImageTower
from famix.style.restyler import PatchRestyler
from famix.utils.errors import ConfigError


class PatchStyleMixin(nn.Module):
    """Mixin that restyles a meta-architecture's backbone features in training mode. It must be the first base class.

    The meta-architecture must have the attributes `backbone` (a CLIPImageTower, or a feature pyramid with one as `bottom_up`) and
    `device`. Strategies that draw by class need inputs with "sem_seg" labels.
    """

    restyler: PatchRestyler | None = None  # None or strategy "none" leaves the features unchanged
    backbone: Any
    device: torch.device

    def use_restyler(self, restyler: PatchRestyler | None) -> None:
        """Set the restyler. Raises ConfigError if the backbone lacks its stage or is not a CLIP image tower."""
        if restyler is not None and restyler.active:
            self.clip_backbone.check_stage(restyler.stage)
        self.restyler = restyler

    @property
    def clip_backbone(self) -> CLIPImageTower:
        """CLIP image tower, possibly inside a feature pyramid."""
        for candidate in (self.backbone, getattr(self.backbone, "bottom_up", None)):
            if isinstance(candidate, CLIPImageTower):
                return candidate
        raise ConfigError(
            f"MODEL.BACKBONE.NAME must build a CLIP image tower for restyling, got {type(self.backbone).__name__}. Set "
            "MODEL.BACKBONE.NAME to build_clip_backbone, or MODEL.STYLE.STRATEGY to none."
        )

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Run the meta-architecture, with restyled features in training mode."""
        restyler, labels = self.restyler, None
        if not self.training or restyler is None or not restyler.active:
            return super().forward(batched_inputs)
        if restyler.needs("labels"):
            if any("sem_seg" not in x for x in batched_inputs):
                raise ConfigError(
                    "Training inputs lack 'sem_seg' labels, but MODEL.STYLE.STRATEGY draws styles by class. Return the "
                    "labels from the dataset mapper, or set MODEL.STYLE.STRATEGY to noise or none."
                )
            # Copied to the device only once, for both styles and loss.
            batched_inputs = [{**x, "sem_seg": x["sem_seg"].to(self.device)} for x in batched_inputs]
            labels = self._padded_labels([x["sem_seg"] for x in batched_inputs], restyler.ignore_label)
        tower = self.clip_backbone
        with tower.transform_stage(restyler.stage, lambda features: restyler(features, labels, tower.rectified)):
            return super().forward(batched_inputs)

    def _padded_labels(self, labels: list[Tensor], ignore_label: int) -> Tensor:
        """Return labels (B, H, W), padded like the images so that the grids coincide."""
        divisibility = getattr(self, "size_divisibility", 0)  # set by PanopticDeepLab, which ignores the backbone's
        if divisibility <= 0:
            divisibility = self.backbone.size_divisibility
        return ImageList.from_tensors(labels, divisibility, ignore_label, self.backbone.padding_constraints).tensor
