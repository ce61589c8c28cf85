"""Statistics measured on real patches, used as a style bank, as a basis for mining, and to scale matching noise.

Training with the target domain's own statistics gives an upper bound for styles mined from prompts.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import Tensor

from famix.clip import CLIPImageTower, at_stage, clip_weights_hash, load_configured_clip
from famix.data import build_mining_batches, require_same_classes
from famix.mining.metadata import bank_metadata
from famix.mining.miner import MiningSettings, Sample, normalized_images
from famix.style.bank import StyleBank
from famix.style.dominant import IGNORE_CLASS
from famix.style.optimize import source_basis
from famix.style.statistics import patch_mean_std
from famix.utils.errors import BankError

# Metadata keys of a measured bank, in addition to `measured`, which lists its datasets.
DESCRIBES_MEASURING = ("clip_hash", "stage", "grid", "class_names", "crop_size", "famix_version")
_BASIS_IMAGES = 256


def measure_bank(cfg: CfgNode, datasets: Sequence[str]) -> StyleBank:
    """Measure the statistics of each patch in crops of labeled images.

    Args:
        cfg: the effective config. One crop is drawn per image, as in mining.
        datasets: names of registered datasets.

    Returns:
        A bank with one style per patch, stored under the patch's dominant class.
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
    """Compute the (2C, 2C) basis for STYLE_MINING.METRIC "source" from the first images of the mining pass.

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
    settings = MiningSettings.from_config(cfg)
    tower = CLIPImageTower.from_state_dict(clip_state_dict, trainable=()).to(torch.device(cfg.MODEL.DEVICE)).eval()
    clip = at_stage(tower, settings.stage)
    for _, samples in batches:
        images, patch_labels = normalized_images(clip, settings, samples)
        with torch.no_grad():
            own = patch_mean_std(clip.features_at(settings.stage, images), settings.grid)
        mean, std = (values.movedim(1, -1).flatten(0, 2).cpu() for values in (own.mean, own.std))
        yield patch_labels.flatten().cpu(), mean, std


def matching_noise_scale(styles: StyleBank, own: StyleBank) -> float:
    """Compute the MODEL.STYLE.NOISE_SCALE that moves patches as far as a bank does: a fair control without language.

    Strategy "noise" multiplies each entry of a patch's statistics x by 1 + scale * normal, which moves x by an expected
    squared distance of scale^2 |x|^2. Strategy "bank" replaces x with a style d of the same class, which moves it by
    |d - x|^2. Training mixes both results with x using the same weights, so the moves before mixing are compared:

        scale^2 = sum over patches of E |d - x|^2  /  sum over patches of |x|^2

    Args:
        styles: bank to draw from uniformly, as in training. A class without styles uses those of 255, or keeps its own
            statistics if there are none.
        own: statistics and classes of the source patches (see `measure_bank`).

    Returns:
        The scale, >= 0.

    Raises:
        BankError: the banks have different numbers of channels, or all source statistics are 0.
    """
    x, drawn = (torch.cat([bank.mean, bank.std], dim=1).double() for bank in (own, styles))
    if x.shape[1] != drawn.shape[1]:
        raise BankError(
            f"Style banks have different numbers of channels: {styles.num_channels} and {own.num_channels}. "
            "Measure the source with the bank's config, so that CLIP and stage are the same."
        )
    size = x.square().sum()
    if size == 0:
        raise BankError("Source statistics are all 0. Measure more images.")
    move = x.new_zeros(())
    for class_id in own.class_ids.unique().tolist():
        found = drawn[styles.class_ids == class_id]
        found = found if len(found) else drawn[styles.class_ids == IGNORE_CLASS]
        if len(found):
            # Average |d - x|^2 over d without a table of all pairs: distance to the mean plus the spread around it.
            mean = found.mean(0)
            spread = (found - mean).square().sum(1).mean()
            move += ((x[own.class_ids == class_id] - mean).square().sum(1) + spread).sum()
    return float((move / size).sqrt())
