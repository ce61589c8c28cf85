import multiprocessing
import os
import pickle
import signal
from itertools import chain, islice

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from data_factory import data_config, make_dataset, registered
from error_matching import expect_error
from famix.data import SampleStream, build_mining_batches, build_test_loader, build_train_loader, get_label_readers
from famix.data.sampling.workers import loader_options
from famix.utils.errors import ConfigError

# Streams

SIZES = {"large": 11, "small": 2, "middle": 5}
MIXED = [{"dataset_name": name, "image_id": index} for name, size in SIZES.items() for index in range(size)]


def stream(seed=3, balanced=False, dicts=MIXED):
    return SampleStream(dicts, lambda record, rng: {**record, "number": rng.random()}, seed, balanced)


def test_every_epoch_is_a_new_order_of_all_images():
    single = stream(dicts=MIXED[:7])
    epochs = [[single[7 * epoch + place]["image_id"] for place in range(7)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("balanced", [False, True])
def test_position_and_seed_determine_the_sample(balanced):
    one, other = stream(balanced=balanced), stream(seed=4, balanced=balanced)
    forwards = [one[position] for position in range(60)]
    assert [one[position] for position in reversed(range(60))] == forwards[::-1]
    assert len({sample["number"] for sample in forwards}) == 60
    assert [one.index(p) for p in range(7)] != [other.index(p) for p in range(7)]
    assert one[0]["number"] != other[0]["number"]


def test_balanced_round_has_each_dataset_once_in_random_order():
    balanced = stream(balanced=True)
    rounds = [[balanced[3 * turn + place]["dataset_name"] for place in range(3)] for turn in range(60)]
    assert all(sorted(names) == sorted(SIZES) for names in rounds)
    assert len({tuple(names) for names in rounds}) == 6, "every order occurs, so that no process sees only one dataset"


def test_every_balanced_dataset_has_its_own_epochs():
    balanced = stream(balanced=True)
    samples = [balanced[position] for position in range(3 * 22)]
    for name, size in SIZES.items():
        indices = [sample["image_id"] for sample in samples if sample["dataset_name"] == name]
        epochs = [indices[first : first + size] for first in range(0, 22 - size + 1, size)]
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1


# Loaders


@pytest.fixture(autouse=True)
def folder(tmp_path):
    with registered(make_dataset(tmp_path, count=5)):
        yield tmp_path


def play_rank(monkeypatch, rank, world_size=2):
    monkeypatch.setattr(comm, "get_rank", lambda: rank)
    monkeypatch.setattr(comm, "get_world_size", lambda: world_size)


def contents(batch):
    """Return the content of a batch, comparable and independent of the order."""
    return sorted((s["image_id"], s["image"].numpy().tobytes(), s["sem_seg"].numpy().tobytes()) for s in batch)


def train_batches(cfg, count, start_iter=0):
    return [contents(batch) for batch in islice(build_train_loader(cfg, start_iter), count)]


def test_seed_and_iteration_determine_the_batches():
    cfg = data_config()
    batches = train_batches(cfg, 7)
    assert train_batches(cfg, 3, start_iter=4) == batches[4:]
    cfg.SEED = 6
    assert train_batches(cfg, 7) != batches
    cfg.SEED = -1
    assert train_batches(cfg, 2) != train_batches(cfg, 2)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_global_random_state_is_neither_used_nor_changed(num_workers):
    cfg = data_config()
    cfg.DATALOADER.NUM_WORKERS = num_workers
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = train_batches(cfg, 2)
    list(build_mining_batches(cfg))
    list(build_test_loader(cfg, "tiny_val"))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert train_batches(cfg, 2) == first


def test_workers_are_at_most_one_per_core(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 3})
    cfg = data_config()
    for wanted, started in ((0, 0), (1, 1), (8, 2)):
        cfg.DATALOADER.NUM_WORKERS = wanted
        assert loader_options(cfg)["num_workers"] == started


def test_processes_share_the_batch_of_one(monkeypatch):
    cfg = data_config()
    cfg.SOLVER.IMS_PER_BATCH = 4
    alone = train_batches(cfg, 3, start_iter=1)
    for world_size in (2, 4):
        shares = []
        for rank in range(world_size):
            play_rank(monkeypatch, rank, world_size)
            shares.append(train_batches(cfg, 3, start_iter=1))
        assert [len(share) for share in shares[0]] == [4 // world_size] * 3
        assert [sorted(chain(*parts)) for parts in zip(*shares, strict=True)] == alone


@pytest.mark.parametrize("balanced", [False, True])
def test_balanced_config(tmp_path, balanced):
    cfg = data_config(train=["tiny_train", "b_train"])
    cfg.DATASETS.BALANCED = balanced
    with registered(make_dataset(tmp_path / "b", count=45, folders=("train",), name="b")):
        batches = list(islice(build_train_loader(cfg), 10))
        again = train_batches(cfg, 3, start_iter=7)
    names = [sample["dataset_name"] for batch in batches for sample in batch]
    assert (names.count("tiny_train") == 10) == balanced
    assert again == [contents(batch) for batch in batches[7:]]


def test_mining_is_one_pass_of_whole_batches():
    batches = build_mining_batches(data_config())
    numbers, content = zip(*batches, strict=True)
    assert numbers == (0, 1)
    assert len(batches) == 2
    assert len({sample["image_id"] for batch in content for sample in batch}) == 4
    assert [contents(batch) for _, batch in batches] == [contents(batch) for batch in content]


def test_mining_depends_on_neither_workers_nor_processes(monkeypatch):
    cfg = data_config()
    cfg.STYLE_MINING.IMS_PER_BATCH = 1
    alone = {number: contents(batch) for number, batch in build_mining_batches(cfg)}
    assert sorted(alone) == [0, 1, 2, 3, 4]
    cfg.DATALOADER.NUM_WORKERS = 2
    for rank, expected in ((0, [0, 2, 4]), (1, [1, 3])):
        play_rank(monkeypatch, rank)
        share = build_mining_batches(cfg)
        assert len(share) == len(expected) and share.remaining == set(range(5))
        assert {number: contents(batch) for number, batch in share} == {number: alone[number] for number in expected}


@pytest.mark.parametrize(
    ("skip", "shares"),
    [
        ((), ([0, 1, 4], [2, 3])),
        ((0, 1, 2), ([2, 3], [4])),  # a group is mined again unless all of it is finished
        ((0, 1, 3, 4), ([2, 3], [])),
    ],
)
def test_process_gets_whole_groups_of_mining_batches(monkeypatch, skip, shares):
    cfg = data_config()
    cfg.STYLE_MINING.IMS_PER_BATCH = 1
    for rank, expected in enumerate(shares):
        play_rank(monkeypatch, rank)
        batches = build_mining_batches(cfg, group=2, skip=skip)
        assert [number for number, _ in batches] == expected
        assert batches.remaining == set(shares[0]) | set(shares[1])


def test_mining_stops_early_and_has_its_own_seed():
    cfg = data_config()
    cfg.STYLE_MINING.MAX_BATCHES = 1
    ((number, first),) = build_mining_batches(cfg)
    assert number == 0
    cfg.SEED = 77
    assert contents(next(iter(build_mining_batches(cfg)))[1]) == contents(first)
    cfg.STYLE_MINING.SEED = 2
    assert contents(next(iter(build_mining_batches(cfg)))[1]) != contents(first)


@pytest.mark.parametrize(
    ("build", "key", "value", "token"),
    [
        *((build_train_loader, "SOLVER.IMS_PER_BATCH", value, "processes (2)") for value in (0, 3)),
        (build_mining_batches, "STYLE_MINING.IMS_PER_BATCH", 6, "5"),
        (build_mining_batches, "STYLE_MINING.IMS_PER_BATCH", 0, "1"),
        (build_mining_batches, "STYLE_MINING.SEED", -1, "0"),
        (build_mining_batches, "STYLE_MINING.MAX_BATCHES", -1, "0"),
    ],
)
def test_unsupported_settings(monkeypatch, build, key, value, token):
    play_rank(monkeypatch, 0)
    cfg = data_config()
    cfg.merge_from_list([key, value])
    with expect_error(ConfigError, key, value, token):
        build(cfg)


def test_test_loader_gives_every_image_once():
    batches = list(build_test_loader(data_config(), "tiny_val"))
    assert [[sample["image_id"] for sample in batch] for batch in batches] == [[f"a/{index}"] for index in range(5)]
    assert all(batch[0]["image"].shape == (3, 24, 32) and "sem_seg" not in batch[0] for batch in batches)


def test_workers_survive_a_signal_to_the_job():
    cfg = data_config()
    cfg.DATALOADER.NUM_WORKERS = 1
    batches = iter(build_test_loader(cfg, "tiny_val"))
    first = next(batches)
    workers = multiprocessing.active_children()
    for worker in workers:
        os.kill(worker.pid, signal.SIGTERM)
    assert workers and len([first, *batches]) == 5


@pytest.mark.parametrize("balanced", [False, True])
def test_loaders_are_picklable_for_spawned_workers(balanced):
    cfg = data_config()
    cfg.DATASETS.BALANCED = balanced
    for loader in (build_train_loader(cfg), build_mining_batches(cfg).loader, build_test_loader(cfg, "tiny_val")):
        parts = loader.dataset, loader.batch_sampler, loader.collate_fn, loader.worker_init_fn, loader.generator
        dataset, sampler, collate, *_ = pickle.loads(pickle.dumps(parts))
        first = next(iter(sampler))
        sample, again = loader.collate_fn([loader.dataset[first[0]]])[0], collate([dataset[first[0]]])[0]
        assert sample.keys() == again.keys() and torch.equal(sample["image"], again["image"])


def test_label_readers_are_picklable():
    names = [name for name in DatasetCatalog if not name.endswith("_panoptic")]
    names = [name for name in names if "label_reader" in MetadataCatalog.get(name).as_dict()]
    readers = get_label_readers(names)
    assert len(readers) > 20
    assert pickle.loads(pickle.dumps(readers)) == readers
