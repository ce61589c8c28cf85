"""Number of pixels of each class in each training label, counted once per run and cached in its directory."""

import hashlib
import json
import logging
import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from famix.data.definition import describe_dataset
from famix.data.labels import LabelReader, count_train_ids
from famix.data.layout.split_files import label_file_of
from famix.data.registration import get_dataset_dicts, get_label_readers
from famix.data.sampling.workers import loader_options
from famix.data.vocabulary import unlabeled_classes
from famix.io import load_tensors
from famix.io.atomic import save_tensors
from famix.utils.errors import CorruptFileError
from famix.utils.progress import ShownLoader

FILE = "pixel_counts.pth"
"""Name of the cache in OUTPUT_DIR."""

_KEY, _PIXELS = "key", "pixels"


def count_pixels(cfg: CfgNode) -> NDArray[np.int64]:
    """Count the pixels of each class in each training label, or read the counts from OUTPUT_DIR.

    The labels are divided among the processes and their data loader workers. The cache is used only if the definitions of
    the datasets and the names, sizes and times of the label files have not changed. Call this function in all processes.

    Args:
        cfg: config; uses DATASETS.TRAIN, DATASETS.UNLABELED, INPUT.MAX_PIXELS, DATALOADER.NUM_WORKERS and OUTPUT_DIR.

    Returns:
        (N, K) for the N images of `get_dataset_dicts(cfg.DATASETS.TRAIN)` and K classes. Ignored pixels and unlabeled
            classes are not counted.

    Raises:
        DatasetError: a dataset is unknown or incomplete, or a label cannot be read.
        OSError: the cache cannot be written.
    """
    pixels = _count_or_read(cfg)
    pixels[:, list(unlabeled_classes(cfg))] = 0
    return pixels


def _count_or_read(cfg: CfgNode) -> NDArray[np.int64]:
    """Return the counts of all classes, from the cache if possible."""
    records = get_dataset_dicts(cfg.DATASETS.TRAIN)
    num_classes = len(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).stuff_classes)
    file, key = Path(cfg.OUTPUT_DIR, FILE), ""
    cached = None
    if comm.is_main_process():
        key = _content_key(records, cfg.DATASETS.TRAIN)
        cached = _read(file, key, (len(records), num_classes))
    cached = comm.all_gather(cached)[0]
    if cached is not None:
        return cached
    labels = LabelPixels(records, get_label_readers(cfg.DATASETS.TRAIN, cfg.INPUT.MAX_PIXELS), num_classes)
    rank, world_size = comm.get_rank(), comm.get_world_size()
    loader = DataLoader(labels, batch_size=1, sampler=range(rank, len(records), world_size), **loader_options(cfg))
    own = [counts for batch in ShownLoader(loader, "counting pixels") for counts in batch]
    pixels = np.empty((len(records), num_classes), dtype=np.int64)
    for other, counts in enumerate(comm.all_gather(own)):
        if counts:
            pixels[other::world_size] = counts
    if comm.is_main_process():
        save_tensors({_KEY: key, _PIXELS: torch.from_numpy(pixels)}, file)
    return pixels


class LabelPixels(Dataset[NDArray[np.int64]]):
    """Pixels of each class (K,) in the label of each dataset dict."""

    def __init__(
        self, records: Sequence[Mapping[str, Any]], readers: Mapping[str, LabelReader], num_classes: int
    ) -> None:
        self._records = records
        self._readers = readers
        self._num_classes = num_classes

    def __getitem__(self, index: int) -> NDArray[np.int64]:
        record = self._records[index]
        labels = self._readers[record["dataset_name"]].read(label_file_of(record))
        return count_train_ids(labels)[: self._num_classes]


def _content_key(records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """Return a hash of all that determines the counts, without reading the labels."""
    digest = hashlib.sha256(json.dumps([describe_dataset(name) for name in names], sort_keys=True).encode())
    for record in records:
        path = label_file_of(record)
        state = os.stat(path) if os.path.exists(path) else None  # a missing file is reported by its reader
        entry = [record["dataset_name"], path, record.get("segments_info")]
        entry += [state.st_size, state.st_mtime_ns] if state else []
        digest.update(json.dumps(entry, default=str).encode())
    return digest.hexdigest()


def _read(file: Path, key: str, shape: tuple[int, int]) -> NDArray[np.int64] | None:
    """Return the cached counts, or None if there are none for this content."""
    try:
        with file.open("rb") as stream:
            content = load_tensors(stream)
    except FileNotFoundError:
        return None
    except (OSError, CorruptFileError, pickle.UnpicklingError) as error:
        logging.getLogger(__name__).warning("Cannot read '%s' (%s). Counting the pixels again.", file, error)
        return None
    pixels = content.get(_PIXELS) if isinstance(content, dict) and content.get(_KEY) == key else None
    if not isinstance(pixels, torch.Tensor) or tuple(pixels.shape) != shape or pixels.dtype != torch.int64:
        return None
    counts: NDArray[np.int64] = pixels.numpy()
    return counts
