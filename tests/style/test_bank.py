import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from error_matching import expect_error
from famix.style import StyleBank, bank
from famix.utils.errors import BankError

CLASSES = [7, 3, 255, 3, 7, 3, 3, 0]


def numbered_bank(class_ids=CLASSES, channels=2):
    """A bank whose i-th style has mean 100 * class + i in every channel, and a std of 0.5 more."""
    ids = torch.tensor(class_ids, dtype=torch.int64)
    mean = (100.0 * ids + torch.arange(len(ids)))[:, None].repeat(1, channels)
    made = StyleBank({"stage": "res2", "class_names": '["road"]'})
    made.add(ids, mean, mean + 0.5, {"batch_id": torch.arange(len(ids)), "loss": mean[:, 0]})
    return made


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_new_bank_is_empty():
    empty = StyleBank()
    assert len(empty) == empty.num_channels == 0
    assert empty.counts() == empty.metadata == empty.annotations == {}
    assert not empty.has_style(torch.arange(256)).any()


def test_add_appends():
    made, mean = StyleBank(), torch.ones(2, 3)
    made.add(torch.tensor([4, 2]), mean, torch.zeros(2, 3))
    mean.zero_()  # the bank has a copy
    made.add(torch.tensor([2], dtype=torch.uint8), torch.full((1, 3), 5.0), torch.full((1, 3), -1.0))
    assert (len(made), made.num_channels, made.counts()) == (3, 3, {2: 2, 4: 1})
    assert made.class_ids.tolist() == [4, 2, 2] and made.class_ids.dtype == torch.int64
    assert repr(made) == "StyleBank(3 styles, 2 classes, 3 channels)"
    made.metadata["stage"] = "res2"
    assert repr(made) == "StyleBank(3 styles, 2 classes, 3 channels of res2)"
    assert made.mean[:, 0].tolist() == [1, 1, 5] and made.std[:, 0].tolist() == [0, 0, -1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_styles_are_float32_without_gradients(dtype):
    made, mean = StyleBank(), torch.ones(1, 2, dtype=dtype, requires_grad=True)
    for batch in range(2):
        made.add(torch.tensor([1]), mean, mean, {"batch_id": torch.tensor([batch]), "loss": mean[:, 0]})
    assert made.mean.dtype == made.std.dtype == torch.float32 and not made.mean.requires_grad
    assert made.annotations["batch_id"].tolist() == [0, 1] and made.annotations["batch_id"].dtype == torch.int64
    assert not made.annotations["loss"].requires_grad


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (4, 1, 2, 3), (0,)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_sample_accepts_any_shape_and_integer_type(shape, dtype):
    made, ids = numbered_bank(channels=4), torch.full(shape, 3)
    mean, std = made.sample(ids.to(dtype), seeded())
    assert mean.shape == std.shape == (*shape, 4) and torch.equal(mean, made.sample(ids, seeded())[0])
    assert torch.equal(made.has_style(ids.to(dtype)), torch.ones(shape, dtype=torch.bool))


def test_sample_draws_uniformly_within_the_class():
    ids = torch.tensor([0, 3, 7, 255]).repeat(50)
    mean, std = numbered_bank().sample(ids, seeded())
    rows = (mean[:, 0] - 100 * ids).long()
    assert torch.equal(torch.tensor(CLASSES)[rows], ids) and torch.equal(std, mean + 0.5)
    torch.manual_seed(0)  # without a generator, the global one draws
    mean, _ = numbered_bank().sample(torch.full((8000,), 3))
    rows, counts = (mean[:, 0] - 300).long().unique(return_counts=True)
    assert rows.tolist() == [1, 3, 5, 6]
    assert ((counts - 2000.0) ** 2 / 2000).sum() < 16.3  # the 0.999 quantile of chi-square with 3 degrees of freedom


def test_classes_without_styles_draw_from_255_or_get_nan():
    made, ids = numbered_bank(), torch.tensor([1, 254, 255])
    assert made.has_style(ids).all() and (made.sample(ids, seeded())[0] == 25502).all()
    made, ids = numbered_bank([7, 3, 3]), torch.tensor([[7, 1], [255, 3]])
    assert made.has_style(ids).tolist() == [[True, False], [False, True]]
    for drawn in made.sample(ids, seeded()):
        assert torch.equal(drawn.isnan().all(-1), ~made.has_style(ids))


@pytest.mark.parametrize(
    ("changes", "key", "got"),
    [
        ({"class_ids": torch.zeros(2, dtype=torch.int64)}, "mean", (3, 4)),
        ({"class_ids": torch.zeros(3, 1, dtype=torch.int64)}, "class_ids", (3, 1)),
        ({"class_ids": torch.tensor(1)}, "class_ids", ()),
        ({"mean": torch.rand(3)}, "mean", (3,)),
        ({"std": torch.rand(3, 5)}, "std", (3, 5)),
        ({"mean": torch.ones(3, 4, dtype=torch.int64)}, "mean", torch.int64),
        ({"annotations": {"loss": torch.rand(1)}}, "annotations 'loss'", (1,)),
        ({"annotations": {"loss": [0.0] * 3}}, "annotations 'loss'", "list"),
        *(({name: wrong}, name if name != "class_ids" else "Class ids", type(wrong).__name__)
          for name in ("class_ids", "mean", "std") for wrong in (3, [3], np.array([3]), None)),
        *(({name: torch.full((3, 4), bad)}, "mean and std", "NaN")
          for name in ("mean", "std") for bad in (torch.nan, torch.inf, -torch.inf)),
        *(({"class_ids": torch.tensor([0, 255, bad])}, "Class ids", bad) for bad in (-1, 256)),
        *(({"class_ids": torch.ones(3).to(dtype)}, "Class ids", dtype) for dtype in (torch.float32, torch.bool)),
    ],
)  # fmt: skip
def test_add_rejects_wrong_arguments(changes, key, got):
    made = StyleBank()
    arguments = {"class_ids": torch.tensor([0, 1, 255]), "mean": torch.rand(3, 4), "std": torch.rand(3, 4)}
    if key == "Class ids" and got in (-1, 256):
        got = [*sorted({0, 255, got})] if got > 0 else [-1, 0, 255]
    with expect_error(BankError, key, got):
        made.add(**arguments | changes)
    assert len(made) == 0


def test_add_rejects_styles_that_do_not_fit_the_bank():
    made = numbered_bank()
    with expect_error(BankError, "mean", (1, 3)):
        made.add(torch.tensor([1]), torch.rand(1, 3), torch.rand(1, 3))
    for names in ([], ["loss"], ["batch_id", "loss", "more"]):
        with expect_error(BankError, "annotations", names):
            made.add(torch.tensor([1]), torch.ones(1, 2), torch.ones(1, 2), dict.fromkeys(names, torch.ones(1)))
    assert len(made) == len(CLASSES) and torch.equal(made.mean, numbered_bank().mean)


@pytest.mark.parametrize(
    "wrong", [torch.tensor([0.0]), torch.tensor([True]), torch.tensor([-1]), torch.tensor([256]), 3]
)
def test_sample_rejects_wrong_class_ids(wrong):
    for use in (numbered_bank().sample, numbered_bank().has_style):
        with expect_error(BankError, "Class ids", wrong.tolist() if isinstance(wrong, torch.Tensor) else "int"):
            use(wrong)


# Copies and files


def assert_equal_banks(got, expected):
    for name in ("mean", "std", "class_ids"):
        assert torch.equal(getattr(got, name), getattr(expected, name))
    assert got.annotations.keys() == expected.annotations.keys()
    assert all(torch.equal(got.annotations[name], values) for name, values in expected.annotations.items())
    ids = torch.tensor([0, 3, 9, 255] * 20)
    if len(expected):
        assert torch.equal(got.sample(ids, seeded())[0], expected.sample(ids, seeded())[0])


@pytest.mark.parametrize("class_ids", [CLASSES, []])
def test_to_and_files_keep_everything(tmp_path, class_ids):
    made, path = numbered_bank(class_ids), tmp_path / "new" / "folder" / "bank.safetensors"
    moved = made.to(torch.device("cpu"))
    assert moved is not made and moved.metadata == made.metadata
    assert_equal_banks(moved, made)
    StyleBank({"old": "yes"}).save(path)
    made.save(str(path))
    if class_ids:
        assert {name: (tuple(t.shape), t.dtype) for name, t in load_file(path).items()} == {
            "mean": ((8, 2), torch.float32), "std": ((8, 2), torch.float32), "class_ids": ((8,), torch.int64),
            "annotation.batch_id": ((8,), torch.int64), "annotation.loss": ((8,), torch.float32),
        }  # fmt: skip
    loaded = StyleBank.load(path)
    assert loaded.metadata == {**made.metadata, "format_version": "2"}
    assert_equal_banks(loaded, made)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "bank.safetensors"


def contents(**changes):
    return {"mean": torch.rand(2, 3), "std": torch.rand(2, 3), "class_ids": torch.tensor([0, 255])} | changes


VERSION = {"format_version": "1"}  # without a checksum


def test_failed_save_keeps_the_old_file(path, monkeypatch):
    StyleBank({"old": "yes"}).save(path)

    def fail(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(bank.os, "replace", fail)
        with expect_error(BankError, str(path), "disk full", "MODEL.STYLE.BANK"):
            numbered_bank().save(path)
    assert StyleBank.load(path).metadata["old"] == "yes"
    assert list(path.parent.iterdir()) == [path]


def flip(content, place):
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize(
    ("damage", "got"),
    [
        (lambda content: content[:-7], None),
        (lambda content: content[:20], None),
        (lambda content: b"", None),
        (lambda content: b"\x80\x04" + content, None),
        (lambda content: flip(content, len(content) - 5), "checksum"),  # a style
        (lambda content: flip(content, content.find(b"res2")), "checksum"),
        (lambda content: flip(content, content.find(b"checksum")), "checksum"),
    ],
)
def test_load_rejects_damaged_files(path, damage, got):
    with expect_error(BankError, str(path), remedy="--mine-styles-only"):
        StyleBank.load(path)
    numbered_bank().save(path)
    path.write_bytes(damage(path.read_bytes()))
    with expect_error(BankError, str(path), got, "mine the bank again"):
        StyleBank.load(path)


def test_load_rejects_folders(tmp_path):
    with expect_error(BankError, str(tmp_path), remedy="mine the bank again"):
        StyleBank.load(tmp_path)


@pytest.mark.parametrize(
    ("tensors", "metadata", "got"),
    [
        ({"weight": torch.rand(2)}, None, "['weight']"),
        (contents(), None, "version None"),
        (contents(), {"format_version": "3"}, "version 3"),
        ({"mean": torch.rand(1, 1), "std": torch.rand(1, 1)}, VERSION, "['mean', 'std']"),
        (contents(std=torch.rand(2, 4)), VERSION, (2, 4)),
        (contents(class_ids=torch.tensor([1])), VERSION, "N=1"),
        (contents(**{"annotation.loss": torch.rand(3)}), VERSION, (3,)),
        (contents(class_ids=torch.tensor([0, 256])), VERSION, [0, 256]),
        (contents(mean=torch.full((2, 3), torch.nan)), VERSION, "NaN"),
        (contents(mean=torch.full((2, 3), 1e300, dtype=torch.float64)), VERSION, "infinity"),
        (contents(), {**VERSION, "class_names": "{"}, "class_names"),
    ],
)
def test_load_rejects_other_contents(path, tensors, metadata, got):
    save_file(tensors, path, metadata)
    with expect_error(BankError, str(path), got):
        StyleBank.load(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_load_reads_version_1_in_any_precision(path, dtype):
    save_file(contents(mean=torch.ones(2, 3, dtype=dtype)), path, VERSION)
    loaded = StyleBank.load(path)
    assert loaded.counts() == {0: 1, 255: 1} and loaded.mean.dtype == torch.float32
