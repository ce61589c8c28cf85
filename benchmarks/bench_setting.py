"""Base of the speed benchmark: sizes, networks, seeded inputs, measuring in turns, and the tables."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from project import PROJECT
from torch import Tensor

from famix.clip import CLIPResNet
from famix.clip.architecture import ARCHITECTURES, CLIPArchitecture
from famix.clip.export import random_clip
from famix.clip.openai import CLIP
from famix.data import register_datasets
from famix.engine import load_config
from famix.modeling import CLIPDeepLabV3PlusHead, FAMixSemanticSegmentor
from famix.style import PatchRestyler, StyleBank, build_strategies
from famix_minitown.study import markdown

__all__ = [
    "GRID", "SGD", "SIZES", "Row", "Setting", "Sizes", "format_table", "format_targets", "in_turns", "random_batch",
    "registered_images", "write_images",
]  # fmt: skip

CONFIG = PROJECT / "configs/GTA5/famix_RN50.yaml"
NUM_CLASSES = 19
GRID = (3, 3)
SGD: dict[str, Any] = {"lr": 1.0, "momentum": 0.9, "weight_decay": 1e-4}  # of mining
DATASET = "speed_benchmark"


@dataclass(frozen=True)
class Sizes:
    """Sizes of the measured work.

    Attributes:
        architecture: of CLIP.
        text_layers: of its text tower; None = 12.
        styles: of a mining step.
        mining_images: of a mining batch.
        mining_steps: of a whole batch or pass.
        templates: sentences of a prompt in these.
        crop: side in pixels of the crops of mining, and of training where memory is measured.
        step_crop: side of the crops of timed training steps.
        images: of a training step.
        evaluated: height and width of whole images.
        evaluated_images: of a pass over a test set.
        rounds: in which contenders take turns.
    """

    architecture: CLIPArchitecture = ARCHITECTURES["RN50"]
    text_layers: int | None = None
    styles: int = 4
    mining_images: int = 2
    mining_steps: int = 20
    templates: int = 16
    crop: int = 768
    step_crop: int = 384
    images: int = 2
    evaluated: tuple[int, int] = (1024, 2048)
    evaluated_images: int = 3
    rounds: int = 3

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
    """A run of the benchmark.

    Attributes:
        sizes: of the measured work.
        device: "cpu" or "cuda".
        seed: of all weights and inputs.
        folder: for files.
    """

    sizes: Sizes
    device: str
    seed: int
    folder: Path

    @cached_property
    def clip(self) -> CLIP:
        """OpenAI's own implementation with random weights, frozen and in eval mode."""
        sizes = self.sizes
        clip = random_clip(
            sizes.architecture, seed=self.seed, text_layers=sizes.text_layers, random_norms=True, calibrated_norms=True
        )
        return clip.to(self.device).requires_grad_(False)

    @cached_property
    def miner_network(self) -> CLIPResNet:
        """The same image tower in the form that mining uses."""
        return CLIPResNet.from_state_dict(self.clip.state_dict(), trainable=()).to(self.device)

    @property
    def channels(self) -> int:
        """Channels of the restyled stage."""
        return self.sizes.architecture.channels(0)

    @property
    def last_block(self) -> str:
        """Name of the trained block."""
        return f"layer4.{self.sizes.architecture.layers[3] - 1}"

    def generator(self) -> torch.Generator:
        """Return a generator on the CPU."""
        return torch.Generator().manual_seed(self.seed)

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

    def config(self, *options: object) -> CfgNode:
        """Return the recipe's config on this device."""
        return load_config(str(CONFIG), ["MODEL.CLIP.WEIGHTS", "", "MODEL.DEVICE", self.device, *map(str, options)])

    def segmentor(self) -> FAMixSemanticSegmentor:
        """Return the network of the recipe, frozen up to the last block of CLIP, without a restyler."""
        backbone = CLIPResNet.from_state_dict(
            self.clip.state_dict(), trainable=(self.last_block,), with_embedding=False
        )
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            head = CLIPDeepLabV3PlusHead(backbone.output_shape(), in_features=("res2", "res5"), num_classes=NUM_CLASSES)
        cfg = self.config()
        model = FAMixSemanticSegmentor(
            backbone=backbone, sem_seg_head=head, pixel_mean=cfg.MODEL.PIXEL_MEAN, pixel_std=cfg.MODEL.PIXEL_STD
        )
        return model.to(self.device).train()

    def restyler(self, strategy: str, styles_per_class: int = 500, grid: tuple[int, int] = GRID) -> PatchRestyler:
        """Return a restyler, with a bank of random styles if it needs one; the recipe's has some 500 styles a class."""
        strategies = build_strategies(self.config("MODEL.STYLE.STRATEGY", strategy))
        restyler = PatchRestyler(strategies=strategies, grid=grid, beta=0.1)
        if restyler.needs("bank"):
            bank = StyleBank()
            class_ids = torch.arange(NUM_CLASSES + 1).repeat_interleave(styles_per_class)
            class_ids[class_ids == NUM_CLASSES] = 255
            bank.add(class_ids, *torch.rand(2, len(class_ids), self.channels, generator=self.generator()))
            restyler.use_bank(bank)
        return restyler

    def patches(self, count: int) -> Tensor:
        """Return patches (count, C, h, w) of the size that the grid cuts from a crop, as mining gets them."""
        side = self.sizes.crop // 4 // GRID[0]
        noise = torch.randn(count, self.channels, side, side, generator=self.generator())
        return noise.relu_().to(self.device).contiguous(memory_format=torch.channels_last)

    def texts(self, count: int) -> Tensor:
        """Return embeddings (count, D) of unit length."""
        noise = torch.randn(count, self.sizes.architecture.embed_dim, generator=self.generator())
        return F.normalize(noise, dim=1).to(self.device)


