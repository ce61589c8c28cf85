"""A look at all data before hours of training depend on it."""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from famix.data.images import MAX_PIXELS, image_size, read_image, require_same_size
from famix.data.labels import LabelReader
from famix.data.records import label_file_of
from famix.data.registration import get_dataset_dicts, get_label_readers

__all__ = ["verify_datasets"]

logger = logging.getLogger(__name__)

_NUM_THREADS = 8  # opening files is mostly waiting for the disk


def verify_datasets(names: Sequence[str], samples: int = 32, max_pixels: int = MAX_PIXELS) -> None:
    """Find missing, damaged and mismatched files of datasets.

    The size of every image and label is compared by the files' headers. Of each dataset, evenly spaced pairs are also
    decoded and their label ids checked.

    Args:
        names: registered names; one that is repeated is looked at once.
        samples: pairs of each dataset to decode.
        max_pixels: of a file, see INPUT.MAX_PIXELS.

    Raises:
        DatasetError: the first problem found.
    """
    start = time.perf_counter()
    names = list(dict.fromkeys(names))
    readers = get_label_readers(names, max_pixels)
    num_pairs = 0
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        for name in names:
            records = get_dataset_dicts([name])
            num_pairs += len(records)
            chosen = _evenly_spaced(records, samples)
            list(pool.map(partial(_compare_headers, reader=readers[name]), records))
            list(pool.map(partial(_decode, reader=readers[name]), chosen))
    logger.info(
        f"Checked {num_pairs} image and label pairs of {', '.join(names)} in {time.perf_counter() - start:.1f} s."
    )


def _evenly_spaced(records: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    places = np.linspace(0, len(records) - 1, num=min(count, len(records))).round().astype(int)
    return [records[place] for place in places]


def _compare_headers(record: dict[str, Any], reader: LabelReader) -> None:
    image_file, label_file = record["file_name"], label_file_of(record)
    shape = image_size(image_file, reader.max_pixels)
    require_same_size(image_file, shape, label_file, reader.size_of(label_file))


def _decode(record: dict[str, Any], reader: LabelReader) -> None:
    image_file, label_file = record["file_name"], label_file_of(record)
    shape = read_image(image_file, max_pixels=reader.max_pixels).shape[:2]
    require_same_size(image_file, shape, label_file, reader.read(label_file).shape)
