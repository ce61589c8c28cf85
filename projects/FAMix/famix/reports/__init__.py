"""Results of runs and style banks: files, tables, comparisons and pages."""

from famix.reports.report import Report, ScoredDataset, make_report
from famix.reports.report_text import describe_classes, format_classes, format_report, format_row, format_scores
from famix.reports.results_file import RESULTS_FILE, read_report, read_results, write_report
from famix.reports.run_metadata import RunFacts, ScoredWeights

__all__ = [
    "RESULTS_FILE",
    "Report",
    "RunFacts",
    "ScoredDataset",
    "ScoredWeights",
    "describe_classes",
    "format_classes",
    "format_report",
    "format_row",
    "format_scores",
    "make_report",
    "read_report",
    "read_results",
    "write_report",
]
