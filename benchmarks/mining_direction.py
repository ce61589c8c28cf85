"""Direction of mined style changes compared with true ones in the miniature town, which can render every look.

    python benchmarks/mining_direction.py [--clip FILE] [--steps 5 15 60] [--metric euclidean source] [--patches 200]

A patch of a clear street and the same patch under a look have different styles. Mining should find this difference from
the name of the look alone. The table shows the cosine between mined and true differences and the ratio of their
lengths. Cosines are averaged over all looks, over weather, over looks that do not resemble any weather and, as a
control, over differences of exchanged looks.
"""

# ruff: noqa: E402, the parser precedes slow imports

import argparse
from dataclasses import dataclass

from parts.common import benchmark_parser

METRICS = ("euclidean", "source")


def make_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--clip", default="minitown", metavar="WEIGHTS", help="CLIP weights (default: the town's)")
    parser.add_argument(
        "--steps", nargs="+", type=int, default=[5, 15, 60], help="numbers of mining steps (default: 5 15 60)"
    )
    parser.add_argument("--metric", nargs="+", choices=METRICS, default=METRICS, help="mining metrics (default: both)")
    parser.add_argument("--patches", type=int, default=200, help="(default: 200)")
    parser.add_argument("--seed", type=int, default=1, help="seed of patches and looks (default: 1)")
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # answers --help and usage errors before the slow imports

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from famix.clip import CLIPResNet, PromptEncoder, load_clip_state_dict
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


@torch.no_grad()
def collect(clip: CLIPResNet, count: int, seed: int) -> Patches:
    """Draw patches and looks. Each scene yields one patch, a random cell of a crop's 3 x 3 grid."""
    cfg, rng = load_config(str(CONFIGS / "famix.yaml")), np.random.default_rng(seed)
    pixel_mean, pixel_std = (torch.tensor(v).view(-1, 1, 1) for v in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))

    def features_of(image: np.ndarray) -> Tensor:
        pixels = (torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() - pixel_mean) / pixel_std
        return clip.features_at("res2", pixels[None])

    def cut(features: Tensor, cell: tuple[int, int]) -> Tensor:
        side = features.shape[-1] // 3
        return features[..., cell[0] * side :, cell[1] * side :][..., :side, :side]

    clear, changed, source, classes, looks = [], [], [], [], []
    for index in range(count):
        scene, look = render_scene(FIRST_SCENE + index), list(LOOKS)[int(rng.integers(len(LOOKS)))]
        left = int(rng.integers(scene.labels.shape[1] - SIDE + 1))
        crop, cell = (slice(None), slice(left, left + SIDE)), (int(rng.integers(3)), int(rng.integers(3)))
        labels = torch.from_numpy(scene.labels[crop].astype(np.int64))[None]
        classes.append(CITYSCAPES_CLASSES[int(patch_classes(labels, (3, 3), 255)[0][cell])].name)
        looks.append(look)
        features = features_of(scene.image[crop])
        source += [statistics(cut(features, (row, column))) for row in range(3) for column in range(3)]
        clear.append(cut(features, cell))
        changed.append(cut(features_of(apply_looks(scene, ((look, STRENGTH),), rng)[crop]), cell))
    features = torch.cat(clear)
    return Patches(features, statistics(torch.cat(changed)) - statistics(features), torch.cat(source), classes, looks)


def measure(clip: CLIPResNet, prompts: PromptEncoder, patches: Patches, steps: int, metric: str) -> list[object]:
    """Return a table row for a number of steps and a metric."""
    cfg = load_config(str(CONFIGS / "famix.yaml")).STYLE_MINING
    texts = [f"{LOOKS[look].phrases[0]} {name}" for look, name in zip(patches.looks, patches.classes, strict=True)]
    styles = optimize_styles(
        patches.features,
        prompts(texts, tuple(cfg.TEMPLATES)),
        lambda restyled: clip.encode_from("res2", restyled),
        steps=steps,
        lr=len(texts),  # the loss is a mean over the styles, so this is 1 per style, as in the configs
        momentum=0.0,
        weight_decay=cfg.WEIGHT_DECAY,
        basis=source_basis(patches.source) if metric == "source" else None,
    )
    mined = torch.cat([styles.mean, styles.std], dim=1) - statistics(patches.features)
    cosine = F.cosine_similarity(mined, patches.truth)
    exchanged = F.cosine_similarity(mined, patches.truth.roll(len(mined) // 2, 0)).mean()
    weather = torch.tensor([LOOKS[look].family == WEATHER for look in patches.looks])
    strict = torch.tensor([look in STRICT_LOOKS for look in patches.looks])
    length = (mined.norm(dim=1) / patches.truth.norm(dim=1)).median()
    loss = f"{styles.style_losses[0].mean():.3f} -> {styles.style_losses[-1].mean():.3f}"
    values = (cosine.mean(), cosine[weather].mean(), cosine[strict].mean(), exchanged, length)
    return [metric, steps, loss, *(f"{float(value):.2f}" for value in values)]


def main() -> None:
    """Run the benchmark and print the table."""
    arguments = make_parser().parse_args()
    register()
    weights = load_clip_state_dict(arguments.clip)
    clip, prompts = CLIPResNet.from_state_dict(weights, trainable=()).requires_grad_(False), PromptEncoder(weights)
    patches = collect(clip, arguments.patches, arguments.seed)
    rows = [measure(clip, prompts, patches, steps, metric) for metric in arguments.metric for steps in arguments.steps]
    headers = ["metric", "steps", "cosine loss", "cosine", "weather", "strict", "exchanged", "length"]
    print(describe_machine())
    print(f"CLIP {arguments.clip}, {arguments.patches} patches, seed {arguments.seed}\n")
    print(markdown(headers, rows))


if __name__ == "__main__":
    main()
