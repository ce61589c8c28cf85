"""Evaluation protocols, composed of parts: `fit1024x512+slide512+flip`. docs/PROTOCOLS.md lists published protocols."""

import re
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from famix.evaluation.protocols.parts import FIELDS, LOGITS, NATIVE, ROAD_PADDING, find_part
from famix.evaluation.protocols.transforms import (
    UNCHANGED,
    ReleasedResizeCrop,
    ResizeCrop,
    Size,
    SlidingWindow,
    scaled_size,
)
from famix.utils.errors import ConfigError
from famix.utils.messages import did_you_mean


@dataclass(frozen=True)
class Protocol:
    """The views of an image that a model predicts, their average, and the size at which the result is scored.

    With `released`, views are scaled as in FAMix's reference implementation: the normalized image is downsampled, and
    scores at its size are upsampled, with aligned corners and without antialiasing; sizes are rounded down.
    """

    name: str = NATIVE  # the parts in a fixed order, joined by "+"; `parse_protocol` reads it
    image: ResizeCrop = UNCHANGED
    truth: ResizeCrop = UNCHANGED  # of the ground truth; predictions are scored at its size
    scales: tuple[float, ...] = (1.0,)  # factors on the transformed image; the scores of several are averaged
    released: bool = False
    window: SlidingWindow | None = None  # slides over every scaled image; None predicts it whole
    flip: bool = False  # average with the horizontal flip of every scale
    average: str = "softmax"  # the averaged quantity, "softmax" or "logits"
    pad_label: int = 255  # label of the ground truth where a crop is padded

    @property
    def is_native(self) -> bool:
        """Whether the model's output for the unchanged image is scored unchanged."""
        return not self.averages and self.image == self.truth == UNCHANGED and self.scales == (1.0,)

    @property
    def averages(self) -> bool:
        """Whether predictions are averaged."""
        return len(self.scales) > 1 or self.flip or self.window is not None

    @property
    def views(self) -> list[tuple[float, bool]]:
        """Scale and flip of every view of an image."""
        return list(product(self.scales, (False, True) if self.flip else (False,)))

    @property
    def counts_absent_classes(self) -> bool:
        """Whether classes that are predicted but nowhere labeled count as 0, as in the reference implementations."""
        return self.released or isinstance(self.truth, ReleasedResizeCrop)

    def view_size(self, size: Size, scale: float) -> Size:
        """Return the (height, width) of a view of an image file of a size."""
        return scaled_size(self.image.output_size(size), scale, floor=self.released)

    def scored_size(self, size: Size) -> Size:
        """Return the (height, width) at which an image file of a size is scored."""
        return self.truth.output_size(size)

    def forwards(self, size: Size) -> int:
        """Count the images, or windows, that the model predicts for an image file of (height, width)."""
        return sum(self.window.count(self.view_size(size, scale)) if self.window else 1 for scale, _ in self.views)

    def prepare_labels(self, labels: np.ndarray) -> np.ndarray:
        """Transform (H, W) train ids of any integer type to `scored_size((H, W))`, without modifying them.

        Where a crop exceeds the image, labels are `pad_label`.
        """
        return self.truth.apply_labels(labels, self.pad_label)


def parse_protocol(text: str, key: str = "protocol") -> Protocol:
    """Compose a protocol.

    Args:
        text: parts of `famix.evaluation.protocols.parts`, in any order, joined by "+".
        key: config key for error messages.

    Returns:
        The protocol; texts of the same meaning give equal ones.

    Raises:
        ConfigError: a part is unknown or has invalid numbers, two contradict each other, or one has no effect.
    """
    # No part begins with a number, so that "famix1+0.5" is one part.
    texts = re.split(r"\+(?!\d)", re.sub(r"\s*\+\s*", "+", str(text).strip()))
    values: dict[str, Any] = {}
    set_by: dict[str, str] = {}
    names: dict[str, str] = {}
    try:
        for part in texts:
            name, fields = find_part(part)
            for field in fields:
                if field in set_by:
                    raise ConfigError(f"'{set_by[field]}' and '{part}' both set '{field}'. Keep one of them.")
                set_by[field] = part
            if any(getattr(Protocol, field) != value for field, value in fields.items()):
                names[next(iter(fields))] = name
            values |= fields
        protocol = Protocol(name="+".join(names[field] for field in FIELDS if field in names) or NATIVE, **values)
        for modifier, has_effect, needed in (
            (LOGITS, protocol.averages, "several scales, windows or flip"),
            (ROAD_PADDING, protocol.truth.crop is not None, "a crop"),
        ):
            if modifier in texts and not has_effect:
                raise ConfigError(f"'{modifier}' has no effect without {needed}. Remove it.")
    except ConfigError as error:
        raise ConfigError(f"{key} '{text}': {error}") from error
    return protocol


def protocol_of(cfg: CfgNode, dataset_name: str) -> Protocol:
    """Return the protocol that TEST.PROTOCOL_OF assigns to a registered dataset, else TEST.PROTOCOL.

    Raises:
        ConfigError: see `parse_protocol`; or an entry of PROTOCOL_OF is malformed, or names an unknown dataset or one
            that has an entry already.
    """
    general, key, own = parse_protocol(cfg.TEST.PROTOCOL, "TEST.PROTOCOL"), "TEST.PROTOCOL_OF", {}
    for entry in map(str, cfg.TEST.PROTOCOL_OF):
        name, equals, text = map(str.strip, entry.partition("="))
        if not (name and equals and text):
            raise ConfigError(
                f"{key} must have entries DATASET=PROTOCOL, got '{entry}'. Write e.g. mapillary_val=short1024."
            )
        if name not in DatasetCatalog:
            hint = did_you_mean(name, DatasetCatalog) or " Use the names of DATASETS.TEST."
            raise ConfigError(f"{key} must name registered datasets, got '{name}'.{hint}")
        if name in own:
            raise ConfigError(f"{key} must name each dataset once, got '{name}' twice. Keep one entry.")
        own[name] = parse_protocol(text, key)
    protocol = own.get(dataset_name, general)
    if protocol.truth.crop is None or protocol.pad_label != Protocol.pad_label:
        return protocol  # pads nothing, or sets its own label
    if cfg.TEST.RELEASED_PADDING:
        return parse_protocol(f"{protocol.name}+{ROAD_PADDING}")
    return replace(protocol, pad_label=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)
