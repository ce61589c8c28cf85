"""Data loaders for training, for mining styles and for tests."""

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

from famix.data.mapper import FAMixDatasetMapper
from famix.data.panoptic.mapper import build_train_mapper
from famix.data.registration import get_dataset_dicts, require_same_classes
from famix.data.sampler import SampleStream, StreamSampler
from famix.utils.errors import ConfigError

__all__ = ["MiningBatches", "build_mining_batches", "build_test_loader", "build_train_loader"]

Batch = list[dict[str, Any]]


def build_train_loader(cfg: CfgNode, start_iter: int = 0) -> "DataLoader[dict[str, Any]]":
    """Endless loader of this process's share of the training batches.

    An iteration has the same samples for any number of processes and workers. With SEED >= 0 they follow from the
    config alone, so that a run which is taken up again continues as if it had never stopped.

    Args:
        cfg: reads DATASETS.{TRAIN, BALANCED}, INPUT, SOLVER.IMS_PER_BATCH, DATALOADER.NUM_WORKERS and SEED.
        start_iter: iterations that are done already.

    Returns:
        Loader of lists of SOLVER.IMS_PER_BATCH / number of processes samples.

    Raises:
        ConfigError: SOLVER.IMS_PER_BATCH is not divisible by the number of processes, or a key cannot work.
        DatasetError: a dataset is unknown, its files are incomplete, or the classes of two datasets differ.
    """
    world_size, batch_size = comm.get_world_size(), cfg.SOLVER.IMS_PER_BATCH
    if batch_size < 1 or batch_size % world_size:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH is {batch_size}, expected a multiple of the {world_size} processes that train."
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
    """One shuffled pass over the source as numbered batches, of which this process gets every so many-th.

    Args:
        stream: the samples; batch b has those at positions b * batch_size up to (b + 1) * batch_size.
        batch_size: images of a batch.
        num_batches: batches of all processes together.
        rank: of this process, which gets the groups rank, rank + world_size, ...
        world_size: number of processes.
        group: batches of a group: batch b belongs to group b // group, and one process gets all of it.
        skip: numbers of batches that are not needed. A group is left out where none of its batches is; the others are
            shared out evenly.
        worker_options: arguments of torch's DataLoader about worker processes.

    Attributes:
        num_batches: batches of all processes together; `len` is the number of this process's.
        remaining: the numbers that all processes together get.
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
    """Batches that styles are mined from; what they hold does not depend on the number of processes or workers.

    Args:
        cfg: reads DATASETS.TRAIN, INPUT.CROP, STYLE_MINING.{IMS_PER_BATCH, MAX_BATCHES, SEED} and
            DATALOADER.NUM_WORKERS.
        shared: every process gets all batches, instead of its share of them.
        group, skip: see MiningBatches.

    Returns:
        Iterable of (batch number, list of STYLE_MINING.IMS_PER_BATCH samples). Images that do not fill a batch are
        left out.

    Raises:
        ConfigError: a key cannot work, or there are fewer images than a batch has.
        DatasetError: a dataset is unknown, its files are incomplete, or the classes of two datasets differ.
    """
    mining = cfg.STYLE_MINING
    if mining.IMS_PER_BATCH < 1 or mining.SEED < 0 or mining.MAX_BATCHES < 0:
        raise ConfigError(
            f"STYLE_MINING.IMS_PER_BATCH is {mining.IMS_PER_BATCH}, SEED {mining.SEED} and MAX_BATCHES "
            f"{mining.MAX_BATCHES}; expected at least 1, 0 and 0."
        )
    mapper = FAMixDatasetMapper(cfg, is_mining=True)
    dicts = _train_dicts(cfg)
    num_batches = len(dicts) // mining.IMS_PER_BATCH
    if num_batches == 0:
        raise ConfigError(
            f"STYLE_MINING.IMS_PER_BATCH is {mining.IMS_PER_BATCH}, but {', '.join(cfg.DATASETS.TRAIN)} has "
            f"{len(dicts)} images, too few for one batch. Lower it to {len(dicts)} or less."
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
    """Loader of this process's share of a test set: whole images, one at a time, each image exactly once.

    Args:
        cfg: reads INPUT.FORMAT and DATALOADER.NUM_WORKERS.
        dataset_name: a registered name.

    Returns:
        Loader of lists of one sample.

    Raises:
        ConfigError: INPUT.FORMAT cannot work.
        DatasetError: the dataset is unknown or its files are incomplete.
    """
    # As Detectron2's build_detection_test_loader, whose workers a signal to all processes of a job would end.
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
        # Without one of its own, a loader takes a number off torch's global generator whenever it is started, which
        # would shift dropout in a run that is taken up again.
        "generator": torch.Generator(),
    }


def _end_workers() -> None:
    """At exit, end the workers that are left: Python would send them SIGTERM, which they ignore, and wait for ever."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def _start_worker(worker_id: int) -> None:
    # The workers already share the cores; OpenCV would start a thread for every core in each of them.
    cv2.setNumThreads(0)
    # A signal to all processes of a job is the training's to answer; it still needs its samples to end the iteration.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
