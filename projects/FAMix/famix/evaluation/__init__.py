"""Scoring a model on its targets."""

from famix.evaluation.class_subsets import CLASS_SUBSETS, class_subset
from famix.evaluation.evaluators import EVALUATORS, build_evaluator, check_evaluation
from famix.evaluation.inference import ProtocolInference
from famix.evaluation.protocols import Protocol, parse_protocol, protocol_of
from famix.evaluation.report import Report, ScoredDataset, make_report
from famix.evaluation.report_text import describe_classes, format_classes, format_report, format_row, format_scores
from famix.evaluation.results_file import RESULTS_FILE, read_report, read_results, write_report
from famix.evaluation.run_facts import RunFacts, ScoredWeights
from famix.evaluation.streaming import StreamingSemSegEvaluator

__all__ = [
    # How a model is used, and what counts
    "CLASS_SUBSETS",
    "Protocol",
    "ProtocolInference",
    "class_subset",
    "parse_protocol",
    "protocol_of",
    # What counts the pixels
    "EVALUATORS",
    "StreamingSemSegEvaluator",
    "build_evaluator",
    "check_evaluation",
    # What is written of it
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
