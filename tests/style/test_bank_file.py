import pytest
import torch
from safetensors.torch import load_file, save_file

from error_matching import expect_error
from famix.style import StyleBank, bank
from famix.utils.errors import BankError


def small_bank():
    styles = StyleBank({"stage": "res2", "class_names": '["road"]'})
    generator = torch.Generator().manual_seed(0)
    mean, std = torch.randn(2, 5, 3, generator=generator)
    styles.add(torch.tensor([0, 255, 3, 0, 7]), mean, std, {"batch_id": torch.arange(5), "loss": mean[:, 0]})
    return styles


def contents(**changes):
    tensors = {"mean": torch.rand(2, 3), "std": torch.rand(2, 3), "class_ids": torch.tensor([0, 255])}
    return tensors | changes


VERSION = {"format_version": "1"}  # which needs no checksum


@pytest.fixture
def path(tmp_path):
    return tmp_path / "bank.safetensors"


def test_round_trip(path):
    saved = small_bank()
    saved.save(path)
    loaded = StyleBank.load(path)
    assert loaded.metadata == {**saved.metadata, "format_version": "2"}
    for name in ("mean", "std", "class_ids"):
        torch.testing.assert_close(getattr(loaded, name), getattr(saved, name), atol=0, rtol=0)
    assert loaded.annotations.keys() == {"batch_id", "loss"}
    assert all(torch.equal(loaded.annotations[name], values) for name, values in saved.annotations.items())
    ids = torch.tensor([0, 3, 9] * 20)
    draws = [bank.sample(ids, torch.Generator().manual_seed(1))[0] for bank in (saved, loaded)]
    assert torch.equal(*draws)


def test_the_file_is_what_the_format_says(path):
    small_bank().save(path)
    tensors = load_file(path)
    assert {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()} == {
        "mean": ((5, 3), torch.float32),
        "std": ((5, 3), torch.float32),
        "class_ids": ((5,), torch.int64),
        "annotation.batch_id": ((5,), torch.int64),
        "annotation.loss": ((5,), torch.float32),
    }


def test_saving_makes_folders_and_overwrites(tmp_path):
    path = tmp_path / "new" / "folder" / "bank.safetensors"
    StyleBank({"a": "b"}).save(path)
    empty = StyleBank.load(path)
    assert len(empty) == 0 and empty.metadata["a"] == "b"
    small_bank().save(str(path))
    assert len(StyleBank.load(str(path))) == 5
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_failing_save_leaves_the_old_file_and_no_litter(path, monkeypatch):
    StyleBank({"old": "yes"}).save(path)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(bank.os, "replace", fail)
    with expect_error(BankError, str(path), "disk full", "MODEL.STYLE.BANK"):
        small_bank().save(path)
    monkeypatch.undo()
    assert StyleBank.load(path).metadata["old"] == "yes"
    assert list(path.parent.iterdir()) == [path]


def test_a_missing_file(path):
    with expect_error(BankError, str(path), remedy="--mine-styles-only"):
        StyleBank.load(path)
    path.mkdir()
    with expect_error(BankError, str(path), remedy="Mine the bank again"):
        StyleBank.load(path)


@pytest.mark.parametrize("damage", [lambda b: b[:-7], lambda b: b[:20], lambda b: b"", lambda b: b"\x80\x04" + b])
def test_a_damaged_file(path, damage):
    small_bank().save(path)
    path.write_bytes(damage(path.read_bytes()))
    with expect_error(BankError, str(path), remedy="Mine the bank again"):
        StyleBank.load(path)


@pytest.mark.parametrize(
    ("tensors", "metadata", "got"),
    [
        ({"weight": torch.rand(2)}, None, "['weight']"),
        (contents(), None, "version None"),
        (contents(), {"format_version": "3"}, "version 3"),
        ({"mean": torch.rand(1, 1), "std": torch.rand(1, 1)}, VERSION, "['mean', 'std']"),
    ],
)
def test_a_file_of_something_else(path, tensors, metadata, got):
    save_file(tensors, path, metadata)
    with expect_error(BankError, str(path), got, "Mine the bank again"):
        StyleBank.load(path)


@pytest.mark.parametrize(
    ("changes", "got"),
    [
        ({"std": torch.rand(2, 4)}, (2, 4)),
        ({"class_ids": torch.tensor([1])}, (1,)),
        ({"annotation.loss": torch.rand(3)}, "'loss': (3,)"),
        ({"class_ids": torch.tensor([0, 256])}, [0, 256]),
        ({"mean": torch.full((2, 3), torch.nan)}, "NaN"),
        ({"mean": torch.full((2, 3), 1e300, dtype=torch.float64)}, "infinity"),
    ],
)
def test_a_file_with_impossible_styles_is_named(path, changes, got):
    save_file(contents(**changes), path, VERSION)
    with expect_error(BankError, str(path), got):
        StyleBank.load(path)


@pytest.mark.parametrize("where", ["a style", "the metadata", "the checksum's name"])
def test_a_flipped_bit_is_noticed(path, where):
    small_bank().save(path)
    content = bytearray(path.read_bytes())
    place = {
        "a style": len(content) - 5,
        "the metadata": content.find(b"res2"),
        "the checksum's name": content.find(b"checksum"),
    }
    content[place[where]] ^= 1
    path.write_bytes(content)
    with expect_error(BankError, str(path), "checksum", "Copy it again"):
        StyleBank.load(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_files_of_the_first_version_and_any_precision_are_read(path, dtype):
    save_file(contents(mean=torch.ones(2, 3, dtype=dtype)), path, VERSION)
    loaded = StyleBank.load(path)
    assert loaded.counts() == {0: 1, 255: 1} and loaded.mean.dtype == torch.float32


def test_names_that_are_no_list(path):
    StyleBank({"class_names": "{"}).save(path)
    with expect_error(BankError, str(path), "class_names", "Mine the bank again"):
        StyleBank.load(path)
