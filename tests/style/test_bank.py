import numpy as np
import pytest
import torch

from error_matching import expect_error
from famix.style import StyleBank
from famix.utils.errors import BankError

CLASSES = [7, 3, 255, 3, 7, 3, 3, 0]


def numbered_bank(class_ids=CLASSES, channels=2):
    """A bank whose i-th style has mean 100 * class + i in every channel, and a std of 0.5 more."""
    ids = torch.tensor(class_ids, dtype=torch.int64)
    mean = (100.0 * ids + torch.arange(len(ids)))[:, None].repeat(1, channels)
    bank = StyleBank({"stage": "res2"})
    bank.add(ids, mean, mean + 0.5)
    return bank


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_new_bank_is_empty():
    bank = StyleBank()
    assert len(bank) == bank.num_channels == 0
    assert bank.counts() == bank.metadata == bank.annotations == {}
    assert not bank.has_style(torch.arange(256)).any()


def test_add_appends():
    bank = StyleBank()
    bank.add(torch.tensor([4, 2]), torch.ones(2, 3), torch.zeros(2, 3))
    bank.add(torch.tensor([2], dtype=torch.uint8), torch.full((1, 3), 5.0), torch.full((1, 3), -1.0))
    assert len(bank) == 3 and bank.num_channels == 3
    assert bank.class_ids.tolist() == [4, 2, 2] and bank.counts() == {2: 2, 4: 1}
    assert bank.mean[:, 0].tolist() == [1, 1, 5] and bank.std[:, 0].tolist() == [0, 0, -1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_styles_are_kept_in_float32_without_gradients(dtype):
    bank = StyleBank()
    mean = torch.ones(1, 2, dtype=dtype, requires_grad=True)
    for _ in range(2):
        bank.add(torch.tensor([1]), mean, mean)
    assert bank.mean.dtype == bank.std.dtype == torch.float32 and bank.class_ids.dtype == torch.int64
    assert not bank.mean.requires_grad


def test_the_bank_does_not_share_memory_with_what_was_added():
    mean = torch.ones(2, 2)
    bank = StyleBank()
    bank.add(torch.tensor([1, 2]), mean, mean)
    mean.zero_()
    assert (bank.mean == 1).all() and (bank.std == 1).all()


def test_annotations_grow_with_the_styles():
    bank = StyleBank()
    for batch in range(2):
        bank.add(
            torch.tensor([1, 2]),
            torch.ones(2, 1),
            torch.ones(2, 1),
            {"batch_id": torch.full((2,), batch), "loss": torch.tensor([0.25, 0.5]).requires_grad_()},
        )
    assert bank.annotations["batch_id"].tolist() == [0, 0, 1, 1]
    assert bank.annotations["batch_id"].dtype == torch.int64
    assert bank.annotations["loss"].tolist() == [0.25, 0.5, 0.25, 0.5]


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (4, 1, 2, 3), (0,)])
def test_class_ids_of_any_shape(shape):
    mean, std = numbered_bank(channels=4).sample(torch.full(shape, 3), seeded())
    assert mean.shape == std.shape == (*shape, 4)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_class_ids_of_any_integer_type(dtype):
    bank, ids = numbered_bank(), torch.tensor([7, 1, 0, 3])
    assert torch.equal(bank.sample(ids.to(dtype), seeded())[0], bank.sample(ids, seeded())[0])
    assert torch.equal(bank.has_style(ids.to(dtype)), bank.has_style(ids))


def test_patches_draw_styles_of_their_class():
    ids = torch.tensor([0, 3, 7, 255]).repeat(50)
    mean, std = numbered_bank().sample(ids, seeded())
    rows = (mean[:, 0] - 100 * ids).long()
    assert torch.equal(torch.tensor(CLASSES)[rows], ids)
    assert torch.equal(std, mean + 0.5), "mean and std belong to one style"


def test_draws_are_uniform_within_a_class():
    mean, _ = numbered_bank().sample(torch.full((8000,), 3), seeded())
    rows, counts = (mean[:, 0] - 300).long().unique(return_counts=True)
    assert rows.tolist() == [1, 3, 5, 6]
    chi_square = ((counts - 2000.0) ** 2 / 2000).sum()
    assert chi_square < 16.3  # the 0.999 quantile for 3 degrees of freedom


def test_a_class_without_styles_draws_from_the_unlabelled_patches():
    bank = numbered_bank()
    ids = torch.tensor([1, 254, 255])
    assert bank.has_style(ids).all()
    assert (bank.sample(ids, seeded())[0] == 25502).all()


def test_a_class_without_any_style_gets_nan():
    bank = numbered_bank([7, 3, 3])
    ids = torch.tensor([[7, 1], [255, 3]])
    mean, std = bank.sample(ids, seeded())
    assert bank.has_style(ids).tolist() == [[True, False], [False, True]]
    assert torch.equal(mean.isnan().all(-1), ~bank.has_style(ids))
    assert torch.equal(std.isnan().any(-1), ~bank.has_style(ids))


