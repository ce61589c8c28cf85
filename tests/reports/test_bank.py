"""Statistics of banks compared with values computed by hand; merged, filtered and damaged banks."""

import json
import math
from pathlib import Path

import pytest
import torch

from error_matching import expect_error
from famix.reports.bank import (
    bank_prompts,
    class_groups,
    filter_bank,
    find_problems,
    group_statistics,
    merge_banks,
    source_distance,
    word_groups,
)
from famix.style import StyleBank
from famix.utils.errors import BankError
from reports.banks import CLASSES, make_bank


def test_style_words_are_prompts_without_the_class() -> None:
    groups = word_groups(make_bank(7))
    assert {name: rows.nonzero().flatten().tolist() for name, rows in groups.items()} == {
        "foggy": [0, 1, 2, 6],
        "night": [3, 4, 5],
    }
    assert bank_prompts(make_bank(3)) == ["foggy road", "foggy sky", "foggy traffic sign"]


def test_a_prompt_without_the_class_is_a_word_as_a_whole() -> None:
    bank = make_bank(2)
    bank.add(
        torch.tensor([255]), torch.zeros(1, 4), torch.ones(1, 4),
        {"batch_id": torch.tensor([9]), "prompt_id": torch.tensor([6]), "initial_loss": torch.ones(1), "final_loss": torch.ones(1)},
    )  # fmt: skip
    assert list(word_groups(bank)) == ["foggy", "photo"]
    assert list(class_groups(bank)) == ["road", "sky", "unlabelled"]


def test_banks_without_prompts_have_no_style_words() -> None:
    measured = StyleBank({"class_names": json.dumps(CLASSES)})
    measured.add(torch.tensor([0]), torch.zeros(1, 4), torch.ones(1, 4))
    assert word_groups(measured) == {}
    road = group_statistics(measured, class_groups(measured)["road"])
    assert math.isnan(road.loss_before) and math.isnan(road.spread)


def test_statistics_of_a_group_are_those_computed_by_hand() -> None:
    bank = StyleBank({"class_names": json.dumps(CLASSES)})
    mean, std = torch.tensor([[1.0, 3.0], [3.0, 3.0]]), torch.tensor([[2.0, 1.0], [2.0, -1.0]])
    losses = {"initial_loss": torch.tensor([0.5, 0.7]), "final_loss": torch.tensor([0.1, 0.2])}
    bank.add(torch.tensor([1, 1]), mean, std, losses)
    sky = group_statistics(bank, class_groups(bank)["sky"])
    assert (sky.styles, sky.negative) == (2, 1)
    assert sky.loss_before == pytest.approx(0.6) and sky.loss_after == pytest.approx(0.15)
    # The mean style is (2, 3, 2, 0): differences of 1 in two of four places, and a size of sqrt(17 / 4).
    assert sky.spread == pytest.approx(math.sqrt(2 / 4) / math.sqrt(17 / 4))


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
    ("change", "key", "value"),
    [
        ({"clip_hash": "cd"}, "clip_hash", "cd"),
        ({"stage": "res3"}, "stage", "res3"),
        ({"grid": [1, 1]}, "grid", "[1, 1]"),
        ({"class_names": ["cat"]}, "class_names", '["cat"]'),
        ({"clip_hash": None}, "clip_hash", "nothing"),
        ({"channels": 5}, "channels", 5),
    ],
)
def test_banks_of_different_kinds_are_not_combined(change: dict, key: str, value: object) -> None:
    for combine in (source_distance, lambda first, second: merge_banks({"a": first, "b": second})):
        with expect_error(BankError, key, value, "same CLIP"):
            combine(make_bank(), make_bank(**change))


def test_a_measured_bank_needs_two_styles() -> None:
    with expect_error(BankError, "measured bank", 1, "Measure more images"):
        source_distance(make_bank(), make_bank(1))


