"""Panoptic heads in the miniature town: training on clear days with and without styles, evaluation in all weather.

    python benchmarks/panoptic.py [--heads deeplab fpn] [--seeds 1 2 3] [--report FILE] [--picture FILE]

All methods train the same network for the same number of iterations with the same seeds. Their styles and color jitter
are those of the semantic configs with the same names: the words of famix do not resemble the tested weather, those of
famix_weather name it. Finished runs are kept, and interrupted runs are resumed.
"""

# ruff: noqa: E402, the parser precedes slow imports

import argparse
from pathlib import Path
from statistics import fmean

from parts.common import Method, study_parser

HEADS = {"deeplab": "Panoptic-DeepLab", "fpn": "Panoptic FPN", "maskformer": "query head"}
SOURCE_ONLY, JITTER = "source_only", "jitter"
METHODS = {
    SOURCE_ONLY: "source only",
    "famix": "FAMix, unrelated words",
    "famix_weather": "FAMix, weather words",
    JITTER: "jitter",
    "famix_jitter": "FAMix, unrelated words + jitter",
    "famix_weather_jitter": "FAMix, weather words + jitter",
}
DEFAULT = [SOURCE_ONLY, "famix_weather", JITTER, "famix_weather_jitter"]


def make_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = study_parser(__doc__, "output/panoptic", "panoptic")
    parser.add_argument("--heads", nargs="+", default=["deeplab"], choices=HEADS, help="(default: deeplab)")
    parser.add_argument(
        "--methods", nargs="+", default=DEFAULT, choices=METHODS, help=f"(default: {' '.join(DEFAULT)})"
    )  # fmt: skip
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the predictions of the first head and seed")
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # answers --help and usage errors before the slow imports

import numpy as np
from detectron2.data import MetadataCatalog
from studies.recorded import RecordedStudy, describe_classes, describe_records

from famix.data import get_dataset_dicts, read_image
from famix.data.classes import panoptic_classes
from famix.engine import load_config
from famix.evaluation.counting.scored_classes import classes_of_dataset
from famix.evaluation.panoptic import read_truth
from famix.inference import Predictor
from famix.io.atomic import require_writable_file
from famix.reports.report import PANOPTIC_METRICS, TASK
from famix.reports.tables import format_p, format_spread
from famix.visualization.figure import Tile, compose_figure, save_figure
from famix.visualization.overlay import overlay_segments
from famix_minitown.rendering.conditions import CONDITIONS
from famix_minitown.runs.experiment import CONFIGS
from famix_minitown.runs.report import SCENE
from famix_minitown.runs.study import markdown

SCORES = {**PANOPTIC_METRICS, "mIoU": (TASK, "mIoU")}
UNSEEN = "unseen"
WIDTH, OPACITY = 300, 0.62  # image width in pixels, and opacity of the segments

Scores = dict[int, dict[str, float]]  # seed -> condition -> percent


class Benchmark(RecordedStudy):
    """Study of heads and methods over several seeds. Its methods are named `<head>_<training>`."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.trainings, self.heads = (list(dict.fromkeys(names)) for names in (arguments.methods, arguments.heads))
        options = {name: training_options(name) for name in self.trainings}
        self.pairs_of = {f"{head}_{name}": (head, name) for head in self.heads for name in self.trainings}
        methods = {
            title: Method(f"minitown/famix_panoptic_{head}.yaml", options[name])
            for title, (head, name) in self.pairs_of.items()
        }
        super().__init__(arguments, methods, "panoptic")
        self.picture: Path | None = arguments.picture

    def run(self) -> None:
        """Run all experiments and, if requested, draw the figure."""
        if self.picture is not None:
            require_writable_file(self.picture)
        super().run()
        if self.picture is not None:
            self.make([(f"{self.heads[0]}_{name}", self.seeds[0]) for name in self.trainings])
            draw(self, self.picture)

    def title(self, name: str) -> list[str]:
        """Return the titles of a method's head and training."""
        head, training = self.pairs_of[name]
        return [HEADS[head], METHODS[training]]

    def scores(self, name: str, score: str) -> Scores:
        """Return a method's score by seed and condition, including the mean over the unseen conditions."""
        (_, metric), found = SCORES[score], {}
        for seed, record in self.records[name].items():
            values = {condition: scores[metric] for condition, scores in record.scores.items()}
            unseen = fmean(value for condition, value in values.items() if condition != CONDITIONS[0])
            found[seed] = {**values, UNSEEN: unseen}
        return found

    def report(self, command: str) -> str:
        """See Study."""
        parts = [
            "# Panoptic heads in the miniature town",
            f"Printed by `{command}`:",
            describe_records(self.records),
            f"PQ in percent, mean ± standard deviation (n - 1) over the seeds; `{CONDITIONS[0]}` is the source, and `{UNSEEN}` is the mean over all other conditions.",
            quality_table(self),
            *gain_lines(self),
            f"mIoU: {describe_classes(self.records)}.",
            f"All scores on `{CONDITIONS[0]}` and `{UNSEEN}`:",
            detail_table(self),
        ]
        return "\n\n".join(parts) + "\n"


