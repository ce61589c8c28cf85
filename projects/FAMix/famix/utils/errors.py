"""Errors that a user can cause and fix: each message names the key, the constraint, the value and the remedy.

`train_net.py` and the tools print them as one line and exit with status 2; other errors keep their traceback.
"""

import re

__all__ = [
    "BankError", "ClassesError", "ConfigError", "CorruptFileError", "DatasetError", "FAMixError", "OutputError",
    "TrainingError", "WeightsError",
]  # fmt: skip

_MAX_CHARACTERS = 1800  # characters of a message
_LINE_BREAKS = re.compile(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*")


class FAMixError(ValueError):
    """Base of the errors below.

    Args:
        message: the message; it becomes one line, and only the beginning and the end of a long one are kept.
    """

    def __init__(self, message: str = "") -> None:
        # A worker process puts its traceback in front of the message.
        if "Traceback (most recent call last)" not in message:
            message = _LINE_BREAKS.sub(" ", message)
            if len(message) > _MAX_CHARACTERS:
                message = f"{message[: 2 * _MAX_CHARACTERS // 3]} [...] {message[-_MAX_CHARACTERS // 4 :]}"
        super().__init__(message)


class ConfigError(FAMixError):
    """A config key or a combination of keys is invalid."""


class ClassesError(ConfigError):
    """The classes of a dataset differ from those of the network, which would give outputs wrong names."""


class DatasetError(FAMixError):
    """A dataset folder, list, image or label is missing, unreadable or contradicts its definition."""


class WeightsError(FAMixError):
    """A file of weights is missing, truncated, unsafe or belongs to another network."""


class BankError(FAMixError):
    """A style bank is unreadable or does not fit the config."""


class OutputError(FAMixError):
    """A file of a run cannot be written."""


class TrainingError(FAMixError):
    """The numbers of a training are not finite."""


class CorruptFileError(ValueError):
    """A file is damaged or claims more than it contains.

    The message completes a sentence about the file; callers turn it into a `FAMixError` that names the file.
    """
