"""Protocols from texts and configs: their parts, sizes, costs and ground truth, and docs/PROTOCOLS.md."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from PIL import Image

from data_factory import data_config, make_dataset, registered
from error_matching import expect_error
from famix.engine import Trainer
from famix.evaluation import StreamingSemSegEvaluator
from famix.evaluation.protocols import Protocol, ProtocolInference, parse_protocol, parts, protocol_of
from famix.evaluation.protocols.transforms import ReleasedResizeCrop, ResizeCrop, SlidingWindow, resize_image
from famix.utils.errors import ConfigError
from model_factory import make_batch
from run_factory import load_tool
from toy_segmentors import PerPixel, show

NAMES = [part for part in parts.registered_parts() if "<" not in part]
CROP = ResizeCrop(height=1536, crop=(1536, 1536))
RELEASED_CROP = ReleasedResizeCrop(height=1536, crop=(1536, 1536))


def both(transform):
    return {"image": transform, "truth": transform}


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("native", {}),
        ("short720", both(ResizeCrop(short=720))),
        ("robustnet1536+half", {**both(CROP), "scales": (0.5,)}),
        ("robustnet1536+roadpadding", {**both(CROP), "pad_label": 0}),
        ("robustnet1536released", {**both(RELEASED_CROP), "pad_label": 0}),
        ("crop1914x1046", both(ResizeCrop(crop=(1046, 1914)))),
        ("fit960x540", {"image": ResizeCrop(long=960, short=540)}),
        ("famix0.5", {"scales": (0.5,), "released": True}),
        ("famix1+0.5", {"scales": (1.0, 0.5), "released": True, "average": "logits"}),
        ("famix0.75+flip", {"scales": (0.75,), "released": True, "flip": True}),
        ("famix1+0.25", {"scales": (1.0, 0.25), "released": True, "average": "logits"}),
        ("scale2", {"scales": (2.0,)}),
        ("ensemble", {"scales": (1.0, 0.5)}),
        ("multiscale", {"scales": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)}),
        ("slide1024", {"window": SlidingWindow(1024, 683)}),
        ("slide768/512", {"window": SlidingWindow(768, 512)}),
        ("flip+logits", {"flip": True, "average": "logits"}),
        ("halftruth+slide512", {"truth": ResizeCrop(0.5, floor=True), "window": SlidingWindow(512, 341)}),
    ],
)
def test_fields(text, fields):
    assert parse_protocol(text) == Protocol(name=text, **fields)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("flip+slide512+fit1024x512", "fit1024x512+slide512+flip"),
        ("logits + flip+ multiscale +short1024", "short1024+multiscale+flip+logits"),
        ("roadpadding+half+robustnet1536", "robustnet1536+half+roadpadding"),
        ("native+half", "half"),
        ("scale0.50+flip", "half+flip"),
        ("scale1.0+native", "native"),
        ("scale1.250", "scale1.25"),
        ("slide0512/341", "slide512"),
        ("slide900", "slide900/600"),
        ("fit512x1024", "fit1024x512"),
        ("flip+famix1 + 0.50+short01024", "short1024+famix1+0.5+flip"),
        ("famix1.0", "famix1"),
    ],
)
def test_equivalent_texts(text, name):
    protocol = parse_protocol(text)
    assert protocol.name == name
    assert parse_protocol(protocol.name) == protocol and hash(parse_protocol(protocol.name)) == hash(protocol)


def test_is_native():
    assert all(parse_protocol(name).is_native for name in ("native", "scale1", "famix1"))
    others = [name for name in NAMES if name not in ("native", "logits", "roadpadding")]
    for name in (*others, "crop8x8", "scale0.7", "ensemble+logits", "robustnet1536+roadpadding"):
        assert not parse_protocol(name).is_native, name


@pytest.mark.parametrize(
    ("text", "value", "remedy"),
    [
        ("halftruth+short1024", "halftruth", "short1024"),
        ("famix1+0.5+logits", "famix1+0.5", "logits"),
        ("robustnet1536released+roadpadding", "robustnet1536released", "roadpadding"),
        ("slide512+flip+slide1024", "slide512", "slide1024"),
        ("flip+flip", "flip", "Keep"),
        ("famix2+0.5", "famix2+0.5", "famix1+0.5"),
        ("half+logits", "half+logits", "logits"),
        ("short1024+roadpadding", "short1024+roadpadding", "roadpadding"),
        ("multi-scale", "multi-scale", "multiscale"),
        ("half++flip", "''", "short1024"),
        ("", "''", "native"),
        ("Native", "Native", "native"),
        ("fit1024", "fit1024", "fit<L>x<S>"),
        ("scale-1", "scale-1", "scale<F>"),
        ("short\u0663", "short\u0663", "short<N>"),
        ("fit0x512", "fit0x512", "above 0"),
        ("scale0.0", "scale0.0", "above 0"),
        ("slide512/0", "slide512/0", "above 0"),
        ("slide512/513", "513", "slide512/512"),
    ],
)
def test_invalid_texts(text, value, remedy):
    with expect_error(ConfigError, key=f"protocol '{text}'", value=value, remedy=remedy):
        parse_protocol(text)


@pytest.mark.parametrize(
    ("text", "size", "scored", "forwards"),
    [
        ("slide1024", (1080, 1920), (1080, 1920), 6),
        ("ensemble+slide512", (1024, 2048), (1024, 2048), 18 + 3),
        ("fit1024x512+slide512", (3264, 2448), (3264, 2448), 2),
        ("fit1024x512+halftruth+slide512", (2449, 3265), (1224, 1632), 2),
        ("short1024", (720, 1280), (1024, 1820), 1),
        ("robustnet1536+half", (2448, 3264), (1536, 1536), 1),
        ("crop1914x1046", (1052, 1914), (1046, 1914), 1),
        ("robustnet1536released+famix1+0.5", (3265, 2449), (1536, 1536), 2),
        ("famix0.5+slide512", (1025, 1025), (1025, 1025), 1),  # rounded down: 512, which one window covers
        ("slide512", (3, 2), (3, 2), 1),
    ],
)
def test_size_and_cost(text, size, scored, forwards):
    protocol, labels = parse_protocol(text), np.zeros(size, np.uint8)
    assert protocol.scored_size(size) == protocol.prepare_labels(labels).shape == scored
    assert protocol.forwards(size) == forwards
    assert (protocol.prepare_labels(labels) is labels) == (scored == size)


def test_labels_of_robustnet():
    """3264 x 2448 becomes 2048 x 1536; the crop excludes 256 columns on either side."""
    columns = np.arange(3264, dtype=np.int32)[None].repeat(2448, axis=0)
    nearest = ((np.arange(256, 256 + 1536) + 0.5) * 3264 / 2048).astype(int)
    assert (parse_protocol("robustnet1536").prepare_labels(columns) == nearest).all()


@pytest.fixture
def cfg(tmp_path):
    with registered(make_dataset(tmp_path, count=1)):
        yield data_config()


def test_protocol_of_a_dataset(cfg):
    assert protocol_of(cfg, "tiny_val") == Protocol()
    cfg.TEST.PROTOCOL = "half"
    cfg.TEST.PROTOCOL_OF = ["mapillary_val=robustnet1536", " tiny_train = fit64x32 + slide512 "]
    for name, text in (("tiny_val", "half"), ("tiny_train", "fit64x32+slide512"), ("mapillary_val", "robustnet1536")):
        assert protocol_of(cfg, name) == parse_protocol(text)


@pytest.mark.parametrize(
    ("general", "entries", "key", "value", "remedy"),
    [
        ("native", ["tiny_va=half"], "TEST.PROTOCOL_OF", "tiny_va", "tiny_val"),
        ("native", ["zzz=half"], "TEST.PROTOCOL_OF", "zzz", "DATASETS.TEST"),
        ("native", ["tiny_val"], "TEST.PROTOCOL_OF", "tiny_val", "mapillary_val=short1024"),
        ("native", ["tiny_val="], "TEST.PROTOCOL_OF", "tiny_val=", "mapillary_val=short1024"),
        ("native", ["=half"], "TEST.PROTOCOL_OF", "=half", "mapillary_val=short1024"),
        ("native", ["tiny_val=half", "tiny_val=flip"], "TEST.PROTOCOL_OF", "tiny_val", "Keep"),
        ("native", ["tiny_val=halv"], "TEST.PROTOCOL_OF", "halv", "half"),
        ("fit", ["cityscapes_val=half"], "TEST.PROTOCOL", "fit", "fit<L>x<S>"),
    ],
)
def test_invalid_settings(cfg, general, entries, key, value, remedy):
    cfg.TEST.PROTOCOL, cfg.TEST.PROTOCOL_OF = general, entries
    with expect_error(ConfigError, key=key, value=value, remedy=remedy):
        protocol_of(cfg, "cityscapes_val")  # invalid entries of other datasets count


def test_padding(cfg):
    cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE, cfg.TEST.PROTOCOL = 11, "crop8x8"
    labels = np.ones((8, 4), int)
    for cfg.TEST.RELEASED_PADDING, pad, name in ((False, 11, "crop8x8"), (True, 0, "crop8x8+roadpadding")):
        protocol = protocol_of(cfg, "tiny_val")
        assert protocol.prepare_labels(labels).tolist() == [[pad] * 2 + [1] * 4 + [pad] * 2] * 8
        assert protocol.name == name
        cfg.TEST.PROTOCOL_OF = ["tiny_train=half"]
        assert protocol_of(cfg, "tiny_train") == parse_protocol("half")  # pads nothing
        for own in ("crop8x8+roadpadding", "robustnet1536released+half"):
            cfg.TEST.PROTOCOL_OF = [f"tiny_train={own}"]
            assert protocol_of(cfg, "tiny_train") == parse_protocol(own)


def test_a_part_from_outside_scores_a_dataset(cfg, tmp_path, monkeypatch):
    """The image of 24 x 32 pixels becomes 20 x 30; labels keep their size."""

    class Model(PerPixel):
        num_classes = 19

    monkeypatch.setattr(parts, "_PARTS", dict(parts._PARTS))
    load_tool("protocol", "examples/extending")
    cfg.TEST.PROTOCOL, cfg.OUTPUT_DIR = "flip+multiple10", str(tmp_path / "output")
    model = Model().eval()
    scores = Trainer.score(cfg, model, "tiny_val")["sem_seg"]
    assert model.seen == [[(20, 30)], [(20, 30)]]
    assert protocol_of(cfg, "tiny_val").name == "multiple10+flip"

    (record,) = DatasetCatalog.get("tiny_val")
    view = resize_image(torch.from_numpy(np.array(Image.open(record["file_name"]))).permute(2, 0, 1), (20, 30))
    evaluator = StreamingSemSegEvaluator("tiny_val")
    average = (show(model, view, (24, 32)).softmax(0) + show(model, view.flip(-1), (24, 32)).flip(-1).softmax(0)) / 2
    evaluator.process([record], [{"sem_seg": average}])
    assert scores["mIoU"] == pytest.approx(evaluator.evaluate()["sem_seg"]["mIoU"])


@pytest.mark.parametrize(
    ("form", "fields"), [("half", {"flip": True}), ("2x", {"flip": True}), ("a+b", {"flip": True}), ("a", {"zoom": 2})]
)
def test_register_part_rejects(form, fields):
    with pytest.raises(ValueError, match=re.escape(form)):
        parts.register_part(form, fields)
    assert parts._PARTS.get(form) != fields


TEXT = (Path(__file__).parents[2] / "docs/PROTOCOLS.md").read_text()
CITYSCAPES = (1024, 2048)


def rows(heading):
    """Cells of the table below a heading."""
    section = TEXT.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_documented_parts():
    assert [cells[0].strip("`") for cells in rows("Parts")] == NAMES
    assert all(f"`{part}`" in TEXT for part in parts.registered_parts())
    for part, _, _, images, scored in rows("Parts"):
        if part in ("`logits`", "`roadpadding`"):
            assert not images
            continue
        protocol = parse_protocol(part.strip("`"))
        assert protocol.forwards(CITYSCAPES) == int(images), part
        assert (protocol.truth == Protocol.truth) == (scored in ("", "unchanged")), part
    published = [name for cells in rows("Protocols of published results") for name in re.findall(r"`(\S+?)`", cells[2])]
    assert len(published) > 12 and all(parse_protocol(name).name == name for name in published)


def test_the_python_example(monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    got, real = [], ProtocolInference.forward
    names = {"model": PerPixel().eval(), "loader": [make_batch((600, 520), labels=False)], "evaluator": None}
    monkeypatch.setattr(ProtocolInference, "forward", lambda *arguments: got.extend(real(*arguments)) or got)
    exec(example, names)
    assert names["protocol"].forwards(CITYSCAPES) == 36 and "# 36" in example
    assert got[0]["sem_seg"].shape == (4, 600, 520)
    torch.testing.assert_close(got[0]["sem_seg"].sum(0), torch.ones(600, 520))
