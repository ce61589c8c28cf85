"""Train a small CLIP on street scenes in many looks, on a CPU: by default on the town, which needs no files."""

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from famix.data import register_datasets
from famix.errors import FAMixError
from famix.minitown.compact_clip import CompactCLIP
from famix.minitown.contrastive import DTYPES, TrainingPlan, train_clip
from famix.minitown.crop_files import load_or_make_crops
from famix.minitown.crop_sources import CropSource, DatasetSource, TownSource
from famix.minitown.crops import CropPlan
from famix.minitown.zero_shot import zero_shot_accuracy
from famix.modeling import clip_weights_hash, load_clip_state_dict
from famix.modeling.clip_compact import rounded, save_compact

logger = logging.getLogger("train_mini_clip")

TRAIN_SCENES, VALIDATION_SCENES = 100_000, 200_000  # first seeds, apart from those of the segmentation data
VALIDATION_SHARE = 10  # one of so many scenes
TRAIN_CROPS, VALIDATION_CROPS = 1, 2  # seeds of the drawing, the same for CLIPs of all seeds


@dataclass(frozen=True)
class Sources:
    """Scenes to learn from and others to validate with."""

    train: CropSource
    validation: CropSource


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    plan = TrainingPlan()
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Example: train_mini_clip.py --output clip_0.safetensors --crops-cache crops.npy"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="compact .safetensors to write")
    parser.add_argument("--seed", default=plan.seed, type=int, help="of weights, batches and captions (default: 0)")
    parser.add_argument("--steps", default=plan.steps, type=int, help=f"updates (default: {plan.steps})")
    parser.add_argument("--batch", default=plan.batch, type=int, help=f"crops of an update (default: {plan.batch})")
    parser.add_argument("--width", default=plan.width, type=int, help=f"channels of the stem (default: {plan.width})")
    parser.add_argument(
        "--style-noise",
        default=plan.style_noise,
        type=float,
        metavar="S",
        help=f"relative noise of the channel statistics after layer1 (default: {plan.style_noise})",
    )
    parser.add_argument(
        "--learning-rate", default=plan.learning_rate, type=float, help=f"highest (default: {plan.learning_rate})"
    )
    parser.add_argument("--warmup", default=plan.warmup, type=int, help=f"updates (default: {plan.warmup})")
    parser.add_argument(
        "--dtype", default=plan.dtype, choices=DTYPES, help=f"of the towers' products (default: {plan.dtype})"
    )
    parser.add_argument("--initial", metavar="FILE", help="CLIP of this command to train further (default: none)")
    parser.add_argument("--threads", type=int, help="of PyTorch (default: its own choice)")
    parser.add_argument("--log", type=Path, metavar="FILE", help="also write the log here")
    data = parser.add_argument_group("data")
    data.add_argument("--scenes", default=4000, type=int, help="scenes of the town, 20 crops each (default: 4000)")
    data.add_argument("--dataset", metavar="NAME", help="registered dataset to take instead, such as camvid_train_day")
    data.add_argument(
        "--definition", action="append", default=[], metavar="YAML", help="of the dataset, if not built in"
    )
    data.add_argument(
        "--crops-cache",
        type=Path,
        metavar="FILE",
        help=".npy for the crops, made if it is not there (default: by output)",
    )
    data.add_argument("--workers", default=2, type=int, help="processes that make crops (default: 2)")
    return parser


def sources_of(arguments: argparse.Namespace) -> Sources:
    """The scenes that the arguments ask for."""
    if arguments.dataset is not None:
        register_datasets(arguments.definition)
        return Sources(*DatasetSource.registered(arguments.dataset).split(VALIDATION_SHARE))
    validation = max(arguments.scenes // VALIDATION_SHARE, 10)
    return Sources(TownSource(TRAIN_SCENES, arguments.scenes), TownSource(VALIDATION_SCENES, validation))


def run(arguments: argparse.Namespace) -> None:
    """Make or open the crops, train, validate and write the file."""
    plan = TrainingPlan(
        seed=arguments.seed,
        steps=arguments.steps,
        batch=arguments.batch,
        width=arguments.width,
        style_noise=arguments.style_noise,
        learning_rate=arguments.learning_rate,
        warmup=arguments.warmup,
        dtype=arguments.dtype,
    )
    sources, output = sources_of(arguments), arguments.output
    output.parent.mkdir(parents=True, exist_ok=True)
    cache = arguments.crops_cache or output.with_name(f"{output.name}.crops.npy")
    held_out = cache.with_name(f"{cache.stem}.validation.npy")
    crops = load_or_make_crops(sources.train, CropPlan(TRAIN_CROPS), cache, arguments.workers)
    validation_plan = CropPlan(VALIDATION_CROPS, single_looks=True)
    validation = load_or_make_crops(sources.validation, validation_plan, held_out, arguments.workers)
    checkpoint = output.with_name(f"{output.name}.checkpoint.pt")
    initial = load_clip_state_dict(arguments.initial) if arguments.initial else None
    model = train_clip(crops, sources.train.class_names, plan, checkpoint, initial)
    model.load_full_state_dict(rounded(model.full_state_dict()))  # so that the accuracy is that of the file
    accuracy = zero_shot_accuracy(model, validation, sources.train.class_names)
    made_by = {**vars(plan), "source": sources.train.identity, "initial": clip_weights_hash(initial) if initial else ""}
    _write(model, output, made_by, accuracy)
    checkpoint.unlink(missing_ok=True)


def _write(model: CompactCLIP, output: Path, made_by: dict[str, Any], accuracy: dict[str, Any]) -> None:
    save_compact(
        model.full_state_dict(),
        output,
        model.token_ids,
        {"made_by": json.dumps(made_by), "zero_shot": json.dumps(accuracy)},
    )
    report = json.dumps({"made_by": made_by, "zero_shot": accuracy}, indent=1)
    output.with_suffix(".json").write_text(report + "\n", encoding="utf-8")
    numbers = ", ".join(f"{name} {100 * share:.1f} %" for name, share in accuracy.items() if isinstance(share, float))
    logger.info(f"Wrote {output}, {output.stat().st_size / 1e6:.1f} MB. Zero-shot: {numbers}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; exits with status 2 and one line on a mistake of the user."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    if arguments.log is not None:
        arguments.log.parent.mkdir(parents=True, exist_ok=True)
        logging.getLogger().addHandler(logging.FileHandler(arguments.log))
    try:
        run(arguments)
    except (FAMixError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    main()
