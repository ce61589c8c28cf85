"""Numbers about a style bank: how many styles, what mining did to their losses, how they spread, how far they went.

Shapes: N styles of C channels. A style is a point of 2C coordinates, its means and then its standard deviations.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from famix.mining.metadata import bank_text_design
from famix.reports.bank_looks import looks_of
from famix.style.bank import StyleBank
from famix.utils.errors import BankError

__all__ = [
    "GroupStatistics",
    "class_statistics",
    "look_statistics",
    "require_compatible",
    "source_distance",
    "style_points",
]

# Share of the usual spread: statistics that hardly vary in the source are not counted as if any change were far.
_FLOOR = 0.05


@dataclass(frozen=True)
class GroupStatistics:
    """Numbers about the styles of a class, of a look, or of the whole bank.

    Attributes:
        name: of the group.
        styles: how many.
        loss_before, loss_after: mean cosine loss before and after mining; NaN where the bank does not say.
        spread: root mean square distance of a style from the group's mean style, relative to the size of that; NaN for
            a single style.
        negative: styles with a negative standard deviation in some channel, which the optimiser may leave.
    """

    name: str
    styles: int
    loss_before: float
    loss_after: float
    spread: float
    negative: int


def style_points(bank: StyleBank) -> Tensor:
    """(N, 2C) float32: means and standard deviations of every style."""
    return torch.cat([bank.mean, bank.std], dim=1)


def class_statistics(bank: StyleBank) -> list[GroupStatistics]:
    """Numbers of every class that has styles, by class id."""
    return [_describe(bank, bank.class_ids == class_id, bank.class_name(class_id)) for class_id in bank.counts()]


def look_statistics(bank: StyleBank) -> list[GroupStatistics]:
    """Numbers of every look, in the order of the prompts; none where the bank does not say its prompts."""
    looks = looks_of(bank)
    if looks is None:
        return []
    return [_describe(bank, looks.index == place, name) for place, name in enumerate(looks.names)]


def source_distance(bank: StyleBank, own: StyleBank) -> Tensor:
    """How far every style lies from what patches of its class look like in the source.

    Args:
        bank: N styles.
        own: measured statistics of the source's patches (tools/measure_bank.py), of the same CLIP, stage and grid.

    Returns:
        (N,): root mean square, over all means and standard deviations, of the difference to the class's average in the
        source, in units of how much patches of the class vary there. A patch of the source itself has about 1. Classes
        of which the source has fewer than two patches are compared with all patches.

    Raises:
        BankError: the banks do not belong together, or `own` has fewer than two styles.
    """
    require_compatible(bank, own, ("the bank", "the measured bank"))
    if len(own) < 2:
        raise BankError(f"the measured bank has {len(own)} styles, expected statistics of many patches")
    points, sources = style_points(bank), style_points(own)
    distance = torch.empty(len(bank))
    for class_id in bank.counts():
        mine = own.class_ids == class_id
        rows = sources[mine] if int(mine.sum()) > 1 else sources
        spread = rows.std(dim=0)
        spread = spread.clamp(min=_FLOOR * float(spread.square().mean().sqrt()) + torch.finfo(torch.float32).tiny)
        chosen = bank.class_ids == class_id
        distance[chosen] = ((points[chosen] - rows.mean(dim=0)) / spread).square().mean(dim=1).sqrt()
    return distance


def require_compatible(first: StyleBank, second: StyleBank, names: Sequence[str]) -> None:
    """Raise unless two banks are of the same CLIP, stage, grid and classes.

    Args:
        names: of the two, for the message.

    Raises:
        BankError: names what differs and both values.
    """
    for key in ("clip_hash", "stage", "grid", "class_names"):
        values = [bank.metadata.get(key, "nothing") for bank in (first, second)]
        if values[0] != values[1]:
            raise BankError(
                f"{names[0]} was made for {key} {values[0]}, {names[1]} for {values[1]}; only banks of the same CLIP, "
                "stage, grid and classes go together"
            )
    designs = [bank_text_design(bank) for bank in (first, second)]
    if designs[0].known and designs[1].known and designs[0] != designs[1]:
        raise BankError(
            f"{names[0]} was mined with a text tower of {designs[0]}, {names[1]} with {designs[1]}; only banks of the same "
            "text tower go together"
        )
    if first.num_channels != second.num_channels:
        raise BankError(
            f"{names[0]} has styles of {first.num_channels} channels, {names[1]} of {second.num_channels}; only banks "
            "of the same CLIP and stage go together"
        )


def _describe(bank: StyleBank, chosen: Tensor, name: str) -> GroupStatistics:
    points = style_points(bank)[chosen]
    before, after = (_mean(bank.annotations.get(f"{which}_loss"), chosen) for which in ("initial", "final"))
    negative = int((bank.std[chosen] < 0).any(dim=1).sum())
    return GroupStatistics(name, len(points), before, after, _spread(points), negative)


def _mean(values: Tensor | None, chosen: Tensor) -> float:
    return math.nan if values is None else float(values[chosen].mean())


def _spread(points: Tensor) -> float:
    if len(points) < 2:
        return math.nan
    center = points.mean(dim=0)
    size = center.square().mean().sqrt()
    return float((points - center).square().mean().sqrt() / size) if size > 0 else math.nan