def test_merged_banks_keep_every_style_and_its_prompt() -> None:
    first = make_bank(6)
    other_prompts = [
        "snowy road",
        "night road",
        "foggy sky",
        "snowy sky",
        "foggy traffic sign",
        "x traffic sign",
        "photo",
    ]
    second = make_bank(9, seed=1, prompts=other_prompts, source=["other_train"])
    merged = merge_banks({"a": first, "b": second})
    assert torch.equal(merged.mean, torch.cat([first.mean, second.mean]))
    assert torch.equal(merged.std, torch.cat([first.std, second.std]))
    assert merged.class_ids.tolist() == [*first.class_ids.tolist(), *second.class_ids.tolist()]
    assert bank_prompts(merged) == bank_prompts(first) + bank_prompts(second)
    assert merged.annotations["batch_id"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert torch.equal(merged.annotations["final_loss"][6:], second.annotations["final_loss"])


def test_merged_banks_say_where_they_come_from(tmp_path: Path) -> None:
    merged = merge_banks({"a": make_bank(6), "b": make_bank(9, seed=1, source=["other_train"])})
    assert json.loads(merged.metadata["source"]) == ["tiny_train", "other_train"]
    assert merged.metadata["lr"] == "1.0" and "seed" not in merged.metadata  # they differ in it
    (step,) = json.loads(merged.metadata["history"])
    assert step["step"] == "merge"
    assert [(one["name"], one["styles"], one["seed"]) for one in step["inputs"]] == [("a", 6, "0"), ("b", 9, "1")]
    assert len({one["sha256"] for one in step["inputs"]}) == 2
    merged.save(tmp_path / "merged.safetensors")
    assert json.loads(StyleBank.load(tmp_path / "merged.safetensors").metadata["history"]) == [step]


def test_history_grows_from_step_to_step() -> None:
    merged = merge_banks({"a": make_bank(6), "b": make_bank(6, seed=1)})
    filtered = filter_bank(merged, "m", classes=("sky",))
    steps = json.loads(filtered.metadata["history"])
    assert [step["step"] for step in steps] == ["merge", "filter"]
    assert steps[1]["classes"] == ["sky"] and steps[1]["inputs"][0]["styles"] == 12


def test_banks_of_different_text_towers_do_not_merge() -> None:
    gelu = {"activation": "gelu", "causal": "true"}
    with expect_error(BankError, "a", remedy="gelu"):
        merge_banks({"a": make_bank(), "b": make_bank(**gelu)})
    mined, measured = make_bank(**gelu), make_bank(prompts=None)
    del measured.annotations["prompt_id"]
    for banks in ({"a": mined, "b": mined}, {"a": mined, "b": measured}, {"a": measured, "b": mined}):
        metadata = merge_banks(banks).metadata
        assert {key: metadata[key] for key in gelu} == gelu
    assert merge_banks({"a": make_bank(), "b": make_bank()}).metadata["activation"] == "quick_gelu"


@pytest.mark.parametrize(
    ("selection", "rows"),
    [
        (dict(classes=("sky",)), [1, 4, 7, 10]),
        (dict(classes=("sky", "road")), [0, 1, 3, 4, 6, 7, 9, 10]),
        (dict(prompts=("night",)), [3, 4, 5, 9, 10, 11]),
        (dict(prompts=("night sky", "foggy road")), [0, 4, 6, 10]),
        (dict(max_loss=0.25), [0, 1, 2]),
        (dict(classes=("sky",), prompts=("night",), max_loss=0.3), [4]),
        (dict(), list(range(12))),
    ],
)
def test_filters_keep_what_fits_all_of_them(selection: dict, rows: list[int]) -> None:
    bank = make_bank(12)
    kept = filter_bank(bank, "a", **selection)
    assert torch.equal(kept.mean, bank.mean[rows]) and torch.equal(kept.class_ids, bank.class_ids[rows])
    assert torch.equal(kept.annotations["prompt_id"], bank.annotations["prompt_id"][rows])


@pytest.mark.parametrize(
    ("selection", "key", "remedy"),
    [
        (dict(max_loss=0.1), "12", "less strictly"),
        (dict(classes=("raod",)), "--class", "Did you mean 'road'?"),
    ],
)
def test_filters_that_keep_nothing_are_an_error(selection: dict, key: str, remedy: str) -> None:
    with expect_error(BankError, key, remedy=remedy):
        filter_bank(make_bank(12), "a", **selection)


@pytest.mark.parametrize(
    ("selection", "key"), [(dict(prompts=("night",)), "--prompt"), (dict(max_loss=1.0), "--max-loss")]
)
def test_measured_banks_cannot_be_filtered_by_prompt_or_loss(selection: dict, key: str) -> None:
    measured = StyleBank()
    measured.add(torch.tensor([0]), torch.zeros(1, 4), torch.ones(1, 4))
    with expect_error(BankError, key, remedy="--class"):
        filter_bank(measured, "a", **selection)


def test_a_sound_bank_has_no_problems() -> None:
    assert find_problems(make_bank()) == []


def test_problems_are_found() -> None:
    for bank, words in (
        (make_bank(0), "no styles"),
        (make_bank(clip_hash=None), "clip_hash"),
        (make_bank(3, class_names=["road"]), "class ids 1, 2"),
        (make_bank(prompts=["a"]), "prompt_id"),
        (make_bank(prompts="no list"), "JSON list"),
    ):
        (problem,) = find_problems(bank)
        assert words in problem
    bank = make_bank(5)
    bank.annotations["final_loss"][1:3] = torch.tensor([-0.5, torch.nan])
    bank.mean[4] = bank.std[4] = 0
    losses, empty = find_problems(bank)
    assert losses.startswith("2 values of final_loss") and empty.startswith("1 styles are all zeros")


@pytest.mark.parametrize("content", ["[" * 100_000, "{", '"text"', "[1, 2]", "[[]]", "null", "9" * 5000])
@pytest.mark.parametrize("key", ["prompts", "source"])
def test_metadata_of_another_form_are_one_error(key: str, content: str) -> None:
    bank = make_bank(**{key: content})
    with expect_error(BankError, key):
        merge_banks({"a": bank, "b": bank})
