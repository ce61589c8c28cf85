"""Corrupted versions of registered datasets, such as "cityscapes_val@fog3", whose images are corrupted when they are read."""

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from numpy.typing import NDArray

from famix.data.corruption.effects import CORRUPTIONS, SEVERITIES, corrupt
from famix.data.images import MAX_PIXELS, read_image
from famix.utils.errors import DatasetError
from famix.utils.messages import did_you_mean
from famix.utils.seeding import derive_seed

ALL = "all"
"""Stands for every corruption in a name, as in "cityscapes_val@all"."""

_MARK = "@"
_FORM = re.compile(r"(?P<base>[^@]+)@(?P<kind>[a-z_]+)(?P<severity>\d*)")
_KEY = "corruption"  # in dataset dicts: (kind, severity)


@dataclass(frozen=True)
class Corruption:
    """A corrupted version of a dataset."""

    base: str  # name of the dataset
    kind: str  # key of `CORRUPTIONS`
    severity: int  # 1 to 5

    @property
    def name(self) -> str:
        """Name of the corrupted dataset."""
        return f"{self.base}{_MARK}{self.kind}{self.severity}"

    def __call__(self) -> list[dict[str, Any]]:
        """List the dataset dicts, for Detectron2's catalog."""
        return [
            type(record)({**record, "dataset_name": self.name, _KEY: (self.kind, self.severity)})
            for record in DatasetCatalog.get(self.base)
        ]


def parse_corruption(name: str) -> Corruption | None:
    """Return the corruption that a dataset name such as "cityscapes_val@fog3" describes, or None for other names."""
    found = _FORM.fullmatch(name)
    if not found or found["kind"] not in CORRUPTIONS or found["severity"] not in map(str, SEVERITIES):
        return None
    return Corruption(found["base"], found["kind"], int(found["severity"]))


def expand_corruptions(names: Sequence[str]) -> tuple[str, ...]:
    """Replace names without a severity, such as "val@fog" or "val@all", by their five severities.

    Raises:
        DatasetError: a corruption or severity does not exist.
    """
    expanded: list[str] = []
    for name in names:
        if _MARK not in name:
            expanded.append(name)
            continue
        found = _FORM.fullmatch(name)
        base, kind, severity = found.groups() if found else (*name.split(_MARK, 1), "")
        if not found or kind not in (ALL, *CORRUPTIONS):
            raise DatasetError(
                f"Dataset '{name}' must be NAME@CORRUPTION or NAME@CORRUPTION with a severity, got the corruption {kind!r}."
                f"{did_you_mean(kind, CORRUPTIONS)} Use one of {', '.join(CORRUPTIONS)}, or {ALL}."
            )
        if severity not in ("", *map(str, SEVERITIES)):
            raise DatasetError(
                f"Dataset '{name}' must have a severity from 1 to 5, got {severity}. Use e.g. '{base}@{kind}3', or "
                f"'{base}@{kind}' for all of them."
            )
        for one in CORRUPTIONS if kind == ALL else (kind,):
            expanded += [Corruption(base, one, int(level)).name for level in severity or SEVERITIES]
    return tuple(dict.fromkeys(expanded))


def register_corruptions(names: Sequence[str]) -> None:
    """Register the corrupted datasets among the given names, if their base is registered. Other names are left alone."""
    for corruption in map(parse_corruption, names):
        if corruption is None or corruption.name in DatasetCatalog or corruption.base not in DatasetCatalog:
            continue
        DatasetCatalog.register(corruption.name, corruption)
        metadata = MetadataCatalog.get(corruption.base).as_dict()
        del metadata["name"]
        MetadataCatalog.get(corruption.name).set(**metadata)


def read_input(record: Mapping[str, Any], max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Read the image of a dataset dict as `read_image` does, and corrupt it if its dataset is a corrupted one.

    Random draws depend only on the corruption and the image's name, so that an image is always the same.
    """
    image = read_image(record["file_name"], max_pixels=max_pixels)
    if _KEY not in record:
        return image
    kind, severity = record[_KEY]
    keys = (zlib.crc32(text.encode()) for text in (kind, str(record["image_id"])))
    return corrupt(image, kind, severity, np.random.default_rng(derive_seed(severity, *keys)))
