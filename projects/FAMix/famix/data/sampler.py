"""An endless, shuffled stream of training samples that can be entered anywhere.

The sample at a position follows from the seed and the position alone: neither the number of worker processes, nor the
number of GPUs, nor an interruption changes what a run trains on.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

__all__ = ["SampleStream", "StreamSampler"]

# Of the random generators, so that no order of images is drawn from the numbers that some sample is drawn from.
_ORDER, _SAMPLE, _TURNS, _SOURCE_ORDER = 0, 1, 2, 3


class SampleStream(Dataset[dict[str, Any]]):
    """The samples of an endless sequence of epochs, by position; each epoch is a new order of all images.

    Args:
        dicts: dataset dicts, N of them.
        mapper: turns a dataset dict and a random generator into a sample.
        seed: of the orders and of what the mapper draws, >= 0.
        balanced: datasets contribute equally often, whatever their sizes: S positions in a row, from a multiple of S
            on, show one image of each of the S datasets (by `dataset_name`), in random order. An epoch of a dataset is
            then a new order of its own images.
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
            self._places: _ShuffledPlaces | _BalancedPlaces = _BalancedPlaces(seed, _places_by_dataset(dicts))
        else:
            self._places = _ShuffledPlaces((seed, _ORDER), len(dicts))

    def __getitem__(self, position: int) -> dict[str, Any]:
        """The sample at a position >= 0."""
        rng = np.random.default_rng((self._seed, _SAMPLE, position))
        return self._mapper(self._dicts[self.index(position)], rng)

    def index(self, position: int) -> int:
        """Place in `dicts` of the image that the sample at a position shows."""
        return self._places.at(position)


class _ShuffledPlaces:
    """Epochs of `count` places, each in a new order that follows from `keys` and the epoch."""

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
    """Rounds in which each source has one turn, at a random place of the round.

    The turns are shuffled because processes read every so many-th position: otherwise each of two processes would see
    one of two sources only.
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


def _places_by_dataset(dicts: Sequence[Mapping[str, Any]]) -> list[NDArray[np.int64]]:
    names = np.array([record["dataset_name"] for record in dicts])
    return [np.flatnonzero(names == name) for name in dict.fromkeys(names.tolist())]


class StreamSampler(Sampler[int]):
    """The positions that one process reads, without end.

    Args:
        start: position of the whole run's next sample.
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
