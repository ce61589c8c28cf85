"""Panoptic heads in the miniature town: trained on clear days alone, with and without styles, scored in all weather.

    python benchmarks/panoptic.py [--heads deeplab fpn] [--seeds 1 2 3] [--report FILE] [--picture FILE]

Every method trains the same network for as long, with the same seed: source_only without styles; famix with styles that
are mined first, from looks that resemble no tested weather; famix_weather with styles of the weathers' own words.
Finished runs are kept, stopped ones continue.
"""

# ruff: noqa: E402, the parser comes before imports that take seconds

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from arguments import study_parser

HEADS = {"deeplab": "Panoptic-DeepLab", "fpn": "Panoptic FPN"}
SOURCE_ONLY = "source_only"
METHODS = {SOURCE_ONLY: "source only", "famix": "FAMix, strict looks", "famix_weather": "FAMix, weather's words"}


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = study_parser(__doc__, "output/panoptic")
    parser.add_argument("--heads", nargs="+", default=["deeplab"], choices=HEADS, help="(default: deeplab)")
    parser.add_argument(
        "--methods", nargs="+", default=[SOURCE_ONLY, "famix_weather"], choices=METHODS,
        help=f"(default: {SOURCE_ONLY} famix_weather)",
    )  # fmt: skip
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw predictions of the first head and seed")
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # --help and mistakes are answered at once

import numpy as np
import torch
from detectron2.data import MetadataCatalog

from famix.data import get_dataset_dicts, read_image
from famix.data.classes import panoptic_classes
from famix.engine import SafeCheckpointer, Trainer, load_config
from famix.evaluation.panoptic import PanopticSegments, predicted_segments, read_truth
from famix.reports.report import PANOPTIC_METRICS, TASK
from famix.reports.tables import format_p, format_spread
from famix.visualization.figure import Tile, compose_figure, save_figure
from famix.visualization.overlay import overlay_segments
from famix_minitown.conditions import CONDITIONS
from famix_minitown.experiment import CONFIGS, Experiment, condition_of, read_occurring
from famix_minitown.study import Study, markdown

SCORES = {**PANOPTIC_METRICS, "mIoU": (TASK, "mIoU")}
SCENE = 7  # of the picture: index of the image in every dataset, as in docs/minitown.png
UNSEEN = "unseen"
WIDTH, OPACITY = 384, 0.62  # of the images in the picture, in pixels, and of the segments over them

Scores = dict[int, dict[str, float]]  # seed -> condition -> percent


