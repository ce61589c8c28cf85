"""The error of everything in this package, apart so that its modules can share it."""

__all__ = ["DoubtfulFileError"]


class DoubtfulFileError(ValueError):
    """A file that is damaged, or claims what it cannot hold; the message completes a sentence about the file."""
