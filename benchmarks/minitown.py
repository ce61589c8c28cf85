"""The miniature town with every control: configs x seeds, and a report with spread, tests and the gap to the oracle.

    python benchmarks/minitown.py [--configs baseline famix ...] [--seeds 1 2 3 4 5] [--ablations] [--report FILE]

The seed of a run is that of its mining, too: the spread over seeds contains that of mining. The noise of config "noise"
moves statistics as far as the styles that config "famix" mined with the same seed. The bank of config "oracle" is
measured first, on labelled images of the tested conditions. What is finished is kept, what was stopped continues.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from machine import describe_machine
from measured_banks import measured_bank
from reporting import make_run_parser, print_report, processors_of
from tabulate import tabulate

from famix.arguments import whole_number
from famix.evaluation import RESULTS_FILE, read_results
from famix.evaluation.significance import format_p, format_spread
from famix.mining.noise_matching import matching_noise_scale
from famix.minitown.conditions import CONDITIONS
from famix.minitown.experiment import CONFIGS, Experiment, condition_of, read_scores, unseen_mean
from famix.minitown.runner import run_experiments
from famix.style import StyleBank
from famix.style.dominant import IGNORE_CLASS

ALL_CONFIGS = ("baseline", "noise", "famix", "famix_web", "famix_weather", "full_finetuning", "oracle")
ABLATIONS: dict[str, tuple[str, ...]] = {  # of config famix
    "no_freeze": ("MODEL.CLIP.TRAINABLE", "['all']"),
    "no_mix": ("MODEL.STYLE.MIX", "False"),
    "every_picture": ("MODEL.STYLE.PROBABILITY", "1.0"),
    "class_agnostic": (),  # its banks are rewritten, see class_agnostic_bank
    "grid_2x2": ("MODEL.STYLE.GRID", "[2, 2]"),
    "grid_3x3": ("MODEL.STYLE.GRID", "[3, 3]"),
}
FROM_MINED_BANKS = ("noise", "class_agnostic")  # they need config famix to be finished
UNSEEN = "unseen"

Scores = dict[str, dict[int, dict[str, float]]]  # config -> seed -> condition -> mIoU in percent


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = make_run_parser(__doc__, "output/minitown", seeds=(1, 2, 3, 4, 5))
    parser.add_argument("--configs", nargs="+", default=list(ALL_CONFIGS), choices=ALL_CONFIGS, help="(default: all)")
    parser.add_argument("--ablations", action="store_true", help=f"also run {', '.join(ABLATIONS)}")
    parser.add_argument("--clip", metavar="WEIGHTS", help="CLIP to start from (default: that of the configs)")
    parser.add_argument(
        "--quick",
        type=partial(whole_number, lowest=1),
        metavar="N",
        help="train N iterations only, to see that everything works",
    )
    return parser


class Benchmark:
    """The runs that a command line asks for.

    Args:
        arguments: see make_parser.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.output: Path = arguments.output
        self.seeds: list[int] = list(dict.fromkeys(arguments.seeds))
        self.runs = [*dict.fromkeys(arguments.configs), *(ABLATIONS if arguments.ablations else ())]
        self.jobs: int = arguments.jobs
        self.noise_scales: dict[int, float] = {}
        self.options = tuple(arguments.opts)
        if arguments.quick is not None:
            self.options += ("SOLVER.MAX_ITER", str(arguments.quick))
        if arguments.clip:
            self.options += ("MODEL.CLIP.WEIGHTS", arguments.clip)

    def run(self) -> None:
        """Make all runs, those first that others take their banks from."""
        oracle = ("MODEL.STYLE.BANK", str(self.measured_bank("oracle"))) if "oracle" in self.runs else ()
        first = [name for name in self.runs if name not in FROM_MINED_BANKS]
        run_experiments(
            [self.experiment(name, seed, oracle if name == "oracle" else ()) for seed in self.seeds for name in first],
            jobs=self.jobs,
        )
        second = [name for name in self.runs if name in FROM_MINED_BANKS]
        run_experiments([self.dependent(name, seed) for seed in self.seeds for name in second], jobs=self.jobs)

    def experiment(self, name: str, seed: int, options: Sequence[str] = ()) -> Experiment:
        """A run of a config or of an ablation of famix."""
        config = CONFIGS / f"{'famix' if name in ABLATIONS else name}.yaml"
        everything = (*self.options, *ABLATIONS.get(name, ()), *options)
        return Experiment(f"{name}/{seed}", config, self.output / name / f"seed{seed}", everything, seed)

    def dependent(self, name: str, seed: int) -> Experiment:
        """A run that takes something from the bank that config famix mined with the same seed."""
        mined = StyleBank.load(self.experiment("famix", seed).output / "style_bank.safetensors")
        if name == "noise":
            own = StyleBank.load(self.measured_bank("source"))
            self.noise_scales[seed] = matching_noise_scale(mined, own)
            return self.experiment(name, seed, ("MODEL.STYLE.NOISE_SCALE", f"{self.noise_scales[seed]:.6f}"))
        path = self.output / "banks" / f"{name}_seed{seed}.safetensors"
        class_agnostic_bank(mined).save(path)
        return self.experiment(name, seed, ("MODEL.STYLE.BANK", str(path)))

    def measured_bank(self, of: str) -> Path:
        """The bank of measured statistics of the tested conditions ("oracle") or of the images trained on ("source").

        It is measured once for the same CLIP and settings.
        """
        config = "oracle" if of == "oracle" else "famix"
        experiment = self.experiment(config, self.seeds[0], ("MODEL.STYLE.BANK", ""))
        cfg = experiment.load_config()
        tested = [name.removesuffix("_val") for name in cfg.DATASETS.TEST if condition_of(name) != CONDITIONS[0]]
        datasets = [f"{name}_train" for name in tested] if of == "oracle" else list(cfg.DATASETS.TRAIN)
        return measured_bank(experiment, datasets, self.output / "banks", of)

    def scores(self) -> Scores:
        """Scores of all runs, the mean of the unseen conditions among them."""
        table: Scores = {}
        for name in self.runs:
            by_seed = {seed: read_scores(self.experiment(name, seed).output) for seed in self.seeds}
            table[name] = {seed: {**scores, UNSEEN: unseen_mean(scores)} for seed, scores in by_seed.items()}
        return table

    def clear_classes(self) -> dict[str, float]:
        """Class -> mean over the seeds of the baseline's IoU by clear day, in percent."""
        values: dict[str, list[float]] = {}
        for seed in self.seeds if "baseline" in self.runs else ():
            results = read_results(self.experiment("baseline", seed).output / RESULTS_FILE)
            for name, tasks in results.items():
                for metric, value in tasks["sem_seg"].items():
                    if condition_of(name) == CONDITIONS[0] and metric.startswith("IoU-") and not math.isnan(value):
                        values.setdefault(metric.removeprefix("IoU-"), []).append(value)
        return {name: fmean(found) for name, found in values.items()}

    def minutes(self, name: str) -> float:
        """Mean time of a run."""
        return fmean(self.experiment(name, seed).seconds() for seed in self.seeds) / 60


