"""Reading ahead and writing behind: in order, bounded, and with every error where it belongs."""

import threading
import time
from collections.abc import Iterator

import pytest

from famix.inference.background import WriteBehind, read_ahead


def test_items_come_in_order_from_another_thread() -> None:
    threads: list[threading.Thread] = []

    def items() -> Iterator[int]:
        for number in range(20):
            threads.append(threading.current_thread())
            yield number

    assert list(read_ahead(items(), ahead=3)) == list(range(20))
    assert threading.current_thread() not in threads


def test_reading_goes_no_further_ahead_than_it_may() -> None:
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


def test_calls_are_made_in_order_and_finished_at_the_end() -> None:
    done: list[int] = []
    with WriteBehind(behind=2) as writer:
        for number in range(10):
            writer.call(done.append, number)
    assert done == list(range(10))


def test_calls_that_wait_are_bounded() -> None:
    gate = threading.Event()
    made: list[int] = []

    def fill() -> None:
        with WriteBehind(behind=2) as writer:
            for number in range(5):
                writer.call(gate.wait)
                made.append(number)

    thread = threading.Thread(target=fill)
    thread.start()
    time.sleep(0.05)
    waited = list(made)
    gate.set()
    thread.join(5)
    assert waited == [0, 1]
    assert made == [0, 1, 2, 3, 4]


def fail() -> None:
    raise OSError("disk full")


def test_error_of_a_call_ends_the_context() -> None:
    with pytest.raises(OSError, match="disk full"), WriteBehind() as writer:
        writer.call(fail)


def test_error_of_a_call_stops_later_ones() -> None:
    done: list[int] = []
    writer = WriteBehind(behind=1)
    writer.call(fail)
    with pytest.raises(OSError, match="disk full"):
        writer.call(done.append, 1)
    assert done == []


def fail_with_a_call_that_failed() -> None:
    with WriteBehind() as writer:
        writer.call(fail)
        raise ValueError("mine")


def test_error_of_the_context_comes_first() -> None:
    with pytest.raises(ValueError, match="mine"):
        fail_with_a_call_that_failed()
