"""Strides and dilations of the blocks of a CLIP ResNet at a given output stride."""

from collections.abc import Sequence
from typing import NamedTuple

from famix.utils.errors import ConfigError

__all__ = ["CLIP_STRIDE", "OUTPUT_STRIDES", "BlockGeometry", "plan_blocks"]

CLIP_STRIDE = 32  # of the network that CLIP was trained as
OUTPUT_STRIDES = (8, 16, 32)
_STEM_STRIDE = 4


class BlockGeometry(NamedTuple):
    """How one residual block samples its input."""

    stride: int  # of the average pool behind the 3x3 convolution
    dilation: int  # of the 3x3 convolution


def plan_blocks(layers: Sequence[int], output_stride: int) -> list[list[BlockGeometry]]:
    """Stride and dilation of every block.

    A stage that would exceed the output stride keeps its resolution and doubles the dilation. As in the released
    program, only the last block of such a stage gets the new dilation: the first block has dilation 1, those between
    keep the dilation of the stage before. The only block of a stage counts as its last one.

    Args:
        layers: number of blocks of every stage, e.g. (3, 4, 6, 3).
        output_stride: stride of the last stage: 8, 16 or 32.

    Returns:
        For every stage the geometry of its blocks.

    Raises:
        ConfigError: another output stride.
    """
    if output_stride not in OUTPUT_STRIDES:
        raise ConfigError(
            f"MODEL.CLIP.OUTPUT_STRIDE must be 8, 16 or 32, got {output_stride}. Set one of them; the recipe's is 16."
        )
    plan, stride, dilation = [], _STEM_STRIDE, 1
    for stage, blocks in enumerate(layers):
        first_stride = 1 if stage == 0 else 2
        last_dilation = dilation
        if stride * first_stride > output_stride:
            first_stride, last_dilation = 1, dilation * 2
        dilations = [1, *[dilation] * (blocks - 2), last_dilation][-blocks:]
        strides = [first_stride, *[1] * (blocks - 1)]
        plan.append([BlockGeometry(*geometry) for geometry in zip(strides, dilations, strict=True)])
        stride, dilation = stride * first_stride, last_dilation
    return plan
