"""What restyling costs in a training step: steps with styles from a bank against steps without, turn by turn.

Network, crop and batch are those of the recipe but for random weights, noise images and the batch size. One process
runs both kinds of step in turn, so that whatever else the machine does meets both alike; the table gives the median
of each and the median of the ratios of neighbours.

    python benchmarks/restyling_overhead.py [--device cuda] [--batch 2] [--crop 768] [--steps 8]
"""

import argparse
import time
from pathlib import Path
from statistics import median

import torch
from detectron2.modeling import build_model
from machine import describe_machine
from tabulate import tabulate
from torch import nn

from famix.engine import build_optimizer, load_config
from famix.modeling import FAMixSemanticSegmentor
from famix.style import StyleBank

CONFIG = Path(__file__).parent.parent / "projects/FAMix/configs/GTA5/famix_RN50.yaml"
CHANNELS = 256  # of RN50 at res2
STYLES_PER_CLASS = 500


def random_bank(generator: torch.Generator) -> StyleBank:
    """A bank of the size that RN50 mines on GTA5, with random styles."""
    bank = StyleBank()
    class_ids = torch.arange(20).repeat_interleave(STYLES_PER_CLASS)
    class_ids[class_ids == 19] = 255
    mean, std = torch.rand(2, len(class_ids), CHANNELS, generator=generator)
    bank.add(class_ids, mean, std)
    return bank


def random_batch(size: int, crop: int, generator: torch.Generator) -> list[dict[str, torch.Tensor]]:
    """Noise images with random labels of 19 classes."""
    return [
        {
            "image": torch.randint(0, 256, (3, crop, crop), generator=generator, dtype=torch.uint8),
            "sem_seg": torch.randint(0, 19, (crop, crop), generator=generator),
        }
        for _ in range(size)
    ]


def step_seconds(model: nn.Module, optimizer: torch.optim.Optimizer, batch: list[dict[str, torch.Tensor]]) -> float:
    """Wall time of one forward, backward and update."""
    start = time.perf_counter()
    optimizer.zero_grad()
    model(batch)["loss_sem_seg"].backward()
    optimizer.step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(
    model: FAMixSemanticSegmentor, optimizer: torch.optim.Optimizer, args: argparse.Namespace
) -> list[tuple[float, float]]:
    """Seconds of steps without and with styles, in pairs; one pair before them is not counted."""
    generator = torch.Generator().manual_seed(args.seed)
    batch = random_batch(args.batch, args.crop, generator)
    restyler = model.restyler
    assert restyler is not None
    restyler.use_bank(random_bank(generator))
    pairs = []
    for _ in range(args.steps + 1):
        model.use_restyler(None)
        without = step_seconds(model, optimizer, batch)
        model.use_restyler(restyler)
        pairs.append((without, step_seconds(model, optimizer, batch)))
    return pairs[1:]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--batch", type=int, default=2, help="images of a step (default: 2)")
    parser.add_argument("--crop", type=int, default=768, help="side of the square crops in pixels (default: 768)")
    parser.add_argument("--steps", type=int, default=8, help="pairs of steps (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="of images, labels and styles (default: 0)")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    cfg = load_config(str(CONFIG), ["MODEL.CLIP.WEIGHTS", "", "MODEL.DEVICE", args.device])
    model = build_model(cfg).train()
    pairs = measure(model, build_optimizer(cfg, model), args)

    ratios = [styled / plain for plain, styled in pairs]
    rows = [
        ["step without styles, s", *spread([plain for plain, _ in pairs])],
        ["step with styles of a bank, s", *spread([styled for _, styled in pairs])],
        ["with / without", *spread(ratios)],
    ]
    print(describe_machine(args.device))
    print(f"RN50, crop {args.crop}, batch {args.batch}, {len(pairs)} pairs, seed {args.seed}\n")
    print(tabulate(rows, headers=["", "median", "min", "max"], floatfmt=".3f", tablefmt="github"))


def spread(values: list[float]) -> tuple[float, float, float]:
    """Median, least and largest."""
    return median(values), min(values), max(values)


if __name__ == "__main__":
    main()
