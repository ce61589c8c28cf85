"""Data loaders for training, mining and testing, and the sample stream behind the first two.

The sample at a position in the stream depends only on the seed and the position. Neither interruptions nor the number
of workers or GPUs change the samples of a run.
"""

import logging
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MapDataset, MetadataCatalog
from detectron2.data.samplers import InferenceSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from famix.data.classes import is_panoptic
from famix.data.mapper import FAMixDatasetMapper
from famix.data.meta_architecture import trains_on
from famix.data.panoptic.mapper import PanopticDatasetMapper
from famix.data.registration import get_dataset_dicts, require_same_classes
from famix.data.sampling.pixel_counts import count_pixels
from famix.data.sampling.rare_classes import RARE_CLASS, RARE_CLASS_SAMPLER, RareClassSampler, check_sampler
from famix.data.sampling.workers import loader_options
from famix.utils.errors import ConfigError

_ORDER, _SAMPLE, _TURNS, _SOURCE_ORDER, _RARE = range(5)  # separate the random generators derived from one seed


class SampleStream(Dataset[dict[str, Any]]):
    """Endless stream of samples, indexed by position. Each epoch is a new permutation of all images.

    Args:
        dicts: dataset dicts for all images.
        mapper: function that maps a dataset dict and a random generator to a sample.
        seed: seed for the permutations and the mapper's random draws, >= 0.
        balanced: whether to draw equally often from every dataset, regardless of its size. Each round of S positions
            contains one image from each of the S datasets (by `dataset_name`) in random order, and every dataset has
            its own epochs.
        rare: sampler that draws a class and an image for each position, instead of epochs. The mapper receives the class
            as the entry "rare_class".
    """

    def __init__(
        self,
        dicts: Sequence[dict[str, Any]],
        mapper: Callable[[dict[str, Any], np.random.Generator], dict[str, Any]],
        seed: int,
        balanced: bool = False,
        rare: RareClassSampler | None = None,
    ) -> None:
        self._dicts = dicts
        self._mapper = mapper
        self._seed = seed
        self._balanced = balanced
        self._rare = rare
        names = np.array([record["dataset_name"] if balanced else "" for record in dicts])
        self._sources = [np.flatnonzero(names == name) for name in dict.fromkeys(names.tolist())]
        self._orders: dict[int, tuple[int, np.ndarray]] = {}  # source -> its current epoch and permutation

    def __getitem__(self, position: int) -> dict[str, Any]:
        """Return the sample at a position, which must be >= 0."""
        rng = np.random.default_rng((self._seed, _SAMPLE, position))
        if self._rare is None:
            return self._mapper(self._dicts[self.index(position)], rng)
        train_id, index = self._rare.draw(np.random.default_rng((self._seed, _RARE, position)))
        return self._mapper({**self._dicts[index], RARE_CLASS: train_id}, rng)

    def index(self, position: int) -> int:
        """Return the index into `dicts` for a position in the stream."""
        if self._rare is not None:
            return self._rare.draw(np.random.default_rng((self._seed, _RARE, position)))[1]
        source, turn = 0, position
        if self._balanced:
            # If the order within a round were fixed, each of two processes would see only one of two sources.
            turn, place = divmod(position, len(self._sources))
            turns = np.random.default_rng((self._seed, _TURNS, turn)).permutation(len(self._sources))
            source = int(turns[place])
        epoch, place = divmod(turn, len(self._sources[source]))
        if self._orders.get(source, (-1,))[0] != epoch:
            keys = (_SOURCE_ORDER, source) if self._balanced else (_ORDER,)
            rng = np.random.default_rng((self._seed, *keys, epoch))
            self._orders[source] = epoch, rng.permutation(self._sources[source])
        return int(self._orders[source][1][place])


def build_train_mapper(cfg: CfgNode) -> FAMixDatasetMapper:
    """Build the training mapper. It creates panoptic targets if the model uses them and all datasets are panoptic."""
    if trains_on(cfg) != {"sem_seg"} and all(map(is_panoptic, cfg.DATASETS.TRAIN)):
        return PanopticDatasetMapper(cfg)
    return FAMixDatasetMapper(cfg, is_train=True)


def build_train_loader(cfg: CfgNode, start_iter: int = 0) -> "DataLoader[dict[str, Any]]":
    """Build the endless loader for this process's share of the training batches.

    An iteration uses the same samples for any number of processes and workers. If SEED >= 0, they depend only on the
    config and on `start_iter`, the number of completed iterations, so a resumed run continues as if never stopped.

    Raises:
        ConfigError: SOLVER.IMS_PER_BATCH is not divisible by the number of processes, or a key has an invalid
            value.
        DatasetError: a dataset is unknown or incomplete, or two datasets define different classes.
    """
    world_size, batch_size = comm.get_world_size(), cfg.SOLVER.IMS_PER_BATCH
    if batch_size < 1 or batch_size % world_size:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH must be a positive multiple of the number of training processes ({world_size}), got "
            f"{batch_size}."
        )
    require_same_classes(cfg.DATASETS.TRAIN)
    check_sampler(cfg)
    dicts, mapper = get_dataset_dicts(cfg.DATASETS.TRAIN), build_train_mapper(cfg)
    rare = None
    if cfg.DATALOADER.SAMPLER_TRAIN == RARE_CLASS_SAMPLER:
        options = cfg.DATALOADER.RARE_CLASS
        rare = RareClassSampler(count_pixels(cfg), options.TEMPERATURE, options.MIN_PIXELS)
        _log_probabilities(rare, cfg.DATASETS.TRAIN[0])
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    return DataLoader(
        SampleStream(dicts, mapper, seed, balanced=cfg.DATASETS.BALANCED, rare=rare),
        batch_size=batch_size // world_size,
        sampler=range(start_iter * batch_size + comm.get_rank(), sys.maxsize, world_size),  # endless in practice
        **loader_options(cfg),
    )