def class_agnostic_bank(bank: StyleBank) -> StyleBank:
    """A bank of the same styles from which every class draws any: a class without styles draws those of 255."""
    rewritten = StyleBank(bank.metadata)
    rewritten.add(torch.full_like(bank.class_ids, IGNORE_CLASS), bank.mean, bank.std, bank.annotations)
    return rewritten


def paired_gains(scores: Scores, name: str, reference: str) -> list[float]:
    """Differences in the mean of the unseen conditions, seed by seed, in points."""
    return [scores[name][seed][UNSEEN] - scores[reference][seed][UNSEEN] for seed in scores[name]]


def score_table(benchmark: Benchmark, scores: Scores) -> str:
    """Configs by conditions: mean and spread over the seeds, and the mean time of a run."""
    conditions = list(next(iter(next(iter(scores.values())).values())))
    rows = [
        [name, *(format_spread([s[c] for s in by_seed.values()]) for c in conditions), f"{benchmark.minutes(name):.1f}"]
        for name, by_seed in scores.items()
    ]
    return tabulate(rows, headers=["config", *conditions, "minutes"], tablefmt="github", disable_numparse=True)


def gain_table(scores: Scores) -> str:
    """What every config gains on the unseen conditions over the baseline and over noise, and the gap that it closes."""
    references = [name for name in ("baseline", "noise") if name in scores]
    rows = []
    for name in scores:
        row = [name]
        for reference in references:
            gains = paired_gains(scores, name, reference)
            row += [format_spread(gains, "+"), format_p(gains)] if name != reference else ["", ""]
        rows.append([*row, gap_closed(scores, name)])
    headers = ["config", *(text for name in references for text in (f"over {name}", "p")), "gap closed"]
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def gap_closed(scores: Scores, name: str) -> str:
    """(config - baseline) / (oracle - baseline), of means over the seeds."""
    if not {"baseline", "oracle"} <= scores.keys():
        return ""
    gap = fmean(paired_gains(scores, "oracle", "baseline"))
    return f"{100 * fmean(paired_gains(scores, name, 'baseline')) / gap:.0f} %" if gap > 0 else "no gap"


