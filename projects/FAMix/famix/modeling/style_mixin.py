"""Restyling inside any Detectron2 meta-architecture, without changes to its forward pass."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.structures import ImageList
from torch import Tensor, nn

from famix.clip import IMAGE, CLIPImageTower
from famix.style.restyler import PatchRestyler
from famix.utils.errors import ConfigError


class PatchStyleMixin(nn.Module):
    """Mixin that restyles a meta-architecture's images or features in training mode. It must be the first base class.

    The meta-architecture must have the attributes `backbone` (a CLIPImageTower, or a feature pyramid with one as `bottom_up`),
    `device`, `pixel_mean` and `pixel_std`. The stage "image" supports any backbone. Strategies that draw by class need inputs
    with "sem_seg" labels.
    """

    restyler: PatchRestyler | None = None  # None or strategy "none" leaves the features unchanged
    backbone: Any
    device: torch.device
    pixel_mean: Tensor
    pixel_std: Tensor

    def use_restyler(self, restyler: PatchRestyler | None) -> None:
        """Set the restyler. Raises ConfigError if the backbone lacks its stage or is not a CLIP image tower.

        Any backbone supports the stage "image".
        """
        if restyler is not None and restyler.active and restyler.stage != IMAGE:
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
        rectified = restyler.stage != IMAGE and self.clip_backbone.rectified
        with self.transform_stage(restyler.stage, lambda features: restyler(features, labels, rectified)):
            return super().forward(batched_inputs)

    @contextmanager
    def transform_stage(self, stage: str, transform: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """While the context is open, transform the output of a stage of the backbone, or its input images.

        Args:
            stage: stage of the CLIP image tower, or "image".
            transform: function that keeps the shape of its input: features (B, C, h, w), or images (B, 3, H, W) in pixel
                values, whose result is clipped to [0, 255].

        Raises:
            ConfigError: the stage is unknown or already transformed, or the backbone is not a CLIP image tower.
        """
        if stage != IMAGE:
            with self.clip_backbone.transform_stage(stage, transform):
                yield
            return

        def on_images(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            images, *others = arguments
            pixels = transform(images * self.pixel_std + self.pixel_mean).clamp(0, 255)
            return (pixels - self.pixel_mean) / self.pixel_std, *others

        hook = self.backbone.register_forward_pre_hook(on_images)
        try:
            yield
        finally:
            hook.remove()

    def _padded_labels(self, labels: list[Tensor], ignore_label: int) -> Tensor:
        """Return labels (B, H, W), padded like the images so that the grids coincide."""
        divisibility = getattr(self, "size_divisibility", 0)  # set by PanopticDeepLab, which ignores the backbone's
        if divisibility <= 0:
            divisibility = self.backbone.size_divisibility
        return ImageList.from_tensors(labels, divisibility, ignore_label, self.backbone.padding_constraints).tensor
