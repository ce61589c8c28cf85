"""Numbers about banks, compared with what can be computed by hand."""

import json
import math

import pytest
import torch

from famix.reports.bank_looks import bank_prompts, looks_of
from famix.reports.bank_statistics import class_statistics, look_statistics, source_distance
from famix.reports.projection import principal_plane
from famix.style import StyleBank
from famix.utils.errors import BankError
from reports.banks import CLASSES, make_bank


def test_looks_are_prompts_without_the_class() -> None:
    looks = looks_of(make_bank(7))
    assert looks is not None and looks.names == ("foggy", "night")
    assert looks.index.tolist() == [0, 0, 0, 1, 1, 1, 0]
    assert bank_prompts(make_bank(3)) == ["foggy road", "foggy sky", "foggy traffic sign"]


def test_a_prompt_without_the_class_is_a_look_as_a_whole() -> None:
    bank = make_bank(2)
    bank.add(
        torch.tensor([255]), torch.zeros(1, 4), torch.ones(1, 4),
        {"batch_id": torch.tensor([9]), "prompt_id": torch.tensor([6]), "initial_loss": torch.ones(1), "final_loss": torch.ones(1)},
    )  # fmt: skip
    looks = looks_of(bank)
    assert looks is not None and looks.names == ("foggy", "photo")
    assert [one.name for one in class_statistics(bank)] == ["road", "sky", "unlabelled"]


def test_banks_without_prompts_have_no_looks() -> None:
    measured = StyleBank({"class_names": json.dumps(CLASSES)})
    measured.add(torch.tensor([0]), torch.zeros(1, 4), torch.ones(1, 4))
    assert looks_of(measured) is None and look_statistics(measured) == []
    (road,) = class_statistics(measured)
    assert math.isnan(road.loss_before) and math.isnan(road.spread)


def test_numbers_of_a_group_are_those_computed_by_hand() -> None:
    bank = StyleBank({"class_names": json.dumps(CLASSES)})
    mean, std = torch.tensor([[1.0, 3.0], [3.0, 3.0]]), torch.tensor([[2.0, 1.0], [2.0, -1.0]])
    bank.add(
        torch.tensor([1, 1]),
        mean,
        std,
        {"initial_loss": torch.tensor([0.5, 0.7]), "final_loss": torch.tensor([0.1, 0.2])},
    )
    (sky,) = class_statistics(bank)
    assert (sky.name, sky.styles, sky.negative) == ("sky", 2, 1)
    assert sky.loss_before == pytest.approx(0.6) and sky.loss_after == pytest.approx(0.15)
    # The mean style is (2, 3, 2, 0): differences of 1 in two of four places, and a size of sqrt(17 / 4).
    assert sky.spread == pytest.approx(math.sqrt(2 / 4) / math.sqrt(17 / 4))


def test_looks_have_numbers_of_their_own() -> None:
    foggy, night = look_statistics(make_bank(12))
    assert (foggy.name, foggy.styles, night.name, night.styles) == ("foggy", 6, "night", 6)
    assert foggy.loss_after < night.loss_after


def test_distance_counts_in_the_variation_of_the_source() -> None:
    own, bank = StyleBank(make_bank().metadata), StyleBank(make_bank().metadata)
    # Roads of the source: means 0 or 2 in the first channel, 0 or 20 in the second one, deviations 0 or 2.
    own.add(torch.tensor([0, 0]), torch.tensor([[0.0, 0.0], [2.0, 20.0]]), torch.tensor([[0.0, 0.0], [2.0, 2.0]]))
    bank.add(torch.tensor([0]), torch.tensor([[1.0, 10.0]]), torch.tensor([[1.0, 1.0 + 3 * math.sqrt(2)]]))
    # Three of four are the average; the fourth is three deviations (sqrt 2 each) away.
    assert source_distance(bank, own).tolist() == pytest.approx([math.sqrt(9 / 4)])


def test_patches_of_the_source_have_a_distance_of_about_one() -> None:
    own = make_bank(300, channels=8)
    assert float(source_distance(own, own).square().mean().sqrt()) == pytest.approx(1, abs=0.01)


def test_rare_classes_are_compared_with_all_patches() -> None:
    own = make_bank(30)
    rare = StyleBank(own.metadata)
    rare.add(torch.tensor([255]), own.mean[:1] + 3, own.std[:1])
    sources = torch.cat([own.mean, own.std], dim=1)
    style = torch.cat([rare.mean, rare.std], dim=1)
    expected = ((style - sources.mean(dim=0)) / sources.std(dim=0)).square().mean().sqrt()
    assert float(source_distance(rare, own)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip_hash": "cd"}, "clip_hash abab.* for cd; only banks of the same CLIP"),
        ({"stage": "res3"}, "stage res2.*res3"),
        ({"channels": 5}, "4 channels.*5"),
        ({"count": 1}, "has 1 styles, expected statistics of many"),
    ],
)
def test_banks_that_do_not_belong_together_have_no_distance(change: dict, message: str) -> None:
    with pytest.raises(BankError, match=message):
        source_distance(make_bank(), make_bank(**change))


def test_the_plane_is_that_of_the_largest_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([1.0, 5.0, 0.1, 3.0])
    points = torch.randn(500, 4, generator=generator) * spread + 7
    plane = principal_plane(points)
    centered = points - points.mean(dim=0)
    assert torch.allclose(plane.places[:, 0].abs(), centered[:, 1].abs(), atol=0.6)
    assert torch.corrcoef(torch.stack([plane.places[:, 1], centered[:, 3]]))[0, 1] > 0.99
    assert plane.shares[0] == pytest.approx(25 / 35, abs=0.05)
    assert plane.shares[1] == pytest.approx(9 / 35, abs=0.05)
    assert torch.allclose(principal_plane(points.flip(0)).places.flip(0), plane.places, atol=1e-4)


def test_points_that_are_all_equal_have_a_plane() -> None:
    plane = principal_plane(torch.ones(3, 4))
    assert plane.places.abs().max() == 0 and plane.shares == (0, 0)
