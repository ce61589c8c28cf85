"""Parts of the benchmarks that do not import PyTorch: command lines, project paths, and methods of studies."""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path

from famix_cli import whole_number

PROJECT = Path(__file__).parents[2] / "projects/FAMix"
POSITIVE = partial(whole_number, lowest=1)


def benchmark_parser(description: str | None, device: bool = False) -> argparse.ArgumentParser:
    """Create a parser with the docstring of a script as its description. `device` adds --device."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if device:
        parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    return parser


def study_parser(
    description: str | None, output: str, records: str, seeds: Sequence[int] = (1, 2, 3)
) -> argparse.ArgumentParser:
    """Create a parser for the arguments of `studies.recorded.RecordedStudy`.

    Args:
        description: docstring of the script.
        output: default folder for the runs.
        records: folders of the records below benchmarks/results/runs, for the help.
        seeds: default seeds.
    """
    parser = benchmark_parser(description)
    defaults = " ".join(map(str, seeds))
    parser.add_argument(
        "--seeds", nargs="+", type=whole_number, default=list(seeds), help=f"seeds (default: {defaults})"
    )
    parser.add_argument(
        "--jobs", type=POSITIVE, default=2, help="number of parallel runs, one thread each (default: 2)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path(output), metavar="DIR", help=f"folder for the runs (default: {output})"
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="also write the report to this file")
    parser.add_argument("--quick", type=POSITIVE, metavar="N", help="train for only N iterations, to test the setup")
    parser.add_argument(
        "--records", type=Path, metavar="DIR", help="folder for records of finished runs (default: "
        f"benchmarks/results/runs/{records}, or OUTPUT/records with options that change settings)",
    )  # fmt: skip
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--recorded", action="store_true", help="print the recorded runs without running anything")
    which.add_argument("--rerun", action="store_true", help="repeat recorded runs and replace their records")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings that override the configs, after --")
    return parser


def measure(call: Callable[[], object]) -> dict[str, float]:
    """Return the processor time of a call in seconds, and the peak memory of this process during the call in GiB."""
    Path("/proc/self/clear_refs").write_text("5")  # restarts the peak
    start = time.process_time()
    call()
    return {"seconds": time.process_time() - start, "peak": memory_of_process("VmHWM")}


def memory_of_process(kind: str) -> float:
    """Return the peak ("VmHWM") or current memory ("VmRSS") of this process in GiB."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[kind].split()[0]) / 2**20


class Needs(Enum):
    """Input that a method needs from other runs or labeled images. The value starts with the affected setting."""

    NOTHING = ""
    NOISE_SCALE = "MODEL.STYLE.NOISE_SCALE"  # matched to the styles mined with the same seed
    AGNOSTIC_BANK = "bank, class-agnostic"  # bank mined with the same seed, without classes
    RANDOM_WORDS = "STYLE_MINING.STYLES"  # as many of the vocabulary as the config has, drawn with the seed
    MEASURED_BANK = "bank, measured"  # measured on labeled images of the tested conditions


@dataclass(frozen=True)
class Method:
    """Method in a study: a config below PROJECT/configs and KEY VALUE pairs that override it."""

    config: str
    options: tuple[str, ...] = ()
    same_without: str | None = None  # name of the same method without styles
    needs: Needs = Needs.NOTHING

    @property
    def derived(self) -> tuple[str, ...]:
        """Settings that depend on other runs or on images (see `famix_minitown.runs.experiment.same_settings`)."""
        return () if self.needs is Needs.NOTHING else (self.needs.value.split(",")[0],)

    @property
    def needs_mined_bank(self) -> bool:
        """Whether the mining run with the same seed must finish first."""
        return self.needs in (Needs.NOISE_SCALE, Needs.AGNOSTIC_BANK)
