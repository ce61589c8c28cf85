"""Growth of time and memory with the amount of work. Each size runs in a process of its own, on one thread."""

import math
import multiprocessing
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from detectron2.config import CfgNode
from parts.common import measure, memory_of_process

from famix.data import register_datasets
from famix.engine import Trainer
from famix.mining import build_miner, obtain_style_bank
from famix.style import optimize_styles
from famix_minitown.runs.study import markdown
from famix_minitown.writer import write_tree
from speed.mining import CLASS_NAMES, SGD, encoder, labeled_batch
from speed.setting import Setting
from speed.training import TrainingStep

IMAGES, SIZE = 8, (256, 512)  # of each split of the scenes
SPLITS = ("a", "b", "c", "d")
LINEAR = 1.1  # largest exponent that counts as linear

Run = Callable[[], object]


def images_in_mining(setting: Setting, count: int) -> Run:
    """Mine a bank from scenes of the town."""
    folder = setting.folder / f"mined{count}"
    cfg = scene_config(setting, "STYLE_MINING.MAX_BATCHES", count, "OUTPUT_DIR", folder)

    def run() -> None:
        shutil.rmtree(folder, ignore_errors=True)  # or a second run would find the bank
        obtain_style_bank(cfg)

    return run


def styles_in_mining(setting: Setting, count: int) -> Run:
    """Optimize styles for two steps."""
    channels, side = setting.sizes.architecture.channels(0), setting.sizes.crop // 16
    patches = torch.randn(count, channels, side, side, generator=setting.generator()).relu_()
    texts = F.normalize(torch.randn(count, setting.sizes.architecture.embed_dim, generator=setting.generator()), dim=1)
    return lambda: optimize_styles(patches, texts, encoder(setting), steps=2, **SGD)


def classes_in_mining(setting: Setting, count: int) -> Run:
    """Mine a batch that shows four of the dataset's classes."""
    names = [f"{CLASS_NAMES[number % len(CLASS_NAMES)]} {number}" for number in range(count)]
    cfg = setting.config("STYLE_MINING.STEPS", 1, "STYLE_MINING.TEMPLATES", ["a photo of a {}."])
    miner, batch = build_miner(cfg, setting.clip.state_dict(), names), labeled_batch(setting, 1, setting.sizes.crop)
    return lambda: miner.mine_batch(0, batch)


def images_in_step(setting: Setting, count: int) -> Run:
    """Train a step on small crops."""
    return TrainingStep(setting).styled("bank", setting.random_batch(count, side_of_crops(setting)))


def crop_in_step(setting: Setting, factor: int) -> Run:
    """Train a step on an image of a multiple of the small side."""
    return TrainingStep(setting).styled("bank", setting.random_batch(1, factor * side_of_crops(setting)))


def blocks_in_step(setting: Setting, count: int) -> Run:
    """Train a step of the last blocks of CLIP."""
    blocks = [
        f"layer{stage + 1}.{index}" for stage, n in enumerate(setting.sizes.architecture.layers) for index in range(n)
    ]
    step = TrainingStep(setting, "MODEL.CLIP.TRAINABLE", blocks[-count:])
    return step.styled("bank", setting.random_batch(1, side_of_crops(setting)))


def pixels_in_evaluation(setting: Setting, factor: int) -> Run:
    """Predict an image."""
    model, side = setting.segmentor().eval(), factor * side_of_crops(setting)
    inputs = setting.random_batch(1, side)

    def run() -> None:
        with torch.no_grad():
            model(inputs)

    return run


def targets_in_evaluation(setting: Setting, count: int) -> Run:
    """Score several targets."""
    names = [f"growth_{split}" for split in SPLITS[:count]]
    cfg = scene_config(setting, "DATASETS.TEST", names, "OUTPUT_DIR", setting.folder / f"scored{count}")
    model = setting.segmentor().eval()
    return lambda: Trainer.test(cfg, model)


@dataclass(frozen=True)
class Growth:
    """Work of several sizes."""

    what: str
    over: str
    make: Callable[[Setting, int], Run]
    sizes: tuple[int, ...]
    power: int = 1  # the amount of work is the size to this power


