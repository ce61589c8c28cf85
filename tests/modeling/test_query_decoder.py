"""The decoder of the query head: initialization, sizes of maps, queries and classifiers."""

import math
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from error_matching import expect_error
from famix.clip import PromptEncoder, load_clip_state_dict
from famix.data.classes import ClassTable
from famix.engine import load_config
from famix.modeling.query.decoder import NUM_HEADS, MaskDecoder, load_library
from famix.modeling.query.maskformer import features_by_stride
from famix.modeling.query.queries import TextClassifier, TextQueries, embed_classes
from famix.utils.errors import ConfigError
from model_factory import tiny_backbone
from query_factory import HIDDEN_DIM, NUM_QUERIES, Pyramid, tiny_decoder


def deformable_attention(module: nn.Module) -> list[nn.Module]:
    return [part for part in module.modules() if hasattr(part, "sampling_offsets")]


def check_initialization(pixel_decoder: nn.Module, transformer: nn.Module) -> None:
    """Compare with the authors' program: level embeddings ~ N(0, 1), and offsets on a circle around each cell."""
    for levels in (pixel_decoder.level_embed, transformer.level_embed.weight, transformer.queries_features.weight):
        assert levels.isfinite().all() and 0.7 < levels.std() < 1.3
    assert deformable_attention(pixel_decoder)
    for attention in deformable_attention(pixel_decoder):
        assert not attention.sampling_offsets.weight.any() and not attention.attention_weights.weight.any()
        offsets = attention.sampling_offsets.bias.view(NUM_HEADS, attention.n_levels, attention.n_points, 2)
        for head in range(NUM_HEADS):
            angle = 2 * math.pi * head / NUM_HEADS
            direction = torch.tensor([math.cos(angle), math.sin(angle)])
            direction /= direction.abs().max()
            for point in range(attention.n_points):
                expected = (direction * (point + 1)).expand(attention.n_levels, 2)
                torch.testing.assert_close(offsets[head, :, point].detach(), expected, atol=1e-5, rtol=0)
    for module in pixel_decoder.modules():
        if isinstance(module, nn.Conv2d):  # like Xavier's
            fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(module.weight)
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / (fan_in + fan_out)), rel=0.2)


def test_parts_are_initialized() -> None:
    decoder = tiny_decoder(Pyramid((4, 8, 16, 32), channels=32), encoder_layers=2)
    check_initialization(decoder.pixel_decoder, decoder.transformer)


def test_the_librarys_constructors_are_not_enough() -> None:
    library = load_library()
    sizes = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_layers": 2, "decoder_layers": 3}
    config = library.Mask2FormerConfig(**sizes)
    parts = library.Mask2FormerPixelDecoder(config, [32] * 4), library.Mask2FormerTransformerModule(32, config)
    with pytest.raises(AssertionError):
        check_initialization(*parts)


def test_global_random_state_is_untouched() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = MaskDecoder([4] * 4, 5, hidden_dim=32, encoder_layers=1, decoder_layers=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    second = MaskDecoder([4] * 4, 5, hidden_dim=32, encoder_layers=1, decoder_layers=1)
    assert not torch.equal(first.pixel_decoder.level_embed, second.pixel_decoder.level_embed)


@pytest.mark.parametrize("size", [(64, 64), (50, 91), (33, 32)])
def test_sizes_of_predictions(size: tuple[int, int]) -> None:
    backbone = tiny_backbone(output_stride=32).eval()
    decoder = tiny_decoder(backbone, decoder_layers=4).eval()
    features = backbone(torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0)))
    queries, masks = decoder([features[name] for name in features_by_stride(backbone.output_shape())])
    assert len(queries) == len(masks) == 5
    assert {tuple(x.shape) for x in queries} == {(2, NUM_QUERIES, HIDDEN_DIM)}
    assert {tuple(x.shape) for x in masks} == {(2, NUM_QUERIES, *features["res2"].shape[-2:])}
    assert all(x.isfinite().all() for x in (*queries, *masks))


