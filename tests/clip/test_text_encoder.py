import pytest
import torch

from clip_factory import tiny_clip
from error_matching import expect_error
from famix.clip import IMAGENET_TEMPLATES, PromptEncoder
from famix.clip.openai import tokenize
from famix.utils.errors import ConfigError, WeightsError

TEXTS = ["Urban Grit style road", "photo", "Haunting Shadows style traffic light"]


@pytest.fixture(scope="module")
def model():
    return tiny_clip()


@pytest.fixture
def encoder(model):
    return PromptEncoder(model.state_dict())


def reference(model, text, templates):
    """The recipe with the clip package's own model: full token rows, mean first, length 1 last."""
    with torch.no_grad():
        mean = model.encode_text(tokenize([template.format(text) for template in templates])).mean(dim=0)
    return mean / mean.norm()


def test_parity_with_clip_over_the_80_templates(model, encoder):
    got = encoder(TEXTS)
    expected = torch.stack([reference(model, text, IMAGENET_TEMPLATES) for text in TEXTS])
    assert got.shape == (3, 16) and got.dtype == torch.float32
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(got.norm(dim=1), torch.ones(3))


def test_chunks_do_not_change_the_result(model, encoder):
    chunked = PromptEncoder(model.state_dict(), chunk_size=7)
    templates = IMAGENET_TEMPLATES[:9]
    torch.testing.assert_close(chunked(TEXTS, templates), encoder(TEXTS, templates))


def test_each_distinct_text_is_encoded_once(encoder, monkeypatch):
    first = encoder(["road", "sky", "road"], ["a {}."])
    assert encoder.num_encoded == 2
    assert torch.equal(first[0], first[2])
    monkeypatch.setattr(encoder, "_encode", lambda sentences: pytest.fail(f"{sentences} encoded again"))
    assert torch.equal(encoder(["sky"], ["a {}."]), first[1:2])


def test_other_templates_are_another_entry(encoder):
    assert torch.equal(encoder(["photo"], []), encoder(["photo"])) and encoder([]).shape == (0, 16)
    assert encoder.num_encoded == 1
    assert not torch.allclose(encoder(["road"], ["a {}."]), encoder(["road"], ["no {}."]))
    assert encoder.num_encoded == 3


def test_result_can_be_part_of_a_loss(encoder):
    image = torch.ones(1, 16, requires_grad=True)
    torch.cosine_similarity(image, encoder(["road"])).sum().backward()
    assert image.grad.abs().sum() > 0


def test_autocast_does_not_reach_the_tower(model, encoder):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = encoder(["road"])
    assert torch.equal(got, PromptEncoder(model.state_dict())(["road"]))


def test_too_long_a_text_is_named(encoder):
    with expect_error(ConfigError, "77 tokens", "a road road", "STYLE_MINING.TEMPLATES"):
        encoder(["road " * 80], ["a {}"])


def test_half_precision_weights_are_made_float32(model):
    half = {name: tensor.half() for name, tensor in model.state_dict().items()}
    assert {parameter.dtype for parameter in PromptEncoder(half).tower.parameters()} == {torch.float32}


def test_building_a_tower_draws_no_random_numbers(model):
    state = torch.get_rng_state()
    PromptEncoder(model.state_dict())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["token_embedding.weight", "transformer.resblocks.1.ln_1.bias", "text_projection"])
def test_incomplete_tower_is_refused(model, name):
    state_dict = model.state_dict()
    del state_dict[name]
    with expect_error(WeightsError, "CLIP", name, "complete CLIP weights"):
        PromptEncoder(state_dict)


def test_tower_of_another_size_is_refused(model):
    state_dict = model.state_dict()
    with expect_error(WeightsError, "CLIP", remedy="complete CLIP weights"):
        PromptEncoder({name: tensor[..., :48] for name, tensor in state_dict.items() if tensor.ndim})
    with expect_error(WeightsError, "49408 tokens", 1000, "vocabulary"):
        PromptEncoder({**state_dict, "token_embedding.weight": state_dict["token_embedding.weight"][:1000]})


@pytest.mark.parametrize("texts", ["road", None, 3, ["road", 3], [None], [["road"]]], ids=str)
def test_texts_of_another_type_are_refused(encoder, texts):
    """A text alone would be read letter by letter."""
    with expect_error(ConfigError, "texts", texts, "['road']"):
        encoder(texts, ["a {}"])
