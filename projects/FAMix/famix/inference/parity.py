"""Whether an exported network says the same as the one that it was made of, and how fast it is."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from famix.utils.errors import WeightsError
from famix.utils.seeding import derive_seed

__all__ = [
    "LARGEST_DIFFERENCE",
    "LEAST_EQUAL",
    "Agreement",
    "Latency",
    "compare",
    "measure_latency",
    "require_agreement",
    "make_image",
]

LARGEST_DIFFERENCE, LEAST_EQUAL = 1e-3, 0.999
"""Of the probability of any class at any pixel, and share of the pixels with the same label."""

Network = Callable[[Tensor], Tensor]  # images (B, 3, H, W) -> logits (B, K, H, W)
Size = tuple[int, int]  # (height, width) in pixels


@dataclass(frozen=True)
class Agreement:
    """How far two networks agree on an image.

    Attributes:
        size: (height, width) of the image.
        difference: the largest of any class's probability at any pixel.
        equal: share of the pixels with the same label.
    """

    size: Size
    difference: float
    equal: float

    @property
    def is_close(self) -> bool:
        """Whether they can stand for each other; NaN never is."""
        return self.difference <= LARGEST_DIFFERENCE and self.equal >= LEAST_EQUAL


@dataclass(frozen=True)
class Latency:
    """Milliseconds that a network takes for an image.

    Attributes:
        median: of some runs.
        lowest: of them, which other programs on the machine disturb the least.
    """

    median: float
    lowest: float


def make_image(size: Size, seed: int = 0) -> Tensor:
    """Blobs of colour and noise, which look like many things to a network: (1, 3, height, width) uint8."""
    generator = torch.Generator().manual_seed(derive_seed(seed, *size))
    coarse = torch.rand((1, 3, size[0] // 24 + 2, size[1] // 24 + 2), generator=generator)
    blobs = F.interpolate(coarse, size, mode="bicubic", align_corners=False)
    noise = torch.randn((1, 3, *size), generator=generator)
    return (255 * blobs + 12 * noise).clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def compare(reference: Network, other: Network, images: Sequence[Tensor]) -> list[Agreement]:
    """Send images through two networks.

    Args:
        reference: what is right.
        other: what is to agree with it.
        images: (B, 3, H, W) each.
    """
    agreements = []
    for image in images:
        expected, got = reference(image), other(image)
        difference = (expected.softmax(dim=1) - got.softmax(dim=1)).abs().max().item()
        equal = (expected.argmax(dim=1) == got.argmax(dim=1)).float().mean().item()
        agreements.append(Agreement((image.shape[-2], image.shape[-1]), difference, equal))
    return agreements


def require_agreement(agreements: Sequence[Agreement], what: str) -> None:
    """Raise unless all are close.

    Args:
        agreements: of one export.
        what: it is, for the error.

    Raises:
        WeightsError: names the first that is not.
    """
    for found in agreements:
        if not found.is_close:
            raise WeightsError(
                f"{what} disagrees with the network on an image of {found.size[0]} x {found.size[1]} pixels: probabilities "
                f"differ by up to {found.difference:.2g} (expected at most {LARGEST_DIFFERENCE}), {found.equal:.2%} of the "
                f"labels are equal (expected {LEAST_EQUAL:.1%}); nothing was written"
            )


@torch.no_grad()
def measure_latency(networks: Sequence[Network], image: Tensor, runs: int) -> list[Latency]:
    """Time networks on an image, in turns, so that what else the machine does meets all alike.

    Args:
        networks: on the CPU.
        image: (B, 3, H, W).
        runs: of each, after one to warm up.
    """
    times: list[list[float]] = [[] for _ in networks]
    for run in range(runs + 1):
        for network, taken in zip(networks, times, strict=True):
            start = time.perf_counter()
            network(image)
            if run:
                taken.append(1000 * (time.perf_counter() - start))
    return [Latency(median(taken), min(taken)) for taken in times]
