"""A style bank of measured statistics: what the styles of real images are, where such images can be had.

Training with the target domain's own statistics says how far mixing styles can go: the ceiling of what prompts reach.
"""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from famix.data import build_mining_batches, require_same_classes
from famix.mining.provenance import bank_metadata
from famix.modeling import CLIPResNet, clip_weights_hash, load_clip_state_dict
from famix.style.bank import StyleBank
from famix.style.dominant import patch_classes
from famix.style.statistics import patch_mean_std

__all__ = ["measure_bank"]

_DESCRIBES_MEASURING = ("clip_hash", "stage", "grid", "class_names", "crop_size", "famix_version")


@torch.no_grad()
def measure_bank(cfg: CfgNode, datasets: Sequence[str]) -> StyleBank:
    """Measure the statistics of every patch of crops of labelled images.

    Args:
        cfg: an effective config with MODEL.CLIP.WEIGHTS; crops are drawn as mining draws them, one of each image.
        datasets: registered names.

    Returns:
        One style per patch, of the class that most of its pixels bear.

    Raises:
        ConfigError, DatasetError, WeightsError: as `famix.data.build_mining_batches` and `load_clip_state_dict`.
    """
    require_same_classes(datasets)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TRAIN = tuple(datasets)
    weights = load_clip_state_dict(cfg.MODEL.CLIP.WEIGHTS)
    class_names = MetadataCatalog.get(datasets[0]).stuff_classes
    metadata = bank_metadata(cfg, clip_weights_hash(weights), class_names)
    bank = StyleBank({key: metadata[key] for key in _DESCRIBES_MEASURING} | {"measured": ", ".join(datasets)})
    clip = CLIPResNet.from_state_dict(weights, trainable=())
    grid, ignore_label = tuple(cfg.MODEL.STYLE.GRID), cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    pixel_mean, pixel_std = (
        torch.tensor(values).view(-1, 1, 1) for values in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
    )
    for _, samples in build_mining_batches(cfg):
        images = torch.stack([sample["image"] for sample in samples])
        labels = torch.stack([sample["sem_seg"] for sample in samples])
        own = patch_mean_std(clip.features_at(cfg.MODEL.STYLE.STAGE, (images - pixel_mean) / pixel_std), grid)
        mean, std = (values.movedim(1, -1).flatten(0, 2) for values in (own.mean, own.std))
        bank.add(patch_classes(labels, grid, ignore_label).flatten(), mean, std)
    return bank
