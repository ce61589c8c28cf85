"""Measured statistics of real patches: as a style bank of any labelled images, and how they vary in the source.

Training with the target domain's own statistics says how far mixing styles can go: the ceiling of what prompts reach.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import Tensor

from famix.clip import CLIPImageTower, clip_weights_hash, load_configured_clip
from famix.data import build_mining_batches, require_same_classes
from famix.mining.metadata import bank_metadata
from famix.style.bank import StyleBank
from famix.style.dominant import patch_classes
from famix.style.preconditioner import source_basis
from famix.style.statistics import patch_mean_std

__all__ = ["DESCRIBES_MEASURING", "measure_bank", "measure_source_basis"]

DESCRIBES_MEASURING = ("clip_hash", "stage", "grid", "class_names", "crop_size", "famix_version")
"""Keys of the metadata of a measured bank, beside `measured`, the names of its datasets."""
_BASIS_IMAGES = 256


def measure_bank(cfg: CfgNode, datasets: Sequence[str]) -> StyleBank:
    """Measure the statistics of every patch of crops of labelled images.

    Args:
        cfg: an effective config with MODEL.CLIP.WEIGHTS; crops are drawn as mining draws them, one of each image.
        datasets: registered names.

    Returns:
        One style per patch, of the class that most of its pixels bear.

    Raises:
        ConfigError, DatasetError, WeightsError: as `famix.data.build_mining_batches` and `load_configured_clip`.
    """
    require_same_classes(datasets)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TRAIN = tuple(datasets)
    weights = load_configured_clip(cfg)
    class_names = MetadataCatalog.get(datasets[0]).stuff_classes
    metadata = bank_metadata(cfg, clip_weights_hash(weights), class_names)
    bank = StyleBank({key: metadata[key] for key in DESCRIBES_MEASURING} | {"measured": ", ".join(datasets)})
    for class_ids, mean, std in _measure(cfg, weights, build_mining_batches(cfg)):
        bank.add(class_ids, mean, std)
    return bank


def measure_source_basis(cfg: CfgNode, clip_state_dict: Mapping[str, Tensor]) -> Tensor:
    """Basis of STYLE_MINING.METRIC "source", from the first images of the mining pass; alike in every process.

    Args:
        cfg: the effective config.
        clip_state_dict: of the CLIP that styles are mined with.

    Returns:
        See `source_basis`: (2C, 2C) for C channels at MODEL.STYLE.STAGE.
    """
    batches = build_mining_batches(cfg, shared=True)
    first = islice(batches, -(-_BASIS_IMAGES // cfg.STYLE_MINING.IMS_PER_BATCH))
    patches = [torch.cat([mean, std], dim=1) for _, mean, std in _measure(cfg, clip_state_dict, first)]
    return source_basis(torch.cat(patches))


@torch.no_grad()
def _measure(
    cfg: CfgNode, clip_state_dict: Mapping[str, Tensor], batches: Iterable[tuple[int, list[dict[str, Any]]]]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Class (P,), mean (P, C) and standard deviation (P, C) of all P patches of each batch."""
    device = torch.device(cfg.MODEL.DEVICE)
    clip = CLIPImageTower.from_state_dict(clip_state_dict, trainable=()).to(device).eval()
    grid, ignore_label = tuple(cfg.MODEL.STYLE.GRID), cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    pixel_mean, pixel_std = (
        torch.tensor(values, device=device).view(-1, 1, 1) for values in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
    )
    for _, samples in batches:
        images = torch.stack([sample["image"] for sample in samples]).to(device)
        labels = torch.stack([sample["sem_seg"] for sample in samples])
        own = patch_mean_std(clip.features_at(cfg.MODEL.STYLE.STAGE, (images - pixel_mean) / pixel_std), grid)
        mean, std = (values.movedim(1, -1).flatten(0, 2).cpu() for values in (own.mean, own.std))
        yield patch_classes(labels, grid, ignore_label).flatten(), mean, std
