"""FAMix for semantic segmentation."""

from typing import Any

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, SemanticSegmentor
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import ImageList
from torch import Tensor

from famix.modeling.style_mixin import PatchStyleMixin
from famix.style.restyler import PatchRestyler


@META_ARCH_REGISTRY.register()
class FAMixSemanticSegmentor(PatchStyleMixin, SemanticSegmentor):
    """Detectron2's SemanticSegmentor with restyled patches in training.

    Inference upsamples the logits to the exact size of the image. Detectron2 upsamples by the head's stride, which is off by
    a few pixels unless the stride divides the size.

    Args:
        restyler: style randomizer (see PatchStyleMixin).
        **kwargs: arguments of SemanticSegmentor: backbone, sem_seg_head, pixel_mean and pixel_std.
    """

    TRAINS_ON = frozenset({"sem_seg"})
    PREDICTS = frozenset({"sem_seg"})

    @configurable
    def __init__(self, *, restyler: PatchRestyler | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.use_restyler(restyler)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read the config."""
        return {**super().from_config(cfg), "restyler": PatchRestyler(cfg)}

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Compute losses in training and predictions otherwise.

        Args:
            batched_inputs: dicts with "image" (3, H, W) in pixel values 0-255. Training also requires "sem_seg" (H, W)
                int64, and inference accepts "height" and "width", the output size.

        Returns:
            {"loss_sem_seg": scalar} in training, and one dict per image with "sem_seg", logits (K, height, width), in
            inference.
        """
        return super().forward(batched_inputs) if self.training else self.inference(batched_inputs)

    def inference(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
        """Run inference (see `forward`)."""
        images = [(x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs]
        batch = ImageList.from_tensors(
            images, self.backbone.size_divisibility, padding_constraints=self.backbone.padding_constraints
        )
        head: Any = self.sem_seg_head
        # The `layers` method of Detectron2's heads computes logits before upsampling.
        predict = head.layers if hasattr(head, "layers") else lambda features: head(features)[0]
        coarse = predict(self.backbone(batch.tensor))
        results = []
        for logits, inputs, size in zip(coarse, batched_inputs, batch.image_sizes, strict=True):
            # Image by image, resized only once if possible: upsampled logits are by far the largest tensors.
            upsampled = F.interpolate(logits[None], batch.tensor.shape[-2:], mode="bilinear", align_corners=False)[0]
            wanted = inputs.get("height", size[0]), inputs.get("width", size[1])
            if tuple(size) == wanted:
                results.append({"sem_seg": upsampled[:, : size[0], : size[1]]})
            else:
                results.append({"sem_seg": sem_seg_postprocess(upsampled, size, *wanted)})
        return results
