"""Options of data loaders, and the start and end of their worker processes."""

import multiprocessing
import os
import signal
from multiprocessing.util import Finalize
from typing import Any

import cv2
import torch
from detectron2.config import CfgNode


def loader_options(cfg: CfgNode) -> dict[str, Any]:
    """Return the arguments that all data loaders share. Batches are lists of samples.

    There are at most as many workers as processor cores. Samples do not depend on their number.
    """
    num_workers = min(cfg.DATALOADER.NUM_WORKERS, _usable_cores())
    if num_workers:
        Finalize(None, _end_workers, exitpriority=1)
    return {
        "num_workers": num_workers,
        "collate_fn": list,
        "worker_init_fn": _start_worker,
        # Without its own generator, a loader draws from torch's global one each time it starts, which would change
        # dropout in a resumed run.
        "generator": torch.Generator(),
    }


def _usable_cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _end_workers() -> None:
    """Kill the remaining workers at exit. They ignore the SIGTERM that Python sends, so Python would wait forever."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def _start_worker(worker_id: int) -> None:
    # The workers share the CPU cores, but OpenCV would start one thread per core in each of them.
    cv2.setNumThreads(0)
    # The training process handles signals sent to the whole job, and needs samples to complete the iteration.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
