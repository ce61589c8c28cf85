#!/usr/bin/env python
"""Compare real-size towers with the forward pass of open_clip or timm, and measure their training and mining.

    python benchmarks/towers.py                                      # all models and tasks
    python benchmarks/towers.py --models ViT-B-16 --tasks full mine
    python benchmarks/towers.py --report benchmarks/results/towers.md

Each task runs in a process of its own with one thread, writes one JSON file to --output and is not repeated. All weights
are random.

compare: largest differences, relative to the largest value, of the maps of all stages, of the image embedding, of the
embeddings continued from every stage, and of 5 prompts over 4 templates (random token ids if the tokenizer needs a download).

Training tasks: one step of AdamW with noise styles on a batch of one 512 x 512 image: frozen tower, layer4.2 (the paper's
recipe), adapters of rank 16, full fine-tuning, the last two also with MODEL.CLIP.CHECKPOINT_ACTIVATIONS.

memory: the tensors that autograd keeps for the backward pass in each training task, besides the weights, per image and
once (copies of weights). They are counted without computing values. The settings for GPUs are estimates, not measurements:
the sum of 4 bytes per parameter, 12 bytes of gradient and AdamW state per trained parameter, 1.15 times the tensors kept,
scaled by the number of pixels, temporary tensors of 0.5 GiB per 512 x 512 image in float32 and 0.25 GiB in bfloat16 (the
peaks of the training steps leave up to 0.7 GiB for them), and 1.5 GiB for CUDA.

mine: one batch of two 512 x 512 images with 2 styles, optimized for 1 step (the recipe: up to 19 styles, 100 steps).
"""

# ruff: noqa: E402, the parser precedes slow imports

import argparse
import json
import multiprocessing
import sys
from pathlib import Path
from typing import Any

from parts.common import POSITIVE, benchmark_parser

MODELS = {
    "RN50": "RN50", "RN101": "RN101", "ConvNeXt-B": "open_clip:convnext_base_w", "ConvNeXt-L": "open_clip:convnext_large_d",
    "ViT-B-16": "open_clip:ViT-B-16", "ViT-L-14": "open_clip:ViT-L-14", "EVA02-L-14": "open_clip:EVA02-L-14",
    "DINOv2-L": "vit_large_patch14_dinov2", "EVA02-B-16": "open_clip:EVA02-B-16", "PE-Core-B-16": "open_clip:PE-Core-B-16",
    "ViT-B-16-SigLIP": "open_clip:ViT-B-16-SigLIP", "DINOv2-B": "vit_base_patch14_dinov2",
}  # fmt: skip
COMPARED = ("RN50", "ConvNeXt-B", "ViT-B-16", "EVA02-B-16", "PE-Core-B-16", "ViT-B-16-SigLIP", "DINOv2-B")
MEASURED = tuple(MODELS)[:8]
ADAPTERS = {"MODEL.ADAPTERS.RANK": 16}
FULL = {"MODEL.CLIP.TRAINABLE": ["all"]}
CHECKPOINTING = {"MODEL.CLIP.CHECKPOINT_ACTIVATIONS": True}
TRAINING: dict[str, dict[str, Any]] = {
    "frozen": {},
    "layer4.2": {"MODEL.CLIP.TRAINABLE": ["layer4.2"]},
    "adapters": ADAPTERS,
    "adapters+checkpointing": {**ADAPTERS, **CHECKPOINTING},
    "full": FULL,
    "full+checkpointing": {**FULL, **CHECKPOINTING},
}
TASKS = ("memory", "compare", *TRAINING, "mine")
GPUS, CUDA, MARGIN = (11, 24, 80), 1.5, 1.15  # GiB, GiB, factor
TEMPORARY = {"float32": 0.5, "bfloat16": 0.25}  # GiB per image of 512 x 512 pixels
BATCHES = {  # images and side of the crops in the published protocols
    "RN50": (8, 768), "RN101": (8, 768), "ConvNeXt-B": (8, 768), "ConvNeXt-L": (8, 768), "ViT-B-16": (4, 512),
    "ViT-L-14": (4, 512), "EVA02-L-14": (8, 512), "DINOv2-L": (4, 512),
}  # fmt: skip


def make_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="(default: all)")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="in this order (default: all)")
    parser.add_argument(
        "--output", type=Path, default=Path("output/towers"), metavar="DIR", help="folder of the results"
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="also write the tables there")
    parser.add_argument("--jobs", type=POSITIVE, default=1, help="tasks side by side (default: 1)")
    return parser


def has_task(model: str, task: str) -> bool:
    """Return whether a task applies to a model: DINO has no text tower, and ResNets have no attention to adapt."""
    if task == "compare":
        return model in COMPARED
    if model not in MEASURED:
        return False
    if task == "mine":
        return not model.startswith("DINO")
    return task == "memory" or task.startswith("full") or model.startswith("RN") == (task == "layer4.2")


if __name__ == "__main__":
    make_parser().parse_args()  # answers --help and usage errors before the slow imports

import torch
from parts.towers_tasks import compare, count, mine, train

from famix_minitown.runs.study import describe_machine, markdown


