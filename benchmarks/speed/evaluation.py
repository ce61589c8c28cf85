"""Speed of evaluation relative to the network alone, for several protocols, and of reading training images."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from famix.data import build_test_loader, register_datasets
from famix.data.build import build_train_mapper
from famix.data.registration import get_dataset_dicts
from famix.evaluation import ProtocolInference, StreamingSemSegEvaluator, parse_protocol
from famix_minitown.writer import write_tree
from speed.setting import Row, Setting, in_turns, scaled
from speed.training import TrainingStep

DATASET = "speed_benchmark"
PROTOCOLS = ("native", "half", "slide1024", "ensemble")
H100 = 0.4 * 989e12  # FLOP/s in bfloat16, 40 % of the peak without sparsity


def evaluation_rows(setting: Setting) -> Iterator[Row]:
    """Measure the evaluation of an image, from PNG files to a confusion matrix, relative to the forward passes alone."""
    name = register_scenes(setting)
    loader = build_test_loader(setting.config("DATALOADER.NUM_WORKERS", 1), name)
    model, evaluator = setting.segmentor().eval(), StreamingSemSegEvaluator(name)

    @torch.no_grad()
    def score(network: nn.Module) -> float:
        """Return the shortest interval between two images once the loader's process is running."""
        evaluator.reset()
        moments = []
        for inputs in loader:
            evaluator.process(inputs, network(inputs))
            moments.append(setting.now())
        return min(after - before for before, after in pairwise(moments))

    @torch.no_grad()
    def bare(batches: list[Tensor]) -> None:
        for images in batches:
            model.sem_seg_head.layers(model.backbone(images))

    for protocol in PROTOCOLS:
        network = ProtocolInference(model, parse_protocol(protocol)).eval()
        batches = network_inputs(model, network, next(iter(loader)))
        bare_pass = setting.timed(partial(bare, batches))
        contenders: dict[str, Callable[[], float]] = {"score": partial(score, network), "bare": bare_pass}
        seconds = in_turns(contenders, setting.sizes.rounds)
        yield Row(
            f"evaluation of an image, {protocol}", seconds["score"], "forward passes alone", seconds["bare"],
            target=f"evaluation / forward passes alone, {protocol}", at_most=1.10,
        )  # fmt: skip


@torch.no_grad()
def network_inputs(model: Any, network: nn.Module, inputs: list[dict[str, Any]]) -> list[Tensor]:
    """Return the batches that the backbone receives for an image under a protocol."""
    batches: list[Tensor] = []
    hook = model.backbone.register_forward_pre_hook(lambda module, arguments: batches.append(arguments[0].clone()))
    network(inputs)
    hook.remove()
    return batches


def loading_rows(setting: Setting) -> Iterator[Row | str]:
    """Measure the reading and augmentation of a training image on one core, and estimate the cores that a GPU needs."""
    name, sizes = register_scenes(setting), setting.sizes
    cfg = setting.config("DATASETS.TRAIN", [name])
    record, mapper, rng = get_dataset_dicts([name])[0], build_train_mapper(cfg), np.random.default_rng(setting.seed)
    step, batch = TrainingStep(setting), setting.random_batch(sizes.images, sizes.step_crop)

    def read() -> None:
        threads, cv2_threads = torch.get_num_threads(), cv2.getNumThreads()
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        mapper(record, rng)
        torch.set_num_threads(threads)
        cv2.setNumThreads(cv2_threads)

    contenders = {"read": setting.timed(read), "train": setting.timed(step.styled("none", batch))}
    seconds = in_turns(contenders, sizes.rounds)
    per_image = scaled(seconds["train"], 1 / sizes.images)
    yield Row("training image, decoded and augmented on one core", seconds["read"], "its share of a step", per_image)
    with FlopCounterMode(display=False) as counter:
        step.styled("none", batch)()
    flops = counter.get_total_flops() / sizes.images
    rate, wanted = 1 / sorted(seconds["read"])[len(seconds["read"]) // 2], H100 / flops
    yield (
        f"Loading: one core decodes and augments {rate:.1f} images per second ({sizes.evaluated[0]} x {sizes.evaluated[1]} PNGs, "
        f"crops of {sizes.step_crop} x {sizes.step_crop}). A training step takes {flops / 1e12:.2f} TFLOP per image, so a GPU that "
        f"sustains {H100 / 1e12:.0f} TFLOP/s (40 % of an H100 in bfloat16) would train {wanted:.0f} images per second, which "
        f"{wanted / rate:.0f} such cores can supply. The rate of the GPU is an estimate."
    )


def register_scenes(setting: Setting) -> str:
    """Render scenes of the town, once, and return the name of their dataset."""
    definition = setting.folder / "scenes/definition.yaml"
    if not definition.exists():
        write_scenes(definition, setting.sizes.evaluated_images, setting.sizes.evaluated)
        register_datasets([str(definition)])
    return f"{DATASET}_val"


def write_scenes(definition: Path, count: int, size: tuple[int, int]) -> None:
    """Render scenes of the town, and write the definition file of their dataset beside them."""
    write_tree(definition.parent, "val", ["clear"], range(count), size)
    images, labels = "leftImg8bit/{split}/{key}_leftImg8bit.png", "gtFine/{split}/{key}_gtFine_labelTrainIds.png"
    files = {"name": DATASET, "root": str(definition.parent), "images": images, "labels": labels, "splits": {"val": {}}}
    definition.write_text(yaml.safe_dump({**files, "classes": "cityscapes", "label_ids": "identity"}))
