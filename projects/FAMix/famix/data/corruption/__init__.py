"""Common image corruptions, and datasets with corrupted images."""

from famix.data.corruption.datasets import (
    ALL,
    Corruption,
    expand_corruptions,
    parse_corruption,
    read_input,
    register_corruptions,
)
from famix.data.corruption.effects import CORRUPTIONS, SEVERITIES, corrupt

__all__ = [
    "ALL",
    "CORRUPTIONS",
    "SEVERITIES",
    "Corruption",
    "corrupt",
    "expand_corruptions",
    "parse_corruption",
    "read_input",
    "register_corruptions",
]
