"""Problems of a dataset, counted by kind; of each kind only the first are kept, so that memory does not grow."""

from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ["KINDS", "ProblemGroup", "ProblemLog"]

KINDS = {
    "listing": "the files cannot be listed",
    "list": "entries of the split's list without an image",
    "empty": "no pair of image and label",
    "format": "images in another format than the definition asks for",
    "missing label": "images without a label ('unpaired: skip' in the definition leaves them out)",
    "unreadable image": "images that cannot be read",
    "unreadable label": "labels that cannot be read",
    "size": "labels of another size than the image",
    "encoding": "labels of another encoding",
    "unknown id": "labels with ids outside the map",
    "no class": "labels without any class",
}
"""What can be wrong, in the order in which it is reported."""

_KEPT = 5


@dataclass
class ProblemGroup:
    """Problems of one kind.

    Attributes:
        count: of all.
        first: what the first say, at most five.
    """

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, count: int, first: list[str]) -> None:
        """Add problems that were found after these."""
        self.count += count
        self.first += first[: _KEPT - len(self.first)]


class ProblemLog:
    """All problems that were found."""

    def __init__(self) -> None:
        self._groups = {kind: ProblemGroup() for kind in KINDS}

    def add(self, kind: str, *texts: str) -> None:
        """Note problems of a kind, one for each text."""
        self._groups[kind].add(len(texts), list(texts[:_KEPT]))

    def merge(self, other: "ProblemLog") -> None:
        """Take over problems that were found after these."""
        for kind, group in other._groups.items():
            self._groups[kind].add(group.count, group.first)

    def __iter__(self) -> Iterator[tuple[str, ProblemGroup]]:
        """The kinds that occurred."""
        return ((kind, group) for kind, group in self._groups.items() if group.count)

    def __len__(self) -> int:
        return sum(group.count for group in self._groups.values())
