"""Scoring a model: evaluation protocols, evaluators and their counts."""

from famix.evaluation.counting.class_subsets import CLASS_SUBSETS, class_subset
from famix.evaluation.counting.streaming import StreamingSemSegEvaluator
from famix.evaluation.evaluators import EVALUATORS, build_evaluator, check_evaluation
from famix.evaluation.protocols.inference import ProtocolInference
from famix.evaluation.protocols.protocol import Protocol, parse_protocol, protocol_of

__all__ = [
    "CLASS_SUBSETS",
    "EVALUATORS",
    "Protocol",
    "ProtocolInference",
    "StreamingSemSegEvaluator",
    "build_evaluator",
    "check_evaluation",
    "class_subset",
    "parse_protocol",
    "protocol_of",
]
