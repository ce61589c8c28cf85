#!/usr/bin/env python
"""Run FAMix in a miniature town: render images, mine styles, train on clear days, and evaluate in all weather."""

# ruff: noqa: E402, the parser precedes slow imports

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from famix_arguments import whole_number

PROMPTS = {"weather": "famix_weather", "web": "famix_web", "strict": "famix"}  # choice -> config


def make_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    description = "The same command resumes interrupted runs. Finished runs are kept."
    parser = argparse.ArgumentParser(description=__doc__, epilog=description)
    output, positive = Path("output/demo"), partial(whole_number, lowest=1)
    parser.add_argument("--output", type=Path, default=output, metavar="DIR", help=f"output folder (default: {output})")
    parser.add_argument("--seed", type=whole_number, default=1, help="seed of mining and training (default: 1)")
    parser.add_argument("--quick", type=positive, metavar="N", help="train for only N iterations, to test the setup")
    parser.add_argument("--clip", metavar="WEIGHTS", help="CLIP to start from (default: the CLIP in the configs)")
    parser.add_argument(
        "--prompts",
        choices=PROMPTS,
        default="weather",
        help="style words: tested weather (weather, the default), looks of images on the web (web), or only looks that "
        "do not resemble the tested weather (strict)",
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings that override the configs, after --")
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # answers --help and usage errors before the slow imports

from tabulate import tabulate

from famix.data import get_dataset_dicts, register_datasets
from famix.utils.paths import expand_arguments
from famix.utils.plugins import load_plugins
from famix_minitown.runs.experiment import CONFIGS, Experiment, read_occurring, read_scores
from famix_minitown.runs.report import Results, draw_runs, score_table, write_page
from famix_minitown.runs.runner import run_experiments
from famix_minitown.runs.study import describe_machine, one_line_errors

BASELINE, JITTER, FAMIX, BOTH = "baseline", "+ jitter", "+ FAMix", "+ FAMix + jitter"


@dataclass(frozen=True)
class Demo:
    """Plan of a demo: its folder, the training runs, and the command line that repeats it."""

    output: Path
    runs: tuple[Experiment, ...]
    command: str


def plan(arguments: argparse.Namespace, command: str) -> Demo:
    """Plan the runs with and without jitter and with and without styles."""
    options = list(arguments.opts)
    if arguments.quick is not None:
        options += ["SOLVER.MAX_ITER", str(arguments.quick)]
    if arguments.clip:
        options += ["MODEL.CLIP.WEIGHTS", arguments.clip]
    styled = PROMPTS[arguments.prompts]
    configs = {BASELINE: "baseline", JITTER: "jitter", FAMIX: styled, BOTH: f"{styled}_jitter"}
    runs = tuple(
        Experiment(title, CONFIGS / f"{name}.yaml", arguments.output / name, tuple(options), arguments.seed)
        for title, name in configs.items()
    )
    return Demo(arguments.output, runs, command)


def show(demo: Demo) -> None:
    """Run the demo, step by step.

    Raises:
        FAMixError: an argument is invalid, or an experiment failed.
    """
    start = time.perf_counter()
    say("\n1/4 images of the town")  # rendered before two processes need them
    cfg = demo.runs[0].load_config()
    register_datasets(cfg.DATASETS.FILES)
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        say(f"{len(get_dataset_dicts([name])):4d}  {name}")
    say("\n2/4 mining styles and training four networks, two in parallel on one processor core each")
    run_experiments(demo.runs)
    say("\n3/4 scores")
    scores = [read_scores(run.output) for run in demo.runs]
    results = Results([run.name for run in demo.runs], scores, (BASELINE, JITTER), facts(demo))
    heads, rows = score_table(results)
    stacked = [head.replace("vs. ", "vs.\n").replace("unseen ", "unseen\n") for head in heads]
    alignment = ("left", *["right"] * (len(heads) - 1))
    say(tabulate(rows, headers=stacked, disable_numparse=True, colalign=alignment))
    say(results.facts["classes"])
    say("\n4/4 figure and page")
    figure, page = demo.output / "story.png", demo.output / "story.html"
    draw_runs([run.output for run in demo.runs], results.titles, figure)
    write_page(results, figure, page)
    say(f"figure  {figure}\npage    {page}\ntime    {duration(time.perf_counter() - start)}")


def facts(demo: Demo) -> dict[str, str]:
    """Return the facts shown below the figure."""
    spent = ", ".join(f"{run.name} {duration(run.seconds())}" for run in demo.runs)
    cfg = demo.runs[-1].load_config()
    return {
        "classes": f"{read_occurring(demo.runs[0].output)}; mIoU is the mean over these",
        "words": ", ".join(cfg.STYLE_MINING.STYLES),
        "jitter": f"brightness, contrast and saturation change by up to {max(cfg.INPUT.COLOR_JITTER):.0%} in "
        f"{cfg.INPUT.COLOR_JITTER_PROBABILITY:.0%} of the training images",
        "time": f"{spent}, including mining and scoring, two runs in parallel",
        "machine": describe_machine(),
        "seed": str(demo.runs[0].seed),
        "CLIP": f"sha256 {demo.runs[0].settings()['clip_hash']}",
        "command": demo.command,
    }


def duration(seconds: float) -> str:
    """Format a duration in minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def say(text: str) -> None:
    """Print and flush, so the text stays in order with the progress on standard error, even in a pipe."""
    print(text, flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line. Errors and interruptions print one line and set the exit status."""
    arguments = make_parser().parse_args(argv)
    words = sys.argv[1:] if argv is None else list(argv)
    with one_line_errors():
        load_plugins()
        show(plan(expand_arguments(arguments), shlex.join(["python", "projects/FAMix/tools/minitown_demo.py", *words])))


if __name__ == "__main__":
    main()