def test_without_a_generator_torchs_own_is_used():
    bank, ids = numbered_bank(), torch.full((40,), 3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = bank.sample(ids)[0]
        torch.manual_seed(0)
        assert torch.equal(bank.sample(ids)[0], first)


@pytest.mark.parametrize("class_ids", [CLASSES, []])
def test_a_moved_bank_is_the_same_bank(class_ids):
    bank = StyleBank({"stage": "res2"})
    styles = torch.rand(len(class_ids), 2)
    ids = torch.tensor(class_ids, dtype=torch.int64)
    bank.add(ids, styles, styles, {"loss": styles[:, 0]})
    moved = bank.to(torch.device("cpu"))
    assert moved is not bank and moved.metadata == bank.metadata and moved.counts() == bank.counts()
    assert torch.equal(moved.mean, styles) and torch.equal(moved.std, styles)
    assert torch.equal(moved.annotations["loss"], styles[:, 0])


@pytest.mark.parametrize(
    ("class_ids", "mean", "std"),
    [
        ((2,), (3, 4), (3, 4)),
        ((3,), (3, 4), (3, 5)),
        ((3,), (3,), (3,)),
        ((3, 1), (3, 4), (3, 4)),
        ((), (1, 4), (1, 4)),
    ],
)
def test_shapes_that_do_not_belong_together(class_ids, mean, std):
    with expect_error(BankError, "mean and std", mean) as error:
        StyleBank().add(torch.zeros(class_ids, dtype=torch.int64), torch.rand(mean), torch.rand(std))
    assert all(str(shape) in str(error.value) for shape in (class_ids, std))


def test_shapes_and_types_that_do_not_fit_the_bank():
    with expect_error(BankError, "mean and std", (1, 3)):
        numbered_bank().add(torch.tensor([1]), torch.rand(1, 3), torch.rand(1, 3))
    with expect_error(BankError, "mean and std", torch.int64):
        StyleBank().add(torch.tensor([0]), torch.ones(1, 3, dtype=torch.int64), torch.ones(1, 3))
    with expect_error(BankError, "annotations", "'loss': (1,)"):
        StyleBank().add(torch.tensor([1, 2]), torch.rand(2, 3), torch.rand(2, 3), {"loss": torch.rand(1)})


@pytest.mark.parametrize("names", [[], ["loss"], ["batch_id", "loss"]])
def test_other_annotations_than_the_bank_has(names):
    bank, one = StyleBank(), torch.ones(1, 1)
    bank.add(torch.tensor([1]), one, one, {"batch_id": one[0]})
    with expect_error(BankError, "annotations", sorted(names)):
        bank.add(torch.tensor([1]), one, one, dict.fromkeys(names, one[0]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["mean", "std"])
def test_styles_that_are_not_finite(bad, where):
    styles = {"mean": torch.rand(2, 3), "std": torch.rand(2, 3)}
    styles[where][1, 2] = bad
    with expect_error(BankError, "mean and std", remedy="STYLE_MINING.LR"):
        StyleBank().add(torch.tensor([1, 2]), **styles)


def test_a_refused_add_changes_nothing():
    bank = numbered_bank()
    with pytest.raises(BankError):
        bank.add(torch.tensor([300]), torch.rand(1, 2), torch.rand(1, 2))
    assert len(bank) == len(CLASSES) and torch.equal(bank.mean, numbered_bank().mean)


@pytest.mark.parametrize("wrong", [torch.tensor([0.0]), torch.tensor([True]), torch.tensor([-1]), torch.tensor([256])])
def test_class_ids_that_would_stand_for_others_are_refused(wrong):
    bank = StyleBank()
    bank.add(torch.tensor([0, 255]), torch.rand(2, 3), torch.rand(2, 3))
    for use in (bank.sample, bank.has_style, lambda ids: bank.add(ids, torch.rand(1, 3), torch.rand(1, 3))):
        with expect_error(BankError, "class ids", wrong.tolist()):
            use(wrong)


@pytest.mark.parametrize("wrong", [3, [3], np.array([3]), None], ids=lambda value: type(value).__name__)
def test_what_is_no_tensor_is_refused_by_name(wrong):
    bank, row = numbered_bank(), torch.ones(1, 2)
    for use in (bank.sample, bank.has_style):
        with expect_error(BankError, "class ids", type(wrong).__name__, "torch.as_tensor"):
            use(wrong)
    arguments = {"class_ids": torch.tensor([3]), "mean": row, "std": row}
    for name in arguments:
        with expect_error(BankError, name, type(wrong).__name__, "torch.as_tensor"):
            bank.add(**arguments | {name: wrong})
    assert len(bank) == len(CLASSES)
