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
from matplotlib.figure import Figure
from tabulate import tabulate
from torch import Tensor, nn

from famix.clip import CLIPImageTower
from famix.data.class_table import ClassTable
from famix.io.atomic import whole_file
from famix.modeling import PatchStyleMixin
from famix.reports.bank import class_groups, word_groups
from famix.style.bank import StyleBank
from famix.style.dominant import patch_classes
from famix.style.patches import Grid
from famix.style.restyle import restyle_patches
from famix.utils.errors import ConfigError
from famix.utils.seeding import derive_seed
from famix.visualization.figure import Tile, compose_figure, save_figure
from famix.visualization.label_pictures import Ids, Pixels, color_labels

__all__ = [
    "PLAIN",
    "Effect",
    "changed_by_class",
    "changed_share",
    "draw_distances",
    "draw_predictions",
    "format_changes",
    "format_effects",
    "preview_styles",
]

PLAIN = "no styles"
"""Name of the effect of the image without styles."""

_COLUMNS, _WIDTH = 4, 290


@dataclass(frozen=True)
class Effect:
    """Effect of restyling an image.

    Attributes:
        name: style word, or class for a bank without prompts; `PLAIN` without styles.
        styles: number of styles to draw from.
        distances: stage -> root mean square change of its features, relative to their root mean square.
        predicted: (H, W) train ids; None for an untrained network.
    """

    name: str
    styles: int
    distances: Mapping[str, float]
    predicted: Ids | None


def preview_styles(
    model: nn.Module,
    bank: StyleBank,
    image: Tensor,
    *,
    stage: str,
    grid: Grid,
    own_weight: float = 0.0,
    trained: bool = True,
    seed: int = 0,
) -> Iterator[Effect]:
    """Restyle an image with each style word of a bank, or with each class for a bank without prompts.

    A patch gets a style of the class that most of its pixels are predicted as; without one, any style of the word.

    Args:
        model: segmentation network with styles.
        bank: styles of its CLIP.
        image: (3, H, W) uint8, RGB.
        stage: stage with the restyled output.
        grid: (rows, cols) of patches.
        own_weight: weight of a patch's own statistics against the style's, 0-1.
        trained: False for a network without meaningful predictions.
        seed: of the drawn styles, >= 0.

    Yields:
        The image without styles under the name `PLAIN`, then the effect of each style word.

    Raises:
        ConfigError: if the model takes no styles, or the weight is out of range.
    """
    if not isinstance(model, PatchStyleMixin):
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE must be an architecture of FAMix, which takes styles, got {type(model).__name__}. "
            "Set it to FAMixSemanticSegmentor, for example."
        )
    if not 0 <= own_weight <= 1:
        raise ConfigError(f"--own-weight must be in [0, 1], got {own_weight}. Set it to 0 to see the styles alone.")
    observer = _Observer(model.eval(), image, stage, trained)
    plain_features, plain = observer(lambda features: features)
    yield Effect(PLAIN, 0, dict.fromkeys(plain_features, 0.0), plain)
    bank = bank.to(observer.backbone.device)
    if plain is None:
        classes = torch.full(grid, -1)  # no style has this class
    else:
        classes = patch_classes(torch.from_numpy(plain)[None].long(), grid, ignore_label=255)[0]
    for place, (name, chosen) in enumerate((word_groups(bank) or class_groups(bank)).items()):
        generator = torch.Generator().manual_seed(derive_seed(seed, place))
        rows = _draw(bank.class_ids.cpu(), chosen.cpu(), classes, generator).to(bank.mean.device)
        mean, std = (values[rows].movedim(-1, 0)[None] for values in (bank.mean, bank.std))
        alpha, rectify = torch.full((1, 1, 1, 1), own_weight, device=mean.device), observer.backbone.rectified
        restyle = partial(restyle_patches, mean=mean, std=std, alpha=alpha, grid=grid, rectify=rectify)
        features, predicted = observer(restyle)
        distances = {}
        for one, before in plain_features.items():
            size = before.square().mean().sqrt()
            distances[one] = float((features[one] - before).square().mean().sqrt() / size) if size > 0 else 0.0
        yield Effect(name, int(chosen.sum()), distances, predicted)


