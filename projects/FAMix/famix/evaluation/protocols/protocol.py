"""Evaluation protocols composed of parts, e.g. `fit1024x512+slide512+flip`. docs/PROTOCOLS.md lists published protocols."""

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
    """Views of an image to predict, the averaging of their scores, and the size at which predictions are scored.

    With `released`, views are scaled as in FAMix's reference implementation: the normalized image is downsampled, and
    scores at its size are upsampled, both with aligned corners and without antialiasing. Sizes are rounded down.
    """

    name: str = NATIVE  # parts in a fixed order, joined by "+", as accepted by `parse_protocol`
    image: ResizeCrop = UNCHANGED
    truth: ResizeCrop = UNCHANGED  # transform of the ground truth; predictions are scored at its size
    scales: tuple[float, ...] = (1.0,)  # factors applied to the transformed image; scores are averaged over them
    released: bool = False
    window: SlidingWindow | None = None  # window that slides over every scaled image; None predicts whole images
    flip: bool = False  # whether to average with the horizontal flip at every scale
    average: str = "softmax"  # quantity that is averaged, "softmax" or "logits"
    pad_label: int = 255  # ground truth label where a crop is padded

    @property
    def is_native(self) -> bool:
        """Whether the model's output for the original image is scored unchanged."""
        return not self.averages and self.image == self.truth == UNCHANGED and self.scales == (1.0,)

    @property
    def averages(self) -> bool:
        """Whether predictions are averaged."""
        return len(self.scales) > 1 or self.flip or self.window is not None

    @property
    def averages_probabilities(self) -> bool:
        """Whether predictions are averaged after softmax."""
        return self.averages and self.average != LOGITS

    @property
    def views(self) -> list[tuple[float, bool]]:
        """Scale and flip of every view of an image."""
        return list(product(self.scales, (False, True) if self.flip else (False,)))

    @property
    def counts_absent_classes(self) -> bool:
        """Whether classes that are predicted but never labeled count as 0, as in the reference implementations."""
        return self.released or isinstance(self.truth, ReleasedResizeCrop)

    def view_size(self, size: Size, scale: float) -> Size:
        """Return the (height, width) of a view, given the size of the image file."""
        return scaled_size(self.image.output_size(size), scale, floor=self.released)

    def scored_size(self, size: Size) -> Size:
        """Return the (height, width) at which predictions are scored, given the size of the image file."""
        return self.truth.output_size(size)

    def forwards(self, size: Size) -> int:
        """Return the number of images or windows that the model processes, given the size of the image file."""
        return sum(self.window.count(self.view_size(size, scale)) if self.window else 1 for scale, _ in self.views)

    def prepare_labels(self, labels: np.ndarray) -> np.ndarray:
        """Transform (H, W) train ids of any integer type to `scored_size((H, W))`, without modifying the input.

        Where a crop exceeds the image, labels are `pad_label`.
        """
        return self.truth.apply_labels(labels, self.pad_label)


def parse_protocol(text: str, key: str = "protocol") -> Protocol:
    """Compose a protocol from its parts.

    Args:
        text: parts from `famix.evaluation.protocols.parts` in any order, joined by "+".
        key: name of the config key in error messages.

    Returns:
        The protocol. Equivalent texts give equal protocols.

    Raises:
        ConfigError: a part is unknown, has invalid numbers, conflicts with another part or has no effect.
    """
    # No part begins with a digit, so "famix1+0.5" is one part.
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
    """Return the protocol that TEST.PROTOCOL_OF assigns to a registered dataset, or TEST.PROTOCOL.

    Raises:
        ConfigError: a protocol is invalid, see `parse_protocol`, or an entry of PROTOCOL_OF is malformed, names an
            unknown dataset or repeats a dataset.
    """
    general, key, own = parse_protocol(cfg.TEST.PROTOCOL, "TEST.PROTOCOL"), "TEST.PROTOCOL_OF", {}
    for entry in map(str, cfg.TEST.PROTOCOL_OF):
        name, equals, text = map(str.strip, entry.partition("="))
        if not (name and equals and text):
            raise ConfigError(
                f"{key} entries must have the form DATASET=PROTOCOL, got '{entry}'. Use e.g. mapillary_val=short1024."
            )
        if name not in DatasetCatalog:
            hint = did_you_mean(name, DatasetCatalog) or " Use a name from DATASETS.TEST."
            raise ConfigError(f"{key} contains the unknown dataset '{name}'.{hint}")
        if name in own:
            raise ConfigError(f"{key} has more than one entry for '{name}'. Keep one of them.")
        own[name] = parse_protocol(text, key)
    protocol = own.get(dataset_name, general)
    if protocol.truth.crop is None or protocol.pad_label != Protocol.pad_label:
        return protocol  # has no padding, or sets its own label
    if cfg.TEST.RELEASED_PADDING:
        return parse_protocol(f"{protocol.name}+{ROAD_PADDING}")
    return replace(protocol, pad_label=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)