def class_table(classes: Mapping[str, float]) -> str:
    """IoU of the classes."""
    return tabulate(list(classes.items()), headers=["class", "IoU"], floatfmt=".1f", tablefmt="github")


def write_report(benchmark: Benchmark, command: str) -> str:
    """The report, in Markdown."""
    scores = benchmark.scores()
    clip_hash = benchmark.experiment(benchmark.runs[0], benchmark.seeds[0]).settings()["clip_hash"]
    parts = [
        "# The miniature town",
        f"Printed by `{command}`:",
        f"{describe_machine()}; {benchmark.jobs} runs side by side, a thread each, "
        f"on {processors_of(benchmark.experiment(name, seed) for name in benchmark.runs for seed in benchmark.seeds)}",
        f"Seeds {', '.join(map(str, benchmark.seeds))}; CLIP sha256 {clip_hash}",
        "mIoU in percent, mean ± standard deviation (n - 1) over the seeds; `unseen` is the mean of all conditions but "
        f"{CONDITIONS[0]}.",
        score_table(benchmark, scores),
        "Gains on `unseen` in points, paired by seed, with p of the two-sided paired t-test. Gap closed: gain over the "
        "baseline as a share of the oracle's.",
        gain_table(scores),
    ]
    if benchmark.noise_scales:
        scales = ", ".join(f"{scale:.3f} (seed {seed})" for seed, scale in benchmark.noise_scales.items())
        parts.append(f"MODEL.STYLE.NOISE_SCALE of `noise`, matched to the styles of `famix`: {scales}.")
    if classes := benchmark.clear_classes():
        parts += [f"IoU of the baseline on {CONDITIONS[0]}, mean over the seeds:", class_table(classes)]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Run and print."""
    parser = make_parser()
    arguments = parser.parse_args()
    benchmark = Benchmark(arguments)
    needs_famix = [name for name in benchmark.runs if name in FROM_MINED_BANKS]
    if needs_famix and "famix" not in benchmark.runs:
        parser.error(f"{', '.join(needs_famix)} need the banks of famix: add it to --configs")
    torch.set_num_threads(1)  # measured banks are the same on every number of cores

    def work(command: str) -> str:
        benchmark.run()
        return write_report(benchmark, command)

    print_report("minitown.py", work, arguments.report)


if __name__ == "__main__":
    main()
