import pytest

from famix.utils.messages import counted


@pytest.mark.parametrize(
    ("number", "noun", "expected"),
    [(1, "style", "1 style"), (0, "style", "0 styles"), (2, "class", "2 classes"), (1, "class", "1 class"), (3, "batch", "3 batches")],
)  # fmt: skip
def test_counted(number: int, noun: str, expected: str) -> None:
    assert counted(number, noun) == expected
