"""Reading ahead and writing behind the network in a thread."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

__all__ = ["WriteBehind", "read_ahead"]

T = TypeVar("T")
_END = object()


def read_ahead(items: Iterable[T], ahead: int = 4) -> Iterator[T]:
    """Iterate in a thread, at most `ahead` items before the consumer.

    Args:
        items: iterated by the thread alone.
        ahead: number of items that may wait, at least 1.

    Yields:
        The items in order. An exception of the iteration is raised in the place of its item.
    """
    source = iter(items)
    with ThreadPoolExecutor(1) as thread:
        waiting: deque[Future[Any]] = deque(thread.submit(next, source, _END) for _ in range(ahead))
        try:
            while (item := waiting.popleft().result()) is not _END:
                waiting.append(thread.submit(next, source, _END))
                yield item
        finally:
            for future in waiting:
                future.cancel()


class WriteBehind:
    """Calls functions in order in a thread; a context manager that waits for the last call.

    Args:
        behind: number of calls that may wait before `call` blocks.
    """

    def __init__(self, behind: int = 4) -> None:
        self._behind = behind
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> "WriteBehind":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the calls and raise their exceptions; after another exception, drop waiting calls."""
        try:
            while self._waiting and kind is None:
                self._waiting.popleft().result()
        finally:
            self._thread.shutdown(cancel_futures=True)

    def call(self, function: Callable[..., Any], *args: Any) -> None:
        """Schedule a call.

        Raises:
            Exception: an earlier call raised it.
        """
        if len(self._waiting) >= self._behind:
            self._waiting.popleft().result()
        self._waiting.append(self._thread.submit(function, *args))
