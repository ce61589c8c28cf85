"""Measuring in turns, and the table: every row is a figure, the limit it is compared with, and their ratio."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from tabulate import tabulate

__all__ = ["Clock", "Row", "format_table", "format_targets", "in_turns"]


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        what: was measured.
        value: of it, in `unit`.
        limit_name: what it is compared with.
        limit: the value of that, in the same unit.
        unit: "s", "ms", "MiB" or "" for numbers.
        target: what the project aims at; "" for a row that only informs.
        at_most: the highest ratio of value and limit that reaches the target.
    """

    what: str
    value: float
    limit_name: str
    limit: float
    unit: str = "s"
    target: str = ""
    at_most: float = 0.0

    @property
    def ratio(self) -> float:
        """Value over limit; 0 where both are 0."""
        return self.value / self.limit if self.limit else float(self.value > 0)

    @property
    def reached(self) -> bool:
        """Whether the target is."""
        return self.ratio <= self.at_most


class Clock:
    """Seconds of work, a GPU's included.

    Args:
        device: that the work runs on.
    """

    def __init__(self, device: str) -> None:
        self._on_gpu = device.startswith("cuda")

    def now(self) -> float:
        """A moment, in seconds, at which all work that was started before is done."""
        if self._on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def seconds(self, call: Callable[[], object]) -> float:
        """How long a call takes."""
        start = self.now()
        call()
        return self.now() - start

    def timed(self, call: Callable[[], object]) -> Callable[[], float]:
        """The call as a contender of `in_turns`."""
        return lambda: self.seconds(call)


def in_turns(contenders: Mapping[str, Callable[[], float]], rounds: int, warm_up: bool = True) -> dict[str, float]:
    """The least of what every contender says, over rounds in which each has its turn.

    The turns let whatever else the machine does meet all alike; the least is what the work itself takes.

    Args:
        contenders: name -> runs once and returns its seconds.
        rounds: that count.
        warm_up: one more round before them does not count.
    """
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + warm_up):
        for name, run in contenders.items():
            seconds = run()
            if number >= warm_up:
                taken[name].append(seconds)
    return {name: min(values) for name, values in taken.items()}


def format_table(rows: Iterable[Row]) -> str:
    """The table in Markdown."""
    cells = [
        [row.what, _quantity(row.value, row.unit), row.limit_name, _quantity(row.limit, row.unit), f"{row.ratio:.3f}"]
        for row in rows
    ]
    headers = ["measured", "", "compared with", "", "ratio"]
    return tabulate(cells, headers=headers, tablefmt="github", disable_numparse=True)


def format_targets(rows: Sequence[Row]) -> str:
    """Every target, what was reached, and by how much it was missed."""
    cells = []
    for row in rows:
        if row.target:
            missed = f"missed by {100 * (row.ratio / row.at_most - 1):.0f}%" if row.at_most else "missed"
            cells.append([row.target, f"{row.ratio:.3g}", f"{row.at_most:.3g}", "met" if row.reached else missed])
    headers = ["target", "ratio", "at most", ""]
    return tabulate(cells, headers=headers, tablefmt="github", disable_numparse=True)


def _quantity(value: float, unit: str) -> str:
    digits = {"s": ".3f", "ms": ".2f", "MiB": ".0f"}.get(unit, ".3g")
    return f"{value:{digits}} {unit}".strip()
