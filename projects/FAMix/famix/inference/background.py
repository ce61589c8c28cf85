"""Background threads that read inputs ahead of the network and write outputs behind it."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
_END = object()


def read_ahead(items: Iterable[T], ahead: int = 4) -> Iterator[T]:
    """Iterate over items in a thread, up to `ahead` items early. An exception is raised when its item is due."""
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


@contextmanager
def write_behind(behind: int = 4) -> Iterator[Callable[..., None]]:
    """Run function calls in order in a thread, and wait for the last call at the end of the context.

    If the context raises, pending calls are dropped.

    Args:
        behind: number of calls that may be pending before another one blocks.

    Yields:
        Function `call(function, *args)` that schedules a call and raises the exception of an earlier call, if any.
    """
    waiting: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(1) as thread:

        def call(function: Callable[..., Any], *args: Any) -> None:
            if len(waiting) >= behind:
                waiting.popleft().result()
            waiting.append(thread.submit(function, *args))

        try:
            yield call
            while waiting:
                waiting.popleft().result()
        finally:
            thread.shutdown(cancel_futures=True)
