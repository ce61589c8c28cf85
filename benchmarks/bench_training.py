"""Training steps, restyling and evaluation against the bare network, and the peak memory of each kind of work.

    python benchmarks/bench_training.py training|mining|evaluation ours|plain [--device cuda] [--quick]

prints the MiB that the work adds to those of the process with all networks made: on a GPU the memory of tensors, on a CPU
the resident memory of the process.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from arguments import benchmark_parser
from bench_mining import encoder
from bench_plain import PlainSteps, plain_layers, plain_loss
from bench_setting import GRID, SGD, SIZES, Row, Setting, in_turns, random_batch, registered_images, write_images
from detectron2.modeling import SemanticSegmentor
from torch import Tensor, nn

from famix.data import build_test_loader
from famix.engine import build_optimizer
from famix.evaluation import ProtocolInference, StreamingSemSegEvaluator, parse_protocol
from famix.modeling import FAMixSemanticSegmentor
from famix.style import optimize_styles

__all__ = ["evaluation_rows", "memory_rows", "training_rows"]

STRATEGIES = ("none", "bank", "noise")
MINED = 4  # times the styles of a timed step, about a batch of the recipe: weights then weigh less
WORK = {
    "training": "a training step",
    "mining": f"mining steps of {MINED} times as many styles",
    "evaluation": "the evaluation of an image",
}
OURS, PLAIN = "ours", "plain"


class TrainingStep:
    """Forward, backward and update of the recipe's network."""

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
        """Do a step of any model on the same modules."""
        self.optimizer.zero_grad()
        model(batch)["loss_sem_seg"].backward()
        self.optimizer.step()

    def bare(self, images: Tensor) -> None:
        """Do a step of the layers alone, without preparing a batch, restyling, and the loss."""
        self.optimizer.zero_grad()
        model: Any = self.model
        model.sem_seg_head.layers(model.backbone(images)).mean().backward()
        self.optimizer.step()

    def styled(self, strategy: str, batch: list[dict[str, Tensor]]) -> Callable[[], None]:
        """Return a step with the styles of a strategy."""
        restyler = None if strategy == "none" else self.setting.restyler(strategy)

        def step() -> None:
            self.model.use_restyler(restyler)
            self(self.model, batch)

        return step

    def unfolded(self, batch: list[dict[str, Tensor]], loss: bool = False) -> None:
        """Do a step without styles through unfolded layers, channels first; with `loss` also through the plain loss."""
        self.model.use_restyler(None)
        with plain_layers(), plain_loss() if loss else nullcontext():
            self(self.model, batch)


