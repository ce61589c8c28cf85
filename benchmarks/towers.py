#!/usr/bin/env python
"""Compare full-size CLIP towers with open_clip, and measure a training step and a mining batch.

    python benchmarks/towers.py                      # all models, each in its own process
    python benchmarks/towers.py --models ViT-B-16    # one of them

All weights are random. The first columns show the largest relative differences from open_clip's forward pass, for the
image embedding, for embeddings computed from the first, a middle and the last stage, and for 5 prompts with 4 templates
(random token ids if the tokenizer requires a download). The other columns show the number of parameters, the number of
trained parameters, and the time and peak memory of one training step in float32 (512 x 512, batch size 1, adapters of
rank 16 or layer4.2) and of mining 8 patches for 5 steps. Each row is printed when it is finished.
"""

# ruff: noqa: E402, the parser precedes slow imports

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from common import benchmark_parser

MODELS = {
    "RN50": "RN50", "RN101": "RN101", "convnext_base_w": "open_clip:convnext_base_w",
    "convnext_large_d": "open_clip:convnext_large_d", "ViT-B-16": "open_clip:ViT-B-16", "ViT-L-14": "open_clip:ViT-L-14",
    "EVA02-L-14": "open_clip:EVA02-L-14", "ViT-B-16-SigLIP": "open_clip:ViT-B-16-SigLIP",
    "DINOv2-L": "vit_large_patch14_dinov2",
}  # fmt: skip
HEADS = (
    "model", "image embedding", "from stages", "text", "parameters in M", "trained in M", "step in s", "step in GiB",
    "mining in s", "mining in GiB",
)  # fmt: skip
TEXTS = ["road", "Urban Grit style car", "foggy sky", "person", "traffic light"]
TEMPLATES = ["a photo of a {}.", "a bad photo of the {}.", "{}", "itap of a {}."]


def make_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="(default: all)")
    parser.add_argument("--task", choices=("compare", "train", "mine"), help="run one task and print JSON")
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # answers --help and usage errors before the slow imports

import torch
from torch import Tensor, nn


def relative(got: Tensor, expected: Tensor) -> float:
    """Return the largest difference in units of the largest value."""
    return float((got - expected).abs().max() / expected.abs().max())


