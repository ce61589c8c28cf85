"""Panoptic heads in the miniature town: trained on clear days alone, with and without styles, scored in all weather.

    python benchmarks/panoptic.py [--heads deeplab fpn] [--seeds 1 2 3] [--report FILE] [--picture FILE]

Every method trains the same network for as long, with the same seed: source_only without styles; famix with styles that
are mined first, from looks that resemble no tested weather; famix_weather with styles of the weathers' own words. What is
finished is kept, what was stopped continues.
"""

# ruff: noqa: E402, the parser stands before imports that take seconds

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

from run_arguments import make_run_parser

from famix_arguments import whole_number

HEADS = {"deeplab": "Panoptic-DeepLab", "fpn": "Panoptic FPN"}
SOURCE_ONLY = "source_only"
METHODS = {SOURCE_ONLY: "source only", "famix": "FAMix, strict looks", "famix_weather": "FAMix, weather's words"}


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = make_run_parser(__doc__, "output/panoptic")
    parser.add_argument("--heads", nargs="+", default=["deeplab"], choices=HEADS, help="(default: deeplab)")
    parser.add_argument(
        "--methods", nargs="+", default=[SOURCE_ONLY, "famix_weather"], choices=METHODS,
        help=f"(default: {SOURCE_ONLY} famix_weather)",
    )  # fmt: skip
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw what the first head predicts, first seed")
    parser.add_argument(
        "--quick",
        type=partial(whole_number, lowest=1),
        metavar="N",
        help="train N iterations only, to see that everything works",
    )
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # --help and mistakes are answered at once

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from machine import describe_machine
from reporting import print_report, processors_of
from tabulate import tabulate

from famix.data import get_dataset_dicts, read_image, register_datasets
from famix.data.panoptic.classes import panoptic_classes
from famix.engine import SafeCheckpointer, Trainer, load_config
from famix.evaluation.panoptic.truth import PanopticSegments, TruthReader, predicted_segments
from famix.reports import RESULTS_FILE, read_results
from famix.reports.report import PANOPTIC_METRICS, TASK
from famix.reports.significance import format_p, format_spread
from famix.visualization.figure import Tile, compose_figure, save_figure
from famix.visualization.overlay import overlay_segments
from famix_minitown.conditions import CONDITIONS
from famix_minitown.experiment import CONFIGS, Experiment, condition_of, read_occurring
from famix_minitown.runner import run_experiments

SCORES = {**PANOPTIC_METRICS, "mIoU": (TASK, "mIoU")}
SCENE = 7  # of the picture: number of the image in every data set, that of docs/minitown.png
UNSEEN = "unseen"
WIDTH, OPACITY = 384, 0.62  # of the images in the picture, in pixels, and of the segments over them

Run = tuple[str, str]  # head, method
Table = dict[Run, dict[int, dict[str, float]]]  # seed -> condition -> percent


class Benchmark:
    """The runs that a command line asks for.

    Args:
        arguments: see make_parser.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.output: Path = arguments.output
        self.seeds: list[int] = list(dict.fromkeys(arguments.seeds))
        self.methods = list(dict.fromkeys(arguments.methods))
        self.runs: list[Run] = [(head, method) for head in dict.fromkeys(arguments.heads) for method in self.methods]
        self.jobs: int = arguments.jobs
        self.options = tuple(arguments.opts)
        if arguments.quick is not None:
            self.options += ("SOLVER.MAX_ITER", str(arguments.quick))

    def run(self) -> None:
        """Train and score all."""
        run_experiments(
            [self.experiment(run, seed) for seed in self.seeds for run in self.runs], jobs=self.jobs, threads=1
        )

    def experiment(self, run: Run, seed: int) -> Experiment:
        """One run; a folder of its own for every head, method and seed."""
        head, method = run
        folder, config = self.output / f"{head}_{method}" / f"seed{seed}", CONFIGS / f"famix_panoptic_{head}.yaml"
        options = (*method_options(method), *self.options)
        return Experiment(f"{head}, {method}/{seed}", config, folder, options, seed)

    def table(self, score: str) -> Table:
        """A score of all runs, and its mean over the unseen conditions."""
        return {run: {seed: self._conditions(run, seed, score) for seed in self.seeds} for run in self.runs}

    def minutes(self, run: Run) -> float:
        """Mean time of a run, mining and scoring included."""
        return fmean(self.experiment(run, seed).seconds() for seed in self.seeds) / 60

    def _conditions(self, run: Run, seed: int, score: str) -> dict[str, float]:
        task, metric = SCORES[score]
        results = read_results(self.experiment(run, seed).output / RESULTS_FILE)
        found = {condition_of(name.removesuffix("_panoptic")): tasks[task][metric] for name, tasks in results.items()}
        return {**found, UNSEEN: fmean(value for condition, value in found.items() if condition != CONDITIONS[0])}


def method_options(method: str) -> tuple[str, ...]:
    """Settings that make a panoptic config that of a method."""
    if method == SOURCE_ONLY:
        return ("MODEL.STYLE.STRATEGY", "none")
    semantic = load_config(str(CONFIGS / f"{method}.yaml"))  # the same words as without instances
    return ("STYLE_MINING.STYLES", str(list(semantic.STYLE_MINING.STYLES)))


def quality_table(benchmark: Benchmark) -> str:
    """PQ by condition: mean and spread over the seeds, and the mean time of a run."""
    table = benchmark.table("PQ")
    conditions = list(next(iter(next(iter(table.values())).values())))
    rows = []
    for (head, method), by_seed in table.items():
        cells = [format_spread([scores[name] for scores in by_seed.values()]) for name in conditions]
        rows.append([HEADS[head], METHODS[method], *cells, f"{benchmark.minutes((head, method)):.1f}"])
    return markdown([["head", "method", *conditions, "minutes"], *rows])


def detail_table(benchmark: Benchmark) -> str:
    """Every score, on clear days and as the mean of the unseen conditions."""
    columns = [(head, method, where) for head, method in benchmark.runs for where in (CONDITIONS[0], UNSEEN)]
    rows = []
    for score in SCORES:
        table = benchmark.table(score)
        cells = [
            format_spread([scores[where] for scores in table[head, method].values()]) for head, method, where in columns
        ]
        rows.append([score, *cells])
    heading = [f"{HEADS[head]}, {METHODS[method]}, {where}" for head, method, where in columns]
    return markdown([["", *heading], *rows])


def gain_lines(benchmark: Benchmark) -> list[str]:
    """What styles gain in PQ over the unseen conditions, seed by seed."""
    table, lines = benchmark.table("PQ"), []
    for head, method in benchmark.runs:
        if method == SOURCE_ONLY or SOURCE_ONLY not in benchmark.methods:
            continue
        with_styles, without = table[head, method], table[head, SOURCE_ONLY]
        gains = [with_styles[seed][UNSEEN] - without[seed][UNSEEN] for seed in benchmark.seeds]
        p = format_p(gains)
        certainty = "" if p == "-" else f" (paired t-test over the seeds: p = {p})"
        gain = f"{format_spread(gains, '+')} points of PQ on `{UNSEEN}` over {METHODS[SOURCE_ONLY]}{certainty}"
        lines.append(f"{HEADS[head]}, {METHODS[method]}: {gain}.")
    return lines


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose first row is the heading."""
    return tabulate(rows[1:], headers=rows[0], tablefmt="github", disable_numparse=True)


