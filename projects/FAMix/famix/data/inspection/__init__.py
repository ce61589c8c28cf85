"""A look at a whole dataset: what is missing or wrong, what it shows, and a picture of it."""

from famix.data.inspection.dataset import check_dataset, evenly_spaced
from famix.data.inspection.report import DatasetReport, format_report

__all__ = ["DatasetReport", "check_dataset", "evenly_spaced", "format_report"]