def test_every_map_and_parameter_gets_a_gradient() -> None:
    decoder = tiny_decoder(Pyramid((4, 8, 16, 32)), decoder_layers=3)
    maps = [torch.randn(1, 4, 32 // 2**level, 32 // 2**level, requires_grad=True) for level in range(4)]
    queries, masks = decoder(maps)
    sum(x.square().sum() for x in (*queries, *masks)).backward()
    assert all(tensor.grad is not None and tensor.grad.any() for tensor in maps)
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in decoder.parameters())


def test_features_are_found_by_their_strides() -> None:
    shapes = Pyramid((64, 32, 4, 8, 16)).output_shape()
    assert features_by_stride(shapes) == ["p4", "p8", "p16", "p32"]
    with expect_error(ConfigError, "MODEL.BACKBONE.NAME", "16", "MODEL.CLIP.OUTPUT_STRIDE"):
        features_by_stride(tiny_backbone(output_stride=16).output_shape())


@pytest.mark.parametrize(
    ("options", "key"),
    [({"num_queries": 0}, "NUM_QUERIES"), ({"hidden_dim": 48}, "HIDDEN_DIM"), ({"encoder_layers": 0}, "ENCODER_LAYERS"),
     ({"decoder_layers": 0}, "DECODER_LAYERS")],
)  # fmt: skip
def test_invalid_size(options: dict[str, int], key: str) -> None:
    with expect_error(ConfigError, f"MODEL.MASK_FORMER.{key}", *options.values()):
        tiny_decoder(Pyramid((4, 8, 16, 32)), **options)


def test_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers.models.mask2former", None)
    with expect_error(ConfigError, "MODEL.META_ARCHITECTURE", remedy="famix[queries]"):
        load_library()


# Text


def test_text_queries_replace_the_learned_ones() -> None:
    text = F.normalize(torch.randn(5, 16), dim=1)
    queries = TextQueries(text, HIDDEN_DIM)
    decoder = tiny_decoder(Pyramid((4, 8, 16, 32)), num_queries=5, queries=queries)
    maps = [torch.randn(1, 4, 16 // 2**level, 16 // 2**level) for level in range(4)]
    first = decoder(maps).queries[0]
    expected = decoder.transformer.decoder.layernorm(queries.projection(text))
    torch.testing.assert_close(first[0], expected)
    assert "transformer.queries_features.text_embeddings" in decoder.state_dict()
    assert "transformer.queries_features.weight" not in decoder.state_dict()


def test_text_classifier_scales_cosines() -> None:
    text = F.normalize(torch.randn(5, 16), dim=1)
    classifier = TextClassifier(text, HIDDEN_DIM)
    queries = torch.randn(2, 3, HIDDEN_DIM)
    logits = classifier(queries)
    direction = classifier.projection(queries[1, 2])
    for place, row in enumerate([*text, classifier.no_object[0]]):
        expected = F.cosine_similarity(direction, row, dim=0) / 0.07
        assert logits[1, 2, place].item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-4)
    with torch.no_grad():
        classifier.log_scale.fill_(10.0)
    assert classifier(queries).abs().max() <= 100.001


def test_text_embeddings_come_from_the_clip(clip_file: str) -> None:
    cfg, table = load_config(""), ClassTable(("road", "sky"), ((0, 0, 0), (9, 9, 9)))
    cfg.MODEL.DEVICE, cfg.STYLE_MINING.TEMPLATES, cfg.MODEL.CLIP.WEIGHTS = "cpu", ["a {}"], clip_file
    cfg.MODEL.CLIP.ARCHITECTURE = "RN50"
    cfg.DATASETS.TRAIN, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = (table.register(),), 2
    text = embed_classes(cfg).trained
    expected = PromptEncoder(load_clip_state_dict(clip_file, "RN50"))(["road", "sky"], ["a {}"])
    assert torch.equal(text, expected) and not text.requires_grad
    cfg.MODEL.CLIP.WEIGHTS = ""
    with expect_error(ConfigError, "MODEL.CLIP.WEIGHTS", "", "MODEL.CLIP.WEIGHTS"):
        embed_classes(cfg)


@torch.no_grad()
def test_smallest_image() -> None:
    maps = {side: [torch.ones(1, 4, side // stride, side // stride) for stride in (4, 8, 16, 32)] for side in (32, 64)}
    decoder = tiny_decoder(Pyramid((4, 8, 16, 32)))
    assert decoder(maps[64]).masks[-1].shape == (1, NUM_QUERIES, 16, 16)
    with expect_error(ConfigError, "MODEL.MASK_FORMER.HIDDEN_DIM", HIDDEN_DIM, "64"):
        decoder(maps[32])
    wide = tiny_decoder(Pyramid((4, 8, 16, 32)), hidden_dim=64)
    assert wide(maps[32]).masks[-1].shape == (1, NUM_QUERIES, 8, 8)
