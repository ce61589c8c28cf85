"""Model evaluation: protocols, evaluators and scores."""

from famix.evaluation.counting.scores import CLASS_SUBSETS, class_subset
from famix.evaluation.counting.semantic import StreamingSemSegEvaluator
from famix.evaluation.evaluators import EVALUATORS, build_evaluator, check_evaluation
from famix.evaluation.protocols import Protocol, ProtocolInference, parse_protocol, protocol_of, register_part

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
    "register_part",
]
