"""Work that goes on in a thread beside the network: reading ahead, and writing behind."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

__all__ = ["WriteBehind", "read_ahead"]

T = TypeVar("T")
_END = object()


def read_ahead(items: Iterable[T], ahead: int = 4) -> Iterator[T]:
    """Iterate in a thread, some items ahead of what is asked for.

    Args:
        items: only the thread iterates over it, one item after the other.
        ahead: items that may wait to be asked for, at least 1.

    Yields:
        The items, in their order. What the iteration raises is raised here, in the place of the item.
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
    """Calls functions one after the other in a thread; a context that ends when all are done.

    Args:
        behind: calls that may wait before a further one has to.
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
        """Wait for the calls, and raise what one of them raised; where something else went wrong, drop them."""
        try:
            while self._waiting and kind is None:
                self._waiting.popleft().result()
        finally:
            self._thread.shutdown(cancel_futures=True)

    def call(self, function: Callable[..., Any], *args: Any) -> None:
        """Have a function called.

        Raises:
            Exception: what an earlier call raised.
        """
        if len(self._waiting) >= self._behind:
            self._waiting.popleft().result()
        self._waiting.append(self._thread.submit(function, *args))
