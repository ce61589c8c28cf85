"""Evaluation protocols, composed by name and applicable to any semantic segmentation model."""

from famix.evaluation.protocols.inference import ProtocolInference
from famix.evaluation.protocols.parts import register_part
from famix.evaluation.protocols.protocol import Protocol, parse_protocol, protocol_of
from famix.evaluation.protocols.transforms import UNCHANGED, ResizeCrop, SlidingWindow

__all__ = [
    "UNCHANGED",
    "Protocol",
    "ProtocolInference",
    "ResizeCrop",
    "SlidingWindow",
    "parse_protocol",
    "protocol_of",
    "register_part",
]
