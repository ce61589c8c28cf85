"""Reading ahead and writing behind: in order, bounded, and with each error in its place."""

import threading
import time

import pytest

from famix.inference.background import read_ahead, write_behind


def test_reading_is_in_order_and_in_one_thread():
    threads = set()

    def items():
        for number in range(20):
            threads.add(threading.current_thread())
            yield number

    assert list(read_ahead(items(), ahead=3)) == list(range(20))
    assert len(threads) == 1 and threading.current_thread() not in threads


def test_reading_is_bounded():
    taken = []
    iterator = read_ahead((taken.append(number) or number for number in range(100)), ahead=5)
    assert next(iterator) == 0
    time.sleep(0.05)
    assert 2 <= len(taken) <= 6
    iterator.close()
    assert len(taken) <= 6


def test_reading_error_is_raised_in_place_of_its_item():
    def items():
        yield 1
        raise KeyError("broken")

    iterator = read_ahead(items())
    assert next(iterator) == 1
    with pytest.raises(KeyError, match="broken"):
        next(iterator)


def test_writing_is_in_order_bounded_and_finished_at_the_end():
    gate, scheduled, done = threading.Event(), [], []

    def run():
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


def fail():
    raise OSError("disk full")


def test_writing_error_ends_the_context():
    done = []
    with pytest.raises(OSError, match="disk full"), write_behind(behind=1) as call:  # noqa: PT012
        call(fail)
        call(done.append, 1)
    assert done == []
    with pytest.raises(OSError, match="disk full"), write_behind() as call:
        call(fail)
    with pytest.raises(ValueError, match="mine"), write_behind() as call:  # noqa: PT012
        call(fail)
        raise ValueError("mine")
