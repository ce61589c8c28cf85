"""Training: steps with styles of every kind, the bare network, unfolded layers, Detectron2's segmentor; sizes; parts."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from bench_plain import plain_layers, plain_loss
from bench_setting import GRID, Setting, random_batch
from bench_turns import Row, in_turns
from detectron2.modeling import SemanticSegmentor
from torch import Tensor, nn

from famix.engine import build_optimizer
from famix.modeling import FAMixSemanticSegmentor
from famix.style import dominant_labels

__all__ = ["training_rows"]

STRATEGIES = ("none", "bank", "noise")


def training_rows(setting: Setting) -> Iterator[Row]:
    """All rows about training."""
    yield from _step_rows(setting)
    yield from _size_rows(setting)
    yield from _restyling_rows(setting)
    yield from _label_rows(setting)


class TrainingStep:
    """Forward, backward and update of the recipe's network.

    Args:
        setting: of the run.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.model: FAMixSemanticSegmentor = setting.segmentor()
        model: Any = self.model
        self.detectron2 = SemanticSegmentor(
            backbone=model.backbone,
            sem_seg_head=model.sem_seg_head,
            pixel_mean=model.pixel_mean.flatten().tolist(),
            pixel_std=model.pixel_std.flatten().tolist(),
        ).to(setting.device)
        self.detectron2.train()
        self.optimizer = build_optimizer(setting.config(), model)

    def __call__(self, model: nn.Module, batch: list[dict[str, Tensor]]) -> None:
        """A step of any model on the same modules."""
        self.optimizer.zero_grad()
        model(batch)["loss_sem_seg"].backward()
        self.optimizer.step()

    def bare(self, images: Tensor) -> None:
        """A step of the layers alone: without the preparation of a batch, restyling, and the loss."""
        self.optimizer.zero_grad()
        model: Any = self.model
        model.sem_seg_head.layers(model.backbone(images)).mean().backward()
        self.optimizer.step()

    def styled(self, strategy: str, batch: list[dict[str, Tensor]]) -> Callable[[], None]:
        """A step with the styles of a strategy."""
        restyler = self.setting.restyler(strategy)

        def step() -> None:
            self.model.use_restyler(restyler)
            self(self.model, batch)

        return step

    def unfolded(self, batch: list[dict[str, Tensor]], loss: bool = False) -> None:
        """A step without styles through unfolded layers, channels first; with `loss` also through the plain loss."""
        self.model.use_restyler(None)
        with plain_layers(), plain_loss() if loss else nullcontext():
            self(self.model, batch)


def _step_rows(setting: Setting) -> Iterator[Row]:
    sizes, clock = setting.sizes, setting.clock
    step = TrainingStep(setting)
    batch = random_batch(sizes.images, sizes.step_crop, setting.generator())
    side = sizes.step_crop
    images = torch.randn(sizes.images, 3, side, side, generator=setting.generator()).to(setting.device)
    seconds = in_turns(
        {
            **{strategy: clock.timed(step.styled(strategy, batch)) for strategy in STRATEGIES},
            "bare": clock.timed(lambda: step.bare(images)),
            "detectron2": clock.timed(lambda: step(step.detectron2, batch)),
            "unfolded": clock.timed(lambda: step.unfolded(batch)),
        },
        4 * sizes.rounds,  # for a ratio to a hundredth
    )
    bank, none = seconds["bank"], seconds["none"]
    yield Row(
        "training step, styles of a bank", bank, "no styles", none,
        target="training step with a bank over one without", at_most=1.03,
    )  # fmt: skip
    yield Row("training step, noise as styles", seconds["noise"], "no styles", none)
    yield Row("training step, no styles", none, "the bare network's step", seconds["bare"])
    yield Row(
        "training step, no styles", none, "frozen stages unfolded, channels first", seconds["unfolded"],
        target="training step over one through unfolded layers, channels first (1.15 times faster)", at_most=1 / 1.15,
    )  # fmt: skip
    yield Row("training step, no styles", none, "Detectron2's SemanticSegmentor, same modules", seconds["detectron2"])


def _size_rows(setting: Setting) -> Iterator[Row]:
    """Cost for an image where the batch grows, and for a pixel where the crop does."""
    crop, clock = setting.sizes.step_crop, setting.clock
    step = TrainingStep(setting)
    step.model.use_restyler(setting.restyler("bank"))
    most = 2 * setting.sizes.images
    shapes = {(images, crop) for images in (most, most // 2)} | {(most // 2, crop * 3 // 2)}

    def cost(images: int, side: int) -> Callable[[], float]:
        batch = random_batch(images, side, setting.generator())
        return lambda: clock.seconds(lambda: step(step.model, batch)) / (images * (side / crop) ** 2)

    seconds = in_turns({str(shape): cost(*shape) for shape in sorted(shapes)}, setting.sizes.rounds)
    base = most // 2, crop
    for shape in sorted(shapes - {base}):
        yield Row(
            f"training step, {shape[0]} images of {shape[1]} x {shape[1]}, per image of {crop} x {crop}",
            seconds[str(shape)], f"{base[0]} images of {crop} x {crop}", seconds[str(base)],
        )  # fmt: skip


def _restyling_rows(setting: Setting) -> Iterator[Row]:
    sizes, clock = setting.sizes, setting.clock
    side = sizes.crop // 4
    features = torch.rand(sizes.images, setting.channels, side, side, generator=setting.generator())
    features = features.to(setting.device).contiguous(memory_format=torch.channels_last)
    labels = torch.stack([s["sem_seg"] for s in random_batch(sizes.images, sizes.crop, setting.generator())])
    labels = labels.to(setting.device)

    def restyle(grid: tuple[int, int], styles_per_class: int) -> Callable[[], float]:
        restyler = setting.restyler("bank", styles_per_class, grid)
        return clock.timed(lambda: restyler(features, labels))

    base, fine, small, large = (GRID, 500), ((12, 12), 500), (GRID, 10), (GRID, 5000)
    milliseconds = {
        name: 1000 * value
        for name, value in in_turns(
            {
                "copy": clock.timed(features.clone),
                **{str(kind): restyle(*kind) for kind in (base, fine, small, large)},
            },
            5 * sizes.rounds,
        ).items()
    }
    ours = milliseconds[str(base)]
    yield Row("restyling alone, 3 x 3 patches", ours, "one read and one write of the map", milliseconds["copy"], "ms")
    yield Row("restyling, 12 x 12 patches", milliseconds[str(fine)], "3 x 3 patches", ours, "ms")
    yield Row(
        "restyling, 5000 styles of a class", milliseconds[str(large)], "10 styles", milliseconds[str(small)], "ms"
    )


def _label_rows(setting: Setting) -> Iterator[Row]:
    crop = setting.sizes.crop
    labels = torch.stack([s["sem_seg"] for s in random_batch(8, crop, setting.generator())]).to(setting.device)
    seconds = in_turns(
        {
            "labels": setting.clock.timed(lambda: dominant_labels(labels, GRID)),
            "read": setting.clock.timed(labels.sum),
        },
        5 * setting.sizes.rounds,
    )
    ours, read = (1000 * value for value in seconds.values())
    yield Row(f"dominant labels, 8 x {crop} x {crop}", ours, "one read of the labels", read, "ms")
