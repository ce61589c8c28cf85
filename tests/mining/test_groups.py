"""Which batches are mined together."""

import pytest

from famix.mining.groups import batches_per_group, in_groups


def test_groups_are_fixed_ranges_of_numbers() -> None:
    """Of three: what is missing from a range does not pull the next one forward."""
    pairs = [(number, str(number)) for number in (0, 1, 2, 4, 5, 9, 10)]
    assert [[number for number, _ in group] for group in in_groups(iter(pairs), 3)] == [[0, 1, 2], [4, 5], [9, 10]]
    assert list(in_groups(pairs, 1)) == [[pair] for pair in pairs]
    assert list(in_groups([], 3)) == []


def test_batches_are_asked_for_one_group_at_a_time() -> None:
    asked = []
    groups = in_groups(((asked.append(number) or number, "") for number in range(9)), 3)
    assert len(next(groups)) == 3
    assert asked == [0, 1, 2, 3], "one more is what tells that the group is over"


@pytest.mark.parametrize(
    ("images", "patches", "classes", "values", "expected"),
    [
        (16, 9, 19, 256 * 56 * 56, 1),  # RN50: a batch is work enough
        (4, 9, 19, 64 * 16 * 16, 6),  # the miniature town: 20 styles at most
        (1, 2, 19, 64 * 16 * 16, 64),  # two patches give two styles at most
        (16, 9, 19, 2**30, 1),
    ],
)
def test_small_networks_get_large_groups(images: int, patches: int, classes: int, values: int, expected: int) -> None:
    assert batches_per_group(images, patches, classes, values) == expected
