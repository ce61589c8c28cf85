"""How strong noise must be to move statistics as far as a style bank does: a fair control without language.

Strategy "noise" multiplies every entry of a patch's statistics by 1 + scale * normal. That moves a patch with
statistics x, its means and standard deviations in one vector, by scale^2 * |x|^2 in the expected square. Strategy
"bank" replaces x by a style d of the patch's class, a move of |d - x|^2. Both are mixed with x by the same weights
afterwards, so the moves are compared before.
"""

import torch
from torch import Tensor

from famix.style.bank import StyleBank
from famix.style.dominant import IGNORE_CLASS
from famix.utils.errors import BankError

__all__ = ["matching_noise_scale"]


def matching_noise_scale(styles: StyleBank, own: StyleBank) -> float:
    """The MODEL.STYLE.NOISE_SCALE whose root mean square move over patches equals that of a bank.

        scale^2 = sum over patches of E |d - x|^2  /  sum over patches of |x|^2

    Args:
        styles: drawn from uniformly, as in training: a class without styles draws those of 255, or keeps its own.
        own: the statistics of the source's patches with their classes, see `famix.mining.measured.measure_bank`.

    Returns:
        The scale, >= 0.

    Raises:
        BankError: the banks have another number of channels, or the source has no patches or only zeros.
    """
    x, drawn = _vectors(own), _vectors(styles)
    if x.shape[1] != drawn.shape[1]:
        raise BankError(
            f"expected banks of the same stage and CLIP, got {styles.num_channels} and {own.num_channels} channels"
        )
    size = x.square().sum()
    if size == 0:
        raise BankError("expected patches with statistics other than 0, got none; measure more images")
    move = x.new_zeros(())
    for class_id in own.class_ids.unique().tolist():
        move += _expected_move(x[own.class_ids == class_id], _styles_of(class_id, drawn, styles.class_ids))
    return float((move / size).sqrt())


def _vectors(bank: StyleBank) -> Tensor:
    """(N, 2 C) float64: means, then standard deviations."""
    return torch.cat([bank.mean, bank.std], dim=1).double()


def _styles_of(class_id: int, drawn: Tensor, class_ids: Tensor) -> Tensor:
    found = drawn[class_ids == class_id]
    return found if len(found) else drawn[class_ids == IGNORE_CLASS]


def _expected_move(x: Tensor, drawn: Tensor) -> Tensor:
    """Sum over the rows of x of the mean squared distance to the rows of drawn; 0 where there is nothing to draw."""
    if not len(drawn):
        return x.new_zeros(())
    # |d - x|^2 averaged over d, without a table of all pairs: the distance to the mean, and the spread around it.
    centre = drawn.mean(0)
    spread = (drawn - centre).square().sum(1).mean()
    return ((x - centre).square().sum(1) + spread).sum()
