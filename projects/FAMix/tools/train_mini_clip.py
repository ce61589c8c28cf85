"""Train a small CLIP on street scenes in many looks. The default source, the miniature town, requires no files."""

# ruff: noqa: E402, the parser precedes slow imports

import argparse
import json
import logging
import math
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from famix_cli import whole_number

FAMILIES = ("resnet", "convnext", "vit")
CROPS_PER_SCENE = 20
MEGABYTES_PER_SCENE = 0.24608
DTYPES = ("float32", "bfloat16")
DEFAULTS = {
    "seed": 0, "steps": 3000, "batch": 128, "width": 16, "style_noise": 0.1, "learning_rate": 1e-3, "warmup": 100
}  # fmt: skip
SCENES = 4000
MOST_SCENES = 100_000  # the next seeds are used for validation
MOST = 10**9  # limit for all other numbers
MOST_SEED = 2**32 - 1
MOST_PROCESSORS, MOST_CHANNELS = 1024, 1024


def make_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Example: train_mini_clip.py --output clip_0.safetensors --crops-cache crops.npy"
    )
    count, processors = partial(whole_number, highest=MOST), partial(whole_number, lowest=1, highest=MOST_PROCESSORS)
    add = parser.add_argument
    add("--output", required=True, type=file, metavar="FILE", help="compact .safetensors file to write")
    add("--family", default=FAMILIES[0], choices=FAMILIES, help=f"family of the image tower (default: {FAMILIES[0]})")
    kinds: dict[str, tuple[Any, str, str]] = {
        "seed": (partial(whole_number, highest=MOST_SEED), "N", "seed of weights, batches and captions"),
        "steps": (count, "N", "updates"),
        "batch": (partial(count, lowest=2), "N", "crops per update, at least 2"),
        "width": (stem_width, "N", "number of channels of the ResNet's stem, must be even"),
        "style_noise": (real_number, "S", "relative noise of the channel statistics after the first stage"),
        "learning_rate": (partial(real_number, positive=True), "LR", "highest"),
        "warmup": (count, "N", "updates until the learning rate reaches its maximum; 0 disables warm-up"),
    }
    for name, (kind, metavar, text) in kinds.items():  # the defaults are those of TrainingPlan
        flag, default = f"--{name.replace('_', '-')}", DEFAULTS[name]
        add(flag, default=default, type=kind, metavar=metavar, help=f"{text} (default: {default})")
    add(
        "--dtype",
        default=DTYPES[0],
        choices=DTYPES,
        help=f"dtype of matrix products in the towers (default: {DTYPES[0]})",
    )
    add("--initial", metavar="FILE", help="CLIP trained by this command to start from (default: none)")
    add("--device", default="cpu", help="torch device, e.g. cuda; may change when a run resumes (default: cpu)")
    add("--threads", type=processors, metavar="N", help="number of PyTorch threads (default: PyTorch's choice)")
    add("--log", type=file, metavar="FILE", help="also write the log to this file")
    add = parser.add_argument_group("data").add_argument
    add(
        "--scenes", default=SCENES, type=partial(whole_number, lowest=1, highest=MOST_SCENES), metavar="N",
        help=f"number of town scenes, {CROPS_PER_SCENE} crops each (default: {SCENES})",
    )  # fmt: skip
    add("--dataset", metavar="NAME", help="registered dataset to use instead, such as camvid_train_day")
    add(
        "--definition",
        action="append",
        default=[],
        metavar="YAML",
        help="definition file, if the dataset is not built in",
    )
    add(
        "--crops-cache", type=file, metavar="FILE", help=".npy file for the crops, created if missing and kept: "
        f"{MEGABYTES_PER_SCENE:.2f} MB per scene, {SCENES * MEGABYTES_PER_SCENE / 1000:.1f} GB for {SCENES} scenes, plus "
        "a tenth of that for validation in the same folder (default: next to the output)",
    )  # fmt: skip
    add("--workers", default=2, type=processors, metavar="N", help="number of processes that make crops (default: 2)")
    return parser


def stem_width(text: str) -> int:
    """Parse the number of channels of CLIP's stem."""
    width = whole_number(text, 2, MOST_CHANNELS)
    if width % 2:
        raise argparse.ArgumentTypeError(f"must be even, got {text!r}")
    return width


