import pytest

from famix.errors import ConfigError
from famix.modeling.geometry import plan_blocks

RN50, RN101 = (3, 4, 6, 3), (3, 4, 23, 3)


def strides(plan):
    return [[block.stride for block in stage] for stage in plan]


def dilations(plan):
    return [[block.dilation for block in stage] for stage in plan]


@pytest.mark.parametrize("layers", [RN50, RN101, (1, 1, 1, 1)])
def test_every_block_has_a_geometry(layers):
    for output_stride in (8, 16, 32):
        assert tuple(map(len, plan_blocks(layers, output_stride))) == layers


@pytest.mark.parametrize(
    ("output_stride", "first_strides"), [(32, [1, 2, 2, 2]), (16, [1, 2, 2, 1]), (8, [1, 2, 1, 1])]
)
def test_only_the_first_block_of_a_stage_has_a_stride(output_stride, first_strides):
    plan = strides(plan_blocks(RN50, output_stride))
    assert [stage[0] for stage in plan] == first_strides
    assert {stride for stage in plan for stride in stage[1:]} == {1}


def test_clip_itself_has_no_dilation():
    assert {d for stage in dilations(plan_blocks(RN101, 32)) for d in stage} == {1}


@pytest.mark.parametrize("layers", [RN50, RN101])
def test_stride_16_dilates_the_last_block_of_layer4(layers):
    *earlier, last = dilations(plan_blocks(layers, 16))
    assert last == [1, 1, 2]
    assert {d for stage in earlier for d in stage} == {1}


@pytest.mark.parametrize("layers", [RN50, RN101])
def test_stride_8_dilates_the_last_blocks_of_layer3_and_layer4(layers):
    layer1, layer2, layer3, layer4 = dilations(plan_blocks(layers, 8))
    assert set(layer1) == set(layer2) == {1}
    assert layer3 == [1] * (layers[2] - 1) + [2]
    assert layer4 == [2, 2, 4]


def test_a_stage_of_one_block_has_its_stride_and_the_new_dilation():
    assert dilations(plan_blocks((1, 1, 1, 1), 8)) == [[1], [1], [2], [4]]
    assert strides(plan_blocks((1, 1, 1, 1), 16)) == [[1], [2], [2], [1]]


@pytest.mark.parametrize("output_stride", [0, 4, 12, 64])
def test_other_output_strides_are_refused(output_stride):
    with pytest.raises(ConfigError, match=rf"OUTPUT_STRIDE must be one of \(8, 16, 32\), got {output_stride}"):
        plan_blocks(RN50, output_stride)
