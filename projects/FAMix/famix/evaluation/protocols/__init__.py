"""Evaluation protocols: composed by name, applied to any semantic model."""

from famix.evaluation.protocols.inference import ProtocolInference
from famix.evaluation.protocols.protocol import Protocol, parse_protocol, protocol_of

__all__ = ["Protocol", "ProtocolInference", "parse_protocol", "protocol_of"]
