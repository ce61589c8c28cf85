"""Named ways to score a model, composed of parts: `fit1024x512+slide512+flip`. docs/PROTOCOLS.md says who scores how."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from famix.evaluation.protocols.parts import FIELDS, LOGITS, NATIVE, ROAD_PADDING, find_part, split_parts
from famix.evaluation.protocols.resampling import Size
from famix.evaluation.protocols.sliding import Window
from famix.evaluation.protocols.transforms import NATIVE_FRAME, Frame, ReleasedFrame, floored, scaled
from famix.utils.errors import ConfigError
from famix.utils.messages import did_you_mean

__all__ = ["Protocol", "parse_protocol", "protocol_of"]


@dataclass(frozen=True)
class Protocol:
    """What a model is shown of an image, what is averaged, and at which size that is scored.

    Attributes:
        name: the parts in a fixed order, joined by "+"; "native" where there are none. `parse_protocol` reads it.
        image: frame of the image.
        truth: frame of the ground truth, at whose size predictions are scored.
        scales: of the framed image; the scores of several are averaged.
        released: scale as FAMix's program does: the normalised image shrinks, and scores at its size are enlarged, with
            aligned corners and without antialiasing; sizes are rounded down.
        window: slides over every scaled image; None shows it whole.
        flip: average with the mirror image of every scale.
        average: what is averaged: "softmax" or "logits".
        pad_label: of ground truth that a crop pads.
    """

    name: str = NATIVE
    image: Frame = NATIVE_FRAME
    truth: Frame = NATIVE_FRAME
    scales: tuple[float, ...] = (1.0,)
    released: bool = False
    window: Window | None = None
    flip: bool = False
    average: str = "softmax"
    pad_label: int = 255

    @property
    def is_native(self) -> bool:
        """Whether the model gets the image as it is, once, and what it returns is scored as it is."""
        return not self.averages and self.image == self.truth == NATIVE_FRAME and self.scales == (1.0,)

    @property
    def averages(self) -> bool:
        """Whether predictions are averaged."""
        return len(self.scales) > 1 or self.flip or self.window is not None

    @property
    def views(self) -> list[tuple[float, bool]]:
        """Scale, and whether mirrored, of every view of an image."""
        return list(product(self.scales, (False, True) if self.flip else (False,)))

    @property
    def counts_absent_classes(self) -> bool:
        """Whether it repeats a program in whose mean a class counts as 0 that is predicted, but nowhere labelled."""
        return self.released or isinstance(self.truth, ReleasedFrame)

    def view_size(self, size: Size, scale: float) -> Size:
        """(height, width) at which a scale shows an image file of a size."""
        framed = self.image.framed(size)
        return floored(framed, scale) if self.released else scaled(framed, scale)

    def scored_size(self, size: Size) -> Size:
        """(height, width) at which an image file of a size is scored."""
        return self.truth.framed(size)

    def forwards(self, size: Size) -> int:
        """How many images, or windows of them, the model sees for an image file of (height, width)."""
        return sum(
            1 if self.window is None else self.window.count(self.view_size(size, scale)) for scale, _ in self.views
        )

    def prepare_labels(self, labels: np.ndarray) -> np.ndarray:
        """Ground truth as this protocol scores it.

        Args:
            labels: (H, W) train ids, of any integer type; left as they are.

        Returns:
            (h, w) = `scored_size((H, W))`, of the same type, resized to the nearest pixel; `pad_label` where the frame
            reaches beyond the image.
        """
        return self.truth.labels(labels, self.pad_label)


def parse_protocol(text: str) -> Protocol:
    """Compose a protocol.

    Args:
        text: parts of `famix.evaluation.protocols.parts`, in any order, joined by "+".

    Returns:
        The protocol; texts of the same meaning give equal ones.

    Raises:
        ConfigError: a part is unknown or has impossible numbers, two contradict each other, or one has nothing to act
            on.
    """
    try:
        return _compose(split_parts(str(text)))
    except ConfigError as error:
        raise ConfigError(f"protocol '{text}': {error}") from error


def protocol_of(cfg: CfgNode, dataset_name: str) -> Protocol:
    """The protocol of a data set.

    Args:
        cfg: reads TEST.PROTOCOL, TEST.PROTOCOL_OF, TEST.RELEASED_PADDING and MODEL.SEM_SEG_HEAD.IGNORE_VALUE.
        dataset_name: a registered data set.

    Returns:
        The one that TEST.PROTOCOL_OF names for the data set, or else TEST.PROTOCOL.

    Raises:
        ConfigError: see parse_protocol; or an entry of PROTOCOL_OF has another form, or names an unknown data set or
            one that has an entry already.
    """
    general = _parse_setting("TEST.PROTOCOL", cfg.TEST.PROTOCOL)
    protocol = _parse_overrides(cfg.TEST.PROTOCOL_OF).get(dataset_name, general)
    if protocol.truth.crop is None or protocol.pad_label != Protocol.pad_label:
        return protocol  # which pads nothing, or says itself with what
    if cfg.TEST.RELEASED_PADDING:
        return parse_protocol(f"{protocol.name}+{ROAD_PADDING}")
    return replace(protocol, pad_label=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)


def _compose(texts: Sequence[str]) -> Protocol:
    values: dict[str, Any] = {}
    set_by: dict[str, str] = {}
    names: dict[str, str] = {}
    for text in texts:
        name, part = find_part(text)
        for field in part:
            if field in set_by:
                raise ConfigError(f"'{set_by[field]}' and '{text}' both set {FIELDS[field]}; keep one")
            set_by[field] = text
        if any(getattr(Protocol, field) != value for field, value in part.items()):
            names[next(iter(part))] = name
        values |= part
    protocol = Protocol(name="+".join(names[field] for field in FIELDS if field in names) or NATIVE, **values)
    if protocol.average == LOGITS and not protocol.averages:
        raise ConfigError(f"'{LOGITS}' says what to average, but nothing is averaged here; leave it out")
    if ROAD_PADDING in texts and protocol.truth.crop is None:
        raise ConfigError(f"'{ROAD_PADDING}' says how a crop is padded, but nothing is cropped here; leave it out")
    return protocol


def _parse_setting(key: str, text: str) -> Protocol:
    try:
        return parse_protocol(text)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from error


def _parse_overrides(entries: Sequence[str]) -> dict[str, Protocol]:
    key, protocols = "TEST.PROTOCOL_OF", {}
    for entry in map(str, entries):
        dataset_name, equals, text = map(str.strip, entry.partition("="))
        if not (dataset_name and equals and text):
            raise ConfigError(
                f"{key} has the entry '{entry}', expected DATA_SET=PROTOCOL, e.g. mapillary_val=short1024"
            )
        if dataset_name not in DatasetCatalog:
            hint = did_you_mean(dataset_name, DatasetCatalog) or " Names are those of DATASETS.TEST."
            raise ConfigError(f"{key} names an unknown data set, '{dataset_name}'.{hint}")
        if dataset_name in protocols:
            raise ConfigError(f"{key} names the data set '{dataset_name}' twice; keep one entry")
        protocols[dataset_name] = _parse_setting(key, text)
    return protocols
