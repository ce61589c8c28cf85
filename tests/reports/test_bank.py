"""Statistics of banks, computed by hand; merged, filtered and damaged banks."""

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
from reports.banks import CLASSES, make_bank, measured_bank


def rows_of(groups: dict[str, torch.Tensor]) -> dict[str, list[int]]:
    return {name: chosen.nonzero().flatten().tolist() for name, chosen in groups.items()}


def test_groups_by_word_and_class() -> None:
    assert rows_of(word_groups(make_bank(7))) == {"foggy": [0, 1, 2, 6], "night": [3, 4, 5]}
    assert bank_prompts(make_bank(3)) == ["foggy road", "foggy sky", "foggy traffic sign"]
    bank = make_bank(2)
    annotations = {"batch_id": torch.tensor([9]), "prompt_id": torch.tensor([6])}
    losses = {"initial_loss": torch.ones(1), "final_loss": torch.ones(1)}
    bank.add(torch.tensor([255]), torch.zeros(1, 4), torch.ones(1, 4), annotations | losses)
    assert rows_of(word_groups(bank)) == {"foggy": [0, 1], "photo": [2]}, "a prompt without the class is a word"
    assert rows_of(class_groups(bank)) == {"road": [0], "sky": [1], "unlabelled": [2]}


def test_group_statistics_by_hand() -> None:
    bank = StyleBank({"class_names": json.dumps(CLASSES)})
    mean, std = torch.tensor([[1.0, 3.0], [3.0, 3.0]]), torch.tensor([[2.0, 1.0], [2.0, -1.0]])
    losses = {"initial_loss": torch.tensor([0.5, 0.7]), "final_loss": torch.tensor([0.1, 0.2])}
    bank.add(torch.tensor([1, 1]), mean, std, losses)
    sky = group_statistics(bank, class_groups(bank)["sky"])
    assert (sky["styles"], sky["negative"]) == (2, 1)
    assert sky["loss before"] == pytest.approx(0.6) and sky["after"] == pytest.approx(0.15)
    # The mean style is (2, 3, 2, 0): differences of 1 in two of four places, and a size of sqrt(17 / 4).
    assert sky["spread"] == pytest.approx(math.sqrt(2 / 4) / math.sqrt(17 / 4))
    measured = measured_bank(0, class_names=CLASSES)
    assert word_groups(measured) == {}
    road = group_statistics(measured, class_groups(measured)["road"])
    assert "loss before" not in road and math.isnan(road["spread"])


def test_source_distance_by_hand() -> None:
    own, bank = StyleBank(make_bank().metadata), StyleBank(make_bank().metadata)
    # Roads of the source: means 0 or 2 in the first channel, 0 or 20 in the second one, deviations 0 or 2.
    own.add(torch.tensor([0, 0]), torch.tensor([[0.0, 0.0], [2.0, 20.0]]), torch.tensor([[0.0, 0.0], [2.0, 2.0]]))
    bank.add(torch.tensor([0]), torch.tensor([[1.0, 10.0]]), torch.tensor([[1.0, 1.0 + 3 * math.sqrt(2)]]))
    # Three of four are the average; the fourth is three deviations (sqrt 2 each) away.
    assert source_distance(bank, own).tolist() == pytest.approx([math.sqrt(9 / 4)])


def test_source_distance_of_sources_and_rare_classes() -> None:
    own = make_bank(300, channels=8)
    assert float(source_distance(own, own).square().mean().sqrt()) == pytest.approx(1, abs=0.01)
    rare = StyleBank(own.metadata)
    rare.add(torch.tensor([255]), own.mean[:1] + 3, own.std[:1])
    sources, style = torch.cat([own.mean, own.std], dim=1), torch.cat([rare.mean, rare.std], dim=1)
    expected = ((style - sources.mean(dim=0)) / sources.std(dim=0)).square().mean().sqrt()
    assert float(source_distance(rare, own)) == pytest.approx(float(expected), rel=1e-5), "all patches, without its own"
    with expect_error(BankError, "measured bank", 1, "Measure more images"):
        source_distance(make_bank(), make_bank(1))


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
def test_incompatible_banks_are_refused(change: dict, key: str, value: object) -> None:
    for combine in (source_distance, lambda first, second: merge_banks({"a": first, "b": second})):
        with expect_error(BankError, key, value, "same CLIP"):
            combine(make_bank(), make_bank(**change))


