"""Basis of the speed benchmark: sizes, networks, seeded inputs, alternating measurements, and tables."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from parts.common import PROJECT
from torch import Tensor

from famix.clip.architecture import ARCHITECTURES, CLIPArchitecture
from famix.clip.export import random_clip
from famix.clip.openai import CLIP
from famix.engine import load_config
from famix_minitown.runs.study import markdown

CONFIG = PROJECT / "configs/GTA5/famix_RN50.yaml"
NUM_CLASSES = 19
GRID = (3, 3)


@dataclass(frozen=True)
class Sizes:
    """Sizes of the measured work. Lengths are in pixels."""

    architecture: CLIPArchitecture = ARCHITECTURES["RN50"]
    text_layers: int | None = None  # None uses 12
    styles: int = 4  # styles per mining step
    mining_images: int = 2  # images per mining batch
    mining_steps: int = 20  # optimization steps per mining batch
    templates: int = 16  # sentences per prompt in a mining batch
    crop: int = 768  # side of the mining crops
    step_crop: int = 768  # side of the crops in training steps
    images: int = 2  # images per training step
    evaluated: tuple[int, int] = (1024, 2048)  # height and width of whole images
    evaluated_images: int = 3  # images in the test set
    rounds: int = 7  # number of rounds in which the compared functions take turns

    def __str__(self) -> str:
        height, width = self.evaluated
        return (
            f"mining crops of {self.crop} x {self.crop} and training crops of {self.step_crop} x {self.step_crop} "
            f"pixels; {self.images} images per training step; {self.styles} styles per mining step; "
            f"{self.mining_images} images, {self.mining_steps} steps and {self.templates} sentences per prompt in a "
            f"mining batch (recipe: 16, 100 and 80); whole images of {height} x {width}"
        )


SIZES = {
    "cpu": Sizes(),
    "cuda": Sizes(
        styles=20, mining_images=16, mining_steps=100, templates=80, images=8, evaluated_images=8, rounds=10
    ),
    "quick": Sizes(
        CLIPArchitecture((1, 1, 1, 1), width=8, embed_dim=16, input_resolution=64), text_layers=1, styles=2,
        mining_steps=2, templates=2, crop=96, step_crop=48, evaluated=(64, 128), evaluated_images=2, rounds=1,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """Settings of a benchmark run, with its networks and inputs."""

    sizes: Sizes
    device: str
    seed: int  # seed of all weights and inputs
    folder: Path

    @cached_property
    def clip(self) -> CLIP:
        """OpenAI's implementation with random weights, frozen and in eval mode."""
        norms, sizes = {"random_norms": True, "calibrated_norms": True}, self.sizes
        clip = random_clip(sizes.architecture, seed=self.seed, text_layers=sizes.text_layers, **norms)
        return clip.to(self.device).requires_grad_(False)

    @cached_property
    def clip_file(self) -> Path:
        """File with the same weights."""
        file = self.folder / "clip.pt"
        if not file.exists():
            torch.save(self.clip.state_dict(), file)
        return file

    @property
    def last_block(self) -> str:
        """Name of the trained block."""
        return f"layer4.{self.sizes.architecture.layers[3] - 1}"

    def config(self, *options: object) -> CfgNode:
        """Return the recipe's config for the random CLIP on this device."""
        clip = ["MODEL.CLIP.WEIGHTS", self.clip_file, "MODEL.CLIP.TRAINABLE", [self.last_block]]
        return load_config(str(CONFIG), list(map(str, [*clip, "MODEL.DEVICE", self.device, *options])))

    def segmentor(self, *options: object) -> Any:
        """Return the recipe's network, frozen up to the last block of CLIP."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            return build_model(self.config("MODEL.STYLE.STRATEGY", "none", *options))

    def generator(self) -> torch.Generator:
        """Return a seeded random number generator on the CPU."""
        return torch.Generator().manual_seed(self.seed)

    def random_batch(self, images: int, crop: int) -> list[dict[str, Tensor]]:
        """Return noise images with random labels in the format of a data loader."""
        generator = self.generator()
        return [
            {
                "image": torch.randint(0, 256, (3, crop, crop), generator=generator, dtype=torch.uint8),
                "sem_seg": torch.randint(0, NUM_CLASSES, (crop, crop), generator=generator),
            }
            for _ in range(images)
        ]

    def now(self) -> float:
        """Return the time in seconds after all earlier work, including that on a GPU, has finished."""
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()

    def timed(self, call: Callable[[], object]) -> Callable[[], float]:
        """Return a function for `in_turns` that runs the call and returns its duration in seconds."""

        def seconds() -> float:
            start = self.now()
            call()
            return self.now() - start

        return seconds


@dataclass(frozen=True)
class Row:
    """Table row that compares measurements with reference measurements, taken in turns."""

    what: str
    values: Sequence[float]  # one per round
    limit_name: str
    limits: Sequence[float]
    unit: str = "s"  # "s", "ms", or "" for plain numbers
    target: str = ""  # target of the project, or "" for a row that is only informative
    at_most: float = 0.0  # maximum ratio that meets the target

    @property
    def ratios(self) -> list[float]:
        """Ratio of each pair, or 0 if both values are 0."""
        pairs = zip(self.values, self.limits, strict=True)
        return [value / limit if limit else float(value > 0) for value, limit in pairs]

    @property
    def ratio(self) -> float:
        """Median ratio."""
        return median(self.ratios)


def in_turns(
    contenders: Mapping[str, Callable[[], float]], rounds: int, warm_up: bool = True
) -> dict[str, list[float]]:
    """Return the times of each function in seconds, one per round. In a round, each function runs once.

    Other load on the machine thus affects all of them equally. With `warm_up`, one additional round is run first and ignored.
    """
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + warm_up):
        for name, run in contenders.items():
            seconds = run()
            if number >= warm_up:
                taken[name].append(seconds)
    return taken


def scaled(values: Iterable[float], factor: float) -> list[float]:
    """Multiply measurements, e.g. to convert them to another unit."""
    return [factor * value for value in values]


def format_table(rows: Iterable[Row]) -> str:
    """Return the table of medians, with the range of the ratios, in Markdown."""

    def quantity(values: Sequence[float], unit: str) -> str:
        return f"{median(values):{ {'s': '.3f', 'ms': '.2f'}.get(unit, '.3g') }} {unit}".strip()

    cells = []
    for row in rows:
        spread = f"{min(row.ratios):.3f} to {max(row.ratios):.3f}" if len(row.ratios) > 1 else ""
        measured = [row.what, quantity(row.values, row.unit), row.limit_name, quantity(row.limits, row.unit)]
        cells.append([*measured, f"{row.ratio:.3f}", spread, str(len(row.ratios))])
    return markdown(["measured", "", "compared with", "", "ratio", "range", "pairs"], cells)


def format_targets(rows: Sequence[Row]) -> str:
    """Return a table of all targets with the measured ratios and the margins of missed targets."""
    cells = []
    for row in rows:
        if row.target:
            missed = f"missed by {100 * (row.ratio / row.at_most - 1):.0f}%" if row.at_most else "missed"
            verdict = "met" if row.ratio <= row.at_most else missed
            cells.append([row.target, f"{row.ratio:.3g}", f"{row.at_most:.3g}", verdict])
    return markdown(["target", "ratio", "at most", ""], cells)
