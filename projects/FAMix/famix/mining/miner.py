"""Style miner, which optimizes styles of source patches toward prompts, several batches at a time.

Shapes: B images in a batch, C channels at the mined stage, N styles in a batch, a grid of (rows, cols) patches.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor

from famix.clip import IGNORE_PROMPT, IMAGE, CLIPImageTower, check_styles, check_templates, class_prompt
from famix.style.dominant import IGNORE_CLASS, patch_classes
from famix.style.optimize import optimize_styles
from famix.style.patches import Grid, check_grid, patch_starts
from famix.utils.errors import ConfigError
from famix.utils.seeding import derive_seed

METRICS = ("euclidean", "source")  # values of STYLE_MINING.METRIC
_PARAMETRIZATIONS = ("", "absolute", "relative")  # values of STYLE_MINING.PARAMETRIZATION
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}  # the gradients exceed the range of float16
_LOWEST = {
    "IMS_PER_BATCH": 1, "STEPS": 0, "LR": 0, "MOMENTUM": 0, "WEIGHT_DECAY": 0, "POOL_SIZE": 0, "SEED": 0, "MAX_BATCHES": 0
}  # fmt: skip

Sample = dict[str, Any]


@dataclass(frozen=True)
class MiningSettings:
    """Settings of the miner."""

    pixel_mean: tuple[float, ...]  # for pixel values 0-255
    pixel_std: tuple[float, ...]
    stage: str = "res2"  # backbone stage of the mined statistics
    grid: Grid = (3, 3)
    ignore_label: int = 255
    pool_size: int = 0  # side of a pooled patch in cells; 0 uses the side required by the CLIP, or disables pooling
    steps: int = 100  # number of SGD steps, see `optimize_styles`
    lr: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    dtype: torch.dtype = torch.float32  # dtype of the layers after the stage; features and styles are float32
    seed: int = 1  # seed of the prompt draws, >= 0
    parametrization: str = ""  # "absolute", "relative" or "", which chooses by the CLIP family

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "MiningSettings":
        """Read the config. Raises ConfigError if a key of STYLE_MINING is out of range."""
        mining = cfg.STYLE_MINING
        check_styles(mining.STYLES)
        check_templates(mining.TEMPLATES)
        for key, lowest in _LOWEST.items():
            if not mining[key] >= lowest:
                raise ConfigError(
                    f"STYLE_MINING.{key} must be at least {lowest}, got {mining[key]}. See docs/CONFIG.md."
                )
        for key, choices in (("DTYPE", tuple(_DTYPES)), ("METRIC", METRICS), ("PARAMETRIZATION", _PARAMETRIZATIONS)):
            if mining[key] not in choices:
                raise ConfigError(
                    f"STYLE_MINING.{key} must be one of {', '.join(choices)}, got {mining[key]!r}. The default is "
                    f"{choices[0]!r}."
                )
        if (mining.PARAMETRIZATION, mining.METRIC) == ("relative", "source"):
            raise ConfigError(
                "STYLE_MINING.PARAMETRIZATION relative and STYLE_MINING.METRIC source are mutually exclusive. Use METRIC euclidean."
            )
        return cls(
            pixel_mean=tuple(cfg.MODEL.PIXEL_MEAN),
            pixel_std=tuple(cfg.MODEL.PIXEL_STD),
            stage=cfg.MODEL.STYLE.STAGE,
            grid=tuple(cfg.MODEL.STYLE.GRID),
            ignore_label=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            dtype=_DTYPES[mining.DTYPE],
            **{
                name: mining[name.upper()]
                for name in ("pool_size", "steps", "lr", "momentum", "weight_decay", "seed", "parametrization")
            },
        )


class PromptTable:
    """All prompts "{style} {class name}", numbered class by class. The prompt for unlabeled patches comes last.

    Args:
        class_names: names of the label ids 0, 1, ...
        styles: phrases such as "Urban Grit style", at least one.
    """

    def __init__(self, class_names: Sequence[str], styles: Sequence[str]) -> None:
        styles = check_styles(styles)
        self.num_classes = len(class_names)
        self.num_styles = len(styles)
        self.prompts = [class_prompt(i, style, class_names) for i in range(self.num_classes) for style in styles]
        self.prompts.append(IGNORE_PROMPT)

    def draw(self, class_ids: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a prompt for each class, independently of the other classes.

        Args:
            class_ids: (N,) int64 on the CPU: label ids, or IGNORE_CLASS. Raises ConfigError for ids without a name.
            generator: random number generator on the CPU.

        Returns:
            (N,) int64 prompt ids, indices into `prompts`.
        """
        unlabeled = class_ids == IGNORE_CLASS
        if ((class_ids >= self.num_classes) & ~unlabeled).any():
            raise ConfigError(
                f"Label ids must be below the number of class names, {self.num_classes}, got {class_ids.tolist()}. Check "
                "MODEL.SEM_SEG_HEAD.IGNORE_VALUE and the label ids of the dataset."
            )
        style = torch.randint(self.num_styles, (self.num_classes,), generator=generator)
        known = class_ids.masked_fill(unlabeled, 0)
        prompt_ids = known * self.num_styles + style[known]
        return prompt_ids.masked_fill(unlabeled, len(self.prompts) - 1)

    def texts(self, prompt_ids: Tensor) -> list[str]:
        """Return the text of each prompt id (N,)."""
        return [self.prompts[i] for i in prompt_ids.tolist()]


