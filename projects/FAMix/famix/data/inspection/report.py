"""What is known of a dataset after a check, as text and as plain data."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tabulate import tabulate

from famix.data.inspection.problems import KINDS, ProblemLog
from famix.utils.messages import table_cell

__all__ = ["IGNORED", "ClassShare", "DatasetReport", "format_report"]

IGNORED = "(ignored)"
"""Stands in the place of a class for pixels without one."""

_SIZES_SHOWN = 3


@dataclass(frozen=True)
class ClassShare:
    """How much of a dataset a class has.

    Attributes:
        name: of the class.
        pixels: percent of all pixels, ignored ones included.
        images: percent of the images that show it.
    """

    name: str
    pixels: float
    images: float


@dataclass
class DatasetReport:
    """Result of a check.

    Attributes:
        name: of the registered dataset.
        source: its definition file.
        folder: its root.
        layout: where images and labels were found; "" for datasets that other code registered.
        problems: what must be mended.
        notes: what may be worth knowing, but does not matter.
        num_pairs: pairs of image and label, all of whose headers were read.
        num_decoded: labels whose pixels were counted.
        sizes: (height, width) of images -> how many have it.
        classes: shares of the classes, and last of what is ignored; empty when nothing was decoded.
        seconds: that the check took.
    """

    name: str
    source: str = ""
    folder: str = ""
    layout: str = ""
    problems: ProblemLog = field(default_factory=ProblemLog)
    notes: list[str] = field(default_factory=list)
    num_pairs: int = 0
    num_decoded: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    classes: Sequence[ClassShare] = ()
    seconds: float = 0.0

    @property
    def is_usable(self) -> bool:
        """Whether training or a test could use the dataset as it is."""
        return not len(self.problems)

    def as_json(self) -> dict[str, Any]:
        """The report in lists, dictionaries, texts and numbers."""
        return {
            "name": self.name,
            "usable": self.is_usable,
            "definition": self.source,
            "folder": self.folder,
            "layout": self.layout,
            "pairs": self.num_pairs,
            "decoded": self.num_decoded,
            "problems": {kind: {"count": group.count, "first": group.first} for kind, group in self.problems},
            "notes": self.notes,
            "sizes": [
                {"height": height, "width": width, "images": count}
                for (height, width), count in self.sizes.most_common()
            ],
            "classes": [
                {"name": share.name, "pixel_percent": share.pixels, "image_percent": share.images}
                for share in self.classes
            ],
            "seconds": round(self.seconds, 1),
        }


def format_report(report: DatasetReport) -> str:
    """Lay out a report for a terminal.

    Returns:
        Lines; the last says whether the dataset is usable.
    """
    lines = [f"== {report.name}"]
    for title, text in (
        ("definition", report.source),
        ("folder", report.folder),
        ("layout", report.layout),
        ("pairs", f"{report.num_pairs}, of which {report.num_decoded} were decoded ({report.seconds:.1f} s)"),
        ("sizes", _sizes(report)),
    ):
        lines += [f"{title:<12}{text}"] if text else []
    if report.classes:
        rows = [[table_cell(share.name), f"{share.pixels:.3f}", f"{share.images:.1f}"] for share in report.classes]
        head, align = ["class", "% of pixels", "% of images"], ("left", "right", "right")
        lines += ["", tabulate(rows, head, tablefmt="github", disable_numparse=True, colalign=align)]
    lines += ["", *(f"note: {note}" for note in report.notes)] if report.notes else [""]
    for kind, group in report.problems:
        lines.append(f"PROBLEM: {KINDS[kind]}: {group.count}")
        lines += [f"    {text}" for text in group.first]
        lines += [f"    and {group.count - len(group.first)} more"] if group.count > len(group.first) else []
    verdict = "usable" if report.is_usable else f"NOT usable, {len(report.problems)} problem(s)"
    return "\n".join([*lines, f"{report.name}: {verdict}"])


def _sizes(report: DatasetReport) -> str:
    common = report.sizes.most_common(_SIZES_SHOWN)
    parts = [f"{count} of {height} x {width}" for (height, width), count in common]
    rest = len(report.sizes) - len(common)
    return ", ".join(parts) + (f", and {rest} other sizes" if rest else "") + (" (height x width)" if parts else "")