def training_options(name: str) -> tuple[str, ...]:
    """Return the styles and the color jitter of the semantic config for one of METHODS as KEY VALUE pairs."""
    cfg = load_config(str(CONFIGS / f"{'baseline' if name == SOURCE_ONLY else name}.yaml"))
    style, pixels = cfg.MODEL.STYLE, cfg.INPUT
    chosen = {
        "MODEL.STYLE.STRATEGY": style.STRATEGY,
        "MODEL.STYLE.PROBABILITY": style.PROBABILITY,
        "INPUT.COLOR_JITTER": list(pixels.COLOR_JITTER),
        "INPUT.COLOR_JITTER_PROBABILITY": pixels.COLOR_JITTER_PROBABILITY,
    }
    if style.STRATEGY != "none":
        chosen["STYLE_MINING.STYLES"] = list(cfg.STYLE_MINING.STYLES)
    return tuple(str(part) for pair in chosen.items() for part in pair)


def quality_table(benchmark: Benchmark) -> str:
    """Return a table with the mean and spread of PQ over the seeds for each condition."""
    rows = []
    for name in benchmark.records:
        by_seed = benchmark.scores(name, "PQ")
        conditions = list(next(iter(by_seed.values())))
        cells = [format_spread([scores[condition] for scores in by_seed.values()]) for condition in conditions]
        rows.append([*benchmark.title(name), *cells])
    return markdown(["head", "method", *conditions], rows)


def detail_table(benchmark: Benchmark) -> str:
    """Return a table of all scores on clear days and averaged over the unseen conditions."""
    columns = [(name, where) for name in benchmark.records for where in (CONDITIONS[0], UNSEEN)]
    rows = [
        [score, *(format_spread([seed[where] for seed in benchmark.scores(name, score).values()]) for name, where in columns)]
        for score in SCORES
    ]  # fmt: skip
    return markdown(["", *(", ".join([*benchmark.title(name), where]) for name, where in columns)], rows)


def gain_lines(benchmark: Benchmark) -> list[str]:
    """Return a sentence for each method with its gain in PQ in the unseen conditions and on the source, paired by seed.

    The reference is the same training without styles; that of jitter is the training without jitter.
    """
    lines = []
    for name, (head, training) in benchmark.pairs_of.items():
        reference = JITTER if training.endswith(f"_{JITTER}") else SOURCE_ONLY
        if training == SOURCE_ONLY or not {name, f"{head}_{reference}"} <= benchmark.records.keys():
            continue
        own, other = benchmark.scores(name, "PQ"), benchmark.scores(f"{head}_{reference}", "PQ")
        gains, source = (
            [own[seed][where] - other[seed][where] for seed in own if seed in other]
            for where in (UNSEEN, CONDITIONS[0])
        )
        p = format_p(gains)
        certainty = "" if p == "-" else f" (paired t-test over the seeds: p = {p})"
        gain = f"{format_spread(gains, '+')} points of PQ on `{UNSEEN}` vs. {METHODS[reference]}{certainty}"
        cost = f"{format_spread(source, '+')} on `{CONDITIONS[0]}`"
        lines.append(f"{', '.join(benchmark.title(name))}: {gain}, {cost}.")
    return lines


def draw(benchmark: Benchmark, path: Path) -> None:
    """Draw a scene in all conditions with its ground truth and the first head's predictions for each method."""
    seed, columns = benchmark.seeds[0], {}
    for training in benchmark.trainings:
        name = f"{benchmark.heads[0]}_{training}"
        checkpoint = benchmark.experiment(name, seed).output / "model_final.pth"
        quality = benchmark.scores(name, "PQ")[seed]
        columns[METHODS[training]] = Predictor.from_checkpoint(checkpoint, device="cpu"), quality
    rows: list[list[Tile]] = []
    visible: set[int] = set()
    shown = [condition for condition in quality if condition != UNSEEN]
    for condition in shown:
        dataset = f"minitown_{condition}_val_panoptic"
        things, colors = panoptic_classes(dataset).things, MetadataCatalog.get(dataset).stuff_colors
        record = get_dataset_dicts([dataset])[SCENE]
        image, truth = np.asarray(read_image(record["file_name"])), read_truth(record, classes_of_dataset(dataset))
        class_ids = [segment["category_id"] for segment in truth.segments]
        overlay = overlay_segments(image, truth.numbers, class_ids, things, colors, OPACITY)
        titles = [""] * (2 + len(columns)) if rows else ["image", "ground truth", *columns]
        tiles = [Tile(image, titles[0]), Tile(overlay, titles[1])]
        for title, (predictor, quality) in zip(titles[2:], columns.values(), strict=True):
            prediction = predictor(image, keep_scores=False)
            visible.update(class_ids, prediction.visible_classes())
            tiles.append(
                Tile(prediction.overlay(image, OPACITY), title, note=f"PQ {quality[condition]:.1f}", bold=True)
            )
        rows.append(tiles)
    height, width = image.shape[:2]
    names = MetadataCatalog.get(dataset).stuff_classes
    legend = [(names[class_id], tuple(colors[class_id])) for class_id in sorted(visible)]
    cell = WIDTH, round(WIDTH * height / width)
    save_figure(compose_figure(rows, cell, row_labels=shown, legend=legend, font_size=14), path)


if __name__ == "__main__":
    Benchmark(make_parser().parse_args()).main()
