"""Studies, which run several methods with several seeds and print a report.

Each run has its own folder. Banks and noise scales that methods need are created automatically. Finished runs are kept,
and interrupted runs are resumed.
"""

import argparse
import hashlib
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from parts.common import PROJECT, Method, Needs

from famix.data import register_datasets
from famix.io.atomic import require_writable_file, whole_file
from famix.mining import matching_noise_scale
from famix.mining.measured import measure_bank
from famix.mining.words import read_phrases
from famix.style import StyleBank
from famix.style.dominant import IGNORE_CLASS
from famix_minitown.rendering.conditions import CONDITIONS
from famix_minitown.runs.experiment import Experiment, condition_of
from famix_minitown.runs.runner import run_experiments
from famix_minitown.runs.study import one_line_errors

Run = tuple[str, int]  # method, seed

VOCABULARY = PROJECT / "configs/vocabularies/minitown.txt"
NAMES_OF_CONDITIONS = ("hazy",)  # in the vocabulary


class Study:
    """Base class for studies of several methods and seeds. Subclasses implement `report`.

    Args:
        arguments: arguments of `parts.common.study_parser`.
        methods: methods by name.
        mined: name and method of the runs that mine banks for other methods.
        options: KEY VALUE pairs for all methods, which methods can override.

    Attributes:
        output: folder of the runs.
        seeds: distinct seeds.
        options: KEY VALUE pairs that override the settings of every method.
    """

    def __init__(
        self,
        arguments: argparse.Namespace,
        methods: dict[str, Method],
        mined: tuple[str, Method] | None = None,
        options: tuple[str, ...] = (),
    ) -> None:
        self.output: Path = arguments.output
        self.seeds: list[int] = list(dict.fromkeys(arguments.seeds))
        self.jobs: int = arguments.jobs
        self.file: Path | None = arguments.report
        self.methods = methods
        self.options: tuple[str, ...] = tuple(arguments.opts)
        if arguments.quick is not None:
            self.options += ("SOLVER.MAX_ITER", str(arguments.quick))
        self._common, self._mined = options, mined or ("", Method(""))

    def experiment(self, method: str, seed: int, options: Sequence[str] = ()) -> Experiment:
        """Return the experiment for a method and a seed. `options` are applied after the method's options."""
        chosen = self.methods[method] if method in self.methods else dict([self._mined])[method]
        folder = self.output / method.replace(" ", "_") / f"seed{seed}"
        settings = (*self._common, *chosen.options, *options, *self.options)
        return Experiment(f"{method}/{seed}", PROJECT / "configs" / chosen.config, folder, settings, seed)

    def pairs(self) -> list[Run]:
        """Return all runs, ordered by seed."""
        return [(name, seed) for seed in self.seeds for name in self.methods]

    def run(self) -> None:
        """Run all experiments."""
        self.make(self.pairs())

    def make(self, runs: Sequence[Run], keep: Callable[[Run, Experiment], None] = lambda run, made: None) -> None:
        """Run experiments on one thread each, starting with those that mine banks. `keep` is called after each run."""
        second = [run for run in runs if self.methods[run[0]].needs_mined_bank]
        mined = [(self._mined[0], seed) for _, seed in second]
        for group in (dict.fromkeys([*mined, *(run for run in runs if run not in second)]), second):
            experiments = {self.prepared(*run): run for run in group}
            finish = partial(lambda names, made: keep(names[made], made), experiments)
            run_experiments(list(experiments), jobs=self.jobs, on_finish=finish)

    def prepared(self, method: str, seed: int) -> Experiment:
        """Return a run after creating the bank or noise scale that it needs."""
        needs = self.methods[method].needs if method in self.methods else Needs.NOTHING
        options: tuple[str, ...] = ()
        if needs is Needs.NOISE_SCALE:
            scale = matching_noise_scale(self.mined_bank(seed), StyleBank.load(self.source_bank()))
            options = (needs.value, f"{scale:.6f}")
        elif needs is Needs.AGNOSTIC_BANK:
            path = self.output / "banks" / f"{method}_seed{seed}.safetensors"
            class_agnostic_bank(self.mined_bank(seed)).save(path)
            options = ("MODEL.STYLE.BANK", str(path))
        elif needs is Needs.RANDOM_WORDS:
            count = len(self.experiment(method, seed).load_config().STYLE_MINING.STYLES)
            options = (needs.value, str(random_words(count, seed)))
        elif needs is Needs.MEASURED_BANK:
            options = ("MODEL.STYLE.BANK", str(self.target_bank(method)))
        return self.experiment(method, seed, options)

    def mined_bank(self, seed: int) -> StyleBank:
        """Load the bank from the finished mining run with a seed."""
        return StyleBank.load(self.experiment(self._mined[0], seed).output / "style_bank.safetensors")

    def source_bank(self) -> Path:
        """Measure a bank on the training images."""
        first = self.experiment(self._mined[0], self.seeds[0])
        return self._measured_bank(first, list(first.load_config().DATASETS.TRAIN), "source")

    def target_bank(self, method: str) -> Path:
        """Measure a bank on the training images of the tested conditions other than the source."""
        first = self.experiment(method, self.seeds[0], ("MODEL.STYLE.BANK", ""))
        tested = [name.removesuffix("_val") for name in first.load_config().DATASETS.TEST if name.endswith("_val")]
        unseen = [f"{name}_train" for name in tested if condition_of(name) != CONDITIONS[0]]
        return self._measured_bank(first, unseen, method)

    def _measured_bank(self, experiment: Experiment, datasets: Sequence[str], name: str) -> Path:
        """Measure a bank on labeled images, only once for the same CLIP, settings and images."""
        key = hashlib.sha256(json.dumps([experiment.settings(), list(datasets)], sort_keys=True).encode()).hexdigest()
        path = self.output / "banks" / f"{name}_{key[:12]}.safetensors"
        if not path.exists():
            cfg = experiment.load_config()
            register_datasets(cfg.DATASETS.FILES)
            measure_bank(cfg, list(datasets)).save(path)
        return path

    def report(self, command: str) -> str:
        """Return the report in Markdown. `command` is the command line that prints it."""
        raise NotImplementedError

    def main(self) -> None:
        """Run the experiments, then print and write the report. Errors and interruptions are reported in one line."""
        torch.set_num_threads(1)  # makes measured banks independent of the number of cores
        with one_line_errors():
            if self.file is not None:
                require_writable_file(self.file)
            self.run()
            report = self.report(shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]))
            if self.file is not None:
                with whole_file(self.file) as part:
                    part.write_text(report)
        print(report)


def random_words(count: int, seed: int) -> list[str]:
    """Draw style words from the town's vocabulary, without those that name a condition."""
    phrases = read_phrases(VOCABULARY, NAMES_OF_CONDITIONS)
    return [phrases[i] for i in np.random.default_rng(seed).choice(len(phrases), count, replace=False)]


def class_agnostic_bank(bank: StyleBank) -> StyleBank:
    """Return a bank with the same styles, all of class 255, which is the fallback for classes without styles."""
    rewritten = StyleBank(bank.metadata)
    rewritten.add(torch.full_like(bank.class_ids, IGNORE_CLASS), bank.mean, bank.std, bank.annotations)
    return rewritten
