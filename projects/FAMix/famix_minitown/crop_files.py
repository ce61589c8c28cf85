"""Files of crops, made once by several processes; a description beside each guards against other settings."""

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
from famix_minitown.crops import LOOK_NAMES, RECORD, CropPlan, CropSource, crops_of_scene

__all__ = ["describe_crops", "load_or_make_crops", "make_crops"]

logger = logging.getLogger(__name__)

_MAX_DESCRIPTION = 1 << 20  # bytes
_CHUNK = 8  # scenes of a task
_LOG_EVERY = 16  # chunks


def load_or_make_crops(source: CropSource, plan: CropPlan, path: Path, workers: int = 2) -> NDArray[Any]:
    """Open a file of crops; make it first if it is missing.

    Args:
        source: scenes.
        plan: settings of the crops.
        path: .npy file with a .json description beside it. Without a readable one, the crops are made again.
        workers: processes.

    Returns:
        (N,) RECORDs, mapped from the file.

    Raises:
        ConfigError: the file has crops of another source or plan, or is damaged.
        DatasetError: files of the source cannot be read, or show no class.
    """
    about, wanted = path.with_name(f"{path.name}.json"), describe_crops(source, plan)
    found = None
    if path.exists():
        try:
            found = read_json(about, _MAX_DESCRIPTION)
        except (FileNotFoundError, ValueError):  # as after a crash
            logger.info(f"{path} lacks {about.name}, its description, or that is damaged: making the crops again")
            path.unlink()  # before the new description is written
    if found is None:
        megabytes = len(source) * plan.looks * plan.crops * RECORD.itemsize / 1e6
        logger.info(f"Making crops of {len(source)} scenes in {path}, {megabytes:.0f} MB, kept for other trainings")
        with whole_file(about) as part:  # first, so that a stop leaves no crops without a description
            part.write_text(json.dumps(wanted, indent=1), encoding="utf-8")
        make_crops(source, plan, path, workers)
    elif found != wanted:
        raise ConfigError(f"{path} must have crops of {wanted}, got crops of {found}. Choose another file.")
    try:
        crops: NDArray[Any] = np.load(path, mmap_mode="r")
        if (crops.dtype, crops.shape) != (RECORD, (len(source) * plan.looks * plan.crops,)):
            raise ValueError(f"{crops.shape} records of {crops.dtype.itemsize} bytes")
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"{path} must be a file of crops, got a damaged one ({error}). Remove it.") from error
    return crops


def describe_crops(source: CropSource, plan: CropPlan) -> dict[str, Any]:
    """Return all that determines the crops, as JSON values."""
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
    """Write the crops of all scenes to an .npy file, atomically."""
    per_scene, total = plan.looks * plan.crops, len(source)
    with whole_file(path) as part:
        crops = np.lib.format.open_memmap(part, mode="w+", dtype=RECORD, shape=(total * per_scene,))
        if hasattr(os, "posix_fallocate"):  # an OSError here, since a memory map that runs out of disk ends the process
            with part.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, part.stat().st_size)
        done, start = 0, time.perf_counter()
        with closing(_parallel(source, plan, workers)) as chunks:  # an interruption ends the processes, too
            for records in chunks:
                crops[done * per_scene : done * per_scene + len(records)] = records
                done += len(records) // per_scene
                if done % (_CHUNK * _LOG_EVERY) == 0 or done == total:
                    spent = time.perf_counter() - start
                    left = spent / done * (total - done)
                    logger.info(f"Crops of {done} / {total} scenes, {spent:.0f} s, {left:.0f} s left")
        crops.flush()
        del crops


def _parallel(source: CropSource, plan: CropPlan, workers: int) -> Generator[NDArray[Any], None, None]:
    chunks = [range(first, min(first + _CHUNK, len(source))) for first in range(0, len(source), _CHUNK)]
    if workers == 1:
        _start_worker(source, plan)
        yield from map(_make_chunk, chunks)
        return
    # Spawned, not forked: this process may have threads of PyTorch.
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
    """Block Ctrl-C in processes that are started here: a terminal sends it to all, and this process ends them."""
    # Children inherit the mask of the thread that starts them; the other threads here still receive the signal.
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