def run_task(job: tuple[str, str, Path]) -> str:
    """Run a task of a model, write its result to a file and return it."""
    name, task, file = job
    torch.set_num_threads(1)
    torch.manual_seed(1)
    model = MODELS[name]
    found: dict[str, float] = {}
    if task == "memory":
        for variant in filter(lambda variant: has_task(name, variant), TRAINING):
            found |= {f"{variant}/{key}": value for key, value in count(model, TRAINING[variant]).items()}
    elif task in TRAINING:
        found = train(model, TRAINING[task])
    else:
        found = {"compare": compare, "mine": mine}[task](model)
    file.write_text(json.dumps(found))
    return f"{name} {task} {file.read_text()}"


def table(found: dict[tuple[str, str], dict[str, float]], columns: dict[str, str]) -> str:
    """Return a table with a row for each model and task; columns map a heading to the key and format of a value."""
    rows = []
    for key, values in found.items():
        cells = (
            format(values[name], form) if name in values else "-" for name, form in map(str.split, columns.values())
        )
        rows.append([*key, *cells])
    return markdown(["model", "task", *columns], rows)


def estimate(values: dict[str, float], task: str, dtype: str, images: float) -> float:
    """Estimate the GiB of a training step on a GPU, for a number of 512 x 512 images."""
    weights = (4 * values[f"{task}/parameters"] + 12 * values[f"{task}/trained"]) * 1e6 / 2**30
    kept = values[f"{task}/{dtype}/once"] + images * values[f"{task}/{dtype}/image"]
    return CUDA + weights + MARGIN * kept + images * TEMPORARY[dtype]


def gpu_setting(values: dict[str, float], task: str, images: int, side: int, gpu: int) -> str:
    """Return the first setting with which a batch fits on a GPU."""
    settings = [(task, "float32"), (task, "bfloat16"), (f"{task}+checkpointing", "bfloat16")]
    known = [(variant, dtype) for variant, dtype in settings if f"{variant}/parameters" in values]
    for parts in (part for part in range(1, images + 1) if images % part == 0):
        for variant, dtype in known:
            if estimate(values, variant, dtype, images / parts * (side / 512) ** 2) <= gpu:
                checkpointing, accumulate = variant[len(task) + 1 :], f"ACCUMULATE {parts}" if parts > 1 else ""
                return ", ".join(filter(None, (dtype, checkpointing, accumulate)))
    return "does not fit"


def gpu_settings(found: dict[tuple[str, str], dict[str, float]]) -> str:
    """Return the table of estimated settings."""
    rows = []
    for model, (images, side) in BATCHES.items():
        values = found.get((model, "memory"), {})
        for task in ("layer4.2", "adapters", "full"):
            if f"{task}/parameters" in values:
                cells = [gpu_setting(values, task, images, side, gpu) for gpu in GPUS]
                rows.append([model, task, f"{images} x {side} x {side}", *cells])
    return markdown(["model", "task", "batch", *(f"{gpu} GB" for gpu in GPUS)], rows)


def make_report(found: dict[tuple[str, str], dict[str, float]]) -> str:
    """Return the tables."""
    steps = {}
    for model in MEASURED:
        for task in filter(lambda task: has_task(model, task), TRAINING):
            prefix, counted = f"{task}/", found.get((model, "memory"), {})
            values = {key.removeprefix(prefix): x for key, x in counted.items() if key.startswith(prefix)}
            values |= found.get((model, task), {})
            if values:
                steps[model, task] = values
    tables = {
        "Differences to open_clip and timm": table(
            {key: values for key, values in found.items() if key[1] == "compare"},
            {"image size": "size .0f", "maps": "stages .1e", "image embedding": "image .1e", "from all stages": "from .1e",
             "text": "text .1e"},
        ),
        "Training step": table(
            steps, {"parameters, M": "parameters .1f", "trained, M": "trained .1f", "CPU s": "seconds .1f", "peak, GiB": "peak .1f"},
        ),
        "Memory kept for the backward pass": table(
            steps,
            {"float32, GiB per image": "float32/image .2f", "float32, GiB once": "float32/once .2f", "bfloat16, GiB per image": "bfloat16/image .2f",
             "bfloat16, GiB once": "bfloat16/once .2f"},
        ),
        "Settings for GPUs, estimated": gpu_settings(found),
        "Mining": table(
            {key: values for key, values in found.items() if key[1] == "mine"},
            {"a batch, CPU s": "seconds .1f", "per style and step, CPU s": "step .1f", "peak, GiB": "peak .1f"},
        ),
    }  # fmt: skip
    return "\n\n".join(f"## {title}\n\n{rows}" for title, rows in tables.items())


def main() -> None:
    """Run the missing tasks and print the tables."""
    args = make_parser().parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    files = {
        (model, task): args.output / f"{model}_{task}.json"
        for model in MODELS
        for task in TASKS
        if has_task(model, task)
    }
    wanted = [(model, task) for task in args.tasks for model in args.models if (model, task) in files]
    jobs = [(*key, files[key]) for key in wanted if not files[key].exists()]
    torch.set_num_threads(1)
    with multiprocessing.get_context("fork").Pool(args.jobs, maxtasksperchild=1) as pool:
        for line in pool.imap_unordered(run_task, jobs):
            print(line, file=sys.stderr, flush=True)
    found = {key: json.loads(file.read_text()) for key, file in files.items() if file.exists()}
    report = f"{describe_machine()}, random weights, seed 1\n\n{make_report(found)}"
    print(report)
    if args.report:
        args.report.write_text(f"# Real-size towers\n\nPrinted by `python benchmarks/towers.py`\n\n{report}\n")


if __name__ == "__main__":
    main()