class _Observer:
    """Runs a network with one changed stage; returns the features from this stage on, and the prediction."""

    def __init__(self, model: Any, image: Tensor, stage: str, trained: bool) -> None:
        self.backbone: CLIPImageTower = model.clip_backbone
        self.backbone.check_stage(stage)
        self._stages = self.backbone.stages[self.backbone.stages.index(stage) :]
        self._model, self._image, self._trained = model, image, trained

    @torch.no_grad()
    def __call__(self, restyle: Callable[[Tensor], Tensor]) -> tuple[dict[str, Tensor], Ids | None]:
        features: dict[str, Tensor] = {}

        def record(output: Tensor, stage: str) -> Tensor:
            features[stage] = restyle(output) if stage == self._stages[0] else output
            return features[stage]

        with ExitStack() as taps:
            for stage in self._stages:
                taps.enter_context(self.backbone.transform_stage(stage, partial(record, stage=stage)))
            if not self._trained:
                image = (self._image.to(self._model.device) - self._model.pixel_mean) / self._model.pixel_std
                self.backbone(ImageList.from_tensors([image], self.backbone.size_divisibility).tensor)
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


def format_effects(effects: Sequence[Effect]) -> str:
    """Format a row per style word: the change of the features at each stage, and the share of changed pixels.

    Args:
        effects: see `preview_styles`.
    """
    plain, rows = effects[0].predicted, []
    for one in effects[1:]:
        row = {"style word": one.name, "styles": str(one.styles)}
        row |= {stage: f"{distance:.2f}" for stage, distance in one.distances.items()}
        if plain is not None and one.predicted is not None:
            row["pixels changed"] = f"{100 * changed_share(plain, one.predicted):.1f} %"
        rows.append(row)
    return _table([list(row.values()) for row in rows], list(rows[0]))


def format_changes(effects: Sequence[Effect], names: Sequence[str]) -> str:
    """Format a row per class predicted without styles: its share of the image, and the mean share of changed pixels.

    Args:
        effects: see `preview_styles`, with predictions.
        names: class names.
    """
    plain, *others = (one.predicted for one in effects if one.predicted is not None)
    rows = [
        [names[class_id], f"{100 * float((plain == class_id).mean()):.1f} %", f"{100 * share:.1f} %"]
        for class_id, share in changed_by_class(plain, others).items()
    ]
    return _table(rows, ["predicted without styles", "of the image", "changed, mean over style words"])


def draw_distances(effects: Sequence[Effect], path: Path) -> None:
    """Draw the change of the features for each style word and stage as bars into a PNG file.

    Raises:
        OSError: if the file cannot be written.
    """
    stages, words = list(effects[0].distances), effects[1:]
    figure = Figure(figsize=(7.5, 1.1 + 0.18 * len(words) * (len(stages) + 1)), dpi=110, layout="constrained")
    axes = figure.subplots()
    height, places = 0.8 / len(stages), np.arange(len(words))
    for number, stage in enumerate(stages):
        axes.barh(places + number * height, [one.distances[stage] for one in words], height, label=stage)
    axes.set_yticks(places + 0.4 - height / 2, [one.name for one in words], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("root mean square change of the features, relative to their magnitude")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    with whole_file(path) as part:
        figure.savefig(part, format="png")


def draw_predictions(image: Pixels, effects: Sequence[Effect], classes: ClassTable, path: Path) -> None:
    """Draw the image and its predictions without styles and with each style word into a PNG file.

    Args:
        image: (H, W, 3) RGB.
        effects: see `preview_styles`, with predictions.
        classes: names and colours.
        path: output file.

    Raises:
        OSError: if the file cannot be written.
    """
    plain, *others = (one.predicted for one in effects if one.predicted is not None)
    pairs = zip(effects[1:], others, strict=True)
    titles = [f"{one.name}: {100 * changed_share(plain, ids):.0f} % changed" for one, ids in pairs]
    tiles = [Tile(image, "image")]
    for title, ids in zip(["prediction", *titles], [plain, *others], strict=True):
        tiles.append(Tile(color_labels(ids, classes.colors), title, smooth=False))
    rows = [tiles[first : first + _COLUMNS] for first in range(0, len(tiles), _COLUMNS)]
    legend = [(classes.names[one], classes.colors[one]) for one in np.unique([plain, *others]).tolist()]
    cell = (_WIDTH, round(_WIDTH * image.shape[0] / image.shape[1]))
    save_figure(compose_figure(rows, cell, legend=legend, font_size=14), path)


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