def write_report(benchmark: Benchmark, command: str) -> str:
    """The report, in Markdown."""
    parts = [
        "# Panoptic heads in the miniature town",
        f"Printed by `{command}`:",
        f"{describe_machine()}; {benchmark.jobs} runs side by side, a thread each, "
        f"on {processors_of(benchmark.experiment(run, seed) for run in benchmark.runs for seed in benchmark.seeds)}",
        f"Seeds {', '.join(map(str, benchmark.seeds))}. PQ in percent, mean ± standard deviation (n - 1) over the seeds; "
        f"`{CONDITIONS[0]}` is the source, `{UNSEEN}` the mean of all other conditions.",
        quality_table(benchmark),
        *gain_lines(benchmark),
        f"mIoU: {read_occurring(benchmark.experiment(benchmark.runs[0], benchmark.seeds[0]).output)}.",
        f"All scores on `{CONDITIONS[0]}` and `{UNSEEN}`:",
        detail_table(benchmark),
    ]
    return "\n\n".join(parts) + "\n"


def draw(benchmark: Benchmark, path: Path) -> None:
    """The picture: a scene in all conditions, its ground truth, and what the first head sees without and with styles."""
    register_datasets()
    head, seed = benchmark.runs[0][0], benchmark.seeds[0]
    quality = {method: benchmark.table("PQ")[head, method][seed] for method in benchmark.methods}
    shown = [condition for condition in quality[benchmark.methods[0]] if condition != UNSEEN]
    names = [f"minitown_{condition}_val_panoptic" for condition in shown]
    metadata, things = MetadataCatalog.get(names[0]), panoptic_classes(names[0]).things
    records = [get_dataset_dicts([name])[SCENE] for name in names]
    images = [np.asarray(read_image(record["file_name"])) for record in records]
    columns: list[list[PanopticSegments]] = [[TruthReader(things).read(record) for record in records]]
    columns += [predict(benchmark.experiment((head, method), seed), images) for method in benchmark.methods]
    rows: list[list[Tile]] = []
    for place, (condition, image) in enumerate(zip(shown, images, strict=True)):
        notes = ("", *(f"PQ {quality[method][condition]:.1f}" for method in benchmark.methods))
        titles = ("ground truth", *(METHODS[method] for method in benchmark.methods))
        rows.append([Tile(image, "" if rows else "image")])
        for column, note, title in zip(columns, notes, titles, strict=True):
            numbers, segments = column[place].numbers, column[place].segments
            class_ids = [segment["category_id"] for segment in segments]
            overlay = overlay_segments(image, numbers, class_ids, things, metadata.stuff_colors, OPACITY)
            rows[-1].append(Tile(overlay, "" if len(rows) > 1 else title, note=note, bold=True))
    height, width = images[0].shape[:2]
    figure = compose_figure(rows, (WIDTH, round(WIDTH * height / width)), row_labels=shown)
    save_figure(figure, path, num_colors=256)


@torch.inference_mode()
def predict(run: Experiment, images: Sequence[np.ndarray]) -> list[PanopticSegments]:
    """What the last checkpoint of a run sees in images."""
    cfg = run.load_config()
    model = Trainer.build_model(cfg).eval()
    SafeCheckpointer(model, str(run.output), strict=True).load(str(run.output / "model_final.pth"))
    divisor = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).label_divisor
    found = []
    for image in images:
        inputs = {"image": torch.from_numpy(image.transpose(2, 0, 1).copy())}
        (result,) = model([{**inputs, "height": image.shape[0], "width": image.shape[1]}])
        panoptic, segments = result["panoptic_seg"]
        found.append(predicted_segments(panoptic, segments, divisor))
    return found


def main() -> None:
    """Run, print and draw."""
    arguments = make_parser().parse_args()
    benchmark = Benchmark(arguments)

    def work(command: str) -> str:
        benchmark.run()
        if arguments.picture:
            draw(benchmark, arguments.picture)
        return write_report(benchmark, command)

    print_report("panoptic.py", work, arguments.report)


if __name__ == "__main__":
    main()
