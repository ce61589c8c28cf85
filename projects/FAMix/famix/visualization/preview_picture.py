"""Pictures of what styles do to an image: bars of how far its features move, and a grid of predictions."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from famix.data.class_table import ClassTable
from famix.io.atomic import whole_file
from famix.reports.style_preview import Effect, changed_share
from famix.visualization.label_pictures import Ids, Pixels, color_labels

__all__ = ["draw_distances", "draw_predictions"]

_COLUMNS = 4
_DPI = 110


def draw_distances(effects: Sequence[Effect], path: Path) -> None:
    """Draw how far every look moves the features of every stage, as bars, into a PNG file.

    Raises:
        OSError: the file cannot be written.
    """
    stages = list(effects[0].distances)
    figure = Figure(figsize=(7.5, 1.1 + 0.18 * len(effects) * (len(stages) + 1)), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(stages)
    places = np.arange(len(effects))
    for number, stage in enumerate(stages):
        axes.barh(places + number * height, [one.distances[stage] for one in effects], height, label=stage)
    axes.set_yticks(places + 0.4 - height / 2, [one.name for one in effects])
    axes.invert_yaxis()
    axes.set_xlabel("root mean square change of the features, relative to their size")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    _save(figure, path)


def draw_predictions(image: Pixels, plain: Ids, effects: Sequence[Effect], classes: ClassTable, path: Path) -> None:
    """Draw the image, its prediction, and that under every look, into a PNG file.

    Args:
        image: (H, W, 3) RGB.
        plain: (H, W) train ids without a style.
        effects: with predictions.
        classes: their names and colours.
        path: of the file.

    Raises:
        OSError: the file cannot be written.
    """
    tiles: list[tuple[str, Pixels]] = [("image", image), ("prediction", color_labels(plain, classes.colors))]
    shown = {int(class_id) for class_id in np.unique(plain)}
    for effect in effects:
        assert effect.predicted is not None
        share = 100 * changed_share(plain, effect.predicted)
        tiles.append((f"{effect.name}: {share:.0f} % changed", color_labels(effect.predicted, classes.colors)))
        shown |= {int(class_id) for class_id in np.unique(effect.predicted)}
    rows = -(-len(tiles) // _COLUMNS)
    tile_height = 2.6 * image.shape[0] / image.shape[1] + 0.3
    figure = Figure(figsize=(2.7 * _COLUMNS, rows * tile_height + 0.6), dpi=_DPI, layout="constrained")
    for axes in figure.subplots(rows, _COLUMNS, squeeze=False).flat:
        axes.set_axis_off()
    for axes, (title, pixels) in zip(figure.axes, tiles, strict=False):
        axes.imshow(pixels)
        axes.set_title(title, fontsize=8)
    handles = [
        Patch(color="#{:02x}{:02x}{:02x}".format(*classes.colors[class_id]), label=classes.names[class_id])
        for class_id in sorted(shown)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 8), frameon=False, fontsize=8)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)  # draws without a screen, whatever the user's settings are
    with whole_file(path) as part:
        figure.savefig(part, format="png")
