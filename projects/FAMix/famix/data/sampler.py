"""An endless, shuffled stream of training samples with random access.

The sample at a position depends on the seed and the position alone. The number of workers or GPUs and interruptions do
not change the samples of a run.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

__all__ = ["SampleStream", "StreamSampler"]

# Distinguish the random generators of orders and samples.
_ORDER, _SAMPLE, _TURNS, _SOURCE_ORDER = 0, 1, 2, 3


class SampleStream(Dataset[dict[str, Any]]):
    """The samples of an endless sequence of epochs, by position; each epoch is a new permutation of all images.

    Args:
        dicts: dataset dicts, N of them.
        mapper: maps a dataset dict and a random generator to a sample.
        seed: of the permutations and the mapper's draws, >= 0.
        balanced: datasets contribute equally often, regardless of their sizes: S consecutive positions, from a multiple
            of S on, have one image of each of the S datasets (by `dataset_name`), in random order. An epoch of a dataset
            is then a new permutation of its own images.
    """

    def __init__(
        self,
        dicts: Sequence[dict[str, Any]],
        mapper: Callable[[dict[str, Any], np.random.Generator], dict[str, Any]],
        seed: int,
        balanced: bool = False,
    ) -> None:
        self._dicts = dicts
        self._mapper = mapper
        self._seed = seed
        if balanced:
            names = np.array([record["dataset_name"] for record in dicts])
            sources = [np.flatnonzero(names == name) for name in dict.fromkeys(names.tolist())]
            self._places: _ShuffledPlaces | _BalancedPlaces = _BalancedPlaces(seed, sources)
        else:
            self._places = _ShuffledPlaces((seed, _ORDER), len(dicts))

    def __getitem__(self, position: int) -> dict[str, Any]:
        """The sample at a position >= 0."""
        rng = np.random.default_rng((self._seed, _SAMPLE, position))
        return self._mapper(self._dicts[self.index(position)], rng)

    def index(self, position: int) -> int:
        """Index in `dicts` of the image at a position."""
        return self._places.at(position)


class _ShuffledPlaces:
    """Epochs of `count` indices, each in an order that depends on `keys` and the epoch."""

    def __init__(self, keys: tuple[int, ...], count: int) -> None:
        self._keys = keys
        self._count = count
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def at(self, position: int) -> int:
        epoch, place = divmod(position, self._count)
        if epoch != self._epoch:
            rng = np.random.default_rng((*self._keys, epoch))
            self._epoch, self._order = epoch, rng.permutation(self._count)
        return int(self._order[place])


class _BalancedPlaces:
    """Rounds with one turn per source, in random order.

    Without shuffling the turns, each of two processes would see only one of two sources.
    """

    def __init__(self, seed: int, sources: Sequence[NDArray[np.int64]]) -> None:
        self._seed = seed
        self._sources = sources
        self._orders = [_ShuffledPlaces((seed, _SOURCE_ORDER, k), len(places)) for k, places in enumerate(sources)]

    def at(self, position: int) -> int:
        turn, place = divmod(position, len(self._sources))
        order = np.random.default_rng((self._seed, _TURNS, turn)).permutation(len(self._sources))
        source = int(order[place])
        return int(self._sources[source][self._orders[source].at(turn)])


class StreamSampler(Sampler[int]):
    """The endless positions of one process.

    Args:
        start: position of the next sample of the whole run.
        rank: of the process.
        world_size: number of processes.
    """

    def __init__(self, start: int, rank: int, world_size: int) -> None:
        self._start = start
        self._rank = rank
        self._world_size = world_size

    def __iter__(self) -> Iterator[int]:
        position = self._start + self._rank
        while True:
            yield position
            position += self._world_size
