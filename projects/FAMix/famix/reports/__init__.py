"""Results of runs and style banks: files, tables, comparisons and HTML pages."""

from famix.reports.report import Report, RunMetadata, ScoredDataset, ScoredWeights, describe_classes, make_report
from famix.reports.results_file import RESULTS_FILE, read_report, read_results, write_report
from famix.reports.tables import format_classes, format_corruptions, format_report, format_row, format_scores

__all__ = [
    "RESULTS_FILE",
    "Report",
    "RunMetadata",
    "ScoredDataset",
    "ScoredWeights",
    "describe_classes",
    "format_classes",
    "format_corruptions",
    "format_report",
    "format_row",
    "format_scores",
    "make_report",
    "read_report",
    "read_results",
    "write_report",
]