def _log_probabilities(rare: RareClassSampler, dataset_name: str) -> None:
    names = MetadataCatalog.get(dataset_name).stuff_classes
    shares = ", ".join(f"{name} {100 * p:.1f}" for name, p in zip(names, rare.probabilities, strict=True))
    logging.getLogger(__name__).info("Classes that training images are drawn for, in percent: %s", shares)


@dataclass(frozen=True)
class MiningBatches:
    """This process's share of one shuffled pass over the source, as (batch number, list of samples) pairs."""

    numbers: Sequence[int]  # numbers of the batches in `loader`
    loader: "DataLoader[dict[str, Any]]"
    remaining: frozenset[int]  # numbers of all batches still to be mined, by any process

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        yield from zip(self.numbers, self.loader, strict=True)


def count_mining_batches(cfg: CfgNode, num_images: int) -> int:
    """Return the number of batches in a mining pass over the source, at least 1.

    Raises:
        ConfigError: a key has an invalid value, or there are too few images for one batch.
    """
    mining = cfg.STYLE_MINING
    for key, lowest in (("IMS_PER_BATCH", 1), ("SEED", 0), ("MAX_BATCHES", 0)):
        if mining[key] < lowest:
            raise ConfigError(f"STYLE_MINING.{key} must be at least {lowest}, got {mining[key]}.")
    num_batches: int = num_images // mining.IMS_PER_BATCH
    if num_batches == 0:
        raise ConfigError(
            f"STYLE_MINING.IMS_PER_BATCH must be at most {num_images}, the number of images in "
            f"{', '.join(cfg.DATASETS.TRAIN)}, got {mining.IMS_PER_BATCH}. Smaller batches give more styles: each batch "
            "gives at most one per class."
        )
    return min(num_batches, mining.MAX_BATCHES or num_batches)


def build_mining_batches(
    cfg: CfgNode, shared: bool = False, group: int = 1, skip: Collection[int] = ()
) -> MiningBatches:
    """Build the batches for mining. Their contents do not depend on the number of processes or workers.

    Args:
        cfg: config; uses DATASETS.TRAIN, INPUT.CROP, STYLE_MINING.{IMS_PER_BATCH, MAX_BATCHES, SEED} and
            DATALOADER.NUM_WORKERS. An incomplete last batch is dropped.
        shared: whether every process gets all batches instead of its share.
        group: number of batches per group. Batch b belongs to group b // group, and each group goes to one process.
        skip: numbers of batches that are not needed. A group is left out if all of its batches are in `skip`; the
            remaining groups are distributed evenly.

    Raises:
        ConfigError: a key has an invalid value, or there are too few images for one batch.
        DatasetError: a dataset is unknown or incomplete, or two datasets define different classes.
    """
    mining = cfg.STYLE_MINING
    require_same_classes(cfg.DATASETS.TRAIN)
    dicts, mapper = get_dataset_dicts(cfg.DATASETS.TRAIN), FAMixDatasetMapper(cfg, is_mining=True)
    num_batches = count_mining_batches(cfg, len(dicts))
    groups = [range(first, min(first + group, num_batches)) for first in range(0, num_batches, group)]
    groups = [numbers for numbers in groups if not all(number in skip for number in numbers)]
    rank, world_size = (0, 1) if shared else (comm.get_rank(), comm.get_world_size())
    own = list(chain.from_iterable(groups[rank::world_size]))
    size = mining.IMS_PER_BATCH
    positions = [list(range(number * size, (number + 1) * size)) for number in own]
    loader = DataLoader(SampleStream(dicts, mapper, mining.SEED), batch_sampler=positions, **loader_options(cfg))
    return MiningBatches(own, loader, remaining=frozenset(chain.from_iterable(groups)))


def build_test_loader(cfg: CfgNode, dataset_name: str) -> "DataLoader[dict[str, Any]]":
    """Build the loader for this process's share of a test set. It yields whole images one at a time, each exactly once.

    Raises:
        ConfigError: INPUT.FORMAT or INPUT.MAX_PIXELS has an invalid value.
        DatasetError: the dataset is unknown or incomplete.
    """
    # Like Detectron2's build_detection_test_loader, but with workers that survive a signal sent to the whole job.
    dicts = get_dataset_dicts([dataset_name])
    images = MapDataset(DatasetFromList(dicts, copy=False), FAMixDatasetMapper(cfg, is_train=False))
    return DataLoader(images, batch_size=1, sampler=InferenceSampler(len(dicts)), **loader_options(cfg))