class Benchmark(Study):
    """Heads x methods x seeds. A method of the study is named `<head>_<training>`."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__(arguments)
        self.trainings = list(dict.fromkeys(arguments.methods))
        pairs = [(head, method) for head in dict.fromkeys(arguments.heads) for method in self.trainings]
        self.methods = {f"{head}_{method}": (head, method) for head, method in pairs}
        self.picture: Path | None = arguments.picture

    def experiment(self, method: str, seed: int, options: Sequence[str] = ()) -> Experiment:
        """See Study."""
        head, trained = self.methods[method]
        if trained == SOURCE_ONLY:
            own: tuple[str, ...] = ("MODEL.STYLE.STRATEGY", "none")
        else:  # the words of the semantic config of the same name
            own = ("STYLE_MINING.STYLES", str(list(load_config(str(CONFIGS / f"{trained}.yaml")).STYLE_MINING.STYLES)))
        return self.make(method, seed, CONFIGS / f"famix_panoptic_{head}.yaml", (*own, *options))

    def run(self) -> None:
        """Train and score all; draw the picture if one is asked for."""
        self.run_experiments(self.experiment(name, seed) for seed in self.seeds for name in self.methods)
        if self.picture is not None:
            draw(self, self.picture)

    def scores(self, name: str, score: str) -> Scores:
        """Return a score of a run, and its mean over the unseen conditions."""
        task, metric = SCORES[score]
        found: Scores = {}
        for seed in self.seeds:
            results = self.results(name, seed)
            values = {
                condition_of(key.removesuffix("_panoptic")): tasks[task][metric] for key, tasks in results.items()
            }
            unseen = fmean(value for condition, value in values.items() if condition != CONDITIONS[0])
            found[seed] = {**values, UNSEEN: unseen}
        return found

    def report(self, command: str) -> str:
        """See Study."""
        first = self.experiment(next(iter(self.methods)), self.seeds[0])
        runs = (self.experiment(name, seed) for name in self.methods for seed in self.seeds)
        parts = [
            "# Panoptic heads in the miniature town",
            f"Printed by `{command}`:",
            self.describe_runs(runs),
            f"Seeds {', '.join(map(str, self.seeds))}. PQ in percent, mean ± standard deviation (n - 1) over the seeds; "
            f"`{CONDITIONS[0]}` is the source, `{UNSEEN}` the mean of all other conditions.",
            quality_table(self),
            *gain_lines(self),
            f"mIoU: {read_occurring(first.output)}.",
            f"All scores on `{CONDITIONS[0]}` and `{UNSEEN}`:",
            detail_table(self),
        ]
        return "\n\n".join(parts) + "\n"


def quality_table(benchmark: Benchmark) -> str:
    """Return PQ by condition: mean and spread over the seeds, and the mean time of a run."""
    rows = []
    for name, (head, method) in benchmark.methods.items():
        by_seed = benchmark.scores(name, "PQ")
        conditions = list(by_seed[benchmark.seeds[0]])
        cells = [format_spread([scores[condition] for scores in by_seed.values()]) for condition in conditions]
        minutes = fmean(benchmark.experiment(name, seed).seconds() for seed in benchmark.seeds) / 60
        rows.append([HEADS[head], METHODS[method], *cells, f"{minutes:.1f}"])
    return markdown(["head", "method", *conditions, "minutes"], rows)


def detail_table(benchmark: Benchmark) -> str:
    """Return every score, on clear days and as the mean of the unseen conditions."""
    columns = [(name, where) for name in benchmark.methods for where in (CONDITIONS[0], UNSEEN)]
    rows = [
        [
            score,
            *(format_spread([by[where] for by in benchmark.scores(name, score).values()]) for name, where in columns),
        ]
        for score in SCORES
    ]
    titles = {name: f"{HEADS[head]}, {METHODS[method]}" for name, (head, method) in benchmark.methods.items()}
    return markdown(["", *(f"{titles[name]}, {where}" for name, where in columns)], rows)


def gain_lines(benchmark: Benchmark) -> list[str]:
    """Return the gains in PQ from styles over the unseen conditions, paired by seed."""
    lines = []
    for name, (head, method) in benchmark.methods.items():
        if method == SOURCE_ONLY or SOURCE_ONLY not in benchmark.trainings:
            continue
        styled, plain = benchmark.scores(name, "PQ"), benchmark.scores(f"{head}_{SOURCE_ONLY}", "PQ")
        gains = [styled[seed][UNSEEN] - plain[seed][UNSEEN] for seed in benchmark.seeds]
        p = format_p(gains)
        certainty = "" if p == "-" else f" (paired t-test over the seeds: p = {p})"
        gain = f"{format_spread(gains, '+')} points of PQ on `{UNSEEN}` over {METHODS[SOURCE_ONLY]}{certainty}"
        lines.append(f"{HEADS[head]}, {METHODS[method]}: {gain}.")
    return lines


def draw(benchmark: Benchmark, path: Path) -> None:
    """Draw a scene in all conditions, its ground truth, and the predictions of the first head, method by method."""
    head, seed = next(iter(benchmark.methods.values()))[0], benchmark.seeds[0]
    runs = {method: benchmark.experiment(f"{head}_{method}", seed) for method in benchmark.trainings}
    quality = {method: benchmark.scores(f"{head}_{method}", "PQ")[seed] for method in benchmark.trainings}
    shown = [condition for condition in quality[benchmark.trainings[0]] if condition != UNSEEN]
    names = [f"minitown_{condition}_val_panoptic" for condition in shown]
    metadata, things = MetadataCatalog.get(names[0]), panoptic_classes(names[0]).things
    records = [get_dataset_dicts([name])[SCENE] for name in names]
    images = [np.asarray(read_image(record["file_name"])) for record in records]
    columns: list[list[PanopticSegments]] = [[read_truth(record, things) for record in records]]
    columns += [predict(run, images) for run in runs.values()]
    rows: list[list[Tile]] = []
    for place, (condition, image) in enumerate(zip(shown, images, strict=True)):
        notes = ("", *(f"PQ {quality[method][condition]:.1f}" for method in benchmark.trainings))
        titles = ("ground truth", *(METHODS[method] for method in benchmark.trainings))
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
    """Return the segments that the last checkpoint of a run predicts in images."""
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


if __name__ == "__main__":
    arguments = make_parser().parse_args()
    print(Benchmark(arguments).main("panoptic.py", arguments.report))