@dataclass(frozen=True)
class MinedBatch:
    """The styles of one batch, at most one per class, on the CPU."""

    index: int  # number of the batch in the pass over the source
    class_ids: Tensor  # (N,) int64, ascending
    mean: Tensor  # (N, C) float32
    std: Tensor  # (N, C) float32
    prompt_ids: Tensor  # (N,) int64, see `PromptTable`
    initial_loss: Tensor  # (N,), 1 - cosine similarity before the optimization
    final_loss: Tensor  # (N,), the same after the optimization


class StyleMiner:
    """Miner that optimizes one style for each class that dominates a patch of a batch, several batches at a time.

    Args:
        clip: image tower with its attention pool. It is frozen and put into eval mode.
        prompts: table from which the prompt of each class is drawn.
        encode_prompts: function that maps N texts to unit-length embeddings (N, D).
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
        self.pool_size = settings.pool_size or clip.input_side(settings.stage)
        by_family = not clip.rectified and basis is None
        self.relative = settings.parametrization == "relative" or (by_family and not settings.parametrization)

    def mine_batch(self, index: int, samples: Sequence[Sample]) -> MinedBatch:
        """Mine a single batch (see `mine_batches`)."""
        return self.mine_batches([(index, samples)])[0]

    def mine_batches(self, batches: Sequence[tuple[int, Sequence[Sample]]]) -> list[MinedBatch]:
        """Mine several batches together, which uses the device more efficiently than mining them one at a time.

        The styles of a batch depend on its number, its samples and the seed. Other batches affect only their rounding.

        Args:
            batches: (batch number in the pass, samples) pairs. The samples are B dicts with "image" (3, H, W) in pixel
                values 0-255 and "sem_seg" (H, W) int64, all of the same size.

        Returns:
            For each batch, one style for each class that dominates a patch.
        """
        class_ids, prompt_ids, patches = zip(*(self._draw(*batch) for batch in batches), strict=True)
        sizes = [len(ids) for ids in class_ids]
        own = torch.cat(patches)
        if self.clip.mined_on_images:
            with torch.no_grad():
                own = self.clip.features_at(self.settings.stage, own)
        styles = optimize_styles(
            own,
            self.encode_prompts(self.prompts.texts(torch.cat(prompt_ids))).to(self.device),
            partial(self._encode_image, own),
            # The mean over its own batch, as if each batch were optimized alone.
            weights=torch.cat([torch.full((size,), 1 / size) for size in sizes]),
            steps=self.settings.steps,
            lr=self.settings.lr,
            momentum=self.settings.momentum,
            weight_decay=self.settings.weight_decay,
            basis=self.basis,
            rectify=self.clip.rectified,
            relative=self.relative,
        )
        losses = styles.style_losses[[0, -1]].t().cpu()
        split = (values.split(sizes) for values in (styles.mean.cpu(), styles.std.cpu(), losses))
        return [
            MinedBatch(index, ids, mean, std, prompts, *loss.unbind(1))
            for (index, _), ids, prompts, mean, std, loss in zip(batches, class_ids, prompt_ids, *split, strict=True)
        ]

    @torch.no_grad()
    def _draw(self, index: int, samples: Sequence[Sample]) -> tuple[Tensor, Tensor, Tensor]:
        """Return class_ids (N,) and drawn prompt_ids (N,) on the CPU, and patches (N, C, h, w) of features or images."""
        images, patch_labels = normalized_images(self.clip, self.settings, samples)
        if self.clip.mined_on_images:
            class_ids, patches = first_patches(images, patch_labels)
            side = self.clip.input_resolution
            patches = F.interpolate(patches, (side, side), mode="bicubic", antialias=True)
        else:
            class_ids, patches = first_patches(self.clip.features_at(self.settings.stage, images), patch_labels)
        generator = torch.Generator().manual_seed(derive_seed(self.settings.seed, index))
        return class_ids.cpu(), self.prompts.draw(class_ids.cpu(), generator), patches

    def _encode_image(self, own: Tensor, patches: Tensor) -> Tensor:
        dtype = self.settings.dtype
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32):
            pooled = patches if self.pool_size is None else F.adaptive_avg_pool2d(patches, self.pool_size)
            return self.clip.encode_from(self.settings.stage, self.clip.replace_map(own, pooled))


def normalized_images(
    clip: CLIPImageTower, settings: MiningSettings, samples: Sequence[Sample]
) -> tuple[Tensor, Tensor]:
    """Return the normalized images (B, 3, H, W) of a batch and the class of each patch (B, rows, cols)."""
    images, labels = (torch.stack([sample[key] for sample in samples]).to(clip.device) for key in ("image", "sem_seg"))
    # Picture styles suit networks whose normalization differs from that of the CLIP that mines them.
    source = clip if settings.stage == IMAGE else settings
    mean, std = (
        images.new_tensor(values, dtype=torch.float32).view(-1, 1, 1)
        for values in (source.pixel_mean, source.pixel_std)
    )
    return (images - mean) / std, patch_classes(labels, settings.grid, settings.ignore_label)


def first_patches(features: Tensor, patch_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cut out the first patch of each class: patches are ordered by grid cell, row-major, then by image.

    Args:
        features: (B, C, H, W).
        patch_labels: (B, rows, cols) int64.

    Returns:
        class_ids (N,) int64, ascending, and patches (N, C, h, w). If the grid does not divide the map, patches differ by one
        cell; all are cut to the shorter side.

    Raises:
        ConfigError: the grid exceeds the map.
    """
    batch, rows, cols = patch_labels.shape
    height, width = features.shape[-2:]
    check_grid((height, width), (rows, cols))
    device = features.device
    ordered = patch_labels.flatten(1).t().flatten()  # cell by cell, images within a cell
    class_ids, inverse = ordered.unique(return_inverse=True)
    first = torch.full_like(class_ids, len(ordered))
    first = first.scatter_reduce(0, inverse, torch.arange(len(ordered), device=device), "amin")
    cell, image = first // batch, first % batch
    y = patch_starts(height, rows, device)[cell // cols, None] + torch.arange(height // rows, device=device)
    x = patch_starts(width, cols, device)[cell % cols, None] + torch.arange(width // cols, device=device)
    # Advanced indices around the channel slice put the channels last.
    patches = features[image[:, None, None], :, y[:, :, None], x[:, None, :]]
    return class_ids, patches.movedim(-1, 1)  # channels last, as the optimization expects
