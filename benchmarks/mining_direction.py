"""Direction of mined style changes compared with true ones in the miniature town, which can render every look.

    python benchmarks/mining_direction.py [--clip FILE] [--steps 5 15 60] [--metric euclidean source] [--patches 200]
    python benchmarks/mining_direction.py --clip minitown_vit --metric euclidean --rates 0.1 0.3 1 3 10

A patch of a clear street and the same patch under a look have different styles. Mining should find this difference from
the name of the look alone. The table shows the cosine between mined and true differences and the ratio of their
lengths. Cosines are averaged over all looks, over weather, over looks that do not resemble any weather and, as a
control, over differences of exchanged looks.
"""

# ruff: noqa: E402, the parser precedes slow imports

import argparse
import time
from dataclasses import dataclass

from parts.common import benchmark_parser

METRICS = ("euclidean", "source")
PARAMETRIZATIONS = ("absolute", "relative")


def make_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--clip", default="minitown", metavar="WEIGHTS", help="CLIP weights (default: the town's)")
    parser.add_argument(
        "--steps", nargs="+", type=int, default=[5, 15, 60], help="numbers of mining steps (default: 5 15 60)"
    )
    parser.add_argument("--stage", help="mined stage (default: the first of the CLIP)")
    parser.add_argument("--metric", nargs="+", choices=METRICS, default=METRICS, help="mining metrics (default: both)")
    parser.add_argument(
        "--parametrization", choices=PARAMETRIZATIONS, help="of metric euclidean (default: by CLIP family)"
    )
    parser.add_argument("--rates", nargs="+", type=float, default=[1.0], help="learning rates per style (default: 1)")
    parser.add_argument(
        "--momentum", type=float, default=0.0, help="momentum of the steps; the paper's is 0.9 (default: 0)"
    )
    parser.add_argument("--patches", type=int, default=200, help="(default: 200)")
    parser.add_argument("--seed", type=int, default=1, help="seed of patches and looks (default: 1)")
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # answers --help and usage errors before the slow imports

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from famix.clip import CLIPImageTower, PromptEncoder, at_stage, load_clip_state_dict
from famix.data import CITYSCAPES_CLASSES
from famix.engine import load_config
from famix.style import channel_mean_std, optimize_styles, patch_classes, source_basis
from famix_minitown.datasets import register
from famix_minitown.rendering.looks import LOOKS, STRICT_LOOKS, WEATHER, apply_looks
from famix_minitown.rendering.scene import render_scene
from famix_minitown.runs.experiment import CONFIGS
from famix_minitown.runs.study import describe_machine, markdown

FIRST_SCENE = 400_000  # first seed of scenes that neither a dataset nor CLIP's training uses
SIDE = 192  # side of a training crop in pixels
STRENGTH = 0.85


@dataclass(frozen=True)
class Patches:
    """N patches of clear streets, each with a look."""

    features: Tensor  # (N, C, h, w), at the mined stage
    truth: Tensor  # (N, 2C), changes in means and standard deviations caused by the look
    source: Tensor  # (P, 2C), statistics of all patches of these streets in clear weather
    classes: list[str]  # name of the dominant class of each patch
    looks: list[str]


def statistics(patches: Tensor) -> Tensor:
    """Return means and standard deviations (N, 2C) of patches (N, C, h, w)."""
    return torch.cat([values.flatten(1) for values in channel_mean_std(patches)], dim=1)


def grid_patches(maps: Tensor) -> Tensor:
    """Cut a map (1, C, H, W) into the 3 x 3 patches (9, C, W // 3, W // 3) of a square crop, row by row."""
    side = maps.shape[-1] // 3
    return maps.unfold(2, side, side).unfold(3, side, side)[0, :, :3, :3].flatten(1, 2).movedim(1, 0)


@torch.no_grad()
def collect(clip: CLIPImageTower, stage: str, count: int, seed: int) -> Patches:
    """Draw patches and looks. Each scene yields one patch, a random cell of a crop's 3 x 3 grid."""
    cfg, rng = load_config(str(CONFIGS / "famix.yaml")), np.random.default_rng(seed)
    pixel_mean, pixel_std = (torch.tensor(v).view(-1, 1, 1) for v in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))

    def cut(image: np.ndarray) -> Tensor:
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float()
        pixels = ((pixels - pixel_mean) / pixel_std)[None]
        if not clip.mined_on_images:
            return grid_patches(clip.features_at(stage, pixels))
        size = (clip.input_resolution, clip.input_resolution)
        return F.interpolate(grid_patches(pixels), size, mode="bicubic", antialias=True)

    def features_of(patches: Tensor) -> Tensor:
        return clip.features_at(stage, patches) if clip.mined_on_images else patches

    clear, changed, source, classes, looks = [], [], [], [], []
    for index in range(count):
        scene, look = render_scene(FIRST_SCENE + index), list(LOOKS)[int(rng.integers(len(LOOKS)))]
        left = int(rng.integers(scene.labels.shape[1] - SIDE + 1))
        crop, cell = (slice(None), slice(left, left + SIDE)), (int(rng.integers(3)), int(rng.integers(3)))
        labels = torch.from_numpy(scene.labels[crop].astype(np.int64))[None]
        classes.append(CITYSCAPES_CLASSES[int(patch_classes(labels, (3, 3), 255)[0][cell])].name)
        looks.append(look)
        patches, place = cut(scene.image[crop]), 3 * cell[0] + cell[1]
        source.append(statistics(features_of(patches)))
        clear.append(patches[place])
        changed.append(cut(apply_looks(scene, ((look, STRENGTH),), rng)[crop])[place])
    features, truth = features_of(torch.stack(clear)), statistics(features_of(torch.stack(changed)))
    return Patches(features, truth - statistics(features), torch.cat(source), classes, looks)


