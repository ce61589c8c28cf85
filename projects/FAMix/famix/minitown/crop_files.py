"""Files of crops: made once, by several processes, and opened as long as they were made of the same."""

import json
import logging
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from famix.errors import ConfigError
from famix.files import whole_file
from famix.minitown.crop_sources import CropSource
from famix.minitown.crops import LOOK_NAMES, RECORD, CropPlan, crops_of_scene

__all__ = ["load_or_make_crops", "make_crops"]

logger = logging.getLogger(__name__)

_CHUNK = 8  # scenes that a worker makes at a time


def load_or_make_crops(source: CropSource, plan: CropPlan, path: Path, workers: int = 2) -> NDArray[Any]:
    """Open a file of crops, made first if it is not there.

    Args:
        source: scenes.
        plan: how crops are drawn.
        path: .npy file; beside it a .json tells what it was made of.
        workers: processes.

    Returns:
        (N,) RECORDs, mapped from the file.

    Raises:
        ConfigError: the file was made of something else.
    """
    about, wanted = path.with_name(f"{path.name}.json"), _describe(source, plan)
    if not path.exists():
        make_crops(source, plan, path, workers)
        about.write_text(json.dumps(wanted, indent=1), encoding="utf-8")
    made_of = json.loads(about.read_text(encoding="utf-8")) if about.exists() else None
    if made_of != wanted:
        raise ConfigError(f"{path}: got crops of {made_of}, expected those of {wanted}. Name another file.")
    return np.load(path, mmap_mode="r")


def _describe(source: CropSource, plan: CropPlan) -> dict[str, Any]:
    return {
        "source": source.identity,
        "scenes": len(source),
        "seed": plan.seed,
        "looks": plan.looks,
        "crops": plan.crops,
        "single_looks": plan.single_looks,
        "look_names": list(LOOK_NAMES),
    }


def make_crops(source: CropSource, plan: CropPlan, path: Path, workers: int = 2) -> None:
    """Write the crops of all scenes to a file that is complete or not there at all.

    Args:
        source: scenes.
        plan: how crops are drawn.
        path: .npy file to write.
        workers: processes.
    """
    per_scene = plan.looks * plan.crops
    with whole_file(path) as part:
        crops = np.lib.format.open_memmap(part, mode="w+", dtype=RECORD, shape=(len(source) * per_scene,))
        done, start = 0, time.perf_counter()
        for records in _parallel(source, plan, workers):
            crops[done * per_scene : done * per_scene + len(records)] = records
            done += len(records) // per_scene
            _log_progress(done, len(source), start)
        crops.flush()
        del crops


def _log_progress(done: int, total: int, start: float) -> None:
    if done % (_CHUNK * 16) == 0 or done == total:
        spent = time.perf_counter() - start
        logger.info(f"Crops of {done} / {total} scenes, {spent:.0f} s, {spent / done * (total - done):.0f} s left")


def _parallel(source: CropSource, plan: CropPlan, workers: int) -> Iterator[NDArray[Any]]:
    chunks = [range(first, min(first + _CHUNK, len(source))) for first in range(0, len(source), _CHUNK)]
    if workers == 1:
        _start_worker(source, plan)
        yield from map(_make_chunk, chunks)
        return
    # Spawned rather than forked: this process may have threads of PyTorch.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_worker, (source, plan)) as pool:
        yield from pool.map(_make_chunk, chunks)


_job: tuple[CropSource, CropPlan] | None = None  # of a worker process, sent once


def _start_worker(source: CropSource, plan: CropPlan) -> None:
    global _job
    _job = (source, plan)
    cv2.setNumThreads(0)


def _make_chunk(indices: range) -> NDArray[Any]:
    assert _job is not None
    return np.concatenate([crops_of_scene(*_job, index) for index in indices])