@torch.no_grad()
def compare(architecture: str) -> dict[str, float]:
    """Compare the image and text towers with open_clip's forward pass."""
    import open_clip

    from famix.clip import CLIPImageTower, PromptEncoder
    from famix.clip.files import CLIPStateDict

    name = architecture.removeprefix("open_clip:")
    model: Any = open_clip.create_model(name, pretrained=None).eval()
    weights = CLIPStateDict(model.state_dict())
    weights.architecture = architecture if ":" in architecture else f"open_clip:{architecture}"
    tower = CLIPImageTower.from_state_dict(weights, trainable=())
    images = torch.randn(1, 3, tower.input_resolution, tower.input_resolution)
    expected = model.encode_image(images)
    stages = tower.stages[0], tower.stages[len(tower.stages) // 2], tower.stages[-1]
    found = {"image": relative(tower.encode_image(images), expected)}
    found["stages"] = max(
        relative(tower.encode_from(stage, tower.features_at(stage, images)), expected) for stage in stages
    )
    encoder = PromptEncoder(weights, activation="gelu", causal=True)
    if "SigLIP" in name:
        tokens = torch.randint(encoder.tower.vocab_size, (20, encoder.tower.context_length))
        return {**found, "text": relative(encoder.tower(tokens), model.encode_text(tokens))}
    sentences = [template.format(text) for text in TEXTS for template in TEMPLATES]
    means = model.encode_text(open_clip.get_tokenizer(name)(sentences)).unflatten(0, (5, 4)).mean(1)
    return {**found, "text": relative(encoder(TEXTS, TEMPLATES), nn.functional.normalize(means, dim=1))}


def build_model(architecture: str) -> nn.Module:
    """Build a segmentation network with adapters and noise styles."""
    from detectron2.modeling import build_model as build

    from famix.config import load_config

    cfg = load_config(str(Path(__file__).parents[1] / "projects/FAMix/configs/Base-FAMix.yaml"))
    cfg.MODEL.DEVICE, cfg.MODEL.STYLE.STRATEGY, cfg.MODEL.CLIP.WEIGHTS = "cpu", "noise", ""
    timm = ":" not in architecture and not architecture.startswith("RN")
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone" if timm else "build_clip_backbone"
    if timm:
        cfg.MODEL.TIMM.NAME = architecture
    else:
        cfg.MODEL.CLIP.ARCHITECTURE = architecture
    cfg.MODEL.CLIP.TRAINABLE = ["layer4.2"] if architecture.startswith("RN") else []
    cfg.MODEL.ADAPTERS.RANK = 0 if architecture.startswith("RN") else 16
    pyramid = timm or "ViT" in architecture or "EVA" in architecture
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["p2", "p4"] if pyramid else ["res2", "res5"]
    cfg.MODEL.STYLE.STAGE = "block1" if pyramid else "res2"
    return build(cfg).train()


def measure(call: Callable[[], object]) -> float:
    """Return the time of the second of two calls in seconds."""
    call()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def peak_gib() -> float:
    """Return the peak memory of this process so far in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def train(architecture: str) -> dict[str, float]:
    """Measure a training step."""
    model = build_model(architecture)
    batch = [{"image": torch.randint(256, (3, 512, 512)).float(), "sem_seg": torch.randint(19, (512, 512))}]

    def step() -> None:
        model.zero_grad()
        sum(model(batch).values()).backward()

    seconds = measure(step)
    counts = [(x.numel(), x.numel() if x.requires_grad else 0) for x in model.parameters()]
    total, trained = (sum(column) / 1e6 for column in zip(*counts, strict=True))
    return {"parameters": total, "trained": trained, "seconds": seconds, "memory": peak_gib()}


def mine(architecture: str) -> dict[str, float]:
    """Measure the optimization of styles for 8 patches."""
    from famix.clip.base import family_named
    from famix.style import optimize_styles

    family, sizes = family_named(architecture)
    create: Any = family
    tower = create(sizes, 32, trainable=(), with_embedding=True).eval()
    stage, images = tower.stages[0], torch.randn(8, 3, tower.input_resolution, tower.input_resolution)
    with torch.no_grad():
        own = tower.features_at(stage, images)
        size = tower.encode_from(stage, own).shape[1]
    texts = nn.functional.normalize(torch.randn(8, size), dim=1)

    def optimize() -> None:
        optimize_styles(
            own, texts, lambda x: tower.encode_from(stage, tower.replace_map(own, x)), steps=5, lr=1.0, momentum=0.9,
            weight_decay=1e-4, rectify=tower.rectified, relative=not tower.rectified,
        )  # fmt: skip

    return {"seconds": measure(optimize), "memory": peak_gib()}


def run_tasks(model: str) -> list[str]:
    """Run the tasks for a model, each in its own process, and return the cells of its row."""
    found: dict[str, dict[str, float]] = {}
    for task in ("compare", "train", "mine"):
        if task != "train" and model.startswith("DINO"):  # no text tower
            continue
        command = [sys.executable, __file__, "--task", task, "--models", model]
        output = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout
        found[task] = json.loads(output.splitlines()[-1])
    exact = [f"{value:.1e}" for value in found["compare"].values()] if "compare" in found else ["-"] * 3
    mined = [f"{value:.1f}" for value in found["mine"].values()] if "mine" in found else ["-"] * 2
    return [model, *exact, *(f"{value:.1f}" for value in found["train"].values()), *mined]


def main() -> None:
    """Print the table row by row, or the result of one task as JSON."""
    args = make_parser().parse_args()
    torch.manual_seed(1)
    if args.task:
        print(json.dumps(globals()[args.task](MODELS[args.models[0]])))
        return
    print(f"{date.today()}, {os.cpu_count()} CPU cores, torch {torch.__version__}, random weights, seed 1\n")
    print("| " + " | ".join(HEADS) + " |\n|" + "---|" * len(HEADS))
    for model in args.models:
        print("| " + " | ".join(run_tasks(model)) + " |", flush=True)


if __name__ == "__main__":
    main()
