#!/usr/bin/env python
"""Score a model under an evaluation protocol from outside the package.

    python projects/FAMix/examples/extending/protocol.py --config-file CONFIG --eval-only TEST.PROTOCOL multiple14

The options are those of train_net.py. The part can be combined: `multiple14+flip`, `multiple14+half`.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # projects/FAMix, the folder of train_net.py

from famix.evaluation.protocols import ResizeCrop, register_part


@dataclass(frozen=True)  # protocols compare and hash their transforms
class ResizeToMultiple(ResizeCrop):
    """Downsample both sides to multiples of a vision transformer's patch size.

    Attributes:
        patch: patch size in pixels.
    """

    patch: int = 14

    def resized_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Map the (height, width) of an image file to the input size of the network."""
        height, width = (max(1, side // self.patch) * self.patch for side in size)
        return height, width


# "image" resizes the input only; "truth" would resize the ground truth, on which the scores depend. Other fields of a
# protocol are "scales", "window", "flip", "average" and "pad_label". A part without numbers is a name and its fields:
# register_part("quarter", {"scales": (0.25,)})
register_part("multiple<N>", lambda patch: {"image": ResizeToMultiple(patch=patch)})

if __name__ == "__main__":
    from train_net import launch_from_command_line

    launch_from_command_line()
