"""Training loss of the query head, which assigns segments to queries and compares their classes and masks.

The terms are those of Mask2Former in transformers. In contrast to it, points are derived from keys (see `points.py`) and
all normalizers are averaged over processes, so a batch has the same loss on any number of processes. Shapes: B images, Q
queries, K classes, T segments in a batch, at most N segments in an image, P points.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.structures import Instances
from detectron2.utils import comm
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from famix.modeling.query.decoder import full_precision, load_library
from famix.modeling.query.points import derive_keys, sample_maps, uncertain_points, uniform_points
from famix.utils.errors import ConfigError

_MATCHING, _LOSS = range(2)  # ids of the random streams


@dataclass(frozen=True)
class Segments:
    """Segments of all images in a batch."""

    classes: Tensor  # (T,) int64
    masks: Tensor  # (T, H, W) float32, 0 or 1
    images: Tensor  # (T,) int64, index of the image
    places: Tensor  # (T,) int64, index within the image
    seeds: Tensor  # (B,) int64, seed of the points of each image

    @classmethod
    def collate(
        cls, targets: Sequence[Instances], size: tuple[int, int], seeds: Sequence[int], device: torch.device
    ) -> "Segments":
        """Join the segments of B images, with masks padded to `size` at the bottom and right.

        Args:
            targets: for each image, `gt_classes` (N,) and `gt_masks`, BitMasks (N, h, w).
            size: (H, W) of the padded images.
            seeds: seeds of the images.
            device: device of the result.
        """
        masks = [
            F.pad(
                target.gt_masks.tensor.to(device),
                (0, size[1] - target.image_size[1], 0, size[0] - target.image_size[0]),
            )
            for target in targets
        ]
        lengths = torch.tensor([len(target) for target in targets], device=device)
        images = torch.arange(len(targets), device=device).repeat_interleave(lengths)
        places = torch.arange(len(images), device=device) - (lengths.cumsum(0) - lengths)[images]
        classes = torch.cat([target.gt_classes for target in targets]).to(device)
        return cls(classes, torch.cat(masks).float(), images, places, torch.tensor(seeds, device=device))


class MaskCriterion(nn.Module):
    """Mask2Former's loss with deep supervision.

    Args:
        num_classes: number of classes K.
        class_weight, mask_weight, dice_weight: weights of the cross-entropy over classes, of the binary cross-entropy of
            masks, and of their Dice loss, both in the loss and in the cost of an assignment.
        no_object_weight: weight of queries without a segment in the cross-entropy over classes.
        num_points: number of points P per mask.
        class_weights: weights of the K classes in the cross-entropy over classes; None for equal weights.
        query_per_class: whether query k belongs to class k. Otherwise, the assignment minimizes the total cost.

    Raises:
        ConfigError: a value is out of range.
    """

    class_weights: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        no_object_weight: float = 0.1,
        num_points: int = 12544,
        class_weights: Sequence[float] | None = None,
        query_per_class: bool = False,
    ) -> None:
        super().__init__()
        weights = {"CLASS": class_weight, "MASK": mask_weight, "DICE": dice_weight, "NO_OBJECT": no_object_weight}
        for name, weight in weights.items():
            if not 0 <= weight < float("inf"):
                raise ConfigError(
                    f"MODEL.MASK_FORMER.{name}_WEIGHT must be a finite non-negative number, got {weight}. Omit it to use "
                    "Mask2Former's value."
                )
        if num_points < 1:
            raise ConfigError(f"MODEL.MASK_FORMER.NUM_POINTS must be positive, got {num_points}. Use e.g. 12544.")
        self.class_weight = class_weight
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight
        self.num_points = num_points
        self.query_per_class = query_per_class
        weights_of_classes = torch.tensor([*(class_weights or [1.0] * num_classes), no_object_weight])
        self.register_buffer("class_weights", weights_of_classes, persistent=False)

    def forward(self, classes: Sequence[Tensor], masks: Sequence[Tensor], segments: Segments) -> dict[str, Tensor]:
        """Compute the losses of all layers.

        Args:
            classes: for each layer, class logits (B, Q, K + 1).
            masks: for each layer, mask logits (B, Q, h, w).
            segments: the segments of the batch, at most Q per image.

        Returns:
            {"loss_class", "loss_mask", "loss_dice"}, weighted and summed over the layers, float32.
        """
        with full_precision(classes[0].device):
            num_predictions = classes[0][..., 0].numel()
            num_segments, num_queries, segment_weight = _average(
                len(segments.images), num_predictions, self.class_weights[segments.classes].sum()
            )
            weight = segment_weight + self.class_weights[-1] * (num_queries - num_segments)
            losses = []
            for layer, (layer_classes, layer_masks) in enumerate(zip(classes, masks, strict=True)):
                layer_classes, layer_masks = layer_classes.float(), layer_masks.float()
                queries = self.match(layer_classes, layer_masks, segments, layer)
                loss_class = self._class_loss(layer_classes, segments, queries) / weight
                loss_masks = self._mask_losses(layer_masks, segments, queries, layer, num_segments.clamp(min=1))
                losses.append(torch.stack([loss_class, *loss_masks]))
            total = torch.stack(losses).sum(dim=0)
        return {
            "loss_class": self.class_weight * total[0],
            "loss_mask": self.mask_weight * total[1],
            "loss_dice": self.dice_weight * total[2],
        }

    @torch.no_grad()
    def match(self, classes: Tensor, masks: Tensor, segments: Segments, layer: int) -> Tensor:
        """Assign each segment to a query of its image.

        Args:
            classes: class logits (B, Q, K + 1).
            masks: mask logits (B, Q, h, w).
            segments: the segments of the batch.
            layer: index of the layer, which selects the points.

        Returns:
            (T,) int64, the query of each segment. Queries in an image are distinct.
        """
        if self.query_per_class:
            return segments.classes
        if not len(segments.images):
            return segments.images
        points = uniform_points(derive_keys(segments.seeds, _MATCHING, layer), self.num_points)
        predicted = sample_maps(masks, points)
        true = sample_maps(segments.masks[:, None], points[segments.images])[:, 0]
        padded = true.new_zeros(len(masks), int(segments.places.max()) + 1, self.num_points)  # (B, N, P)
        padded[segments.images, segments.places] = true
        library = load_library()
        cost = self.mask_weight * torch.vmap(library.pair_wise_sigmoid_cross_entropy_loss)(predicted, padded)
        cost += self.dice_weight * torch.vmap(library.pair_wise_dice_loss)(predicted, padded)
        cost = cost.transpose(1, 2)[segments.images, segments.places]  # (T, Q)
        probabilities = classes.softmax(dim=-1).transpose(1, 2)
        cost -= self.class_weight * probabilities[segments.images, segments.classes]
        largest = torch.finfo(cost.dtype).max
        costs = cost.nan_to_num(largest, largest, largest).cpu().numpy()
        counts = segments.images.bincount(minlength=len(masks)).cpu().numpy()
        # SciPy solves one assignment at a time. Rows are segments in order, so the columns are their queries.
        queries = [linear_sum_assignment(rows)[1] for rows in np.split(costs, counts.cumsum()[:-1])]
        return torch.from_numpy(np.concatenate(queries)).to(cost.device)

    def _class_loss(self, classes: Tensor, segments: Segments, queries: Tensor) -> Tensor:
        """Return the weighted sum of the cross-entropy over all queries."""
        no_object = classes.shape[-1] - 1
        targets = torch.full(classes.shape[:2], no_object, device=classes.device)
        targets[segments.images, queries] = segments.classes
        return F.cross_entropy(classes.flatten(0, 1), targets.flatten(), self.class_weights, reduction="sum")

    def _mask_losses(
        self, masks: Tensor, segments: Segments, queries: Tensor, layer: int, num_segments: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the binary cross-entropy and the Dice loss of the assigned queries, divided by `num_segments`."""
        if not len(queries):
            zero = masks.sum() * 0  # every parameter gets a gradient, which distributed training requires
            return zero, zero
        keys = derive_keys(segments.seeds[segments.images], _LOSS, layer, segments.places)
        logits = masks[segments.images, queries]
        with torch.no_grad():
            points = uncertain_points(logits, keys, self.num_points)
            true = sample_maps(segments.masks[:, None], points)[:, 0]
        predicted = sample_maps(logits[:, None], points)[:, 0]
        library = load_library()
        return (
            library.sigmoid_cross_entropy_loss(predicted, true, num_segments),
            library.dice_loss(predicted, true, num_segments),
        )


def _average(num_segments: int, num_queries: int, segment_weight: Tensor) -> Tensor:
    """Return the means, over all processes, of the numbers of segments and queries and the weight of the segments."""
    values = torch.stack(
        [segment_weight.new_tensor(num_segments), segment_weight.new_tensor(num_queries), segment_weight]
    )
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(values)
    return values / comm.get_world_size()
