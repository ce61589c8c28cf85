"""Effect of a bank's styles on one image: on its features and, with a trained network, on its prediction.

Shapes: one image of H x W pixels, C channels at the restyled stage, a grid of (rows, cols) patches.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.structures import ImageList
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from tabulate import tabulate
from torch import Tensor

from famix.clip import CLIPImageTower
from famix.data.class_table import ClassTable
from famix.io.atomic import whole_file
from famix.modeling import PatchStyleMixin
from famix.reports.bank import style_words
from famix.style.bank import StyleBank
from famix.style.dominant import patch_classes
from famix.style.patches import Grid
from famix.style.restyle import restyle_patches
from famix.utils.errors import ConfigError
from famix.utils.seeding import derive_seed
from famix.visualization.label_pictures import Ids, Pixels, color_labels

__all__ = [
    "Effect",
    "StylePreview",
    "changed_by_class",
    "changed_share",
    "draw_distances",
    "draw_predictions",
    "format_changes",
    "format_effects",
]

_COLUMNS, _DPI = 4, 110


@dataclass(frozen=True)
class Effect:
    """Effect of restyling an image.

    Attributes:
        name: style word, or class for a bank without prompts.
        styles: number of styles to draw from.
        distances: stage -> root mean square change of its features, relative to their root mean square.
        predicted: (H, W) train ids; None for an untrained network.
    """

    name: str
    styles: int
    distances: Mapping[str, float]
    predicted: Ids | None


class StylePreview:
    """An image as a network sees it, without styles and with those of a bank.

    Args:
        model: segmentation network with styles.
        bank: styles of its CLIP.
        image: (3, H, W) uint8, RGB.
        stage: stage with the restyled output.
        grid: (rows, cols) of patches.
        own_weight: weight of a patch's own statistics against the style's, 0-1.
        trained: False for a network without meaningful predictions.
        seed: of the drawn styles, >= 0.

    Attributes:
        plain: (H, W) train ids without styles; None for an untrained network.
        names: style words, or classes for a bank without prompts.

    Raises:
        ConfigError: if the model takes no styles, or the weight is out of range.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        bank: StyleBank,
        image: Tensor,
        *,
        stage: str,
        grid: Grid,
        own_weight: float = 0.0,
        trained: bool = True,
        seed: int = 0,
    ) -> None:
        if not isinstance(model, PatchStyleMixin):
            raise ConfigError(
                f"MODEL.META_ARCHITECTURE must be an architecture of FAMix, which takes styles, got {type(model).__name__}. "
                "Set it to FAMixSemanticSegmentor, for example."
            )
        if not 0 <= own_weight <= 1:
            raise ConfigError(f"--own-weight must be in [0, 1], got {own_weight}. Set it to 0 to see the styles alone.")
        self._model = model.eval()
        self._backbone: CLIPImageTower = model.clip_backbone
        self._backbone.check_stage(stage)
        self._bank = bank.to(self._backbone.device)
        self._image = image
        self._stage, self._grid = stage, grid
        self._stages = self._backbone.stages[self._backbone.stages.index(stage) :]
        self._own_weight, self._seed = own_weight, seed
        self._trained = trained
        self._features, self.plain = self._observe(None)
        words = style_words(bank)
        if words is None:
            self._groups = {bank.class_name(class_id): bank.class_ids == class_id for class_id in bank.counts()}
        else:
            self._groups = {name: words.index == place for place, name in enumerate(words.names)}
        self.names = tuple(self._groups)

    def effects(self) -> Iterator[Effect]:
        """Restyle the image with each style word of the bank, or with each class for a bank without prompts.

        A patch gets a style of the class that most of its pixels are predicted as; without one, any style of the word.
        """
        if self.plain is None:
            classes = torch.full(self._grid, -1)  # no style has this class
        else:
            classes = patch_classes(torch.from_numpy(self.plain)[None].long(), self._grid, ignore_label=255)[0]
        for place, (name, chosen) in enumerate(self._groups.items()):
            generator = torch.Generator().manual_seed(derive_seed(self._seed, place))
            rows = _draw(self._bank.class_ids.cpu(), chosen, classes, generator).to(self._bank.mean.device)
            mean, std = (values[rows].movedim(-1, 0)[None] for values in (self._bank.mean, self._bank.std))
            alpha = torch.full((1, 1, 1, 1), self._own_weight, device=mean.device)
            features, predicted = self._observe(
                partial(
                    restyle_patches, mean=mean, std=std, alpha=alpha, grid=self._grid, rectify=self._backbone.rectified
                )
            )
            distances = {}
            for stage in self._stages:
                plain, restyled = self._features[stage], features[stage]
                size = plain.square().mean().sqrt()
                distances[stage] = float((restyled - plain).square().mean().sqrt() / size) if size > 0 else 0.0
            yield Effect(name, int(chosen.sum()), distances, predicted)

    @torch.no_grad()
    def _observe(self, restyle: Callable[[Tensor], Tensor] | None) -> tuple[dict[str, Tensor], Ids | None]:
        """Return the features of the restyled and all later stages, and the prediction."""
        features: dict[str, Tensor] = {}

        def recorder(stage: str) -> Callable[[Tensor], Tensor]:
            def record(output: Tensor) -> Tensor:
                features[stage] = restyle(output) if restyle is not None and stage == self._stage else output
                return features[stage]

            return record

        with ExitStack() as taps:
            for stage in self._stages:
                taps.enter_context(self._backbone.transform_stage(stage, recorder(stage)))
            if not self._trained:
                model: Any = self._model
                image = (self._image.to(model.device) - model.pixel_mean) / model.pixel_std
                self._backbone(ImageList.from_tensors([image], self._backbone.size_divisibility).tensor)
                return features, None
            (result,) = self._model([{"image": self._image}])
        return features, result["sem_seg"].argmax(0).to("cpu", torch.uint8).numpy()


