"""Classification of queries by names that were not classes in training."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from clip_factory import save_tiny_clip
from error_matching import expect_error
from famix.clip import PromptEncoder, load_clip_state_dict
from famix.config import load_config
from famix.data.classes import ClassTable
from famix.modeling.query.criterion import MaskCriterion, Segments
from famix.modeling.query.queries import TextClassifier, embed_classes, text_embeddings_of
from famix.utils.errors import ConfigError, WeightsError
from query_factory import HIDDEN_DIM

TEMPLATES = ["a {}", "the {}"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip") / "clip.pt")


@pytest.fixture
def cfg(clip: Path) -> CfgNode:
    """A config for road, sky and car."""
    cfg, table = load_config(""), ClassTable(("road", "sky", "car"), ((0, 0, 0), (9, 9, 9), (8, 8, 8)))
    cfg.MODEL.DEVICE, cfg.STYLE_MINING.TEMPLATES, cfg.MODEL.CLIP.WEIGHTS = "cpu", TEMPLATES, str(clip)
    cfg.DATASETS.TRAIN, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = (table.register(),), 3
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.MASK_FORMER.CLASSIFIER = "FAMixMaskFormer", "text"
    return cfg


def make_classifier(cfg: CfgNode) -> TextClassifier:
    torch.manual_seed(0)
    text = embed_classes(cfg)
    return TextClassifier(text.trained, HIDDEN_DIM, text.tested)


def test_logits_equal_a_plain_computation(cfg: CfgNode, clip: Path) -> None:
    cfg.DATASETS.UNLABELED, cfg.TEST.CLASSES = ["car"], "bus, coach, tram; road"
    classifier, queries = make_classifier(cfg), torch.randn(2, 4, HIDDEN_DIM)
    encoder = PromptEncoder(load_clip_state_dict(str(clip)))
    names = {name: encoder([name], TEMPLATES)[0] for name in ("bus", "coach", "tram", "road", "sky")}
    bus = (names["bus"] + names["coach"] + names["tram"]) / 3
    for mode, rows in (("eval", [bus, names["road"]]), ("train", [names["road"], names["sky"], None])):
        getattr(classifier, mode)()
        logits = classifier(queries)
        assert logits.shape == (2, 4, len(rows) + 1)
        direction = classifier.projection(queries[1, 3])
        for place, row in enumerate([*rows, classifier.no_object[0]]):
            expected = torch.tensor(-torch.inf) if row is None else F.cosine_similarity(direction, row, dim=0) / 0.07
            torch.testing.assert_close(logits[1, 3, place], expected, rtol=1e-4, atol=1e-4)


def test_the_classes_of_training_give_equal_logits(cfg: CfgNode) -> None:
    queries = torch.randn(1, 4, HIDDEN_DIM)
    plain = make_classifier(cfg).eval()(queries)
    cfg.TEST.CLASSES = "road; sky; car"
    assert torch.equal(make_classifier(cfg).eval()(queries), plain)
    cfg.TEST.CLASSES = "car; road; sky"
    torch.testing.assert_close(make_classifier(cfg).eval()(queries), plain[..., [2, 0, 1, 3]])


def test_unlabeled_classes_do_not_affect_the_loss(cfg: CfgNode) -> None:
    """Their names are no alternatives in the softmax: the loss equals that of a network for the other classes."""
    cfg.DATASETS.UNLABELED = ["sky"]
    classifier = make_classifier(cfg)
    few = TextClassifier(classifier.text_embeddings[[0, 2]], HIDDEN_DIM)
    few.load_state_dict({**classifier.state_dict(), "text_embeddings": few.text_embeddings})
    masks = (torch.rand(2, 8, 8) > 0.5).float()
    queries, logits = torch.randn(1, 4, HIDDEN_DIM), torch.randn(1, 4, 8, 8)
    losses, gradients = [], []
    for head, num_classes, car in ((classifier, 3, 2), (few, 2, 1)):
        segments = Segments(torch.tensor([0, car]), masks, torch.zeros(2).long(), torch.arange(2), torch.tensor([5]))
        loss = sum(MaskCriterion(num_classes, num_points=16)([head(queries)], [logits], segments).values())
        losses.append(loss)
        gradients.append(torch.autograd.grad(loss, list(head.parameters())))
    assert losses[0].isfinite()
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)


def test_checkpoints_contain_the_classes_of_training_only(cfg: CfgNode, tmp_path: Path) -> None:
    trained = make_classifier(cfg).state_dict()
    cfg.TEST.CLASSES = "bus; road"
    classifier = make_classifier(cfg)
    assert classifier.state_dict().keys() == trained.keys()
    classifier.load_state_dict({**trained, "text_embeddings": trained["text_embeddings"].half().float()})
    source, cfg.MODEL.CLIP.WEIGHTS = cfg.MODEL.CLIP.WEIGHTS, ""
    with text_embeddings_of(trained, source):
        assert make_classifier(cfg).tested is not None
    with text_embeddings_of(trained), expect_error(ConfigError, "MODEL.CLIP.WEIGHTS", "", "TEST.CLASSES"):
        make_classifier(cfg)
    other = save_tiny_clip(tmp_path / "other.pt", seed=1)
    with text_embeddings_of(trained, str(other)):
        classifier = make_classifier(cfg)
    with expect_error(WeightsError, "MODEL.CLIP.WEIGHTS", None, "MODEL.CLIP.WEIGHTS"):
        classifier.load_state_dict(trained)
    wide = save_tiny_clip(tmp_path / "wide.pt", embed_dim=24)
    with text_embeddings_of(trained, str(wide)), expect_error(WeightsError, "MODEL.CLIP.WEIGHTS", 24, "training"):
        make_classifier(cfg)


@pytest.mark.parametrize(
    ("classes", "unlabeled", "named"),
    [
        ("all", [], False),
        ("road; sky; car", [], False),
        ("road; sky; car", ["sky"], True),
        ("road; sky; car; bus", [], True),
    ],
)
def test_clip_is_kept_to_name_regions_for_classes_without_labels(
    cfg: CfgNode, classes: str, unlabeled: list[str], named: bool
) -> None:
    cfg.DATASETS.UNLABELED, cfg.TEST.CLASSES = unlabeled, classes
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.CLIP.OUTPUT_STRIDE = "build_clip_backbone", 32
    cfg.MODEL.MASK_FORMER.HIDDEN_DIM = 32
    cfg.MODEL.CLIP.TRAINABLE, cfg.MODEL.STYLE.STRATEGY = [], "none"
    assert (build_model(cfg).regions is not None) == named
    cfg.MODEL.MASK_FORMER.CLIP_REGIONS = False
    assert build_model(cfg).regions is None
