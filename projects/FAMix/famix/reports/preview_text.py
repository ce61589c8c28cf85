"""What styles do to an image, as tables for a terminal."""

from collections.abc import Sequence

from tabulate import tabulate

from famix.reports.style_preview import Effect, changed_by_class, changed_share
from famix.visualization.label_pictures import Ids

__all__ = ["format_changes", "format_effects"]


def format_effects(effects: Sequence[Effect], plain: Ids | None) -> str:
    """A row for every look: how far the features of each stage move, and how many pixels change their class.

    Args:
        effects: at least one.
        plain: (H, W) train ids without a style; None where nothing is predicted.
    """
    stages = list(effects[0].distances)
    rows = [[one.name, str(one.styles), *(f"{one.distances[stage]:.2f}" for stage in stages)] for one in effects]
    head = ["look", "styles", *stages]
    if plain is not None:
        head.append("pixels changed")
        for row, predicted in zip(rows, _predictions(effects), strict=True):
            row.append(f"{100 * changed_share(plain, predicted):.1f} %")
    return _table(rows, head)


def format_changes(effects: Sequence[Effect], plain: Ids, names: Sequence[str]) -> str:
    """A row for every class that is seen without a style: its share of the image, and how much of that changes.

    Args:
        effects: with predictions.
        plain: (H, W) train ids without a style.
        names: of the classes.
    """
    changed = changed_by_class(plain, _predictions(effects))
    rows = [
        [names[class_id], f"{100 * float((plain == class_id).mean()):.1f} %", f"{100 * share:.1f} %"]
        for class_id, share in changed.items()
    ]
    return _table(rows, ["seen without styles", "of the image", "of that changed, mean of the looks"])


def _predictions(effects: Sequence[Effect]) -> list[Ids]:
    return [one.predicted for one in effects if one.predicted is not None]


def _table(rows: Sequence[Sequence[str]], head: Sequence[str]) -> str:
    return tabulate(rows, headers=head, disable_numparse=True, colalign=("left", *["right"] * (len(head) - 1)))