def changed_share(plain: Ids, other: Ids) -> float:
    """Return the share of pixels with different classes, 0-1."""
    return float((plain != other).mean())


def changed_by_class(plain: Ids, others: Sequence[Ids]) -> dict[int, float]:
    """Return the share of changed pixels of each class in `plain`, averaged over `others`, 0-1."""
    changed = np.mean([plain != other for other in others], axis=0)
    return {int(class_id): float(changed[plain == class_id].mean()) for class_id in np.unique(plain)}


def format_effects(effects: Sequence[Effect], plain: Ids | None) -> str:
    """Format a row per style word: the change of the features at each stage, and the share of changed pixels.

    Args:
        effects: at least one.
        plain: (H, W) train ids without styles; None without predictions.
    """
    rows = []
    for one in effects:
        row = {"style word": one.name, "styles": str(one.styles)}
        row |= {stage: f"{distance:.2f}" for stage, distance in one.distances.items()}
        if plain is not None and one.predicted is not None:
            row["pixels changed"] = f"{100 * changed_share(plain, one.predicted):.1f} %"
        rows.append(row)
    return _table([list(row.values()) for row in rows], list(rows[0]))


def format_changes(effects: Sequence[Effect], plain: Ids, names: Sequence[str]) -> str:
    """Format a row per class predicted without styles: its share of the image, and the mean share of changed pixels.

    Args:
        effects: with predictions.
        plain: (H, W) train ids without styles.
        names: class names.
    """
    changed = changed_by_class(plain, [one.predicted for one in effects if one.predicted is not None])
    rows = [
        [names[class_id], f"{100 * float((plain == class_id).mean()):.1f} %", f"{100 * share:.1f} %"]
        for class_id, share in changed.items()
    ]
    return _table(rows, ["predicted without styles", "of the image", "changed, mean over style words"])


def draw_distances(effects: Sequence[Effect], path: Path) -> None:
    """Draw the change of the features for each style word and stage as bars into a PNG file.

    Raises:
        OSError: if the file cannot be written.
    """
    stages = list(effects[0].distances)
    figure = Figure(figsize=(7.5, 1.1 + 0.18 * len(effects) * (len(stages) + 1)), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(stages)
    places = np.arange(len(effects))
    for number, stage in enumerate(stages):
        axes.barh(places + number * height, [one.distances[stage] for one in effects], height, label=stage)
    axes.set_yticks(places + 0.4 - height / 2, [one.name for one in effects], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("root mean square change of the features, relative to their magnitude")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    _save(figure, path)


def draw_predictions(image: Pixels, plain: Ids, effects: Sequence[Effect], classes: ClassTable, path: Path) -> None:
    """Draw the image and its predictions without styles and with each style word into a PNG file.

    Args:
        image: (H, W, 3) RGB.
        plain: (H, W) train ids without styles.
        effects: with predictions.
        classes: names and colours.
        path: output file.

    Raises:
        OSError: if the file cannot be written.
    """
    tiles: list[tuple[str, Pixels]] = [("image", image), ("prediction", color_labels(plain, classes.colors))]
    shown = set(np.unique(plain).tolist())
    for effect in effects:
        assert effect.predicted is not None
        share = 100 * changed_share(plain, effect.predicted)
        tiles.append((f"{effect.name}: {share:.0f} % changed", color_labels(effect.predicted, classes.colors)))
        shown |= set(np.unique(effect.predicted).tolist())
    rows = -(-len(tiles) // _COLUMNS)
    tile_height = 2.6 * image.shape[0] / image.shape[1] + 0.3
    figure = Figure(figsize=(2.7 * _COLUMNS, rows * tile_height + 0.6), dpi=_DPI, layout="constrained")
    for axes in figure.subplots(rows, _COLUMNS, squeeze=False).flat:
        axes.set_axis_off()
    for axes, (title, pixels) in zip(figure.axes, tiles, strict=False):
        axes.imshow(pixels)
        axes.set_title(title, fontsize=8, parse_math=False)
    handles = [
        Patch(color="#{:02x}{:02x}{:02x}".format(*classes.colors[class_id]), label=classes.names[class_id])
        for class_id in sorted(shown)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 8), frameon=False, fontsize=8)
    _save(figure, path)


def _draw(class_ids: Tensor, chosen: Tensor, classes: Tensor, generator: torch.Generator) -> Tensor:
    """Draw (rows, cols) rows of the bank: for each patch one of its class among the chosen, if there is one."""
    rows = torch.empty(classes.shape, dtype=torch.int64)
    for place, class_id in enumerate(classes.flatten().tolist()):
        fitting = (chosen & (class_ids == class_id)).nonzero().flatten()
        candidates = fitting if len(fitting) else chosen.nonzero().flatten()
        rows.view(-1)[place] = candidates[torch.randint(len(candidates), (), generator=generator)]
    return rows


def _table(rows: Sequence[Sequence[str]], head: Sequence[str]) -> str:
    return tabulate(rows, headers=head, disable_numparse=True, colalign=("left", *["right"] * (len(head) - 1)))


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)  # draws without a screen
    with whole_file(path) as part:
        figure.savefig(part, format="png")
