"""Errors that a user can cause and mend: each says what was got, what was expected and what to do.

`train_net.py` and the tools print them as one line and exit with status 2; everything else keeps its traceback.
"""

__all__ = ["BankError", "ConfigError", "DatasetError", "FAMixError", "WeightsError"]


class FAMixError(ValueError):
    """Base of the errors below."""


class ConfigError(FAMixError):
    """A config key or a combination of keys that cannot work."""


class DatasetError(FAMixError):
    """A dataset folder, list, image or label that is missing, unreadable or against its definition."""


class WeightsError(FAMixError):
    """A file of weights that is missing, truncated, unsafe or of another network."""


class BankError(FAMixError):
    """A style bank that is unreadable or was mined for something else than the config asks for."""


class TrainingError(FAMixError):
    """A training whose numbers break down."""
