"""Argument types shared by command lines."""

import argparse


def whole_number(text: str, lowest: int = 0, highest: int | None = None) -> int:
    """Parse an integer argument in [lowest, highest], or of at least `lowest` if `highest` is None.

    Raises:
        argparse.ArgumentTypeError: the text is not an integer in this range.
    """
    allowed = f"of at least {lowest}" if highest is None else f"in [{lowest}, {highest}]"
    try:
        number = int(text)
    except ValueError:
        number = None
    if number is None or number < lowest or (highest is not None and number > highest):
        raise argparse.ArgumentTypeError(f"must be an integer {allowed}, got {text!r}")
    return number
