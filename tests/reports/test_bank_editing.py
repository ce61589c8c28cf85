"""Banks merged and filtered are banks that say what they were made of; unsound ones are found."""

import json

import pytest
import torch

from error_matching import expect_error
from famix.reports.bank_editing import Selection, filter_bank, find_problems, merge_banks
from famix.reports.bank_looks import bank_prompts
from famix.style import StyleBank
from famix.utils.errors import BankError
from reports.banks import make_bank


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


def test_merged_banks_say_where_they_come_from(tmp_path) -> None:
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
    filtered = filter_bank(merged, "m", Selection(classes=("sky",)))
    steps = json.loads(filtered.metadata["history"])
    assert [step["step"] for step in steps] == ["merge", "filter"]
    assert steps[1]["classes"] == ["sky"] and steps[1]["inputs"][0]["styles"] == 12


def test_annotations_that_one_bank_lacks_are_left_out() -> None:
    measured = StyleBank({key: value for key, value in make_bank().metadata.items() if key != "prompts"})
    measured.add(torch.tensor([0]), torch.zeros(1, 4), torch.ones(1, 4))
    merged = merge_banks({"a": make_bank(3), "b": measured})
    assert len(merged) == 4 and merged.annotations == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"clip_hash": "cd"},
            "a was made for clip_hash abab.*, b for cd; only banks of the same CLIP, stage, grid and",
        ),
        ({"clip_hash": None}, "a was made for clip_hash abab.*, b for nothing"),
        ({"stage": "res3"}, "stage res2, b for res3"),
        ({"grid": [1, 1]}, r"grid \[3, 3\], b for \[1, 1\]"),
        ({"class_names": ["cat"]}, "class_names .*road.*, b for .*cat"),
        ({"channels": 8}, "a has styles of 4 channels, b of 8"),
    ],
)
def test_banks_of_different_kinds_do_not_merge(change: dict, message: str) -> None:
    with pytest.raises(BankError, match=message):
        merge_banks({"a": make_bank(), "b": make_bank(**change)})


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
        (Selection(classes=("sky",)), [1, 4, 7, 10]),
        (Selection(classes=("sky", "road")), [0, 1, 3, 4, 6, 7, 9, 10]),
        (Selection(prompts=("night",)), [3, 4, 5, 9, 10, 11]),
        (Selection(prompts=("night sky", "foggy road")), [0, 4, 6, 10]),
        (Selection(max_loss=0.25), [0, 1, 2]),
        (Selection(classes=("sky",), prompts=("night",), max_loss=0.3), [4]),
        (Selection(), list(range(12))),
    ],
)
def test_filters_keep_what_fits_all_of_them(selection: Selection, rows: list[int]) -> None:
    bank = make_bank(12)
    kept = filter_bank(bank, "a", selection)
    assert torch.equal(kept.mean, bank.mean[rows]) and torch.equal(kept.class_ids, bank.class_ids[rows])
    assert torch.equal(kept.annotations["prompt_id"], bank.annotations["prompt_id"][rows])


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (Selection(max_loss=0.1), "none of the 12 styles of a is left"),
        (Selection(classes=("raod",)), "no class 'raod'. Did you mean 'road'"),
    ],
)
def test_filters_that_keep_nothing_are_an_error(selection: Selection, message: str) -> None:
    with pytest.raises(BankError, match=message):
        filter_bank(make_bank(12), "a", selection)


@pytest.mark.parametrize("selection", [Selection(prompts=("night",)), Selection(max_loss=1.0)])
def test_measured_banks_cannot_be_filtered_by_what_they_do_not_say(selection: Selection) -> None:
    measured = StyleBank()
    measured.add(torch.tensor([0]), torch.zeros(1, 4), torch.ones(1, 4))
    with pytest.raises(BankError, match=r"does not say its \w+; select by class"):
        filter_bank(measured, "a", selection)


def test_a_sound_bank_has_no_problems() -> None:
    assert find_problems(make_bank()) == []


def test_problems_are_found() -> None:
    assert find_problems(make_bank(0)) == ["it has no styles"]
    assert find_problems(make_bank(clip_hash=None)) == ["its metadata do not say clip_hash"]
    (foreign,) = find_problems(make_bank(3, class_names=["road"]))
    assert foreign == "it has styles of the class ids 1, 2, but names of 1 classes"
    assert find_problems(make_bank(prompts=["a"])) == ["styles refer to prompts from number 0 to 5 of 1"]
    assert "expected a JSON list" in find_problems(make_bank(prompts="no list"))[0]
    bank = make_bank(5)
    bank.annotations["final_loss"][1:3] = torch.tensor([-0.5, torch.nan])
    bank.mean[4] = bank.std[4] = 0
    losses, empty = find_problems(bank)
    assert losses == "2 values of final_loss lie outside of 0 to 2"
    assert empty.startswith("1 styles are all zeros")


@pytest.mark.parametrize("content", ["[" * 100_000, "{", '"text"', "[1, 2]", "[[]]", "null", "9" * 5000])
@pytest.mark.parametrize("key", ["prompts", "source"])
def test_metadata_of_another_form_are_one_error(key: str, content: str) -> None:
    bank = make_bank(**{key: content})
    with expect_error(BankError, key):
        merge_banks({"a": bank, "b": bank})
