"""The class of a patch: the label that most of its pixels bear."""

import torch
from torch import Tensor

from famix.style.patches import Grid, check_grid, check_tensor, patch_index
from famix.utils.errors import ConfigError

__all__ = ["IGNORE_CLASS", "dominant_labels", "patch_classes"]

IGNORE_CLASS = 255  # class of the patches that are mostly unlabelled, whatever id their pixels bear

_NUM_IDS = 256  # label ids are those of 8-bit images


def dominant_labels(labels: Tensor, grid: Grid, ignore_label: int = 255) -> Tensor:
    """Most frequent label id of every patch, the ignore label included; a tie goes to the smallest id.

    Args:
        labels: (B, H, W), integer ids in [0, 255], or `ignore_label` where that lies outside them.
        grid: (rows, cols), at most (H, W).
        ignore_label: the id of pixels without a class. It competes like any other id, as the largest one where
            it lies outside [0, 255].

    Returns:
        (B, rows, cols) int64.

    Raises:
        ConfigError: the labels are smaller than the grid, have another number of axes, are no integers, or (where they
            are on the CPU: a look at a GPU's would wait for it) lie outside [0, 255].
    """
    check_tensor("labels", labels)
    if labels.dim() != 3 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ConfigError(
            f"labels must be integers of the shape (B, H, W), got {labels.dtype} of the shape {tuple(labels.shape)}. "
            "Pass one id for each pixel."
        )
    batch, height, width = labels.shape
    check_grid((height, width), grid)
    rows, cols = grid
    foreign_ignore = not 0 <= ignore_label < _NUM_IDS
    bins = _NUM_IDS + foreign_ignore
    patch = patch_index(height, rows, labels.device)[:, None] * cols + patch_index(width, cols, labels.device)
    first_bin = patch * bins
    # Not bincount, which makes the host wait for a GPU.
    histogram = patch.new_zeros(batch, rows * cols * bins)
    one = histogram.new_ones(())
    for counts, ids in zip(histogram, labels, strict=True):  # one by one, what is needed stays in a processor's cache
        _check_ids(ids, ignore_label)
        if foreign_ignore:
            ids = torch.where(ids == ignore_label, bins - 1, ids)
        bin_ids = (first_bin + ids).flatten()
        counts.scatter_add_(0, bin_ids, one.expand_as(bin_ids))
    winners = histogram.view(batch, rows, cols, bins).argmax(-1)  # argmax returns the first of equals
    return torch.where(winners == bins - 1, ignore_label, winners) if foreign_ignore else winners


def _check_ids(ids: Tensor, ignore_label: int) -> None:
    """Raise for ids that would count for another patch."""
    if not ids.is_cpu or ids.dtype == torch.uint8 or not ids.numel():
        return
    known = ids.long()
    if not 0 <= ignore_label < _NUM_IDS:
        known = known.masked_fill(known == ignore_label, 0)
    lowest, highest = (int(value) for value in known.aminmax())
    if lowest < 0 or highest >= _NUM_IDS:
        raise ConfigError(
            f"labels must be ids in [0, {_NUM_IDS - 1}] or ignore_label={ignore_label}, got "
            f"{lowest if lowest < 0 else highest}. Map them to train ids."
        )


def patch_classes(labels: Tensor, grid: Grid, ignore_label: int) -> Tensor:
    """Dominant labels as the style bank counts them: IGNORE_CLASS stands for `ignore_label`.

    Args:
        labels: (B, H, W), see dominant_labels.
        grid: (rows, cols), at most (H, W).
        ignore_label: the id of pixels without a class.

    Returns:
        (B, rows, cols) int64.
    """
    winners = dominant_labels(labels, grid, ignore_label)
    return winners if ignore_label == IGNORE_CLASS else winners.masked_fill(winners == ignore_label, IGNORE_CLASS)
