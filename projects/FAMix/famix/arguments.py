"""Types of command-line arguments, for argparse."""

import argparse

__all__ = ["whole_number"]


def whole_number(text: str, lowest: int = 0, highest: int | None = None) -> int:
    """An argument that must be a whole number in a range, both ends included.

    Args:
        text: as typed.
        lowest: that it may be.
        highest: that it may be; None sets no limit.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    allowed = f"of at least {lowest}" if highest is None else f"from {lowest} to {highest}"
    expected = f"{text!r} is no whole number {allowed}"
    try:
        number = int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(expected) from error
    if number < lowest or (highest is not None and number > highest):
        raise argparse.ArgumentTypeError(expected)
    return number