def measure(
    clip: CLIPImageTower, stage: str, prompts: PromptEncoder, patches: Patches, *, steps: int, metric: str,
    relative: bool = False, rate: float = 1.0, momentum: float = 0.0,
) -> list[object]:  # fmt: skip
    """Return a table row for a number of steps, a metric, a parametrization and a learning rate per style."""
    cfg = load_config(str(CONFIGS / "famix.yaml")).STYLE_MINING
    texts = [f"{LOOKS[look].phrases[0]} {name}" for look, name in zip(patches.looks, patches.classes, strict=True)]
    targets, start = prompts(texts, tuple(cfg.TEMPLATES)), time.process_time()
    styles = optimize_styles(
        patches.features,
        targets,
        lambda restyled: clip.encode_from(stage, clip.replace_map(patches.features, restyled)),
        steps=steps,
        lr=rate * len(texts),  # the loss is a mean over the styles
        momentum=momentum,
        weight_decay=cfg.WEIGHT_DECAY,
        basis=source_basis(patches.source) if metric == "source" else None,
        rectify=clip.rectified,
        relative=relative,
    )
    seconds = time.process_time() - start
    mined = torch.cat([styles.mean, styles.std], dim=1) - statistics(patches.features)
    cosine = F.cosine_similarity(mined, patches.truth)
    exchanged = F.cosine_similarity(mined, patches.truth.roll(len(mined) // 2, 0)).mean()
    weather = torch.tensor([LOOKS[look].family == WEATHER for look in patches.looks])
    strict = torch.tensor([look in STRICT_LOOKS for look in patches.looks])
    length = (mined.norm(dim=1) / patches.truth.norm(dim=1)).median()
    loss = f"{styles.style_losses[0].mean():.3f} -> {styles.style_losses[-1].mean():.3f}"
    values = (cosine.mean(), cosine[weather].mean(), cosine[strict].mean(), exchanged, length)
    negative = f"{100 * (styles.std < 0).float().mean():.1f} %"
    form = PARAMETRIZATIONS[relative]
    return [
        metric,
        form,
        f"{rate:g}",
        steps,
        f"{seconds:.0f}",
        loss,
        *(f"{float(value):.2f}" for value in values),
        negative,
    ]


HEADERS = (
    "metric", "parametrization", "rate", "steps", "CPU s", "cosine loss", "cosine", "weather", "strict", "exchanged", "length",
    "negative stds",
)  # fmt: skip


def main() -> None:
    """Run the benchmark and print the table."""
    arguments = make_parser().parse_args()
    register()
    weights = load_clip_state_dict(arguments.clip)
    clip = CLIPImageTower.from_state_dict(weights, trainable=()).requires_grad_(False)
    prompts, stage = PromptEncoder(weights), arguments.stage or next(iter(clip.output_shape()))
    clip = at_stage(clip, stage)
    patches = collect(clip, stage, arguments.patches, arguments.seed)
    relative = arguments.parametrization == "relative" if arguments.parametrization else not clip.rectified
    rows = [
        measure(
            clip,
            stage,
            prompts,
            patches,
            steps=steps,
            metric=metric,
            relative=relative and metric != "source",
            rate=rate,
            momentum=arguments.momentum,
        )
        for metric in arguments.metric
        for rate in arguments.rates
        for steps in arguments.steps
    ]
    print(describe_machine())
    print(f"CLIP {arguments.clip}, stage {stage}, {arguments.patches} patches, seed {arguments.seed}\n")
    print(markdown(HEADERS, rows))


if __name__ == "__main__":
    main()
