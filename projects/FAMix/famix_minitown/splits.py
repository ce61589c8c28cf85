"""Which scenes, and in which weather, each data set of the town has. No two purposes share a scene."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from famix_minitown.conditions import CONDITIONS, DEVELOPMENT_CONDITIONS

__all__ = ["CLIP_TRAIN_FIRST_SEED", "CLIP_VAL_FIRST_SEED", "FORMAT_VERSION", "SPLITS", "MinitownSplit"]

FORMAT_VERSION = 1
"""Part of the cache's path: to be raised with every change of what scenes look like or of how files are written."""

CLIP_TRAIN_FIRST_SEED = 100_000
"""Scenes from here on, up to CLIP_VAL_FIRST_SEED, are the crops that the town's CLIP learns from."""

CLIP_VAL_FIRST_SEED = 200_000
"""Scenes from here on are the crops that the town's CLIP is checked with."""


@dataclass(frozen=True)
class MinitownSplit:
    """The scenes of one data set.

    Attributes:
        condition: one of conditions.CONDITIONS or conditions.DEVELOPMENT_CONDITIONS.
        folder: of the split in a tree like that of Cityscapes, e.g. "val".
        first_seed: of the first scene.
        count: of scenes, which have consecutive seeds.
    """

    condition: str
    folder: str
    first_seed: int
    count: int

    @property
    def seeds(self) -> range:
        """Seeds of the scenes."""
        return range(self.first_seed, self.first_seed + self.count)


def _table() -> dict[str, MinitownSplit]:
    clear, *targets = CONDITIONS
    table = {"train": MinitownSplit(clear, "train", 0, 500)}
    table |= {f"{name}_val": MinitownSplit(name, "val", 50_000, 50) for name in CONDITIONS}
    table |= {f"{name}_dev": MinitownSplit(name, "dev", 60_000, 50) for name in (clear, *DEVELOPMENT_CONDITIONS)}
    # What real images of a target look like: for the oracle alone, never for a method that must do without them.
    return table | {f"{name}_train": MinitownSplit(name, "train", 70_000, 100) for name in targets}


SPLITS: Mapping[str, MinitownSplit] = MappingProxyType(_table())
"""Name without the leading "minitown_" -> scenes. The scenes are the same in every condition of a purpose: train, val
(to report), dev (to tune on)."""
