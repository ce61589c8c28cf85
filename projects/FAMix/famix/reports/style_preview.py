"""What the styles of a bank do to one image: to its features, and to what a trained network sees in it.

Shapes: one image of H x W pixels, C channels at the restyled stage, a grid of (rows, cols) patches.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.structures import ImageList
from torch import Tensor

from famix.clip import CLIPImageTower
from famix.modeling import PatchStyleMixin
from famix.reports.bank_looks import looks_of
from famix.style.bank import StyleBank
from famix.style.dominant import patch_classes
from famix.style.patches import Grid
from famix.style.restyle import restyle_patches
from famix.utils.errors import ConfigError
from famix.utils.seeding import derive_seed
from famix.visualization.label_pictures import Ids

__all__ = ["Effect", "StylePreview", "changed_by_class", "changed_share"]


@dataclass(frozen=True)
class Effect:
    """What restyling an image did.

    Attributes:
        name: of the look, or of the class where the bank does not say its prompts.
        styles: of the bank that were drawn from.
        distances: stage -> root mean square change of its features, relative to their root mean square.
        predicted: (H, W) train ids; None for networks that were not trained.
    """

    name: str
    styles: int
    distances: Mapping[str, float]
    predicted: Ids | None


class StylePreview:
    """An image seen by a network as it is, and under the looks of a bank.

    Args:
        model: a segmentation network with styles.
        bank: of its CLIP.
        image: (3, H, W) uint8, RGB.
        stage: whose output is restyled.
        grid: (rows, cols) of patches.
        own_weight: of a patch's own statistics against the style's, 0-1.
        trained: whether its predictions mean anything.
        seed: of the draw of styles, >= 0.

    Attributes:
        plain: (H, W) train ids without any style; None for networks that were not trained.
        names: of the looks, or of the classes where the bank does not say its prompts.

    Raises:
        ConfigError: the model takes no styles, or the weight is out of range.
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
            raise ConfigError(f"{type(model).__name__} takes no styles; set MODEL.META_ARCHITECTURE to one of FAMix's")
        if not 0 <= own_weight <= 1:
            raise ConfigError(f"the weight of a patch's own statistics is {own_weight}, expected 0 to 1")
        self._model = model.eval()
        self._backbone: CLIPImageTower = model.clip_backbone
        self._backbone.check_stage(stage)
        self._bank = bank.to(self._backbone.device)
        self._image = image
        self._stage, self._grid = stage, grid
        self._own_weight, self._seed = own_weight, seed
        self._trained = trained
        self._features, self.plain = self._observe(None)
        self._groups = _groups(bank)
        self.names = tuple(self._groups)

    def effects(self) -> Iterator[Effect]:
        """Restyle the image with every look of the bank, or with the styles of every class where it has no prompts.

        A patch gets a style that was mined for the class that most of it was predicted as, where the look has one,
        otherwise any style of the look.
        """
        classes = self._patch_classes()
        for place, (name, chosen) in enumerate(self._groups.items()):
            generator = torch.Generator().manual_seed(derive_seed(self._seed, place))
            rows = _draw(self._bank.class_ids.cpu(), chosen, classes, generator)
            features, predicted = self._observe(self._restyle(rows))
            distances = {stage: _change(self._features[stage], features[stage]) for stage in self._stages()}
            yield Effect(name, int(chosen.sum()), distances, predicted)

    def _stages(self) -> list[str]:
        """The restyled stage and those behind it."""
        return list(self._backbone.stages[self._backbone.stages.index(self._stage) :])

    def _restyle(self, rows: Tensor) -> Callable[[Tensor], Tensor]:
        """Gives every patch the style in a row (rows, cols) of the bank."""
        rows = rows.to(self._bank.mean.device)
        mean, std = (values[rows].movedim(-1, 0)[None] for values in (self._bank.mean, self._bank.std))
        alpha = torch.full((1, 1, 1, 1), self._own_weight, device=mean.device)
        return lambda features: restyle_patches(features, mean, std, alpha, self._grid, self._backbone.rectified)

    def _patch_classes(self) -> Tensor:
        """(rows, cols) class of every patch; -1, which no style has, where nothing is predicted."""
        if self.plain is None:
            return torch.full(self._grid, -1)
        return patch_classes(torch.from_numpy(self.plain)[None].long(), self._grid, ignore_label=255)[0]

    @torch.no_grad()
    def _observe(self, restyle: Callable[[Tensor], Tensor] | None) -> tuple[dict[str, Tensor], Ids | None]:
        """Features of every stage, and the prediction, with the restyled stage changed by a function."""
        features: dict[str, Tensor] = {}
        with ExitStack() as taps:
            for stage in self._stages():
                change = restyle if stage == self._stage else None
                taps.enter_context(self._backbone.transform_stage(stage, _recorder(features, stage, change)))
            if not self._trained:
                self._backbone(self._normalised())
                return features, None
            (result,) = self._model([{"image": self._image}])
        return features, result["sem_seg"].argmax(0).to("cpu", torch.uint8).numpy()

    def _normalised(self) -> Tensor:
        model: Any = self._model
        image = (self._image.to(model.device) - model.pixel_mean) / model.pixel_std
        return ImageList.from_tensors([image], self._backbone.size_divisibility).tensor


def changed_share(plain: Ids, other: Ids) -> float:
    """Share of the pixels whose class differs, 0-1."""
    return float((plain != other).mean())


def changed_by_class(plain: Ids, others: Sequence[Ids]) -> dict[int, float]:
    """Share of the pixels of every predicted class that are another class under a style, the mean over styles, 0-1."""
    changed = np.mean([plain != other for other in others], axis=0)
    return {int(class_id): float(changed[plain == class_id].mean()) for class_id in np.unique(plain)}


def _groups(bank: StyleBank) -> dict[str, Tensor]:
    """Name -> (N,) bool, which styles belong to it."""
    looks = looks_of(bank)
    if looks is None:
        return {bank.class_name(class_id): bank.class_ids == class_id for class_id in bank.counts()}
    return {name: looks.index == place for place, name in enumerate(looks.names)}


def _recorder(
    features: dict[str, Tensor], stage: str, change: Callable[[Tensor], Tensor] | None
) -> Callable[[Tensor], Tensor]:
    def record(output: Tensor) -> Tensor:
        features[stage] = output if change is None else change(output)
        return features[stage]

    return record


def _draw(class_ids: Tensor, chosen: Tensor, classes: Tensor, generator: torch.Generator) -> Tensor:
    """(rows, cols) rows of the bank: for every patch one of its class among the chosen, where there is one."""
    rows = torch.empty(classes.shape, dtype=torch.int64)
    for place, class_id in enumerate(classes.flatten().tolist()):
        fitting = (chosen & (class_ids == class_id)).nonzero().flatten()
        candidates = fitting if len(fitting) else chosen.nonzero().flatten()
        rows.view(-1)[place] = candidates[torch.randint(len(candidates), (), generator=generator)]
    return rows


def _change(plain: Tensor, other: Tensor) -> float:
    """Root mean square difference over the root mean square of the first."""
    size = plain.square().mean().sqrt()
    return float((other - plain).square().mean().sqrt() / size) if size > 0 else 0.0