def real_number(text: str, positive: bool = False) -> float:
    """Parse a finite number that is non-negative or, if `positive`, positive."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < 0 or (positive and number == 0):
        kind = "positive" if positive else "non-negative"
        raise argparse.ArgumentTypeError(f"must be a finite {kind} number, got {text!r}")
    return number


def file(text: str) -> Path:
    """Parse the path of a file, which may not exist."""
    if not text or Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"must be a file, got the folder {text!r}")
    return Path(text)


if __name__ == "__main__":
    make_parser().parse_args()  # answers --help and usage errors before the slow imports

import torch
from torch import Tensor

from famix.clip import OPENAI_TEXT, clip_weights_hash, load_clip_state_dict
from famix.clip.export import rounded, save_compact
from famix.engine.console import raise_log_errors
from famix.io.atomic import require_writable, whole_file
from famix.utils.errors import ConfigError, FAMixError
from famix_cli.programs import register_definitions, run_program
from famix_minitown.clip.compact_clip import require_same_sizes, usable_device, zero_shot_accuracy
from famix_minitown.clip.contrastive import TrainingPlan, train_clip
from famix_minitown.clip.crops import (
    CropPlan,
    CropSource,
    DatasetSource,
    TownSource,
    describe_crops,
    load_or_make_crops,
)
from famix_minitown.datasets import CLIP_ARCHITECTURES, CLIP_TRAIN_FIRST_SEED, CLIP_VAL_FIRST_SEED

logger = logging.getLogger("train_mini_clip")

INTERRUPTED, TERMINATED = 130, 143  # exit statuses
VALIDATION_SHARE = 10  # every tenth scene is used for validation
TRAIN_CROPS = CropPlan(seed=1)  # shared by CLIPs of all seeds
VALIDATION_CROPS = CropPlan(seed=2, single_looks=True)


class Terminated(KeyboardInterrupt):
    """Raised on SIGTERM, which stops the command like Ctrl-C."""


def sources_of(arguments: argparse.Namespace) -> tuple[CropSource, CropSource]:
    """Return the scenes for training and validation."""
    if arguments.dataset is not None:
        register_definitions(arguments.definition, [arguments.dataset])
        return DatasetSource.registered(arguments.dataset).split(VALIDATION_SHARE)
    validation = max(arguments.scenes // VALIDATION_SHARE, 10)
    return TownSource(CLIP_TRAIN_FIRST_SEED, arguments.scenes), TownSource(CLIP_VAL_FIRST_SEED, validation)


def run(arguments: argparse.Namespace) -> None:
    """Make or open the crops, train, validate and write the file."""
    # Report invalid arguments before making the crops, which takes minutes.
    plan = TrainingPlan(**{name: getattr(arguments, name) for name in (*DEFAULTS, "dtype", "family")})
    device, initial = usable_device(arguments.device), _load_initial(arguments)
    (source, held_out), output = sources_of(arguments), arguments.output
    cache = arguments.crops_cache or output.with_name(f"{output.name}.crops.npy")
    for folder in {output.parent, cache.parent}:
        require_writable(folder)
    crops = load_or_make_crops(source, TRAIN_CROPS, cache, arguments.workers)
    held_out_file = cache.with_name(f"{cache.stem}.validation.npy")
    validation = load_or_make_crops(held_out, VALIDATION_CROPS, held_out_file, arguments.workers)
    checkpoint = output.with_name(f"{output.name}.checkpoint.pt")
    made_of = describe_crops(source, TRAIN_CROPS)
    model = train_clip(crops, source.class_names, plan, checkpoint, initial, made_of, device)
    model.load_full_state_dict(rounded(model.full_state_dict()))  # measure the accuracy of the file
    accuracy = zero_shot_accuracy(model, validation, source.class_names)
    made_by = {**vars(plan), "source": source.identity, "initial": clip_weights_hash(initial) if initial else ""}
    report = {"made_by": made_by, "zero_shot": accuracy}
    metadata = {name: json.dumps(value) for name, value in report.items()}
    save_compact(model.full_state_dict(), output, model.token_ids, metadata)
    with whole_file(output.with_suffix(".json")) as part:
        part.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    numbers = ", ".join(f"{name} {100 * share:.1f} %" for name, share in accuracy.items() if isinstance(share, float))
    logger.info(f"Wrote {output}, {output.stat().st_size / 1e6:.1f} MB. Zero-shot: {numbers}")
    checkpoint.unlink(missing_ok=True)


def _load_initial(arguments: argparse.Namespace) -> Mapping[str, Tensor] | None:
    if not arguments.initial:
        return None
    initial = load_clip_state_dict(arguments.initial, CLIP_ARCHITECTURES[arguments.family])
    if initial.text_design.or_else(OPENAI_TEXT) != OPENAI_TEXT:
        raise ConfigError(
            f"--initial must be a CLIP with {OPENAI_TEXT}, got {arguments.initial} with {initial.text_design}. "
            "Start from a CLIP that train_mini_clip.py has trained."
        )
    try:
        if arguments.family == FAMILIES[0]:
            require_same_sizes(initial, arguments.width)
    except FAMixError as error:
        raise ConfigError(f"--initial {arguments.initial}, --width {arguments.width}: {error}") from error
    return initial


@contextmanager
def _log_to(path: Path | None) -> Iterator[None]:
    """Also write the log to a file while the context is open."""
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(logging.FileHandler(path, encoding="utf-8")) as handler:
        raise_log_errors([handler])
        logging.getLogger().addHandler(handler)
        try:
            yield
        finally:
            logging.getLogger().removeHandler(handler)


def run_with_log(arguments: argparse.Namespace) -> None:
    """Run the training with a copy of the log in a file, if --log names one."""
    with _log_to(arguments.log):
        run(arguments)


def terminate(number: int, frame: object) -> NoReturn:
    """Stop in an orderly way, so that no process outlives this one."""
    raise Terminated


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line. User errors exit with status 2, interruptions with 130 or 143, after one line."""
    arguments = make_parser().parse_args(argv)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    try:
        if status := run_program(run_with_log, arguments):
            sys.exit(status)
    except KeyboardInterrupt as stop:
        print("stopped; run the same command again to resume", file=sys.stderr)
        sys.exit(TERMINATED if isinstance(stop, Terminated) else INTERRUPTED)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    signal.signal(signal.SIGTERM, terminate)
    main()
