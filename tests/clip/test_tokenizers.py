"""Tokenizers of SigLIP and SigLIP 2 from local files, and the text embeddings of their tokens."""

import sys
from pathlib import Path

import pytest
import torch
from open_clip.tokenizer import HFTokenizer

from error_matching import expect_error
from famix.clip import PromptEncoder, load_clip_state_dict
from famix.clip.open_clip.models import OpenClipModel, find_model
from famix.clip.open_clip.tokenizers import load_tokenizer
from famix.utils.errors import ConfigError
from open_clip_factory import WORDS, TinyCLIP, make_gemma, make_unigram, tiny_open_clip

TEXTS = ["Urban_Grit style ROAD!", "a photo of a car.", "sky", ""]


@pytest.fixture(scope="module", params=["siglip", "siglip2"])
def siglip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[TinyCLIP, Path]:
    """A tiny SigLIP and the folder of its tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizer")
    make = {"siglip": make_unigram, "siglip2": make_gemma}[request.param]
    return tiny_open_clip(request.param, folder), make(folder / "files")


def model_of(tiny: TinyCLIP) -> OpenClipModel:
    model = find_model(tiny.architecture)
    assert model is not None
    return model


def test_tokens_equal_open_clips(siglip: tuple[TinyCLIP, Path]) -> None:
    tiny, folder = siglip
    tokens = load_tokenizer(model_of(tiny), str(folder))(TEXTS)
    assert tokens.shape == (4, 64) and tokens.dtype == torch.int64
    assert torch.equal(tokens, HFTokenizer(str(folder), context_length=64, clean="canonicalize")(TEXTS))
    padding = 1 if tiny.file.stem == "siglip" else 0
    assert (tokens == 1).any(1).all() and (tokens[:, -1] == padding).all()
    assert tokens[3].tolist() == [1, *[padding] * 63]  # the end token alone


def test_punctuation_and_case_are_removed(tmp_path: Path) -> None:
    tokenize = load_tokenizer(model_of(tiny_open_clip("siglip", tmp_path)), str(make_unigram(tmp_path / "files")))
    words = [4 + WORDS.index(word) for word in ("urban", "grit", "style", "road")]
    assert tokenize(["Urban_Grit style ROAD!"])[0].tolist() == [*words, *[1] * 60]


@torch.no_grad()
def test_embeddings_equal_open_clips(siglip: tuple[TinyCLIP, Path]) -> None:
    tiny, folder = siglip
    encoder = PromptEncoder(load_clip_state_dict(str(tiny.file), tiny.architecture, str(folder)), chunk_size=3)
    texts, templates = ["road", "Urban Grit style car", "sky"], ["a {}.", "the old {}", "{}", "{}!"]
    tokens = HFTokenizer(str(folder), context_length=64, clean="canonicalize")(
        [template.format(text) for text in texts for template in templates]
    )
    expected = torch.nn.functional.normalize(tiny.model.encode_text(tokens).unflatten(0, (3, 4)).mean(1), dim=1)
    assert (encoder(texts, templates) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_long_texts_are_refused(siglip: tuple[TinyCLIP, Path]) -> None:
    tiny, folder = siglip
    tokenize = load_tokenizer(model_of(tiny), str(folder))
    assert tokenize(["a " * 62 + "a"])[0, -1] == 1
    with expect_error(ConfigError, "Prompts", 65, "STYLE_MINING.TEMPLATES"):
        tokenize(["a " * 63 + "a"])


def test_tokenizers_of_another_model_are_refused(tmp_path: Path) -> None:
    tokenize = load_tokenizer(model_of(tiny_open_clip("siglip", tmp_path)), str(make_gemma(tmp_path / "files")))
    with expect_error(
        ConfigError, "MODEL.CLIP.TOKENIZER", str(tmp_path / "files"), "https://huggingface.co/absent/tokenizer"
    ):
        tokenize(["road"])


@pytest.mark.parametrize("left", [None, (), ("tokenizer_config.json",), ("tokenizer.json",)], ids=str)
def test_missing_files_are_one_line(tmp_path: Path, left: tuple[str, ...] | None) -> None:
    model, folder = model_of(tiny_open_clip("siglip", tmp_path)), tmp_path / "files"
    if left is not None:
        for file in make_unigram(folder).iterdir():
            if file.name not in left:
                file.unlink()
    with expect_error(
        ConfigError, "MODEL.CLIP.TOKENIZER", str(folder), "https://huggingface.co/absent/tokenizer"
    ) as caught:
        load_tokenizer(model, str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"version": "1.0", "model": {"type": "Unigram"}}'])
def test_damaged_files_are_one_line(tmp_path: Path, content: str) -> None:
    model, folder = model_of(tiny_open_clip("siglip", tmp_path)), make_unigram(tmp_path / "files")
    (folder / "tokenizer.json").write_text(content)
    with expect_error(
        ConfigError, "MODEL.CLIP.TOKENIZER", str(folder), "https://huggingface.co/absent/tokenizer"
    ) as caught:
        load_tokenizer(model, str(folder))
    assert "\n" not in str(caught.value)


def test_missing_transformers_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny, folder = tiny_open_clip("siglip", tmp_path), make_unigram(tmp_path / "files")
    encoder = PromptEncoder(load_clip_state_dict(str(tiny.file), tiny.architecture, str(folder)))  # without a tokenizer
    monkeypatch.setitem(sys.modules, "transformers", None)
    with expect_error(ConfigError, "MODEL.CLIP.ARCHITECTURE", tiny.architecture, "famix[open_clip]") as caught:
        encoder(["road"])
    assert "\n" not in str(caught.value)
