"""Time and memory for scoring alone: the streaming evaluator compared with Detectron2's SemSegEvaluator.

Speed: both evaluators get the same scores (19, 1024, 2048) with smooth regions and read the same label files. They
alternate, so other load on the machine affects both equally. Memory: each evaluator scores 20 and 200 smaller images in
its own process.

    python benchmarks/evaluation.py [--images 4] [--rounds 5] [--device cuda] [--skip-memory]
"""

# ruff: noqa: E402, the parser precedes slow imports

import argparse
import multiprocessing
import tempfile
import time
import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median

from parts.common import POSITIVE, benchmark_parser


def make_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = benchmark_parser(__doc__, device=True)
    parser.add_argument("--images", type=POSITIVE, default=4, help="number of images per round (default: 4)")
    parser.add_argument("--rounds", type=POSITIVE, default=5, help="number of rounds per evaluator (default: 5)")
    parser.add_argument("--skip-memory", action="store_true", help="measure speed only")
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # answers --help and usage errors before the slow imports

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, SemSegEvaluator
from PIL import Image

from famix.data import CITYSCAPES_CLASSES
from famix.evaluation import StreamingSemSegEvaluator
from famix_minitown.runs.study import describe_machine, markdown

NAME = "evaluation_benchmark"
NUM_CLASSES, IGNORE = len(CITYSCAPES_CLASSES), 255
LARGE, SMALL = (1024, 2048), (256, 512)
FEW, MANY = 20, 200  # numbers of images in the memory measurements
STREAMING, DETECTRON2 = "streaming", "SemSegEvaluator"


def smooth_scores(size: tuple[int, int], seed: int) -> torch.Tensor:
    """Return scores (19, H, W) whose highest class varies by region, as in a network's output."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, NUM_CLASSES, size[0] // 64, size[1] // 64, generator=generator)
    return F.interpolate(coarse, size, mode="bicubic")[0]


def write_labels(folder: Path, size: tuple[int, int], count: int) -> None:
    """Write label files in which a tenth of the rows is ignored, and register them as a dataset."""
    records = []
    for index in range(count):
        labels = smooth_scores(size, 1000 + index).max(dim=0).indices.to(torch.uint8).numpy()
        labels[: size[0] // 10] = IGNORE
        path = folder / f"{index}.png"
        Image.fromarray(labels).save(path)
        records.append({"file_name": f"{index}.jpg", "sem_seg_file_name": str(path)})
    DatasetCatalog.register(NAME, partial(list, records))
    MetadataCatalog.get(NAME).set(stuff_classes=[entry.name for entry in CITYSCAPES_CLASSES], ignore_label=IGNORE)


def make_evaluator(name: str) -> DatasetEvaluator:
    """Create an evaluator for the registered dataset."""

    def read(path: str, dtype: type = np.uint8) -> np.ndarray:
        with Image.open(path) as image:
            return np.asarray(image).astype(dtype)

    if name == STREAMING:
        return StreamingSemSegEvaluator(NAME, read_labels=read, are_logits=True)
    return SemSegEvaluator(NAME, sem_seg_loading_fn=read)


def score_all(evaluator: DatasetEvaluator, scores: torch.Tensor) -> float:
    """Return the mIoU if the same scores are predicted for every image in the dataset."""
    evaluator.reset()
    for record in DatasetCatalog.get(NAME):
        evaluator.process([record], [{"sem_seg": scores}])
    return evaluator.evaluate()["sem_seg"]["mIoU"]


def measure_speed(args: argparse.Namespace) -> str:
    """Return a table of seconds per image. Raises AssertionError if the evaluators disagree."""
    scores = smooth_scores(LARGE, 0).to(args.device)
    taken: dict[str, list[float]] = {STREAMING: [], DETECTRON2: []}
    with tempfile.TemporaryDirectory() as folder:
        write_labels(Path(folder), LARGE, args.images)
        evaluators = {name: make_evaluator(name) for name in taken}
        results = {name: score_all(evaluator, scores) for name, evaluator in evaluators.items()}  # not timed
        if abs(results[STREAMING] - results[DETECTRON2]) > 1e-9:
            raise AssertionError(f"the evaluators disagree: {results}")
        for _ in range(args.rounds):
            for name, evaluator in evaluators.items():
                start = time.perf_counter()
                score_all(evaluator, scores)
                taken[name].append((time.perf_counter() - start) / args.images)
    values = {f"{name}, s per image": seconds for name, seconds in taken.items()}
    ratios = [theirs / ours for ours, theirs in zip(taken[STREAMING], taken[DETECTRON2], strict=True)]
    values[f"{DETECTRON2} / {STREAMING}"] = ratios
    rows = [[name, *(f"{f(numbers):.3f}" for f in (median, min, max))] for name, numbers in values.items()]
    return markdown(["", "median", "min", "max"], rows)


def measure_memory() -> str:
    """Return a table of the memory that the evaluators accumulate."""
    rows = []
    for name in (STREAMING, DETECTRON2):
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
            few, many = pool.map(held_kib, [name] * 2, [FEW, MANY])
        rows.append([name, *(f"{value:.1f}" for value in (few, many, (many - few) / (MANY - FEW)))])
    return markdown(["", *(f"KiB after {n} images" for n in (FEW, MANY)), "growth, KiB per image"], rows)


def held_kib(name: str, count: int) -> float:
    """Return the size in KiB of the Python objects and arrays that an evaluator accumulates.

    The first image, which causes one-time allocations, is not counted. Tensors are not counted either: the streaming
    evaluator has one of fixed size, and the other evaluator has none.
    """
    torch.set_num_threads(1)
    scores = smooth_scores(SMALL, 0)
    with tempfile.TemporaryDirectory() as folder:
        write_labels(Path(folder), SMALL, count + 1)
        evaluator = make_evaluator(name)
        evaluator.reset()
        for number, record in enumerate(DatasetCatalog.get(NAME)):
            evaluator.process([record], [{"sem_seg": scores}])
            if number == 0:
                tracemalloc.start()
        return tracemalloc.get_traced_memory()[0] / 2**10


def main() -> None:
    """Run the benchmark and print its results."""
    args = make_parser().parse_args()
    print(describe_machine(args.device))
    print(f"Scores {NUM_CLASSES} x {LARGE[0]} x {LARGE[1]}, {args.images} images per round, {args.rounds} rounds\n")
    print(measure_speed(args))
    if not args.skip_memory:
        print(f"\nMemory, images of {SMALL[0]} x {SMALL[1]}\n")
        print(measure_memory())


if __name__ == "__main__":
    main()
