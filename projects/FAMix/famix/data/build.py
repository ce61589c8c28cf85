"""Data loaders for training, mining and tests."""

import multiprocessing
import signal
from collections.abc import Collection, Iterator
from itertools import chain
from multiprocessing.util import Finalize
from typing import Any

import cv2
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MapDataset
from detectron2.data.samplers import InferenceSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader

from famix.data.mapper import FAMixDatasetMapper, build_train_mapper
from famix.data.registration import get_dataset_dicts, require_same_classes
from famix.data.sampler import SampleStream, StreamSampler
from famix.utils.errors import ConfigError

__all__ = ["MiningBatches", "build_mining_batches", "build_test_loader", "build_train_loader"]

Batch = list[dict[str, Any]]


def build_train_loader(cfg: CfgNode, start_iter: int = 0) -> "DataLoader[dict[str, Any]]":
    """Build the endless loader of this process's share of the training batches.

    An iteration has the same samples for any number of processes and workers. With SEED >= 0 they depend on the config
    alone, so a resumed run continues as if it had never stopped.

    Args:
        cfg: reads DATASETS.{TRAIN, BALANCED}, INPUT, SOLVER.IMS_PER_BATCH, DATALOADER.NUM_WORKERS and SEED.
        start_iter: number of completed iterations.

    Returns:
        Loader of lists of SOLVER.IMS_PER_BATCH / number of processes samples.

    Raises:
        ConfigError: if SOLVER.IMS_PER_BATCH is not divisible by the number of processes, or a key is unsupported.
        DatasetError: if a dataset is unknown or incomplete, or two have different classes.
    """
    world_size, batch_size = comm.get_world_size(), cfg.SOLVER.IMS_PER_BATCH
    if batch_size < 1 or batch_size % world_size:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH must be a positive multiple of the {world_size} processes that train, got {batch_size}."
        )
    mapper = build_train_mapper(cfg)
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    return DataLoader(
        SampleStream(_train_dicts(cfg), mapper, seed, balanced=cfg.DATASETS.BALANCED),
        batch_size=batch_size // world_size,
        sampler=StreamSampler(start_iter * batch_size, comm.get_rank(), world_size),
        **_worker_options(cfg),
    )


class MiningBatches:
    """One shuffled pass over the source as numbered batches, of which this process gets every world_size-th group.

    Args:
        stream: the samples; batch b has those at positions b * batch_size up to (b + 1) * batch_size.
        batch_size: images per batch.
        num_batches: batches of all processes together.
        rank: of this process, which gets the groups rank, rank + world_size, ...
        world_size: number of processes.
        group: batches per group: batch b belongs to group b // group, and one process gets all of it.
        skip: numbers of batches that are not needed. A group without any other batch is left out; the remaining groups
            are distributed evenly.
        worker_options: arguments of torch's DataLoader about worker processes.

    Attributes:
        num_batches: batches of all processes together; `len` is the number of this process's.
        remaining: numbers of the batches of all processes together.
    """

    def __init__(
        self,
        *,
        stream: SampleStream,
        batch_size: int,
        num_batches: int,
        rank: int = 0,
        world_size: int = 1,
        group: int = 1,
        skip: Collection[int] = (),
        worker_options: dict[str, Any] | None = None,
    ) -> None:
        self.num_batches = num_batches
        groups = [range(first, min(first + group, num_batches)) for first in range(0, num_batches, group)]
        groups = [numbers for numbers in groups if not all(number in skip for number in numbers)]
        self.remaining = frozenset(chain.from_iterable(groups))
        self._numbers = list(chain.from_iterable(groups[rank::world_size]))
        positions = [list(range(number * batch_size, (number + 1) * batch_size)) for number in self._numbers]
        self._loader = DataLoader(stream, batch_sampler=positions, **(worker_options or {"collate_fn": list}))

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[tuple[int, Batch]]:
        yield from zip(self._numbers, self._loader, strict=True)