def random_batch(images: int, crop: int, generator: torch.Generator) -> list[dict[str, Tensor]]:
    """Return noise images with random labels, in the format of a loader."""
    return [
        {
            "image": torch.randint(0, 256, (3, crop, crop), generator=generator, dtype=torch.uint8),
            "sem_seg": torch.randint(0, NUM_CLASSES, (crop, crop), generator=generator),
        }
        for _ in range(images)
    ]


def write_images(folder: Path, count: int, size: tuple[int, int], seed: int) -> Path:
    """Write images of smooth noise, which compress about as street scenes do, with four classes in every patch.

    Args:
        folder: must not exist.
        count: number of images.
        size: (height, width).
        seed: of the pixels.

    Returns:
        The definition file of the dataset.
    """
    generator = torch.Generator().manual_seed(seed)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    rows, columns = np.indices(size) * 8 // np.array(size)[:, None, None]
    for index in range(count):
        noise = [torch.randn(1, 3, size[0] // k + 1, size[1] // k + 1, generator=generator) for k in (64, 16, 4)]
        smooth = sum((F.interpolate(x, size, mode="bilinear") for x in noise), torch.zeros(1, 3, *size))
        pixels = (smooth[0].permute(1, 2, 0) * 40 + 120).clamp(0, 255).byte().numpy()
        Image.fromarray(pixels).save(folder / f"images/{index}.png")
        Image.fromarray(((rows % 2) * 2 + columns % 2).astype(np.uint8)).save(folder / f"labels/{index}.png")
    definition = folder / "definition.yaml"
    files = {"images": "images/{key}.png", "labels": "labels/{key}.png", "splits": {"all": {}}}
    classes = {"classes": "cityscapes", "label_ids": "identity"}
    definition.write_text(yaml.safe_dump({"name": DATASET, "root": str(folder), **files, **classes}))
    return definition


@contextmanager
def registered_images(definition: Path) -> Iterator[str]:
    """Register the dataset of a definition while the context is open; yields its name."""
    before = set(DatasetCatalog)
    register_datasets([str(definition)])
    try:
        yield f"{DATASET}_all"
    finally:
        for name in set(DatasetCatalog) - before:
            DatasetCatalog.remove(name)
            MetadataCatalog.pop(name, None)


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        what: measured work.
        value: of it, in `unit`.
        limit_name: work that it is compared with.
        limit: its value.
        unit: "s", "ms", "MiB" or "" for numbers.
        target: aim of the project; "" for a row that only informs.
        at_most: highest ratio of value and limit that meets the target.
    """

    what: str
    value: float
    limit_name: str
    limit: float
    unit: str = "s"
    target: str = ""
    at_most: float = 0.0

    @property
    def ratio(self) -> float:
        """Value over limit; 0 if both are 0."""
        return self.value / self.limit if self.limit else float(self.value > 0)


def in_turns(contenders: Mapping[str, Callable[[], float]], rounds: int, warm_up: bool = True) -> dict[str, float]:
    """Return the least of each contender's values over rounds in which all take turns.

    Other work on the machine then affects all alike, and the least is the time of the work itself.

    Args:
        contenders: name -> runs once and returns its seconds.
        rounds: number that count.
        warm_up: one more round before them does not count.
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
    digits = {"s": ".3f", "ms": ".2f", "MiB": ".0f"}

    def quantity(value: float, unit: str) -> str:
        return f"{value:{digits.get(unit, '.3g')}} {unit}".strip()

    return markdown(
        ["measured", "", "compared with", "", "ratio"],
        [
            [row.what, quantity(row.value, row.unit), row.limit_name, quantity(row.limit, row.unit), f"{row.ratio:.3f}"]
            for row in rows
        ],
    )


def format_targets(rows: Sequence[Row]) -> str:
    """Return every target with the reached ratio, and by how much a missed one is missed."""
    cells = []
    for row in rows:
        if row.target:
            missed = f"missed by {100 * (row.ratio / row.at_most - 1):.0f}%" if row.at_most else "missed"
            verdict = "met" if row.ratio <= row.at_most else missed
            cells.append([row.target, f"{row.ratio:.3g}", f"{row.at_most:.3g}", verdict])
    return markdown(["target", "ratio", "at most", ""], cells)
