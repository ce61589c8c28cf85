import pytest

from error_matching import expect_error
from famix.clip.resnet import plan_blocks
from famix.utils.errors import ConfigError

RN50, RN101 = (3, 4, 6, 3), (3, 4, 23, 3)
RESNETS = {
    "RN50": RN50, "RN101": RN101, "RN50x4": (4, 6, 10, 6), "RN50x16": (6, 8, 18, 8), "RN50x64": (3, 15, 36, 10),
}  # fmt: skip


def strides(plan):
    return [[block.stride for block in stage] for stage in plan]


def dilations(plan):
    return [[block.dilation for block in stage] for stage in plan]


@pytest.mark.parametrize(
    ("output_stride", "first_strides"), [(32, [1, 2, 2, 2]), (16, [1, 2, 2, 1]), (8, [1, 2, 1, 1])]
)
def test_only_the_first_block_of_a_stage_has_a_stride(output_stride, first_strides):
    plan = strides(plan_blocks(RN50, output_stride))
    assert [stage[0] for stage in plan] == first_strides
    assert {stride for stage in plan for stride in stage[1:]} == {1}
    assert [stage[0] for stage in strides(plan_blocks((1, 1, 1, 1), output_stride))] == first_strides


# Dilations in the released program, by hand: of the first block, of those between, of the last block.
OS16 = {"layer3": (1, 1, 1), "layer4": (1, 1, 2)}
OS8 = {"layer3": (1, 1, 2), "layer4": (1, 2, 4)}


@pytest.mark.parametrize("layers", RESNETS.values(), ids=RESNETS)
@pytest.mark.parametrize(("output_stride", "table"), [(16, OS16), (8, OS8)])
def test_dilations_are_the_released_programs(layers, output_stride, table):
    layer1, layer2, layer3, layer4 = dilations(plan_blocks(layers, output_stride))
    assert set(layer1) == set(layer2) == {1}
    for stage, (first, between, last) in zip((layer3, layer4), table.values(), strict=True):
        assert (stage[0], stage[-1]) == (first, last)
        assert stage[1:-1] == [between] * (len(stage) - 2)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ((2, 2, 2, 2), [[1, 1], [1, 1], [1, 2], [1, 4]]),
        ((1, 1, 1, 1), [[1], [1], [2], [4]]),
    ],
)
def test_dilations_at_stride_8_block_by_block(layers, expected):
    assert dilations(plan_blocks(layers, 8)) == expected
    assert dilations(plan_blocks(layers, 32)) == [[1] * blocks for blocks in layers]


@pytest.mark.parametrize("output_stride", [0, 4, 12, 64])
def test_other_output_strides_are_refused(output_stride):
    with expect_error(ConfigError, "MODEL.CLIP.OUTPUT_STRIDE", output_stride, "16"):
        plan_blocks(RN50, output_stride)
