"""Training, mining, evaluation and data loading on one GPU, in less than 12 minutes.

    python benchmarks/gpu.py [--report FILE] [--device cpu --quick]

For each network with random weights: time and peak memory of a training step with styles from a bank, in float32, in
bfloat16 and in bfloat16 with MODEL.COMPILE; the ratio to a plain version in float32, which loops over patches and, for RN50,
runs unfolded layers in channels-first memory; and the number of times a step waits for the GPU. For RN50 and the CLIP of
the miniature town also mining and evaluation, and for the first network the share of the time that it waits for its loader.
"""

# ruff: noqa: E402, the parser precedes slow imports

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from parts.common import POSITIVE, benchmark_parser, memory_of_process

NETWORKS = {"RN50": "RN50", "ConvNeXt-L": "open_clip:convnext_large_d", "ViT-L-14": "open_clip:ViT-L-14"}
MODES = ("float32", "bfloat16", "compiled", "plain")
WARM_UP = 3  # steps


def make_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to test the script (default: cuda)")
    parser.add_argument("--quick", action="store_true", help="use tiny sizes to test the script")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="(default: all)")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="(default: all)")
    parser.add_argument("--images", type=POSITIVE, default=8, help="images per training step (default: 8)")
    parser.add_argument("--crop", type=POSITIVE, default=512, metavar="PIXELS", help="side of the crops (default: 512)")
    parser.add_argument("--steps", type=POSITIVE, default=10, help="measured steps (default: 10)")
    parser.add_argument("--backend", default="inductor", help="backend for the mode compiled (default: inductor)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="also write the tables to this file")
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # answers --help and usage errors before the slow imports

import warnings

import torch
from detectron2.modeling import build_model
from parts.towers_tasks import make_config
from speed.evaluation import evaluation_rows, register_scenes
from speed.mining import group_rows, step_rows
from speed.plain import plain_layers, plain_restyling
from speed.setting import NUM_CLASSES, SIZES, Setting, format_table, format_targets
from torch import nn

from famix.data import build_train_loader
from famix.engine import build_optimizer
from famix.modeling.compiling import compile_layers
from famix.style import StyleBank
from famix_minitown.runs.study import describe_machine, markdown

Batch = list[dict[str, Any]]


@dataclass(frozen=True)
class Step:
    """Training step of a network with styles from a random bank."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    device: str
    mode: str

    def __call__(self, batch: Batch) -> None:
        """Run the step."""
        with ExitStack() as contexts:
            if self.mode in ("bfloat16", "compiled"):
                contexts.enter_context(torch.autocast(self.device.split(":")[0], torch.bfloat16))
            elif self.mode == "plain":
                contexts.enter_context(plain_layers())
                contexts.enter_context(plain_restyling())
            loss = sum(self.model(batch).values())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def make_step(architecture: str, mode: str, device: str, backend: str) -> Step:
    """Build a network with a bank of random styles."""
    settings = {"MODEL.DEVICE": device, "MODEL.STYLE.STRATEGY": "bank"}
    cfg = make_config(
        architecture, {**settings, **({"MODEL.CLIP.TRAINABLE": ["layer4.2"]} if architecture == "RN50" else {})}
    )
    model: Any = build_model(cfg).train()
    channels = model.clip_backbone.output_shape()[cfg.MODEL.STYLE.STAGE].channels
    bank = StyleBank()
    bank.add(torch.arange(NUM_CLASSES + 1), *torch.rand(2, NUM_CLASSES + 1, channels))
    model.restyler.use_bank(bank)
    compile_layers(model, backend if mode == "compiled" else "")
    if mode == "plain":
        model.sem_seg_head.to(memory_format=torch.contiguous_format)
    return Step(model, build_optimizer(cfg, model), device, mode)


def training_cells(step: Step, batch: Batch, steps: int, setting: Setting) -> list[float]:
    """Return seconds per step, peak memory in GiB, and synchronizations per step (NaN on a CPU)."""
    cuda = step.device.startswith("cuda")
    for _ in range(WARM_UP):
        step(batch)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    start = setting.now()
    for _ in range(steps):
        step(batch)
    seconds = (setting.now() - start) / steps
    peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else memory_of_process("VmHWM")
    return [seconds, peak, synchronizations(lambda: step(batch)) if cuda else float("nan")]


def synchronizations(run: Callable[[], object]) -> float:
    """Count the operations of a call that wait for the GPU."""
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    torch.cuda.set_sync_debug_mode("default")
    return float(sum("synchroniz" in str(warning.message) for warning in caught))


def training_table(setting: Setting, networks: dict[str, str], modes: list[str], steps: int, backend: str) -> str:
    """Measure the training steps of all networks."""
    rows, batch = [], setting.random_batch(setting.sizes.images, setting.sizes.step_crop)
    for name, architecture in networks.items():
        found = {}
        for mode in modes:
            found[mode] = training_cells(make_step(architecture, mode, setting.device, backend), batch, steps, setting)
            seconds, peak, waits = found[mode]
            rows.append([name, mode, f"{seconds:.3f}", f"{peak:.2f}", "-" if waits != waits else f"{waits:.0f}"])
            print("  " + " ".join(rows[-1]), file=sys.stderr, flush=True)
        if "plain" in found:
            for row in rows[-len(modes) :]:
                row.append(f"{found['plain'][0] / found[row[1]][0]:.2f}")
    return markdown(["network", "step", "seconds", "peak, GiB", "waits per step", "faster than plain by"], rows)


def loader_stalls(setting: Setting, name: str, architecture: str, steps: int, workers: int = 4) -> str:
    """Return the share of the time that the training of a network waits for its loader."""
    side, images = setting.sizes.step_crop, setting.sizes.images
    data = [
        "DATASETS.TRAIN",
        [register_scenes(setting)],
        "SOLVER.IMS_PER_BATCH",
        images,
        "DATALOADER.NUM_WORKERS",
        workers,
    ]
    loader = iter(build_train_loader(setting.config(*data, "INPUT.CROP.SIZE", [side, side])))
    step, waited = make_step(architecture, "bfloat16", setting.device, ""), 0.0
    step(next(loader))
    start = setting.now()
    for _ in range(steps):
        before = time.perf_counter()
        batch = next(loader)
        waited += time.perf_counter() - before
        step(batch)
    total = setting.now() - start
    return (
        f"Loader: with {workers} workers, {name} in bfloat16 waits for images during {100 * waited / total:.0f} % of {steps} steps of "
        f"{images} crops of {side} x {side} ({images * steps / total:.1f} images per second)."
    )


def main() -> None:
    """Run the benchmark and print its results."""
    args = make_parser().parse_args()
    torch.manual_seed(0)
    sizes = SIZES["quick" if args.quick else args.device.split(":")[0]]
    sizes = replace(sizes, step_crop=args.crop, images=args.images, rounds=min(sizes.rounds, 7))
    start, networks = time.perf_counter(), {name: NETWORKS[name] for name in args.networks}
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(sizes, args.device, 0, Path(folder))
        table = training_table(setting, networks, args.modes, args.steps, args.backend)
        rows = [row for rows in (step_rows, group_rows, evaluation_rows) for row in rows(setting)]
        stalls = loader_stalls(setting, *next(iter(networks.items())), args.steps)
    facts = f"Seed 0, {(time.perf_counter() - start) / 60:.1f} minutes: {sizes}; {args.steps} training steps."
    titled = [f"{describe_machine(args.device)}\n{facts}", table, format_table(rows), format_targets(rows), stalls]
    report = "\n\n".join(titled)
    print(report)
    if args.report:
        args.report.write_text(report + "\n")


if __name__ == "__main__":
    main()
