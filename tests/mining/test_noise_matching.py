import pytest
import torch

from error_matching import expect_error
from famix.mining import matching_noise_scale
from famix.style import Statistics, StyleBank
from famix.style.strategies import BankStyles, NoiseStyles
from famix.utils.errors import BankError


def make_bank(*styles: tuple[int, list[float], list[float]]) -> StyleBank:
    bank = StyleBank()
    for class_id, mean, std in styles:
        bank.add(torch.tensor([class_id]), torch.tensor([mean]), torch.tensor([std]))
    return bank


def test_by_hand() -> None:
    own = make_bank((0, [1.0], [2.0]), (0, [3.0], [2.0]), (1, [0.0], [1.0]))  # |x|^2: 5, 13, 1
    styles = make_bank((0, [2.0], [2.0]), (0, [1.0], [0.0]), (1, [0.0], [4.0]))
    # From (1, 2): 1 and 4, on average 2.5. From (3, 2): 1 and 8, on average 4.5. From (0, 1): 9.
    assert matching_noise_scale(styles, own) == pytest.approx(((2.5 + 4.5 + 9) / (5 + 13 + 1)) ** 0.5)


def test_a_class_without_styles_draws_the_unlabelled_ones() -> None:
    own = make_bank((4, [3.0], [4.0]))
    assert matching_noise_scale(make_bank((255, [3.0], [9.0])), own) == pytest.approx(1.0)


def test_a_class_that_draws_nothing_does_not_move() -> None:
    own = make_bank((0, [3.0], [4.0]), (4, [3.0], [4.0]))
    assert matching_noise_scale(make_bank((0, [3.0], [9.0])), own) == pytest.approx((25 / 50) ** 0.5)


def test_strategies_move_patches_equally_far() -> None:
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(400) % 3
    statistics = Statistics(*(5 + torch.rand(400, 8, generator=generator) for _ in range(2)))
    own, styles = StyleBank(), StyleBank()
    own.add(classes, statistics.mean, statistics.std)
    styles.add(classes, *(5 + torch.randn(400, 8, generator=generator) for _ in range(2)))
    scale = matching_noise_scale(styles, own)

    patches = Statistics(*(value.reshape(1, 20, 20, 8).movedim(-1, 1) for value in (statistics.mean, statistics.std)))
    labels = classes.reshape(1, 20, 20)

    def move(strategy: BankStyles | NoiseStyles) -> float:
        new = strategy.sample(patches, labels, generator)
        return float((new.mean - patches.mean).square().sum() + (new.std - patches.std).square().sum()) ** 0.5

    assert move(NoiseStyles(scale)) == pytest.approx(move(BankStyles(styles)), rel=0.05)


def test_banks_that_do_not_fit() -> None:
    own = make_bank((0, [1.0], [1.0]))
    with expect_error(BankError, "style banks", 2):
        matching_noise_scale(make_bank((0, [1.0, 1.0], [1.0, 1.0])), own)
    with expect_error(BankError, "source statistics", 0):
        matching_noise_scale(own, make_bank((0, [0.0], [0.0])))
