"""Text towers with either activation and mask: computed right, recognised in files, and never guessed in silence."""

import logging
import math

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from clip_factory import save_tiny_clip, tiny_clip
from error_matching import expect_error, explains
from famix import PromptEncoder
from famix.clip import (
    ARCHITECTURES,
    OPEN_CLIP_TEXT,
    OPENAI_TEXT,
    CLIPResNet,
    TextDesign,
    load_clip_state_dict,
    load_configured_clip,
    require_text_design,
)
from famix.clip import openai as clip_package
from famix.clip.export import save_clip, save_compact
from famix.engine import load_config
from famix.utils.errors import ConfigError
from famix_minitown.datasets import register

TEXTS = ["Urban Grit style road", "photo"]
TEMPLATES = ["a photo of a {}.", "the embroidered {}."]
UNKNOWN = TextDesign()
DESIGNS = [TextDesign(activation, causal) for activation in ("quick_gelu", "gelu") for causal in (True, False)]


@pytest.fixture(scope="module")
def state():
    """Weights large enough for the activation and the mask to show."""
    state = tiny_clip().state_dict()
    return {name: 3 * value if name.endswith("c_fc.weight") else value for name, value in state.items()}


def plain_embedding(state, text, design):
    """A text tower written out: 77 tokens, one head for 64 channels, two blocks, mean of the sentences, length 1."""
    tokens = clip_package.tokenize([template.format(text) for template in TEMPLATES])
    x = state["token_embedding.weight"][tokens] + state["positional_embedding"]
    for block in ("transformer.resblocks.0.", "transformer.resblocks.1."):
        normed = F.layer_norm(x, (64,), state[block + "ln_1.weight"], state[block + "ln_1.bias"])
        q, k, v = (normed @ state[block + "attn.in_proj_weight"].T + state[block + "attn.in_proj_bias"]).chunk(3, -1)
        scores = q @ k.transpose(1, 2) / math.sqrt(64)
        if design.causal:
            scores = scores.masked_fill(torch.ones(77, 77, dtype=torch.bool).triu(1), -math.inf)
        x = x + F.linear(
            scores.softmax(-1) @ v, state[block + "attn.out_proj.weight"], state[block + "attn.out_proj.bias"]
        )
        normed = F.layer_norm(x, (64,), state[block + "ln_2.weight"], state[block + "ln_2.bias"])
        hidden = F.linear(normed, state[block + "mlp.c_fc.weight"], state[block + "mlp.c_fc.bias"])
        if design.activation == "gelu":
            hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
        else:
            hidden = hidden / (1 + torch.exp(-1.702 * hidden))
        x = x + F.linear(hidden, state[block + "mlp.c_proj.weight"], state[block + "mlp.c_proj.bias"])
    x = F.layer_norm(x, (64,), state["ln_final.weight"], state["ln_final.bias"])
    return F.normalize((x[range(len(tokens)), tokens.argmax(1)] @ state["text_projection"]).mean(0), dim=0)


@pytest.mark.parametrize("design", DESIGNS, ids=str)
def test_embeddings_equal_those_of_a_plain_tower(state, design):
    got = PromptEncoder(state, activation=design.activation, causal=design.causal)(TEXTS, TEMPLATES)
    expected = torch.stack([plain_embedding(state, text, design) for text in TEXTS])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    others = [PromptEncoder(state, activation=o.activation, causal=o.causal) for o in DESIGNS if o != design]
    assert all((other(TEXTS, TEMPLATES) - got).abs().max() > 1e-4 for other in others), "the four differ"


def test_a_state_dict_without_a_mark_is_read_as_openais_with_one_warning(state, caplog):
    unmarked = PromptEncoder(state)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    explains(record.getMessage(), "text tower", "quick_gelu", "PromptEncoder")
    assert torch.equal(unmarked(TEXTS), PromptEncoder(state, activation="quick_gelu", causal=True)(TEXTS))
    assert len(caplog.records) == 1, "whoever says it is not warned"


def test_wrong_arguments(state):
    with expect_error(ConfigError, "activation", "relu", "text tower"):
        PromptEncoder(state, activation="relu")
    with expect_error(ConfigError, "causal", 1, "mask"):
        PromptEncoder(state, causal=1)


# Marks


@pytest.mark.parametrize("form", ["state_dict", "torchscript", "safetensors"])
def test_files_of_this_project_are_recognised(form, tmp_path, caplog):
    loaded = load_clip_state_dict(str(save_tiny_clip(tmp_path / "clip", form)))
    assert loaded.text_design == OPENAI_TEXT
    PromptEncoder(loaded)
    assert not caplog.records


def test_archives_show_their_activation_and_mask(tmp_path):
    model = tiny_clip()
    for block in model.transformer.resblocks:
        block.mlp.gelu = nn.GELU()
    save_clip(model, tmp_path / "gelu", "torchscript")
    assert load_clip_state_dict(str(tmp_path / "gelu")).text_design == OPEN_CLIP_TEXT
    model = tiny_clip()
    for block in model.transformer.resblocks:
        block.attn_mask = None
    save_clip(model, tmp_path / "unmasked", "torchscript")
    assert load_clip_state_dict(str(tmp_path / "unmasked")).text_design == TextDesign("quick_gelu", None)


