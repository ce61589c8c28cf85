"""Regions of an image that no query claims, named by CLIP, so that classes without labels in training are found.

Queries learn that unlabeled pixels belong to no segment: all masks leave them out. What is left out is therefore something
else than the classes of training, and the CLIP that the network started from can name it.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from famix.clip import CLIPImageTower
from famix.modeling.query.decoder import full_precision
from famix.modeling.query.inference import semantic_scores

_CLAIMED = 0.5  # lowest sum of all scores at a pixel that belongs to a query
_LEAST_AREA = 5e-4  # of the image
_MOST = 100  # largest regions of an image
_LARGEST_SCALE = 100.0  # of cosine similarities, as in CLIP's training


class Region(NamedTuple):
    """Connected pixels that no query claims."""

    mask: Tensor  # (H, W) bool, on the CPU
    box: tuple[
        float, float, float, float
    ]  # top, left, bottom and right of a square around it, as fractions of the image


class UnclaimedRegions:
    """Callable that adds a query for each region that no query claims, classified by CLIP.

    It is not an nn.Module, so checkpoints do not contain the tower.

    Args:
        tower: CLIP image tower with its embedding, unchanged by training.
        text_embeddings: (M, D) embeddings of the classes, of any norm.
        scale: scale of cosine similarities.
    """

    def __init__(self, tower: CLIPImageTower, text_embeddings: Tensor, scale: float) -> None:
        self.tower = tower.eval().requires_grad_(False)
        self.text_embeddings = F.normalize(text_embeddings, dim=1)
        self.scale = min(scale, _LARGEST_SCALE)

    @classmethod
    def from_clip(cls, weights: Mapping[str, Tensor], text_embeddings: Tensor) -> "UnclaimedRegions":
        """Build the tower from a CLIP state_dict."""
        scale = float(weights["logit_scale"].exp()) if "logit_scale" in weights else _LARGEST_SCALE
        return cls(CLIPImageTower.from_state_dict(weights, trainable=()), text_embeddings, scale)

    @torch.no_grad()
    def __call__(self, classes: Tensor, masks: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Add queries to those of an image.

        Args:
            classes: class logits (Q, M + 1), the last of which is "no object".
            masks: mask probabilities (Q, H, W).
            image: (3, h, w), normalized, of any size.

        Returns:
            classes (Q + R, M + 1) and masks (Q + R, H, W). The mask of a region is the unclaimed score of its pixels.
        """
        unclaimed = (1 - semantic_scores(classes, masks).sum(dim=0)).clamp(min=0)
        regions = find_regions((unclaimed > 1 - _CLAIMED).cpu().numpy())
        if not regions:
            return classes, masks
        self.tower.to(image.device)
        text = self.text_embeddings.to(image.device)
        with full_precision(image.device):
            crops = torch.cat([self._crop(image.float(), region) for region in regions])
            embeddings = F.normalize(self.tower.encode_image(crops).float(), dim=1)
            logits = (self.scale * embeddings @ text.t()).log_softmax(dim=1)
        logits = F.pad(logits, (0, 1), value=-torch.inf)  # never "no object"
        inside = torch.stack([region.mask for region in regions]).to(masks.device)
        return torch.cat([classes, logits.to(classes)]), torch.cat([masks, inside * unclaimed])

    def _crop(self, image: Tensor, region: Region) -> Tensor:
        height, width = image.shape[1:]
        top, left, bottom, right = region.box
        rows = slice(math.floor(top * height), max(math.ceil(bottom * height), math.floor(top * height) + 1))
        columns = slice(math.floor(left * width), max(math.ceil(right * width), math.floor(left * width) + 1))
        side = self.tower.input_resolution
        crop = image[None, :, rows, columns]
        return F.interpolate(crop, (side, side), mode="bicubic", antialias=True, align_corners=False)


def find_regions(unclaimed: np.ndarray) -> list[Region]:
    """Return the connected regions of a binary image (H, W), without tiny ones, from the largest to the smallest."""
    height, width = unclaimed.shape
    _, numbers, statistics, _ = cv2.connectedComponentsWithStats(unclaimed.astype(np.uint8), connectivity=4)
    areas = statistics[1:, cv2.CC_STAT_AREA]
    order = [
        index for index in np.argsort(-areas, kind="stable")[:_MOST] if areas[index] >= _LEAST_AREA * unclaimed.size
    ]
    regions = []
    for number in (int(index) + 1 for index in order):
        left, top, columns, rows, _ = (int(value) for value in statistics[number])
        side = max(columns, rows)
        first = max(0.0, top + (rows - side) / 2), max(0.0, left + (columns - side) / 2)
        last = min(height, first[0] + side), min(width, first[1] + side)
        box = (first[0] / height, first[1] / width, last[0] / height, last[1] / width)
        regions.append(Region(torch.from_numpy(numbers == number), box))
    return regions
