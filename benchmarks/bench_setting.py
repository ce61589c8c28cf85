"""Base of the speed benchmark: sizes, networks, seeded inputs, measuring in turns, and the tables."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from common import PROJECT
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor

from famix.clip.architecture import ARCHITECTURES, CLIPArchitecture
from famix.clip.export import random_clip
from famix.clip.openai import CLIP
from famix.engine import load_config
from famix_minitown.study import markdown

CONFIG = PROJECT / "configs/GTA5/famix_RN50.yaml"
NUM_CLASSES = 19
GRID = (3, 3)


@dataclass(frozen=True)
class Sizes:
    """Sizes of the measured work; lengths are in pixels."""

    architecture: CLIPArchitecture = ARCHITECTURES["RN50"]
    text_layers: int | None = None  # None: 12
    styles: int = 4  # of a mining step
    mining_images: int = 2  # of a mining batch
    mining_steps: int = 20  # of a whole batch
    templates: int = 16  # sentences of a prompt in it
    crop: int = 768  # side of the crops of mining
    step_crop: int = 384  # side of the crops of training steps
    images: int = 2  # of a training step
    evaluated: tuple[int, int] = (1024, 2048)  # height and width of whole images
    evaluated_images: int = 3  # of a pass over a test set
    rounds: int = 3  # in which contenders take turns

    def __str__(self) -> str:
        height, width = self.evaluated
        return (
            f"crops of {self.crop} x {self.crop}, in timed training steps {self.step_crop} x {self.step_crop}; training steps of "
            f"{self.images} images; mining steps of {self.styles} "
            f"styles; mining batches of {self.mining_images} images, {self.mining_steps} steps (the recipe: 16 images, "
            f"100 steps), {self.templates} sentences of a prompt (80); whole images of {height} x {width}"
        )


SIZES = {
    "cpu": Sizes(),
    "cuda": Sizes(
        styles=20, mining_images=16, mining_steps=100, templates=80, step_crop=768, images=8, evaluated_images=8, rounds=10
    ),
    "quick": Sizes(
        CLIPArchitecture((1, 1, 1, 1), width=8, embed_dim=16, input_resolution=64), text_layers=1, styles=2,
        mining_steps=2, templates=2, crop=96, step_crop=48, evaluated=(64, 128), evaluated_images=2, rounds=1,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """A run of the benchmark, with the networks and inputs that it makes."""

    sizes: Sizes
    device: str
    seed: int  # of all weights and inputs
    folder: Path

    @cached_property
    def clip(self) -> CLIP:
        """OpenAI's own implementation with random weights, frozen and in eval mode."""
        norms, sizes = {"random_norms": True, "calibrated_norms": True}, self.sizes
        clip = random_clip(sizes.architecture, seed=self.seed, text_layers=sizes.text_layers, **norms)
        return clip.to(self.device).requires_grad_(False)

    @cached_property
    def clip_file(self) -> Path:
        """The same weights as a file."""
        torch.save(self.clip.state_dict(), self.folder / "clip.pt")
        return self.folder / "clip.pt"

    @property
    def last_block(self) -> str:
        """Name of the trained block."""
        return f"layer4.{self.sizes.architecture.layers[3] - 1}"

    def config(self, *options: object) -> CfgNode:
        """Return the recipe's config for the random CLIP on this device."""
        clip = ["MODEL.CLIP.WEIGHTS", self.clip_file, "MODEL.CLIP.TRAINABLE", [self.last_block]]
        return load_config(str(CONFIG), list(map(str, [*clip, "MODEL.DEVICE", self.device, *options])))

    def segmentor(self, *options: object) -> Any:
        """Return the network of the recipe, frozen up to the last block of CLIP."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            return build_model(self.config("MODEL.STYLE.STRATEGY", "none", *options))

    def generator(self) -> torch.Generator:
        """Return a generator on the CPU."""
        return torch.Generator().manual_seed(self.seed)

    def random_batch(self, images: int, crop: int) -> list[dict[str, Tensor]]:
        """Return noise images with random labels, in the format of a loader."""
        generator = self.generator()
        return [
            {
                "image": torch.randint(0, 256, (3, crop, crop), generator=generator, dtype=torch.uint8),
                "sem_seg": torch.randint(0, NUM_CLASSES, (crop, crop), generator=generator),
            }
            for _ in range(images)
        ]

    def now(self) -> float:
        """Return the time in seconds after all earlier work has finished, a GPU's included."""
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()

    def timed(self, call: Callable[[], object]) -> Callable[[], float]:
        """Return a contender of `in_turns` that runs the call and returns its seconds."""

        def seconds() -> float:
            start = self.now()
            call()
            return self.now() - start

        return seconds


@dataclass(frozen=True)
class Row:
    """A line of the table: measured work, and the work that it is compared with."""

    what: str
    value: float
    limit_name: str
    limit: float
    unit: str = "s"  # or "ms", "" for numbers
    target: str = ""  # aim of the project; "" for a row that only informs
    at_most: float = 0.0  # highest ratio of value and limit that meets the target

    @property
    def ratio(self) -> float:
        """Value over limit; 0 if both are 0."""
        return self.value / self.limit if self.limit else float(self.value > 0)


def in_turns(contenders: Mapping[str, Callable[[], float]], rounds: int, warm_up: bool = True) -> dict[str, float]:
    """Return the least of each contender's seconds over rounds in which all take turns.

    Other work on the machine then affects all alike, and the least is the time of the work itself. With `warm_up`, one
    more round before the others does not count.
    """
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + warm_up):
        for name, run in contenders.items():
            seconds = run()
            if number >= warm_up:
                taken[name].append(seconds)
    return {name: min(values) for name, values in taken.items()}


def format_table(rows: Iterable[Row]) -> str:
    """Return the table in Markdown."""

    def quantity(value: float, unit: str) -> str:
        return f"{value:{ {'s': '.3f', 'ms': '.2f'}.get(unit, '.3g') }} {unit}".strip()

    cells = [
        [row.what, quantity(row.value, row.unit), row.limit_name, quantity(row.limit, row.unit), f"{row.ratio:.3f}"]
        for row in rows
    ]
    return markdown(["measured", "", "compared with", "", "ratio"], cells)


def format_targets(rows: Sequence[Row]) -> str:
    """Return every target with the reached ratio, and by how much a missed one is missed."""
    cells = []
    for row in rows:
        if row.target:
            missed = f"missed by {100 * (row.ratio / row.at_most - 1):.0f}%" if row.at_most else "missed"
            verdict = "met" if row.ratio <= row.at_most else missed
            cells.append([row.target, f"{row.ratio:.3g}", f"{row.at_most:.3g}", verdict])
    return markdown(["target", "ratio", "at most", ""], cells)