def training_rows(setting: Setting) -> Iterator[Row]:
    """Rows about training steps, and about restyling alone."""
    sizes, side = setting.sizes, setting.sizes.step_crop
    step, batch = TrainingStep(setting), random_batch(setting.sizes.images, side, setting.generator())
    images = torch.randn(sizes.images, 3, side, side, generator=setting.generator()).to(setting.device)
    seconds = in_turns(
        {
            **{strategy: setting.timed(step.styled(strategy, batch)) for strategy in STRATEGIES},
            "bare": setting.timed(lambda: step.bare(images)),
            "detectron2": setting.timed(lambda: step(step.detectron2, batch)),
            "unfolded": setting.timed(lambda: step.unfolded(batch)),
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
    yield from restyling_rows(setting)


def restyling_rows(setting: Setting) -> Iterator[Row]:
    """Rows about restyling a feature map alone, with other grids and banks."""
    sizes, side = setting.sizes, setting.sizes.crop // 4
    features = torch.rand(sizes.images, setting.channels, side, side, generator=setting.generator())
    features = features.to(setting.device).contiguous(memory_format=torch.channels_last)
    labels = torch.stack([s["sem_seg"] for s in random_batch(sizes.images, sizes.crop, setting.generator())])
    labels = labels.to(setting.device)

    def restyle(grid: tuple[int, int], styles_per_class: int) -> Callable[[], float]:
        restyler = setting.restyler("bank", styles_per_class, grid)
        return setting.timed(lambda: restyler(features, labels))

    contenders = {"copy": setting.timed(features.clone), "base": restyle(GRID, 500), "fine": restyle((12, 12), 500)}
    contenders |= {"small": restyle(GRID, 10), "large": restyle(GRID, 5000)}
    times = {name: 1000 * value for name, value in in_turns(contenders, 5 * sizes.rounds).items()}
    yield Row("restyling alone, 3 x 3 patches", times["base"], "one read and one write of the map", times["copy"], "ms")
    yield Row("restyling, 12 x 12 patches", times["fine"], "3 x 3 patches", times["base"], "ms")
    yield Row("restyling, 5000 styles of a class", times["large"], "10 styles", times["small"], "ms")


def evaluation_rows(setting: Setting) -> Iterator[Row]:
    """Row about an image in a pass from PNG files to a confusion matrix, against the bare forward."""
    sizes = setting.sizes
    model: Any = setting.segmentor().eval()
    network = ProtocolInference(model, parse_protocol("native")).eval()
    pixels = torch.randn(1, 3, *sizes.evaluated, generator=setting.generator()).to(setting.device)

    @torch.no_grad()
    def bare() -> None:
        model.sem_seg_head.layers(model.backbone(pixels))

    images = write_images(setting.folder / "evaluation", sizes.evaluated_images, sizes.evaluated, setting.seed)
    with registered_images(images) as name:
        loader = build_test_loader(setting.config("DATALOADER.NUM_WORKERS", 1), name)
        evaluator = StreamingSemSegEvaluator(name)

        @torch.no_grad()
        def score() -> float:
            """Return the shortest time between two images, once the loader's process runs."""
            evaluator.reset()
            moments = []
            for inputs in loader:
                evaluator.process(inputs, network(inputs))
                moments.append(setting.now())
            return min(after - before for before, after in pairwise(moments))

        seconds = in_turns({"score": score, "bare": setting.timed(bare)}, sizes.rounds)
    yield Row(
        "evaluation, per image", seconds["score"], "the bare forward", seconds["bare"],
        target="evaluation over the bare forward", at_most=1.15,
    )  # fmt: skip


def memory_rows(setting: Setting) -> Iterator[Row]:
    """Rows about peak memory, the least of several processes: allocators differ from one to the next."""

    def measure(kind: str, version: str) -> float:
        command = [sys.executable, str(Path(__file__).resolve()), kind, version, "--device", setting.device]
        command += ["--seed", str(setting.seed), *(["--quick"] if setting.sizes.crop == SIZES["quick"].crop else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with status {done.returncode}: {done.stderr[-2000:]}")
        return float(done.stdout.split()[-1])

    for kind, name in WORK.items():
        ours, plain = (min(measure(kind, version) for _ in range(setting.sizes.rounds)) for version in (OURS, PLAIN))
        yield Row(
            f"peak memory of {name}", ours, "the plain version's", plain, unit="MiB",
            target=f"peak memory of {name} over the plain version's", at_most=1.0,
        )  # fmt: skip


def work_of(setting: Setting, kind: str, version: str) -> Callable[[], object]:
    """Return the work that WORK names, with all networks made."""
    sizes, generator = setting.sizes, setting.generator()
    if kind == "mining":
        patches, texts = setting.patches(MINED * sizes.styles), setting.texts(MINED * sizes.styles)
        if version == OURS:
            encode = encoder(setting)
            return lambda: optimize_styles(patches, texts, encode, steps=2, **SGD)
        clip = setting.clip

        def mine() -> None:
            run = PlainSteps(clip, patches, texts, **SGD)
            for _ in range(2):
                run.step()

        return mine
    step = TrainingStep(setting)
    if kind == "training":
        batch = random_batch(sizes.images, sizes.crop, generator)
        return (lambda: step.unfolded(batch, loss=True)) if version == PLAIN else (lambda: step(step.model, batch))
    height, width = sizes.evaluated
    image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    model = (step.detectron2 if version == PLAIN else step.model).eval()

    @torch.no_grad()
    def predict() -> None:
        with plain_layers() if version == PLAIN else nullcontext():
            model([{"image": image, "height": height, "width": width}])[0]["sem_seg"].max(dim=0)

    return predict


def added_mib(setting: Setting, work: Callable[[], object]) -> float:
    """Return the peak of memory during some work over the memory before it."""
    if setting.device.startswith("cuda"):
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def kib(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name))

    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = kib("VmRSS")
    work()
    return (kib("VmHWM") - before) / 2**10


def main() -> None:
    """Measure and print."""
    parser: argparse.ArgumentParser = benchmark_parser(__doc__, device=True)
    parser.add_argument("kind", choices=WORK)
    parser.add_argument("version", choices=(OURS, PLAIN))
    parser.add_argument("--seed", type=int, default=0, help="of weights and inputs (default: 0)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(
            SIZES["quick" if args.quick else args.device.split(":")[0]], args.device, args.seed, Path(folder)
        )
        print(f"{added_mib(setting, work_of(setting, args.kind, args.version)):.1f}")


if __name__ == "__main__":
    main()
