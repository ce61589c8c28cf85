"""Patch classes: the most frequent label in each patch."""

import torch
from torch import Tensor

from famix.style.patches import Grid, check_grid, check_tensor, patch_index
from famix.utils.errors import ConfigError

IGNORE_CLASS = 255  # class of mostly unlabeled patches, regardless of the ignore label

_NUM_IDS = 256  # label ids are 8-bit values


def dominant_labels(labels: Tensor, grid: Grid, ignore_label: int = 255) -> Tensor:
    """Return the most frequent label id in each patch. Ties go to the smallest id.

    Args:
        labels: (B, H, W), integer ids in [0, 255] or `ignore_label`.
        grid: (rows, cols), at most (H, W).
        ignore_label: id of unlabeled pixels. It competes like any other id. If it is outside [0, 255], it ranks as the
            largest id in ties.

    Returns:
        (B, rows, cols) int64.

    Raises:
        ConfigError: the grid is larger than the labels, or the labels are not a 3-axis integer tensor or, on the CPU, are
                out of range.
    """
    check_tensor("labels", labels)
    if labels.dim() != 3 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ConfigError(
            f"labels must be integers of shape (B, H, W), got {labels.dtype} of shape {tuple(labels.shape)}. "
            "Pass one id per pixel."
        )
    batch, height, width = labels.shape
    check_grid((height, width), grid)
    rows, cols = grid
    foreign_ignore = not 0 <= ignore_label < _NUM_IDS
    bins = _NUM_IDS + foreign_ignore
    patch = patch_index(height, rows, labels.device)[:, None] * cols + patch_index(width, cols, labels.device)
    first_bin = patch * bins
    # scatter_add_ instead of bincount, which synchronizes with the GPU.
    histogram = patch.new_zeros(batch, rows * cols * bins)
    one = histogram.new_ones(())
    for counts, ids in zip(histogram, labels, strict=True):  # image by image, so the working set fits in the CPU cache
        _check_ids(ids, ignore_label)
        if foreign_ignore:
            ids = torch.where(ids == ignore_label, bins - 1, ids)
        bin_ids = (first_bin + ids).flatten()
        counts.scatter_add_(0, bin_ids, one.expand_as(bin_ids))
    winners = histogram.view(batch, rows, cols, bins).argmax(-1)  # argmax returns the first of equal counts
    return torch.where(winners == bins - 1, ignore_label, winners) if foreign_ignore else winners


def _check_ids(ids: Tensor, ignore_label: int) -> None:
    """Reject ids that would count toward a different patch, except on a GPU, where the check would synchronize."""
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
    """Return dominant labels as class ids for style banks, with IGNORE_CLASS in place of `ignore_label`.

    Arguments and errors are the same as for `dominant_labels`.
    """
    winners = dominant_labels(labels, grid, ignore_label)
    return winners if ignore_label == IGNORE_CLASS else winners.masked_fill(winners == ignore_label, IGNORE_CLASS)
