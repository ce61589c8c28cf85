"""Speed of training steps and restyling relative to the network alone and to plain versions."""

from collections.abc import Callable, Iterator
from typing import Self

import torch
from detectron2.modeling import SemanticSegmentor
from torch import Tensor, nn

from famix.clip import IMAGE
from famix.engine import build_optimizer
from famix.style import PatchRestyler, StyleBank, build_strategies
from speed.plain import plain_layers, plain_restyling
from speed.setting import GRID, NUM_CLASSES, Row, Setting, in_turns, scaled

STRATEGIES = ("none", "bank", "noise")


class TrainingStep:
    """Training step of the recipe's network: forward pass, backward pass and update."""

    def __init__(self, setting: Setting, *options: object) -> None:
        self.setting, self.model = setting, setting.segmentor(*options)
        self.model.train()
        self.detectron2 = SemanticSegmentor(
            backbone=self.model.backbone,
            sem_seg_head=self.model.sem_seg_head,
            pixel_mean=self.model.pixel_mean.flatten().tolist(),
            pixel_std=self.model.pixel_std.flatten().tolist(),
        ).to(setting.device)
        self.detectron2.train()
        self.optimizer = build_optimizer(setting.config(*options), self.model)

    def __call__(self, model: nn.Module, batch: list[dict[str, Tensor]]) -> None:
        """Run a step of a model that consists of the same modules."""
        self.optimizer.zero_grad()
        model(batch)["loss_sem_seg"].backward()
        self.optimizer.step()

    def bare(self, images: Tensor) -> None:
        """Run a step of the layers alone, without batch preparation, restyling and loss."""
        self.optimizer.zero_grad()
        self.model.sem_seg_head.layers(self.model.backbone(images)).mean().backward()
        self.optimizer.step()

    def styled(self, strategy: str, batch: list[dict[str, Tensor]], stage: str = "res2") -> Callable[[], None]:
        """Return a function that runs a step with a style strategy."""
        styles = None if strategy == "none" else restyler(self.setting, strategy, stage=stage)

        def step() -> None:
            self.model.use_restyler(styles)
            self(self.model, batch)

        return step

    def plain(self, batch: list[dict[str, Tensor]]) -> Callable[[], None]:
        """Return a function that runs a step with styles from a bank as the reference implementation computes it."""
        styled = self.styled("bank", batch)

        def step() -> None:
            with plain_layers(), plain_restyling():
                styled()

        return step

    def with_channels_first(self) -> Self:
        """Store the head's weights in channels-first order, for `plain` and `unfolded`."""
        self.model.sem_seg_head.to(memory_format=torch.contiguous_format)
        return self

    def unfolded(self, batch: list[dict[str, Tensor]]) -> None:
        """Run a step without styles, with unfolded layers in channels-first memory."""
        self.model.use_restyler(None)
        with plain_layers():
            self(self.model, batch)


def restyler(
    setting: Setting, strategy: str, styles_per_class: int = 500, grid: tuple[int, int] = GRID, stage: str = "res2"
) -> PatchRestyler:
    """Return a restyler, with a random bank if it needs one. The recipe's bank has about 500 styles per class."""
    strategies = build_strategies(setting.config("MODEL.STYLE.STRATEGY", strategy))
    restyler = PatchRestyler(strategies=strategies, grid=grid, beta=0.1, stage=stage)
    if restyler.needs("bank"):
        bank, channels = StyleBank(), 3 if stage == IMAGE else setting.sizes.architecture.channels(0)
        class_ids = torch.arange(NUM_CLASSES + 1).repeat_interleave(styles_per_class)
        class_ids[class_ids == NUM_CLASSES] = 255
        bank.add(class_ids, *torch.rand(2, len(class_ids), channels, generator=setting.generator()))
        restyler.use_bank(bank)
    return restyler


def training_rows(setting: Setting) -> Iterator[Row]:
    """Measure training steps and restyling alone."""
    sizes, side = setting.sizes, setting.sizes.step_crop
    step, plain = TrainingStep(setting), TrainingStep(setting).with_channels_first()
    batch = setting.random_batch(sizes.images, side)
    images = torch.randn(sizes.images, 3, side, side, generator=setting.generator()).to(setting.device)
    contenders = {
        **{strategy: setting.timed(step.styled(strategy, batch)) for strategy in STRATEGIES},
        "picture": setting.timed(step.styled("bank", batch, IMAGE)),
        "bare": setting.timed(lambda: step.bare(images)),
        "detectron2": setting.timed(lambda: step(step.detectron2, batch)),
        "unfolded": setting.timed(lambda: plain.unfolded(batch)),
        "plain": setting.timed(plain.plain(batch)),
    }
    seconds = in_turns(contenders, sizes.rounds)
    none, name = seconds["none"], "training step, no styles"
    yield Row(
        "training step, styles from a bank", seconds["bank"], "no styles", none,
        target="training step with a bank / without styles", at_most=1.03,
    )  # fmt: skip
    yield Row(
        "training step, styles from a bank", seconds["bank"], "plain: loops over patches, unfolded, channels first",
        seconds["plain"], target="training step with a bank / plain rewriting of it", at_most=1.0,
    )  # fmt: skip
    yield Row("training step, noise as styles", seconds["noise"], "no styles", none)
    yield Row(
        "training step, picture styles", seconds["picture"], "no styles", none,
        target="training step with picture styles / without styles", at_most=1.03,
    )  # fmt: skip
    yield Row(name, none, "step of the network alone", seconds["bare"])
    yield Row(
        name, none, "frozen stages unfolded, channels first", seconds["unfolded"],
        target="training step / with unfolded layers, channels first (1.15 times faster)", at_most=1 / 1.15,
    )  # fmt: skip
    yield Row(name, none, "Detectron2's SemanticSegmentor, same modules", seconds["detectron2"])
    yield from restyling_rows(setting)


def restyling_rows(setting: Setting) -> Iterator[Row]:
    """Measure restyling a feature map alone, with other grids and banks."""
    sizes, side = setting.sizes, setting.sizes.crop // 4
    features = torch.rand(sizes.images, sizes.architecture.channels(0), side, side, generator=setting.generator())
    features = features.to(setting.device).contiguous(memory_format=torch.channels_last)
    labels = torch.stack([sample["sem_seg"] for sample in setting.random_batch(sizes.images, sizes.crop)])
    labels = labels.to(setting.device)

    def restyle(grid: tuple[int, int], styles_per_class: int) -> Callable[[], float]:
        styles = restyler(setting, "bank", styles_per_class, grid)
        return setting.timed(lambda: styles(features, labels))

    contenders = {"copy": setting.timed(features.clone), "base": restyle(GRID, 500), "fine": restyle((12, 12), 500)}
    contenders |= {"small": restyle(GRID, 10), "large": restyle(GRID, 5000)}
    times = {name: scaled(values, 1000) for name, values in in_turns(contenders, 3 * sizes.rounds).items()}
    yield Row("restyling alone, 3 x 3 patches", times["base"], "one read and one write of the map", times["copy"], "ms")
    yield Row("restyling, 12 x 12 patches", times["fine"], "3 x 3 patches", times["base"], "ms")
    yield Row("restyling, 5000 styles per class", times["large"], "10 styles per class", times["small"], "ms")