GROWTHS = (
    Growth("mining", "images", images_in_mining, (2, 4, 8)),
    Growth("mining step", "styles", styles_in_mining, (2, 4, 8)),
    Growth("mining batch", "classes of the dataset", classes_in_mining, (19, 50, 150)),
    Growth("training step", "images", images_in_step, (2, 4, 8)),
    Growth("training step", "pixels of the crop", crop_in_step, (2, 3, 4), power=2),
    Growth("training step", "trained blocks", blocks_in_step, (1, 3, 9)),
    Growth("prediction", "pixels of the image", pixels_in_evaluation, (4, 6, 9), power=2),
    Growth("evaluation", "targets", targets_in_evaluation, (1, 2, 4)),
)


def growth_rows(setting: Setting, growths: Sequence[Growth] = GROWTHS) -> Iterator[str]:
    """Measure all growths and return their table."""
    write_scenes(setting)
    rows = []
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for growth in growths:
            found = [pool.apply(measure_size, (replace(setting), growth, size)) for size in growth.sizes]
            rows.append([growth.what, growth.over, *describe(growth, found)])
    headers = ["work", "over", "factor", "CPU s", "exponent", "memory, GiB", "exponent", "at most linear"]
    yield "Growth of processor time, and of the memory that the work adds:\n\n" + markdown(headers, rows)


def measure_size(setting: Setting, growth: Growth, size: int) -> tuple[float, float]:
    """Return the processor time in seconds, the lesser of two runs, and the memory in GiB that the work adds."""
    torch.set_num_threads(1)
    run = growth.make(setting, size)
    before = memory_of_process("VmRSS")
    first, second = measure(run), measure(run)
    return min(first["seconds"], second["seconds"]), max(first["peak"], second["peak"]) - before


def describe(growth: Growth, found: Sequence[tuple[float, float]]) -> list[str]:
    """Return the cells of a growth: factors of the work, both quantities with their exponents, and the verdict."""
    work = [(size / growth.sizes[0]) ** growth.power for size in growth.sizes]
    seconds, memory = zip(*found, strict=True)
    exponents = [fit_exponent(work, values) for values in (seconds, memory)]
    return [
        ", ".join(f"{factor:.3g}" for factor in work),
        ", ".join(f"{value:.2f}" for value in seconds),
        f"{exponents[0]:.2f}",
        ", ".join(f"{value:.2f}" for value in memory),
        f"{exponents[1]:.2f}",
        "yes" if max(exponents) <= LINEAR else "no",
    ]


def fit_exponent(work: Sequence[float], values: Sequence[float]) -> float:
    """Return p of the least-squares fit values = c * work ** p in logarithms."""
    slope, _ = np.polyfit([math.log(x) for x in work], [math.log(max(x, 1e-3)) for x in values], 1)
    return float(slope)


def side_of_crops(setting: Setting) -> int:
    """Return the side of small crops in pixels."""
    return max(48, setting.sizes.step_crop // 4)


def scene_config(setting: Setting, *options: object) -> CfgNode:
    """Return the config for the scenes, which it registers."""
    register_datasets([str(definition_of(setting))])
    crop = side_of_crops(setting)
    quick = ["STYLE_MINING.STEPS", 1, "STYLE_MINING.IMS_PER_BATCH", 1, "STYLE_MINING.TEMPLATES", ["a {}."]]
    data = ["DATASETS.TRAIN", [f"growth_{SPLITS[0]}"], "INPUT.CROP.SIZE", [crop, crop], "DATALOADER.NUM_WORKERS", 0]
    clip = ["MODEL.CLIP.ARCHITECTURE", "RN50"]  # for its text tower; the file has the sizes
    return setting.config("MODEL.STYLE.STRATEGY", "bank", *clip, *data, *quick, *options)


def definition_of(setting: Setting) -> Path:
    """Return the path of the scenes' definition file."""
    return setting.folder / "growth/definition.yaml"


def write_scenes(setting: Setting) -> None:
    """Render scenes of the town in several splits, with their definition file."""
    definition = definition_of(setting)
    for split in SPLITS:
        write_tree(definition.parent, split, ["clear"], range(IMAGES), SIZE)
    images, labels = "leftImg8bit/{split}/{key}_leftImg8bit.png", "gtFine/{split}/{key}_gtFine_labelTrainIds.png"
    files = {"name": "growth", "root": str(definition.parent), "images": images, "labels": labels}
    splits: dict[str, dict[str, str]] = {split: {} for split in SPLITS}
    definition.write_text(yaml.safe_dump({**files, "splits": splits, "classes": "cityscapes", "label_ids": "identity"}))
