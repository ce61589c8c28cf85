"""Compact files of small CLIPs: what is kept, what is filled in, and what a text tower knows afterwards."""

import pytest
import safetensors.torch
import torch

from clip_factory import tiny_clip
from error_matching import expect_error
from famix.clip import PromptEncoder
from famix.clip.export import rounded, save_compact
from famix.clip.openai import tokenize
from famix.clip.weights import load_clip_state_dict
from famix.utils.errors import WeightsError

WORDS = ["a", "photo", "of", "road", "."]


@pytest.fixture
def clip_state_dict():
    tensors = tiny_clip().state_dict().items()
    return {name: tensor.float() for name, tensor in tensors if tensor.is_floating_point()}


def _tokens(texts):
    return sorted(int(token) for token in tokenize(texts).unique() if token > 0)


def test_round_trip_keeps_the_rows_and_the_embedding_of_known_texts(tmp_path, clip_state_dict):
    path = tmp_path / "clip.safetensors"
    save_compact(clip_state_dict, path, _tokens(WORDS), {"made_by": "a test"})
    loaded = load_clip_state_dict(str(path))
    kept = _tokens(WORDS)
    others = torch.ones(len(loaded["token_embedding.weight"]), dtype=torch.bool)
    others[kept] = False
    assert (loaded["token_embedding.weight"][others] == 0).all()
    expected = rounded(clip_state_dict)
    for name, tensor in loaded.items():
        if name != "token_embedding.weight":
            assert torch.equal(tensor, expected[name]), name
    texts = ["road", "photo of a road"]
    with_all, with_few = (PromptEncoder(weights)(texts, ["a {}."]) for weights in (expected, loaded))
    assert torch.equal(with_all, with_few)
    assert path.stat().st_size < 2 * sum(t.numel() for n, t in expected.items() if "token" not in n) * 2


def test_unknown_words(tmp_path, clip_state_dict):
    path = tmp_path / "clip.safetensors"
    save_compact(clip_state_dict, path, _tokens(WORDS), {})
    compact, full = (PromptEncoder(weights) for weights in (load_clip_state_dict(str(path)), clip_state_dict))
    assert compact.unknown_words(["a photo of zebra", "zebra road"]) == ["zebra"]
    assert compact.unknown_words(["a photo, zebra.", "(zebra) ."]) == ["zebra"], "punctuation is not part of a word"
    assert compact.unknown_words([]) == []
    assert full.unknown_words(["a photo of zebra"]) == []


@pytest.mark.parametrize("rows", [[1, 2], [1, 2, 60000], [-1, 2, 3], [1.0, 2.0, 3.0]])
def test_rows_that_do_not_fit(tmp_path, clip_state_dict, rows):
    path = tmp_path / "clip.safetensors"
    save_compact(clip_state_dict, path, [1, 2, 3], {})
    tensors = safetensors.torch.load_file(path)
    tensors["token_rows"] = torch.tensor(rows)
    safetensors.torch.save_file(tensors, path)
    with expect_error(WeightsError, "token_rows", remedy="train_mini_clip.py"):
        load_clip_state_dict(str(path))
