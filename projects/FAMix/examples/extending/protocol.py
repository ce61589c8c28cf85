#!/usr/bin/env python
"""Evaluate a model under a protocol defined outside the package.

    python projects/FAMix/examples/extending/protocol.py --config-file CONFIG --eval-only TEST.PROTOCOL multiple14

It accepts the same options as train_net.py. The part combines with others: `multiple14+flip`, `multiple14+half`.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # projects/FAMix, the folder of train_net.py

from famix.evaluation.protocols import ResizeCrop, register_part


@dataclass(frozen=True)  # protocols compare and hash their transforms
class ResizeToMultiple(ResizeCrop):
    """Transform that downsamples both sides to multiples of a vision transformer's patch size.

    Attributes:
        patch: patch size in pixels.
    """

    patch: int = 14

    def resized_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Map the (height, width) of an image file to the input size of the network."""
        height, width = (max(1, side // self.patch) * self.patch for side in size)
        return height, width


# "image" resizes only the input; "truth" would resize the ground truth and thus affect the scores. Other fields of a
# protocol are "scales", "window", "flip", "average" and "pad_label". A part without numbers consists of a name and fields:
# register_part("quarter", {"scales": (0.25,)})
register_part("multiple<N>", lambda patch: {"image": ResizeToMultiple(patch=patch)})

if __name__ == "__main__":
    from train_net import launch_from_command_line

    launch_from_command_line()
