"""Evaluation: whole images from files to a confusion matrix, against the bare forward."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from bench_data import registered_images, write_images
from bench_setting import Setting
from bench_turns import Row, in_turns

from famix.data import build_test_loader
from famix.evaluation import ProtocolInference, StreamingSemSegEvaluator, parse_protocol

__all__ = ["evaluation_rows"]


def evaluation_rows(setting: Setting) -> Iterator[Row]:
    """Time of an image, in a pass that reads images and labels from PNG files and counts pixels."""
    sizes, clock, count = setting.sizes, setting.clock, setting.sizes.evaluated_images
    model: Any = setting.segmentor().eval()
    network = ProtocolInference(model, parse_protocol("native")).eval()
    pixels = torch.randn(1, 3, *sizes.evaluated, generator=setting.generator()).to(setting.device)

    @torch.no_grad()
    def bare() -> None:
        model.sem_seg_head.layers(model.backbone(pixels))

    with registered_images(write_images(setting.folder / "evaluation", count, sizes.evaluated, setting.seed)) as name:
        loader = build_test_loader(setting.config("DATALOADER.NUM_WORKERS", 1), name)
        evaluator = StreamingSemSegEvaluator(name)

        @torch.no_grad()
        def score() -> float:
            """The shortest time from one image's end to the next one's, once the loader's process runs."""
            evaluator.reset()
            moments = []
            for inputs in loader:
                evaluator.process(inputs, network(inputs))
                moments.append(clock.now())
            return min(after - before for before, after in pairwise(moments))

        seconds = in_turns({"score": score, "bare": clock.timed(bare)}, sizes.rounds)
    yield Row(
        "evaluation, per image", seconds["score"], "the bare forward", seconds["bare"],
        target="evaluation over the bare forward", at_most=1.15,
    )  # fmt: skip
