"""Errors that a user can cause and mend: each says what was got, what was expected and what to do.

`train_net.py` and the tools print them as one line and exit with status 2; everything else keeps its traceback.
"""

import re

__all__ = [
    "BankError",
    "ClassesError",
    "ConfigError",
    "CorruptFileError",
    "DatasetError",
    "FAMixError",
    "OutputError",
    "TrainingError",
    "WeightsError",
]

_LONGEST = 1800  # characters of a message
_LINE_BREAKS = re.compile(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*")


class FAMixError(ValueError):
    """Base of the errors below.

    Args:
        message: what a person is to read; it becomes one line, and of one that quotes a megabyte of a file, beginning
            and end are kept.
    """

    def __init__(self, message: str = "") -> None:
        # What a worker process passes on has its traceback in front of the message.
        if "Traceback (most recent call last)" not in message:
            message = _LINE_BREAKS.sub(" ", message)
            if len(message) > _LONGEST:
                message = f"{message[: 2 * _LONGEST // 3]} [...] {message[-_LONGEST // 4 :]}"
        super().__init__(message)


class ConfigError(FAMixError):
    """A config key or a combination of keys that cannot work."""


class ClassesError(ConfigError):
    """Classes of a dataset that are not those which a network was trained for: outputs would get wrong names."""


class DatasetError(FAMixError):
    """A dataset folder, list, image or label that is missing, unreadable or against its definition."""


class WeightsError(FAMixError):
    """A file of weights that is missing, truncated, unsafe or of another network."""


class BankError(FAMixError):
    """A style bank that is unreadable or was mined for something else than the config asks for."""


class OutputError(FAMixError):
    """Files of a run that cannot be written."""


class TrainingError(FAMixError):
    """A training whose numbers break down."""


class CorruptFileError(ValueError):
    """A damaged file, or one with claims that it cannot hold. The message completes a sentence about the file.

    Callers turn it into a `FAMixError` that names the file.
    """
