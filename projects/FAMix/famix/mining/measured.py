"""Measured statistics of real patches: as a style bank, as a basis for mining, and as the scale of matching noise.

Training with the target domain's own statistics is an upper bound for styles mined from prompts.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import Tensor

from famix.clip import CLIPImageTower, clip_weights_hash, load_configured_clip
from famix.data import build_mining_batches, require_same_classes
from famix.mining.metadata import bank_metadata
from famix.mining.miner import MiningSettings, Sample, normalized_images
from famix.style.bank import StyleBank
from famix.style.dominant import IGNORE_CLASS
from famix.style.optimize import source_basis
from famix.style.statistics import patch_mean_std
from famix.utils.errors import BankError

# Metadata keys of a measured bank, besides `measured`, the names of its datasets.
DESCRIBES_MEASURING = ("clip_hash", "stage", "grid", "class_names", "crop_size", "famix_version")
_BASIS_IMAGES = 256


def measure_bank(cfg: CfgNode, datasets: Sequence[str]) -> StyleBank:
    """Measure the statistics of each patch of crops of labeled images.

    Args:
        cfg: the effective config; one crop per image is drawn as in mining.
        datasets: registered names.

    Returns:
        One style per patch, of the dominant class of the patch.
    """
    require_same_classes(datasets)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TRAIN = tuple(datasets)
    weights = load_configured_clip(cfg)
    class_names = MetadataCatalog.get(datasets[0]).stuff_classes
    metadata = bank_metadata(cfg, clip_weights_hash(weights), class_names)
    bank = StyleBank({key: metadata[key] for key in DESCRIBES_MEASURING} | {"measured": ", ".join(datasets)})
    measured = zip(*_measure(cfg, weights, build_mining_batches(cfg)), strict=True)
    class_ids, mean, std = (torch.cat(batches) for batches in measured)
    bank.add(class_ids, mean, std)
    return bank


def measure_source_basis(cfg: CfgNode, clip_state_dict: Mapping[str, Tensor]) -> Tensor:
    """Compute the basis (2C, 2C) of STYLE_MINING.METRIC "source" from the first images of the mining pass.

    The basis is the same in every process of a job.
    """
    batches = build_mining_batches(cfg, shared=True)
    first = islice(batches, -(-_BASIS_IMAGES // cfg.STYLE_MINING.IMS_PER_BATCH))
    patches = [torch.cat([mean, std], dim=1) for _, mean, std in _measure(cfg, clip_state_dict, first)]
    return source_basis(torch.cat(patches))


def _measure(
    cfg: CfgNode, clip_state_dict: Mapping[str, Tensor], batches: Iterable[tuple[int, list[Sample]]]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield class (P,), mean (P, C) and standard deviation (P, C) of all P patches of each batch."""
    clip = CLIPImageTower.from_state_dict(clip_state_dict, trainable=()).to(torch.device(cfg.MODEL.DEVICE)).eval()
    settings = MiningSettings.from_config(cfg)
    for _, samples in batches:
        images, patch_labels = normalized_images(clip, settings, samples)
        with torch.no_grad():
            own = patch_mean_std(clip.features_at(settings.stage, images), settings.grid)
        mean, std = (values.movedim(1, -1).flatten(0, 2).cpu() for values in (own.mean, own.std))
        yield patch_labels.flatten().cpu(), mean, std


def matching_noise_scale(styles: StyleBank, own: StyleBank) -> float:
    """Compute the MODEL.STYLE.NOISE_SCALE that moves patches as far as a bank does: a fair control without language.

    Strategy "noise" multiplies the entries of a patch's statistics x by 1 + scale * normal, an expected squared move of
    scale^2 |x|^2. Strategy "bank" replaces x by a style d of the class of the patch, a move of |d - x|^2. Training mixes
    both with x by the same weights, so the moves before mixing are compared:

        scale^2 = sum over patches of E |d - x|^2  /  sum over patches of |x|^2

    Args:
        styles: drawn from uniformly, as in training: a class without styles draws those of 255, or keeps its own.
        own: the statistics of the source's patches with their classes, see `measure_bank`.

    Returns:
        The scale, >= 0.

    Raises:
        BankError: the banks have different numbers of channels, or all source statistics are 0.
    """
    x, drawn = (torch.cat([bank.mean, bank.std], dim=1).double() for bank in (own, styles))
    if x.shape[1] != drawn.shape[1]:
        raise BankError(
            f"style banks must have the same stage and CLIP, got {styles.num_channels} and {own.num_channels} channels. "
            "Measure the source with the config of the bank."
        )
    size = x.square().sum()
    if size == 0:
        raise BankError("source statistics must not all be 0. Measure more images.")
    move = x.new_zeros(())
    for class_id in own.class_ids.unique().tolist():
        found = drawn[styles.class_ids == class_id]
        found = found if len(found) else drawn[styles.class_ids == IGNORE_CLASS]
        if len(found):
            # |d - x|^2 averaged over d without a table of all pairs: distance to the mean plus the spread around it.
            mean = found.mean(0)
            spread = (found - mean).square().sum(1).mean()
            move += ((x[own.class_ids == class_id] - mean).square().sum(1) + spread).sum()
    return float((move / size).sqrt())
