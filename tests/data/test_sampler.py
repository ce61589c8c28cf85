import pickle
from itertools import islice

import numpy as np
import pytest

from famix.data import SampleStream, StreamSampler

DICTS = [{"image_id": index} for index in range(7)]


def draw_number(record: dict, rng: np.random.Generator) -> dict:
    return {**record, "number": rng.random()}


SIZES = {"large": 11, "small": 2, "middle": 5}
MIXED = [{"dataset_name": name, "image_id": index} for name, size in SIZES.items() for index in range(size)]


@pytest.fixture
def stream():
    return SampleStream(DICTS, draw_number, seed=3)


def test_every_epoch_is_a_new_order_of_all_images(stream):
    epochs = [[stream[7 * epoch + place]["image_id"] for place in range(7)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize(("records", "balanced"), [(DICTS, False), (MIXED, True)])
def test_a_position_always_gives_the_same_sample(records, balanced):
    stream = SampleStream(records, draw_number, seed=3, balanced=balanced)
    forwards = [stream[position] for position in range(30)]
    backwards = [stream[position] for position in reversed(range(30))]
    assert forwards == backwards[::-1]
    assert pickle.loads(pickle.dumps(stream))[25] == forwards[25]
    assert len({sample["number"] for sample in forwards}) == 30


@pytest.mark.parametrize(("records", "balanced"), [(DICTS, False), (MIXED, True)])
def test_seeds_give_other_orders_and_draws(records, balanced):
    stream, other = (SampleStream(records, draw_number, seed=seed, balanced=balanced) for seed in (3, 4))
    assert [stream[p]["image_id"] for p in range(7)] != [other[p]["image_id"] for p in range(7)]
    assert stream[0]["number"] != other[0]["number"]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_processes_share_every_batch(world_size):
    samplers = [StreamSampler(start=8, rank=rank, world_size=world_size) for rank in range(world_size)]
    share = 4 // world_size
    positions = [list(islice(sampler, 3 * share)) for sampler in samplers]
    for batch in range(3):
        merged = [p for taken in positions for p in taken[batch * share : (batch + 1) * share]]
        assert sorted(merged) == list(range(8 + 4 * batch, 12 + 4 * batch))


def test_sampler_starts_anew_and_pickles():
    sampler = pickle.loads(pickle.dumps(StreamSampler(5, 1, 3)))
    assert list(islice(sampler, 3)) == list(islice(sampler, 3)) == [6, 9, 12]


# Several datasets, equally often


@pytest.fixture
def balanced():
    return SampleStream(MIXED, draw_number, seed=3, balanced=True)


def test_every_round_has_each_dataset_once_in_random_order(balanced):
    rounds = [[balanced[3 * turn + place]["dataset_name"] for place in range(3)] for turn in range(60)]
    assert all(sorted(names) == sorted(SIZES) for names in rounds)
    assert len({tuple(names) for names in rounds}) == 6, "every order occurs, so that no process sees one dataset only"


def test_every_dataset_goes_through_its_own_epochs(balanced):
    samples = [balanced[position] for position in range(3 * 22)]
    for name, size in SIZES.items():
        indices = [sample["image_id"] for sample in samples if sample["dataset_name"] == name]
        epochs = [indices[first : first + size] for first in range(0, 22 - size + 1, size)]
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1


def test_one_dataset_is_balanced(balanced):
    stream = SampleStream(MIXED[:11], draw_number, seed=3, balanced=True)
    assert sorted(stream[position]["image_id"] for position in range(11)) == list(range(11))


def test_without_balance_large_datasets_come_more_often():
    stream = SampleStream(MIXED, draw_number, seed=3)
    names = [stream[position]["dataset_name"] for position in range(18)]
    assert {name: names.count(name) for name in SIZES} == SIZES