def build_mining_batches(
    cfg: CfgNode, shared: bool = False, group: int = 1, skip: Collection[int] = ()
) -> MiningBatches:
    """Build the batches for mining; their content is independent of the number of processes and workers.

    Args:
        cfg: reads DATASETS.TRAIN, INPUT.CROP, STYLE_MINING.{IMS_PER_BATCH, MAX_BATCHES, SEED} and
            DATALOADER.NUM_WORKERS.
        shared: every process gets all batches instead of its share.
        group, skip: see MiningBatches.

    Returns:
        Iterable of (batch number, list of STYLE_MINING.IMS_PER_BATCH samples). The last images, if too few for a batch,
        are left out.

    Raises:
        ConfigError: if a key is unsupported, or there are fewer images than a batch has.
        DatasetError: if a dataset is unknown or incomplete, or two have different classes.
    """
    mining = cfg.STYLE_MINING
    for key, lowest in (("IMS_PER_BATCH", 1), ("SEED", 0), ("MAX_BATCHES", 0)):
        if mining[key] < lowest:
            raise ConfigError(f"STYLE_MINING.{key} must be at least {lowest}, got {mining[key]}.")
    mapper = FAMixDatasetMapper(cfg, is_mining=True)
    dicts = _train_dicts(cfg)
    num_batches = len(dicts) // mining.IMS_PER_BATCH
    if num_batches == 0:
        raise ConfigError(
            f"STYLE_MINING.IMS_PER_BATCH must be at most {len(dicts)}, the number of images of "
            f"{', '.join(cfg.DATASETS.TRAIN)}, got {mining.IMS_PER_BATCH}."
        )
    return MiningBatches(
        stream=SampleStream(dicts, mapper, mining.SEED),
        batch_size=mining.IMS_PER_BATCH,
        num_batches=min(num_batches, mining.MAX_BATCHES or num_batches),
        rank=0 if shared else comm.get_rank(),
        world_size=1 if shared else comm.get_world_size(),
        group=group,
        skip=skip,
        worker_options=_worker_options(cfg),
    )


def build_test_loader(cfg: CfgNode, dataset_name: str) -> "DataLoader[dict[str, Any]]":
    """Build the loader of this process's share of a test set: whole images, one at a time, each exactly once.

    Args:
        cfg: reads INPUT.FORMAT and DATALOADER.NUM_WORKERS.
        dataset_name: a registered name.

    Raises:
        ConfigError: if INPUT.FORMAT is unsupported.
        DatasetError: if the dataset is unknown or incomplete.
    """
    # Like Detectron2's build_detection_test_loader, with workers that survive a signal to all processes of a job.
    dicts = get_dataset_dicts([dataset_name])
    images = MapDataset(DatasetFromList(dicts, copy=False), FAMixDatasetMapper(cfg, is_train=False))
    return DataLoader(images, batch_size=1, sampler=InferenceSampler(len(dicts)), **_worker_options(cfg))


def _train_dicts(cfg: CfgNode) -> Batch:
    require_same_classes(cfg.DATASETS.TRAIN)
    return get_dataset_dicts(cfg.DATASETS.TRAIN)


def _worker_options(cfg: CfgNode) -> dict[str, Any]:
    if cfg.DATALOADER.NUM_WORKERS:
        Finalize(None, _end_workers, exitpriority=1)
    return {
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
        "collate_fn": list,
        "worker_init_fn": _start_worker,
        # Without its own generator, a loader draws from torch's global one at each start, which would shift dropout in a
        # resumed run.
        "generator": torch.Generator(),
    }


def _end_workers() -> None:
    """End the remaining workers at exit: they ignore the SIGTERM that Python would send, and it would wait forever."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def _start_worker(worker_id: int) -> None:
    # The workers share the cores; OpenCV would start a thread per core in each of them.
    cv2.setNumThreads(0)
    # The training process handles signals to the whole job, and needs its samples to complete the iteration.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
