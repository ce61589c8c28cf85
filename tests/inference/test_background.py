"""Reading ahead and writing behind: in order, bounded, and with each error in its place."""

import threading
import time
from collections.abc import Iterator

import pytest

from famix.inference.background import read_ahead, write_behind


def test_items_come_in_order_from_another_thread() -> None:
    threads: list[threading.Thread] = []

    def items() -> Iterator[int]:
        for number in range(20):
            threads.append(threading.current_thread())
            yield number

    assert list(read_ahead(items(), ahead=3)) == list(range(20))
    assert threading.current_thread() not in threads


def test_reading_ahead_is_bounded() -> None:
    taken: list[int] = []
    iterator = read_ahead((taken.append(number) or number for number in range(100)), ahead=5)  # type: ignore[func-returns-value]
    assert next(iterator) == 0
    time.sleep(0.05)
    assert 2 <= len(taken) <= 6
    iterator.close()  # type: ignore[attr-defined]
    assert len(taken) <= 6


def test_error_of_the_iteration_comes_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("broken")

    iterator = read_ahead(items())
    assert next(iterator) == 1
    with pytest.raises(KeyError, match="broken"):
        next(iterator)


def test_calls_are_in_order_bounded_and_finished_at_the_end() -> None:
    gate = threading.Event()
    scheduled: list[int] = []
    done: list[int] = []

    def run() -> None:
        with write_behind(behind=2) as call:
            for number in range(5):
                call(lambda number=number: gate.wait() and done.append(number))
                scheduled.append(number)

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(0.05)
    waited = list(scheduled)
    gate.set()
    thread.join(5)
    assert waited == [0, 1]
    assert done == scheduled == [0, 1, 2, 3, 4]


def fail() -> None:
    raise OSError("disk full")


def test_error_of_a_call_stops_later_ones_and_ends_the_context() -> None:
    done: list[int] = []

    def call_twice() -> None:
        with write_behind(behind=1) as call:
            call(fail)
            call(done.append, 1)

    with pytest.raises(OSError, match="disk full"):
        call_twice()
    assert done == []
    with pytest.raises(OSError, match="disk full"), write_behind() as call:
        call(fail)


def test_error_of_the_context_comes_first() -> None:
    def fail_twice() -> None:
        with write_behind() as call:
            call(fail)
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        fail_twice()
