"""Mining: one pass over the source images that turns prompts into a bank of styles.

Shapes: B images of a batch, C channels at the mined stage, N styles of a batch, a grid of (rows, cols) patches.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from famix.clip import CLIPImageTower
from famix.mining.prompt_table import PromptTable
from famix.style.dominant import patch_classes
from famix.style.optimize import optimize_styles
from famix.style.patches import Grid, check_grid, patch_starts
from famix.utils.seeding import derive_seed

__all__ = ["MinedBatch", "StyleMiner", "first_patches", "take_patches"]

Sample = dict[str, Any]


@dataclass(frozen=True)
class MinedBatch:
    """The styles of one batch, at most one per class, on the CPU.

    Attributes:
        index: number of the batch in the pass over the source.
        class_ids: (N,) int64, ascending.
        mean, std: (N, C) float32.
        prompt_ids: (N,) int64, row of the table of prompts.
        initial_loss, final_loss: (N,), 1 - cosine similarity before and after the optimisation.
    """

    index: int
    class_ids: Tensor
    mean: Tensor
    std: Tensor
    prompt_ids: Tensor
    initial_loss: Tensor
    final_loss: Tensor


class StyleMiner:
    """Optimises one style for every class that owns a patch of a batch, for several batches at a time.

    Args:
        clip: the network whose features are restyled, with its attention pool; it is frozen and put into eval mode.
        prompts: the texts that classes draw from.
        encode_prompts: maps N texts to embeddings (N, D) of unit length.
        pixel_mean, pixel_std: of every channel, for pixel values 0-255.
        stage: the stage whose statistics are mined.
        grid: (rows, cols) of patches.
        pool_size: side in cells that a patch is pooled to; 0 takes the side that the CLIP requires at the stage, and does
            not pool if it takes any.
        ignore_label: label id of pixels without a class.
        seed: of the draw of prompts, >= 0.
        group: neighbouring batches that are to be mined together, see `famix.mining.groups`.
        dtype: of the layers behind the stage, float32 or bfloat16. Features, statistics and styles are always float32.
        steps, lr, momentum, weight_decay, basis: of `optimize_styles`.
    """

    def __init__(
        self,
        *,
        clip: CLIPImageTower,
        prompts: PromptTable,
        encode_prompts: Callable[[Sequence[str]], Tensor],
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        stage: str = "res2",
        grid: Grid = (3, 3),
        pool_size: int = 0,
        ignore_label: int = 255,
        seed: int = 1,
        group: int = 1,
        dtype: torch.dtype = torch.float32,
        steps: int = 100,
        lr: float = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        basis: Tensor | None = None,
    ) -> None:
        self.clip = clip.eval().requires_grad_(False)
        self.prompts = prompts
        self.encode_prompts = encode_prompts
        self.device = clip.device
        self.pixel_mean = torch.tensor(pixel_mean, device=self.device).view(-1, 1, 1)
        self.pixel_std = torch.tensor(pixel_std, device=self.device).view(-1, 1, 1)
        self.stage = stage
        self.grid = grid
        self.pool_size = pool_size or clip.input_side(stage)
        self.ignore_label = ignore_label
        self.seed = seed
        self.group = group
        self.dtype = dtype
        self.steps = steps
        self.basis = None if basis is None else basis.to(self.device)
        self.sgd = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}

    def mine_batch(self, index: int, samples: Sequence[Sample]) -> MinedBatch:
        """Mine one batch alone, see `mine_batches`."""
        return self.mine_batches([(index, samples)])[0]

    def mine_batches(self, batches: Sequence[tuple[int, Sequence[Sample]]]) -> list[MinedBatch]:
        """Mine batches together, which keeps a device busier than one after the other.

        The outcome depends on their numbers, their samples and the seed alone; on the other batches by rounding only.

        Args:
            batches: pairs of a batch's number in the pass over the source and its samples: B dicts with "image"
                (3, H, W) in pixel values 0-255 and "sem_seg" (H, W) int64, all of one size.

        Returns:
            For each batch one style for every class that owns a patch of it.
        """
        found = [self._find(index, samples) for index, samples in batches]
        prompt_ids = torch.cat([one.prompt_ids for one in found])
        styles = optimize_styles(
            torch.cat([one.patches for one in found]),
            self.encode_prompts(self.prompts.texts(prompt_ids)).to(self.device),
            self._encode_image,
            # Of the mean over its own batch, as if that were optimised alone.
            weights=torch.cat([torch.full((len(one.class_ids),), 1 / len(one.class_ids)) for one in found]),
            steps=self.steps,
            rectify=self.clip.rectified,
            basis=self.basis,
            **self.sgd,
        )
        losses = styles.style_losses[[0, -1]].t().cpu()
        sizes = [len(one.class_ids) for one in found]
        parts = zip(
            found, *(values.split(sizes) for values in (styles.mean.cpu(), styles.std.cpu(), losses)), strict=True
        )
        return [
            MinedBatch(one.index, one.class_ids, mean, std, one.prompt_ids, *loss.unbind(1))
            for one, mean, std, loss in parts
        ]

    @torch.no_grad()
    def _find(self, index: int, samples: Sequence[Sample]) -> "_Found":
        images = torch.stack([sample["image"] for sample in samples]).to(self.device)
        labels = torch.stack([sample["sem_seg"] for sample in samples]).to(self.device)
        features = self.clip.features_at(self.stage, (images - self.pixel_mean) / self.pixel_std)
        positions = first_patches(patch_classes(labels, self.grid, self.ignore_label))
        class_ids = positions.class_ids.cpu()
        prompt_ids = self.prompts.draw(class_ids, torch.Generator().manual_seed(derive_seed(self.seed, index)))
        return _Found(index, class_ids, prompt_ids, take_patches(features, positions, self.grid))

    def _encode_image(self, patches: Tensor) -> Tensor:
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            pooled = patches if self.pool_size is None else F.adaptive_avg_pool2d(patches, self.pool_size)
            return self.clip.encode_from(self.stage, pooled)


@dataclass(frozen=True)
class _Found:
    """What is optimised of a batch: class_ids and prompt_ids (N,) on the CPU, patches (N, C, h, w)."""

    index: int
    class_ids: Tensor
    prompt_ids: Tensor
    patches: Tensor


@dataclass(frozen=True)
class PatchPositions:
    """One patch for every class of a batch: class_ids, image, row and col, each (N,) int64, by ascending class."""

    class_ids: Tensor
    image: Tensor
    row: Tensor
    col: Tensor


def first_patches(patch_labels: Tensor) -> PatchPositions:
    """The first patch of every class: patches are ordered by grid cell, row-major, and inside a cell by image.

    Args:
        patch_labels: (B, rows, cols) int64.

    Returns:
        The position of one patch for each of the N classes that occur.
    """
    batch, _, cols = patch_labels.shape
    ordered = patch_labels.flatten(1).t().flatten()  # cell by cell, images inside a cell
    class_ids, inverse = ordered.unique(return_inverse=True)
    order = torch.arange(len(ordered), device=ordered.device)
    first = torch.full_like(class_ids, len(ordered)).scatter_reduce(0, inverse, order, "amin")
    cell = first // batch
    return PatchPositions(class_ids, first % batch, cell // cols, cell % cols)


def take_patches(features: Tensor, positions: PatchPositions, grid: Grid) -> Tensor:
    """Cut patches out of a map.

    Args:
        features: (B, C, H, W).
        positions: of N patches.
        grid: (rows, cols).

    Returns:
        (N, C, h, w). Where the grid does not divide the map, patches differ by a cell; all are cut to the shorter side.

    Raises:
        ConfigError: the map is smaller than the grid.
    """
    height, width = features.shape[-2:]
    check_grid((height, width), grid)
    rows, cols = grid
    device = features.device
    y = patch_starts(height, rows, device)[positions.row, None] + torch.arange(height // rows, device=device)
    x = patch_starts(width, cols, device)[positions.col, None] + torch.arange(width // cols, device=device)
    # Advanced indices around the channel slice put it last.
    patches = features[positions.image[:, None, None], :, y[:, :, None], x[:, None, :]]
    return patches.movedim(-1, 1)  # channels last, as the optimisation wants them
