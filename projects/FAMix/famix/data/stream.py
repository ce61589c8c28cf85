"""An endless, shuffled stream of training samples that can be entered anywhere.

The sample at a position follows from the seed and the position alone: neither the number of worker processes, nor the
number of GPUs, nor an interruption changes what a run trains on.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Sampler

__all__ = ["SampleStream", "StreamSampler"]

# Of the random generators, so that no order of images is drawn from the numbers that some sample is drawn from.
_ORDER, _SAMPLE = 0, 1


class SampleStream(Dataset[dict[str, Any]]):
    """The samples of an endless sequence of epochs, by position; each epoch is a new order of all images.

    Args:
        dicts: dataset dicts, N of them.
        mapper: turns a dataset dict and a random generator into a sample.
        seed: of the orders and of what the mapper draws, >= 0.
    """

    def __init__(
        self,
        dicts: Sequence[dict[str, Any]],
        mapper: Callable[[dict[str, Any], np.random.Generator], dict[str, Any]],
        seed: int,
    ) -> None:
        self._dicts = dicts
        self._mapper = mapper
        self._seed = seed
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def __getitem__(self, position: int) -> dict[str, Any]:
        """The sample at a position >= 0."""
        rng = np.random.default_rng((self._seed, _SAMPLE, position))
        return self._mapper(self._dicts[self.index(position)], rng)

    def index(self, position: int) -> int:
        """Place in `dicts` of the image that the sample at a position shows."""
        epoch, place = divmod(position, len(self._dicts))
        if epoch != self._epoch:
            rng = np.random.default_rng((self._seed, _ORDER, epoch))
            self._epoch, self._order = epoch, rng.permutation(len(self._dicts))
        return int(self._order[place])


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
