"""Errors that a user can cause and fix. Each message names the key, the constraint, the value and the remedy.

`train_net.py` and the tools print them as one line and exit with status 2. Other errors keep their traceback.
"""

import re

__all__ = [
    "BankError", "ClassesError", "ConfigError", "CorruptFileError", "DatasetError", "FAMixError", "OutputError",
    "TrainingError", "WeightsError",
]  # fmt: skip

_MAX_CHARACTERS = 1800  # maximum length of a message
_LINE_BREAKS = re.compile(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*")


class FAMixError(ValueError):
    """Base class of the errors below.

    Args:
        message: error message. Line breaks become spaces, and the middle of a long message is cut out.
    """

    def __init__(self, message: str = "") -> None:
        # A worker process prepends its traceback to the message.
        if "Traceback (most recent call last)" not in message:
            message = _LINE_BREAKS.sub(" ", message)
            if len(message) > _MAX_CHARACTERS:
                message = f"{message[: 2 * _MAX_CHARACTERS // 3]} [...] {message[-_MAX_CHARACTERS // 4 :]}"
        super().__init__(message)


class ConfigError(FAMixError):
    """Raised when a config key or a combination of keys is invalid."""


class ClassesError(ConfigError):
    """Raised when the classes of a dataset and a network differ, so outputs would get wrong names."""


class DatasetError(FAMixError):
    """Raised when a dataset folder, list, image or label is missing, unreadable or inconsistent with its definition."""


class WeightsError(FAMixError):
    """Raised when a weights file is missing, truncated, unsafe or made for a different network."""


class BankError(FAMixError):
    """Raised when a style bank is unreadable or does not fit the config."""


class OutputError(FAMixError):
    """Raised when an output file cannot be written."""


class TrainingError(FAMixError):
    """Raised when non-finite values occur during training."""


class CorruptFileError(ValueError):
    """Raised when a file is damaged or claims more than it contains.

    The message is a clause about the file. Callers turn it into a `FAMixError` that names the file.
    """
