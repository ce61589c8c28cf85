"""The demo in the miniature town: images, styles, four networks, scores and a page: famix-town."""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from famix.data import get_dataset_dicts, register_datasets
from famix.utils.paths import expand_arguments
from famix.utils.plugins import load_plugins
from famix_cli.town import PROMPTS
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
    styled, both = PROMPTS[arguments.prompts]
    configs = {BASELINE: "baseline", JITTER: "jitter", FAMIX: styled, BOTH: both}
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


def execute(arguments: argparse.Namespace) -> None:
    """Run the program. Errors and interruptions print one line and set the exit status."""
    with one_line_errors():
        load_plugins()
        show(plan(expand_arguments(arguments), arguments.command))
