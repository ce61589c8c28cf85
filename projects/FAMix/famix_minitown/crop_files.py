"""Files of crops: made once, by several processes, and opened as long as they were made of the same."""

import json
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from famix.io import read_json
from famix.io.atomic import whole_file
from famix.utils.errors import ConfigError
from famix_minitown.crop_sources import CropSource
from famix_minitown.crops import LOOK_NAMES, RECORD, CropPlan, crops_of_scene

__all__ = ["describe_crops", "load_or_make_crops", "make_crops"]

logger = logging.getLogger(__name__)

_MAX_DESCRIPTION = 1 << 20  # bytes
_CHUNK = 8  # scenes that a worker makes at a time


def load_or_make_crops(source: CropSource, plan: CropPlan, path: Path, workers: int = 2) -> NDArray[Any]:
    """Open a file of crops, made first if it is not there.

    Args:
        source: scenes.
        plan: how crops are drawn.
        path: .npy file; beside it a .json tells what it was made of. Without a sound one, it is made anew.
        workers: processes.

    Returns:
        (N,) RECORDs, mapped from the file.

    Raises:
        ConfigError: the file was made of something else.
        DatasetError: files of the source cannot be read, or show no class.
    """
    about, wanted = path.with_name(f"{path.name}.json"), describe_crops(source, plan)
    made_of = _read_description(about) if path.exists() else None
    if made_of is None:
        if path.exists():
            logger.info(f"{path} lacks {about.name}, which tells what it was made of, or that is damaged: made anew")
            path.unlink()  # first, or a stop would leave it with the description of the new crops
        _make_described(source, plan, path, workers)
    elif made_of != wanted:
        raise ConfigError(f"{path}: got crops of {made_of}, expected those of {wanted}. Name another file.")
    try:
        crops: NDArray[Any] = np.load(path, mmap_mode="r")
        if (crops.dtype, crops.shape) != (RECORD, (len(source) * plan.looks * plan.crops,)):
            raise ValueError(f"it has {crops.shape} records of {crops.dtype.itemsize} bytes")
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(
            f"{path} must be a file of crops, got a damaged one ({error}). Remove it to have it made anew."
        ) from error
    return crops


def _read_description(about: Path) -> dict[str, Any] | None:
    """What a file was made of; None if that is not written there, as after a crash."""
    try:
        return read_json(about, _MAX_DESCRIPTION)
    except (FileNotFoundError, ValueError):
        return None


def _make_described(source: CropSource, plan: CropPlan, path: Path, workers: int) -> None:
    size = len(source) * plan.looks * plan.crops * RECORD.itemsize / 1e6
    logger.info(f"Making crops of {len(source)} scenes in {path}, {size:.0f} MB, which stay for other trainings")
    # The description comes first, so that a stop at any moment leaves no crops without one.
    with whole_file(path.with_name(f"{path.name}.json")) as part:
        part.write_text(json.dumps(describe_crops(source, plan), indent=1), encoding="utf-8")
    make_crops(source, plan, path, workers)


def describe_crops(source: CropSource, plan: CropPlan) -> dict[str, Any]:
    """What crops are made of: equal for equal crops. It can be written as JSON."""
    return {
        "source": source.identity,
        "class_names": list(source.class_names),
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
        _claim_room(part)
        done, start = 0, time.perf_counter()
        with closing(_parallel(source, plan, workers)) as chunks:  # an interruption ends the processes, too
            for records in chunks:
                crops[done * per_scene : done * per_scene + len(records)] = records
                done += len(records) // per_scene
                _log_progress(done, len(source), start)
        crops.flush()
        del crops


def _claim_room(path: Path) -> None:
    """Raise OSError unless the disk has room for a file: a write to its memory map would end the process."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _log_progress(done: int, total: int, start: float) -> None:
    if done % (_CHUNK * 16) == 0 or done == total:
        spent = time.perf_counter() - start
        logger.info(f"Crops of {done} / {total} scenes, {spent:.0f} s, {spent / done * (total - done):.0f} s left")


def _parallel(source: CropSource, plan: CropPlan, workers: int) -> Generator[NDArray[Any], None, None]:
    chunks = [range(first, min(first + _CHUNK, len(source))) for first in range(0, len(source), _CHUNK)]
    if workers == 1:
        _start_worker(source, plan)
        yield from map(_make_chunk, chunks)
        return
    # Spawned rather than forked: this process may have threads of PyTorch.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start_worker, (source, plan))
    try:
        with _children_without_interrupts():
            made = pool.map(_make_chunk, chunks)  # starts all processes
        yield from made
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _children_without_interrupts() -> Iterator[None]:
    """Processes that are started here never see Ctrl-C, which a terminal sends to all: this one ends them in order."""
    # Children inherit the mask of the thread that starts them; the other threads here, and so Python, still see it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_job: tuple[CropSource, CropPlan] | None = None  # of a worker process, sent once


def _start_worker(source: CropSource, plan: CropPlan) -> None:
    global _job
    _job = (source, plan)
    cv2.setNumThreads(0)


def _make_chunk(indices: range) -> NDArray[Any]:
    assert _job is not None
    return np.concatenate([crops_of_scene(*_job, index) for index in indices])
