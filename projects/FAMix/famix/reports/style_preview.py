"""Effect of a bank's styles on the features of an image and, with a trained network, on its prediction."""

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
from torch import Tensor, nn

from famix.clip import IMAGE
from famix.data.classes import ClassTable
from famix.io.atomic import whole_file
from famix.modeling import PatchStyleMixin
from famix.reports.bank import class_groups, word_groups
from famix.reports.tables import text_table
from famix.style.bank import StyleBank
from famix.style.dominant import patch_classes
from famix.style.patches import Grid
from famix.style.restyle import restyle_patches
from famix.utils.errors import ConfigError
from famix.utils.seeding import derive_seed
from famix.visualization.figure import Pixels, Tile, compose_figure, save_figure
from famix.visualization.overlay import Ids, color_labels

PLAIN = "no styles"  # name of the effect that applies no styles

_COLUMNS, _WIDTH = 4, 290


@dataclass(frozen=True)
class Effect:
    """Effect of restyling an image."""

    name: str  # style word, class for a bank without prompts, or `PLAIN`
    styles: int  # number of styles to draw from
    distances: Mapping[str, float]  # stage -> RMS change of its features, relative to their RMS
    predicted: Ids | None  # (H, W) train ids; None for an untrained network
    picture: Pixels | None = None  # (H, W, 3) uint8, the restyled image; None for styles of features


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

    A patch gets a style of the class predicted for most of its pixels, or any style of the word if there is none.

    Args:
        model: segmentation network that supports styles.
        bank: style bank made with the network's CLIP.
        image: (3, H, W) uint8 RGB image.
        stage: stage whose output is restyled.
        grid: (rows, cols) of patches.
        own_weight: weight of a patch's own statistics, from 0 to 1.
        trained: whether the network makes meaningful predictions.
        seed: seed for drawing styles, at least 0.

    Returns:
        An iterator over the effect named `PLAIN`, which applies no styles, and then the effect of each style word.

    Raises:
        ConfigError: the model does not support styles, or the weight is out of range.
    """
    if not isinstance(model, PatchStyleMixin):
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE must support styles, got {type(model).__name__}. Set it to e.g. "
            "FAMixSemanticSegmentor."
        )
    if not 0 <= own_weight <= 1:
        raise ConfigError(f"--own-weight must be in [0, 1], got {own_weight}. Use 0 to see the styles alone.")
    return _effects(model, bank.to(model.device), image, stage, grid, own_weight, trained, seed)


def _effects(
    model: PatchStyleMixin,
    bank: StyleBank,
    image: Tensor,
    stage: str,
    grid: Grid,
    own_weight: float,
    trained: bool,
    seed: int,
) -> Iterator[Effect]:
    observe = partial(_observe, model.eval(), image, stage, trained)
    plain_features, plain = observe(lambda features: features)
    yield Effect(PLAIN, 0, dict.fromkeys(plain_features, 0.0), plain)
    if plain is None:
        classes = torch.full(grid, -1)  # no style has this class
    else:
        classes = patch_classes(torch.from_numpy(plain)[None].long(), grid, ignore_label=255)[0]
    for place, (name, chosen) in enumerate((word_groups(bank) or class_groups(bank)).items()):
        generator = torch.Generator().manual_seed(derive_seed(seed, place))
        rows = _draw(bank.class_ids.cpu(), chosen.cpu(), classes, generator).to(bank.mean.device)
        mean, std = (values[rows].movedim(-1, 0)[None] for values in (bank.mean, bank.std))
        rectify = stage != IMAGE and model.clip_backbone.rectified
        restyle = partial(restyle_patches, mean=mean, std=std, alpha=own_weight, grid=grid, rectify=rectify)
        features, predicted = observe(restyle)
        distances = {}
        for one, before in plain_features.items():
            size = before.square().mean().sqrt()
            distances[one] = float((features[one] - before).square().mean().sqrt() / size) if size > 0 else 0.0
        yield Effect(name, int(chosen.sum()), distances, predicted, _picture(features, image.shape[1:]))


@torch.no_grad()
def _observe(
    model: Any, image: Tensor, stage: str, trained: bool, restyle: Callable[[Tensor], Tensor]
) -> tuple[dict[str, Tensor], Ids | None]:
    """Run a network with one changed stage, and return the features from this stage on and the prediction."""
    stages = (IMAGE, *model.clip_backbone.stages)
    if stage != IMAGE:
        model.clip_backbone.check_stage(stage)
    stages = stages[stages.index(stage) :]
    features: dict[str, Tensor] = {}

    def record(output: Tensor, name: str) -> Tensor:
        features[name] = restyle(output) if name == stage else output
        if name == IMAGE:  # as the network sees it
            features[name] = features[name].clamp(0, 255)
        return features[name]

    with ExitStack() as taps:
        for name in stages:
            taps.enter_context(model.transform_stage(name, partial(record, name=name)))
        if trained:
            (result,) = model([{"image": image}])
            return features, result["sem_seg"].argmax(0).to("cpu", torch.uint8).numpy()
        normalized = (image.to(model.device) - model.pixel_mean) / model.pixel_std
        model.backbone(ImageList.from_tensors([normalized], model.backbone.size_divisibility).tensor)
        return features, None


def _picture(features: Mapping[str, Tensor], size: Sequence[int]) -> Pixels | None:
    """Return the restyled image (H, W, 3) uint8 without padding, or None for styles of features."""
    if IMAGE not in features:
        return None
    pixels = features[IMAGE][0, :, : size[0], : size[1]].round()
    return pixels.permute(1, 2, 0).to("cpu", torch.uint8).numpy()


def _draw(class_ids: Tensor, chosen: Tensor, classes: Tensor, generator: torch.Generator) -> Tensor:
    """Draw (rows, cols) indices of chosen styles, preferring styles of the class of each patch."""
    rows = torch.empty(classes.shape, dtype=torch.int64)
    for place, class_id in enumerate(classes.flatten().tolist()):
        fitting = (chosen & (class_ids == class_id)).nonzero().flatten()
        candidates = fitting if len(fitting) else chosen.nonzero().flatten()
        rows.view(-1)[place] = candidates[torch.randint(len(candidates), (), generator=generator)]
    return rows


def changed_share(plain: Ids, other: Ids) -> float:
    """Return the share of pixels whose classes differ, from 0 to 1."""
    return float((plain != other).mean())


def changed_by_class(plain: Ids, others: Sequence[Ids]) -> dict[int, float]:
    """Return a mapping from each class in `plain` to its share of changed pixels in [0, 1], averaged over `others`."""
    changed = np.mean([plain != other for other in others], axis=0)
    return {int(class_id): float(changed[plain == class_id].mean()) for class_id in np.unique(plain)}


def format_effects(effects: Sequence[Effect]) -> str:
    """Format one row per style word: the feature change at each stage, and the share of changed pixels."""
    plain = effects[0].predicted
    head, rows = ["style word", "styles", *effects[0].distances], []
    for one in effects[1:]:
        rows.append([one.name, str(one.styles), *(f"{distance:.2f}" for distance in one.distances.values())])
        if plain is not None and one.predicted is not None:
            rows[-1].append(f"{100 * changed_share(plain, one.predicted):.1f} %")
    stages = ", ".join(effects[0].distances)
    return (
        f"{text_table(head if plain is None else [*head, 'pixels changed'], rows)}\n\n"
        f"{stages}: RMS change of the output of this stage, relative to its RMS without styles (0.1 is a tenth)"
    )


def format_changes(effects: Sequence[Effect], names: Sequence[str]) -> str:
    """Format one row per class predicted without styles: its share of the image, and its mean share of changed pixels."""
    plain, *others = (one.predicted for one in effects if one.predicted is not None)
    rows = [
        [names[class_id], f"{100 * float((plain == class_id).mean()):.1f} %", f"{100 * share:.1f} %"]
        for class_id, share in changed_by_class(plain, others).items()
    ]
    return text_table(["predicted without styles", "share of image", "changed (mean over style words)"], rows)


def draw_effects(image: Pixels, effects: Sequence[Effect], classes: ClassTable, folder: Path) -> list[Path]:
    """Draw distances.png, for picture styles pictures.png, and for a trained network predictions.png.

    Args:
        image: (H, W, 3) uint8 RGB image.
        effects: all results of `preview_styles` for this image.
        classes: classes of the predictions.
        folder: output folder.

    Returns:
        The files.
    """
    draw_distances(effects, folder / "distances.png")
    files = [folder / "distances.png"]
    if effects[-1].picture is not None:
        files.append(folder / "pictures.png")
        draw_pictures(image, effects, files[-1])
    if effects[0].predicted is not None:
        files.append(folder / "predictions.png")
        draw_predictions(image, effects, classes, files[-1])
    return files


def draw_distances(effects: Sequence[Effect], path: Path) -> None:
    """Draw the feature change for each style word and stage as bars, and write it as a PNG file."""
    stages, words = list(effects[0].distances), effects[1:]
    figure = Figure(figsize=(7.5, 1.1 + 0.18 * len(words) * (len(stages) + 1)), dpi=110, layout="constrained")
    axes = figure.subplots()
    height, places = 0.8 / len(stages), np.arange(len(words))
    for number, stage in enumerate(stages):
        axes.barh(places + number * height, [one.distances[stage] for one in words], height, label=stage)
    axes.set_yticks(places + 0.4 - height / 2, [one.name for one in words], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("RMS change of the features relative to their magnitude")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    with whole_file(path) as part:
        figure.savefig(part, format="png")


def draw_pictures(image: Pixels, effects: Sequence[Effect], path: Path) -> None:
    """Draw the image as restyled with each style word, for picture styles, and write a PNG file."""
    tiles = [Tile(image, "image"), *(Tile(one.picture, one.name) for one in effects if one.picture is not None)]
    rows = [tiles[first : first + _COLUMNS] for first in range(0, len(tiles), _COLUMNS)]
    save_figure(compose_figure(rows, _cell(image), font_size=14), path)


def _cell(image: Pixels) -> tuple[int, int]:
    return _WIDTH, round(_WIDTH * image.shape[0] / image.shape[1])


def draw_predictions(image: Pixels, effects: Sequence[Effect], classes: ClassTable, path: Path) -> None:
    """Draw the image and its predictions, without styles and with each style word, and write a PNG file."""
    plain, *others = (one.predicted for one in effects if one.predicted is not None)
    titles = [f"{one.name}: {100 * changed_share(plain, ids):.0f} % changed"
              for one, ids in zip(effects[1:], others, strict=True)]  # fmt: skip
    tiles = [Tile(image, "image")]
    for title, ids in zip(["prediction", *titles], [plain, *others], strict=True):
        tiles.append(Tile(color_labels(ids, classes.colors), title, smooth=False))
    rows = [tiles[first : first + _COLUMNS] for first in range(0, len(tiles), _COLUMNS)]
    legend = [(classes.names[one], classes.colors[one]) for one in np.unique([plain, *others]).tolist()]
    save_figure(compose_figure(rows, _cell(image), legend=legend, font_size=14), path)