def test_compact_files_and_the_towns_clip_are_recognised(state, tmp_path):
    register()
    assert load_clip_state_dict("minitown").text_design == OPENAI_TEXT, "a file of version 0.1"
    save_compact(state, tmp_path / "clip", [1, 2], {})
    assert load_clip_state_dict(str(tmp_path / "clip")).text_design == OPENAI_TEXT


def test_metadata_of_safetensors_count(state, tmp_path):
    for causal in (True, False):
        metadata = {"format": "pt", "activation": "gelu", "causal": str(causal).lower()}
        safetensors.torch.save_file(state, tmp_path / "clip", metadata)
        assert load_clip_state_dict(str(tmp_path / "clip")).text_design == TextDesign("gelu", causal)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"activation": "relu", "causal": "maybe"}])
def test_other_files_show_nothing(state, metadata, tmp_path):
    safetensors.torch.save_file(state, tmp_path / "a", metadata)
    torch.save({"state_dict": {f"module._orig_mod.{name}": value for name, value in state.items()}}, tmp_path / "b")
    for name in ("a", "b"):
        assert load_clip_state_dict(str(tmp_path / name)).text_design == UNKNOWN


# The config key


@pytest.fixture
def cfg(state, tmp_path):
    """Whose CLIP has no mark."""
    cfg = load_config("")
    cfg.MODEL.CLIP.WEIGHTS = str(tmp_path / "unmarked.pt")
    torch.save(state, cfg.MODEL.CLIP.WEIGHTS)
    return cfg


def test_names_stand_for_sizes_and_text_towers():
    for name, sizes in ARCHITECTURES.items():
        names = (name, f"open_clip:{name}", f"open_clip:{name}-quickgelu")
        assert {CLIPResNet.architecture_named(each) for each in names} == {sizes}
        assert [CLIPResNet.text_design(each) for each in names] == [OPENAI_TEXT, OPEN_CLIP_TEXT, OPENAI_TEXT]
    assert (CLIPResNet.architecture_named(""), CLIPResNet.text_design("")) == (ARCHITECTURES["RN50"], UNKNOWN)


@pytest.mark.parametrize("name", ["RN5", "RN50-quickgelu", "openai:RN50"])
def test_unknown_names(cfg, name):
    cfg.MODEL.CLIP.ARCHITECTURE = name
    with expect_error(ConfigError, "MODEL.CLIP.ARCHITECTURE", name, "MODEL.CLIP.WEIGHTS"):
        load_configured_clip(cfg)


def test_the_key_settles_what_a_file_does_not_show(cfg):
    for name, design in (("RN50", OPENAI_TEXT), ("open_clip:RN101", OPEN_CLIP_TEXT)):
        cfg.MODEL.CLIP.ARCHITECTURE = name
        clip = load_configured_clip(cfg)
        assert clip.text_design == require_text_design(clip, "file") == design


def test_without_the_key_such_a_file_is_refused(cfg):
    clip = load_configured_clip(cfg)
    with expect_error(ConfigError, "MODEL.CLIP.ARCHITECTURE", "", "open_clip:RN50"):
        require_text_design(clip, cfg.MODEL.CLIP.WEIGHTS)


def test_a_key_that_contradicts_the_file_is_refused(cfg):
    register()
    cfg.MODEL.CLIP.WEIGHTS = "minitown"
    for name in ("", "RN50", "RN101", "open_clip:RN50-quickgelu"):
        cfg.MODEL.CLIP.ARCHITECTURE = name
        assert load_configured_clip(cfg).text_design == OPENAI_TEXT
    cfg.MODEL.CLIP.ARCHITECTURE = "open_clip:RN50"
    with expect_error(ConfigError, "MODEL.CLIP.ARCHITECTURE", "open_clip:RN50", "MODEL.CLIP.ARCHITECTURE"):
        load_configured_clip(cfg)


# Halved weights


@pytest.mark.parametrize("form", ["torch", "safetensors"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_clip_converted_tensor_by_tensor(form, dtype, tmp_path):
    """Counters become floating point as well, even infinite, and still count for nothing."""
    model = tiny_clip()
    counters = {"input_resolution": 64, "context_length": 77, "vocab_size": 49408}
    whole = {**model.state_dict(), **{name: torch.tensor(value) for name, value in counters.items()}}
    whole["visual.bn1.num_batches_tracked"] = torch.tensor(10**6)
    converted = {name: value.to(dtype) for name, value in whole.items()}
    if form == "torch":
        torch.save(converted, tmp_path / "clip")
    else:
        safetensors.torch.save_file(converted, tmp_path / "clip")
    got = load_clip_state_dict(str(tmp_path / "clip"))
    expected = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], value.to(dtype).float()) for name, value in expected.items())