def test_merge_keeps_styles_and_prompts(tmp_path: Path) -> None:
    prompts = ["snowy road", "night road", "foggy sky", "snowy sky", "foggy traffic sign", "x traffic sign", "photo"]
    first, second = make_bank(6), make_bank(9, seed=1, prompts=prompts, source=["other_train"])
    merged = merge_banks({"a": first, "b": second})
    for name in ("mean", "std", "class_ids"):
        assert torch.equal(getattr(merged, name), torch.cat([getattr(first, name), getattr(second, name)]))
    assert bank_prompts(merged) == bank_prompts(first) + bank_prompts(second)
    assert merged.annotations["batch_id"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert torch.equal(merged.annotations["final_loss"][6:], second.annotations["final_loss"])
    assert json.loads(merged.metadata["source"]) == ["tiny_train", "other_train"]
    assert merged.metadata["lr"] == "1.0" and "seed" not in merged.metadata, "the seeds differ"
    (step,) = json.loads(merged.metadata["history"])
    assert step["step"] == "merge"
    assert [(one["name"], one["styles"], one["seed"]) for one in step["inputs"]] == [("a", 6, "0"), ("b", 9, "1")]
    assert len({one["sha256"] for one in step["inputs"]}) == 2
    merged.save(tmp_path / "merged.safetensors")
    assert json.loads(StyleBank.load(tmp_path / "merged.safetensors").metadata["history"]) == [step]
    _, step = json.loads(filter_bank(merged, "m", classes=("sky",)).metadata["history"])
    assert (step["step"], step["classes"], step["inputs"][0]["styles"]) == ("filter", ["sky"], 15)


def test_merge_compares_text_towers() -> None:
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
def test_filter_keeps_matching_styles(selection: dict, rows: list[int]) -> None:
    bank = make_bank(12)
    kept = filter_bank(bank, "a", **selection)
    assert torch.equal(kept.mean, bank.mean[rows]) and torch.equal(kept.class_ids, bank.class_ids[rows])
    assert torch.equal(kept.annotations["prompt_id"], bank.annotations["prompt_id"][rows])


@pytest.mark.parametrize(
    ("bank", "selection", "key", "remedy"),
    [
        (make_bank(12), dict(max_loss=0.1), "12", "Relax"),
        (make_bank(12), dict(classes=("raod",)), "--class", "Did you mean 'road'?"),
        (measured_bank(0), dict(prompts=("night",)), "--prompt", "--class"),
        (measured_bank(0), dict(max_loss=1.0), "--max-loss", "--class"),
    ],
)
def test_filter_rejects_selection(bank: StyleBank, selection: dict, key: str, remedy: str) -> None:
    with expect_error(BankError, key, remedy=remedy):
        filter_bank(bank, "a", **selection)


def test_find_problems() -> None:
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
    assert find_problems(bank) == []
    bank.annotations["final_loss"][1:3] = torch.tensor([-0.5, torch.nan])
    bank.mean[4] = bank.std[4] = 0
    losses, empty = find_problems(bank)
    assert losses.startswith("2 values of final_loss") and empty.startswith("1 styles are all zeros")


@pytest.mark.parametrize("content", ["[" * 100_000, "{", '"text"', "[1, 2]", "[[]]", "null", "9" * 5000])
@pytest.mark.parametrize("key", ["prompts", "source"])
def test_malformed_metadata_are_refused(key: str, content: str) -> None:
    bank = make_bank(**{key: content})
    with expect_error(BankError, key):
        merge_banks({"a": bank, "b": bank})
