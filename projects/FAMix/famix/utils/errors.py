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
    """Error for an invalid config key or combination of keys."""


class ClassesError(ConfigError):
    """Error for a dataset whose classes differ from those of the network, so outputs would get wrong names."""


class DatasetError(FAMixError):
    """Error for a dataset folder, list, image or label that is missing, unreadable or inconsistent with its definition."""


class WeightsError(FAMixError):
    """Error for a weights file that is missing, truncated, unsafe or made for a different network."""


class BankError(FAMixError):
    """Error for a style bank that is unreadable or does not fit the config."""


class OutputError(FAMixError):
    """Error for an output file that cannot be written."""


class TrainingError(FAMixError):
    """Error for non-finite values during training."""


class CorruptFileError(ValueError):
    """Error for a file that is damaged or claims more than it contains.

    The message is a clause about the file. Callers turn it into a `FAMixError` that names the file.
    """
