"""The style miner: optimizes styles of source patches towards prompts, several batches at a time.

Shapes: B images of a batch, C channels at the mined stage, N styles of a batch, a grid of (rows, cols) patches.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor

from famix.clip import CLIPImageTower, check_styles, check_templates
from famix.mining.prompt_table import PromptTable
from famix.style.dominant import patch_classes
from famix.style.optimize import optimize_styles
from famix.style.patches import Grid, check_grid, patch_starts
from famix.utils.errors import ConfigError
from famix.utils.seeding import derive_seed

__all__ = ["METRICS", "MinedBatch", "MiningSettings", "StyleMiner", "first_patches", "take_patches"]

METRICS = ("euclidean", "source")
"""Values of STYLE_MINING.METRIC."""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}  # the gradients exceed the range of float16
_LOWEST = {
    "IMS_PER_BATCH": 1, "STEPS": 0, "LR": 0, "MOMENTUM": 0, "WEIGHT_DECAY": 0, "POOL_SIZE": 0, "SEED": 0, "MAX_BATCHES": 0
}  # fmt: skip

Sample = dict[str, Any]


@dataclass(frozen=True)
class MiningSettings:
    """Settings of the miner.

    Attributes:
        pixel_mean, pixel_std: of the channels, for pixel values 0-255.
        stage: backbone stage of the mined statistics, e.g. "res2".
        grid: (rows, cols) of patches.
        ignore_label: label id of pixels without a class.
        pool_size: side in cells to which a patch is pooled; 0 takes the side that the CLIP requires at the stage, and does
            not pool if it takes any.
        steps, lr, momentum, weight_decay: of SGD, see `optimize_styles`.
        dtype: of the layers behind the stage, float32 or bfloat16. Features, statistics and styles are float32.
        seed: of the prompt draws, >= 0.
    """

    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    stage: str = "res2"
    grid: Grid = (3, 3)
    ignore_label: int = 255
    pool_size: int = 0
    steps: int = 100
    lr: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    dtype: torch.dtype = torch.float32
    seed: int = 1

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "MiningSettings":
        """Read STYLE_MINING, MODEL.STYLE and the pixel statistics; check all keys of STYLE_MINING.

        Raises:
            ConfigError: a key of STYLE_MINING is out of range.
        """
        mining = cfg.STYLE_MINING
        check_styles(mining.STYLES)
        check_templates(mining.TEMPLATES)
        for key, lowest in _LOWEST.items():
            if not mining[key] >= lowest:
                raise ConfigError(
                    f"STYLE_MINING.{key} must be at least {lowest}, got {mining[key]}. See docs/CONFIG.md."
                )
        for key, choices in (("DTYPE", tuple(_DTYPES)), ("METRIC", METRICS)):
            if mining[key] not in choices:
                raise ConfigError(
                    f"STYLE_MINING.{key} must be one of {', '.join(choices)}, got {mining[key]!r}. The default is "
                    f"{choices[0]}."
                )
        return cls(
            pixel_mean=tuple(cfg.MODEL.PIXEL_MEAN),
            pixel_std=tuple(cfg.MODEL.PIXEL_STD),
            stage=cfg.MODEL.STYLE.STAGE,
            grid=tuple(cfg.MODEL.STYLE.GRID),
            ignore_label=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            pool_size=mining.POOL_SIZE,
            steps=mining.STEPS,
            lr=mining.LR,
            momentum=mining.MOMENTUM,
            weight_decay=mining.WEIGHT_DECAY,
            dtype=_DTYPES[mining.DTYPE],
            seed=mining.SEED,
        )


@dataclass(frozen=True)
class MinedBatch:
    """The styles of one batch, at most one per class, on the CPU.

    Attributes:
        index: number of the batch in the pass over the source.
        class_ids: (N,) int64, ascending.
        mean, std: (N, C) float32.
        prompt_ids: (N,) int64, index into the prompts of the `PromptTable`.
        initial_loss, final_loss: (N,), 1 - cosine similarity before and after the optimization.
    """

    index: int
    class_ids: Tensor
    mean: Tensor
    std: Tensor
    prompt_ids: Tensor
    initial_loss: Tensor
    final_loss: Tensor


class StyleMiner:
    """Optimizes one style for every class that owns a patch of a batch, for several batches at a time.

    Args:
        clip: the image tower with its attention pool; it is frozen and put into eval mode.
        prompts: the texts from which classes draw.
        encode_prompts: maps N texts to embeddings (N, D) of unit length.
        settings: see `MiningSettings`.
        group: number of neighboring batches to mine together, see `batches_per_group`.
        basis: see `optimize_styles`.
    """

    def __init__(
        self,
        *,
        clip: CLIPImageTower,
        prompts: PromptTable,
        encode_prompts: Callable[[Sequence[str]], Tensor],
        settings: MiningSettings,
        group: int = 1,
        basis: Tensor | None = None,
    ) -> None:
        self.clip = clip.eval().requires_grad_(False)
        self.prompts = prompts
        self.encode_prompts = encode_prompts
        self.settings = settings
        self.group = group
        self.device = clip.device
        self.basis = None if basis is None else basis.to(self.device)
        self.pixel_mean = torch.tensor(settings.pixel_mean, device=self.device).view(-1, 1, 1)
        self.pixel_std = torch.tensor(settings.pixel_std, device=self.device).view(-1, 1, 1)
        self.pool_size = settings.pool_size or clip.input_side(settings.stage)

    def mine_batch(self, index: int, samples: Sequence[Sample]) -> MinedBatch:
        """Mine one batch alone, see `mine_batches`."""
        return self.mine_batches([(index, samples)])[0]

    def mine_batches(self, batches: Sequence[tuple[int, Sequence[Sample]]]) -> list[MinedBatch]:
        """Mine batches together, which uses a device better than one at a time.

        The styles of a batch depend on its number, its samples and the seed; on the other batches only by rounding.

        Args:
            batches: pairs of the number of a batch in the pass and its samples: B dicts with "image" (3, H, W) in pixel
                values 0-255 and "sem_seg" (H, W) int64, all of one size.

        Returns:
            For each batch one style for every class that owns a patch of it.
        """
        class_ids, prompt_ids, patches = zip(*(self._draw(*batch) for batch in batches), strict=True)
        sizes = [len(ids) for ids in class_ids]
        styles = optimize_styles(
            torch.cat(patches),
            self.encode_prompts(self.prompts.texts(torch.cat(prompt_ids))).to(self.device),
            self._encode_image,
            # The mean over its own batch, as if each batch were optimized alone.
            weights=torch.cat([torch.full((size,), 1 / size) for size in sizes]),
            steps=self.settings.steps,
            lr=self.settings.lr,
            momentum=self.settings.momentum,
            weight_decay=self.settings.weight_decay,
            basis=self.basis,
            rectify=self.clip.rectified,
        )
        losses = styles.style_losses[[0, -1]].t().cpu()
        split = (values.split(sizes) for values in (styles.mean.cpu(), styles.std.cpu(), losses))
        return [
            MinedBatch(index, ids, mean, std, prompts, *loss.unbind(1))
            for (index, _), ids, prompts, mean, std, loss in zip(batches, class_ids, prompt_ids, *split, strict=True)
        ]

    @torch.no_grad()
    def _draw(self, index: int, samples: Sequence[Sample]) -> tuple[Tensor, Tensor, Tensor]:
        """Return class_ids (N,) and drawn prompt_ids (N,) on the CPU, and patches (N, C, h, w)."""
        images = torch.stack([sample["image"] for sample in samples]).to(self.device)
        labels = torch.stack([sample["sem_seg"] for sample in samples]).to(self.device)
        features = self.clip.features_at(self.settings.stage, (images - self.pixel_mean) / self.pixel_std)
        positions = first_patches(patch_classes(labels, self.settings.grid, self.settings.ignore_label))
        class_ids = positions.class_ids.cpu()
        generator = torch.Generator().manual_seed(derive_seed(self.settings.seed, index))
        return class_ids, self.prompts.draw(class_ids, generator), take_patches(features, positions, self.settings.grid)

    def _encode_image(self, patches: Tensor) -> Tensor:
        dtype = self.settings.dtype
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32):
            pooled = patches if self.pool_size is None else F.adaptive_avg_pool2d(patches, self.pool_size)
            return self.clip.encode_from(self.settings.stage, pooled)


class PatchPositions(NamedTuple):
    """One patch for every class of a batch: class_ids, image, row and col, each (N,) int64, by ascending class."""

    class_ids: Tensor
    image: Tensor
    row: Tensor
    col: Tensor


def first_patches(patch_labels: Tensor) -> PatchPositions:
    """Find the first patch of every class: patches are ordered by grid cell, row-major, and inside a cell by image.

    Args:
        patch_labels: (B, rows, cols) int64.

    Returns:
        The position of one patch for each of the N classes of the batch.
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
        (N, C, h, w). If the grid does not divide the map, patches differ by a cell; all are cut to the shorter side.

    Raises:
        ConfigError: the grid exceeds the map.
    """
    height, width = features.shape[-2:]
    check_grid((height, width), grid)
    rows, cols = grid
    device = features.device
    y = patch_starts(height, rows, device)[positions.row, None] + torch.arange(height // rows, device=device)
    x = patch_starts(width, cols, device)[positions.col, None] + torch.arange(width // cols, device=device)
    # Advanced indices around the channel slice put the channels last.
    patches = features[positions.image[:, None, None], :, y[:, :, None], x[:, None, :]]
    return patches.movedim(-1, 1)  # channels last, as the optimization expects
