"""Protocols from texts, configs and other code: their parts, sizes, costs and ground truth, and docs/PROTOCOLS.md."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from PIL import Image

from data_factory import data_config, make_dataset, registered
from error_matching import expect_error
from famix.engine import Trainer
from famix.evaluation import StreamingSemSegEvaluator
from famix.evaluation.protocols import Protocol, SlidingWindow, parse_protocol, parts, protocol_of, register_part
from famix.evaluation.protocols import inference as inference_module
from famix.evaluation.protocols.parts import registered_parts
from famix.evaluation.protocols.transforms import ReleasedResizeCrop, ResizeCrop, resize_image
from famix.utils.errors import ConfigError
from model_factory import make_batch
from run_factory import load_tool
from toy_segmentors import PerPixel, show

NAMES = [part for part in registered_parts() if "<" not in part]


def both(transform):
    return {"image": transform, "truth": transform}


CROP = ResizeCrop(height=1536, crop=(1536, 1536))
RELEASED_CROP = ReleasedResizeCrop(height=1536, crop=(1536, 1536))
HALVED = ResizeCrop(0.5, floor=True)


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("native", {}),
        ("short720", both(ResizeCrop(short=720))),
        ("robustnet1536", both(CROP)),
        ("robustnet1536+half", {**both(CROP), "scales": (0.5,)}),
        ("robustnet1536+roadpadding", {**both(CROP), "pad_label": 0}),
        ("robustnet1536released", {**both(RELEASED_CROP), "pad_label": 0}),
        ("crop1914x1046", both(ResizeCrop(crop=(1046, 1914)))),
        ("fit960x540", {"image": ResizeCrop(long=960, short=540)}),
        ("halftruth", {"truth": HALVED}),
        ("famix0.5", {"scales": (0.5,), "released": True}),
        ("famix1+0.5", {"scales": (1.0, 0.5), "released": True, "average": "logits"}),
        ("famix0.75", {"scales": (0.75,), "released": True}),
        ("famix1+0.25", {"scales": (1.0, 0.25), "released": True, "average": "logits"}),
        ("famix0.5+flip", {"scales": (0.5,), "released": True, "flip": True}),
        ("half", {"scales": (0.5,)}),
        ("scale2", {"scales": (2.0,)}),
        ("ensemble", {"scales": (1.0, 0.5)}),
        ("multiscale", {"scales": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)}),
        ("slide1024", {"window": SlidingWindow(1024, 683)}),
        ("slide768/512", {"window": SlidingWindow(768, 512)}),
        ("slide512/256", {"window": SlidingWindow(512, 256)}),
        ("flip+logits", {"flip": True, "average": "logits"}),
        (
            "fit1024x512+halftruth+slide512",
            {"image": ResizeCrop(long=1024, short=512), "truth": HALVED, "window": SlidingWindow(512, 341)},
        ),
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
        ("slide512/341", "slide512"),
        ("slide0512", "slide512"),
        ("slide900", "slide900/600"),
        ("fit512x1024", "fit1024x512"),
        ("fit540x960", "fit960x540"),
        ("short01024", "short1024"),
        ("famix1 + 0.50", "famix1+0.5"),
        ("flip+famix1+0.5+short1024", "short1024+famix1+0.5+flip"),
        ("famix1.0", "famix1"),
    ],
)
def test_texts_of_the_same_meaning_are_the_same_protocol(text, name):
    protocol = parse_protocol(text)
    assert protocol.name == name
    assert parse_protocol(protocol.name) == protocol and hash(parse_protocol(protocol.name)) == hash(protocol)


def test_only_the_unchanged_image_is_native():
    for name in ("native", "scale1", "famix1"):
        assert parse_protocol(name).is_native, name
    others = [name for name in NAMES if name not in ("native", "logits", "roadpadding")]
    assert len(others) == 14
    for name in (*others, "crop8x8", "scale0.7", "ensemble+logits", "robustnet1536+roadpadding"):
        assert not parse_protocol(name).is_native, name


@pytest.mark.parametrize(
    ("text", "value", "remedy"),
    [
        ("short1024+fit1024x512", "short1024", "fit1024x512"),
        ("halftruth+short1024", "halftruth", "short1024"),
        ("half+famix0.5", "half", "famix0.5"),
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
        ("famix0", "famix0", "above 0"),
        ("slide512/0", "slide512/0", "above 0"),
        ("slide512/513", "513", "slide512/512"),
    ],
)
def test_texts_that_cannot_work(text, value, remedy):
    with expect_error(ConfigError, key=f"protocol '{text}'", value=value, remedy=remedy):
        parse_protocol(text)


@pytest.mark.parametrize(
    ("text", "size", "scored", "forwards"),
    [
        ("multiscale+flip", (1024, 2048), (1024, 2048), 12),
        ("slide1024", (1080, 1920), (1080, 1920), 6),
        ("half+slide512", (1024, 2048), (1024, 2048), 3),
        ("ensemble+slide512", (1024, 2048), (1024, 2048), 18 + 3),
        ("fit1024x512+slide512", (1024, 2048), (1024, 2048), 3),
        ("fit1024x512+slide512", (3264, 2448), (3264, 2448), 2),
        ("fit1024x512+halftruth+slide512", (2448, 3264), (1224, 1632), 2),
        ("short1024", (720, 1280), (1024, 1820), 1),
        ("robustnet1536+half", (2448, 3264), (1536, 1536), 1),
        ("crop1914x1046", (1052, 1914), (1046, 1914), 1),
        ("halftruth", (2449, 3265), (1224, 1632), 1),
        ("robustnet1536released+famix1+0.5", (3265, 2449), (1536, 1536), 2),
        ("famix0.5+slide512", (1025, 1025), (1025, 1025), 1),  # rounded down: 512, which one window covers
        ("slide512", (3, 2), (3, 2), 1),
    ],
)
def test_size_and_cost(text, size, scored, forwards):
    protocol = parse_protocol(text)
    assert protocol.scored_size(size) == scored
    assert protocol.prepare_labels(np.zeros(size, np.uint8)).shape == scored
    assert protocol.forwards(size) == forwards


def test_labels_are_unchanged_unless_the_protocol_transforms_them():
    labels = np.random.default_rng(0).integers(0, 19, (7, 5))
    for text in ("native", "half", "fit1024x512+slide512", "multiscale+flip"):
        assert parse_protocol(text).prepare_labels(labels) is labels


def test_labels_as_robustnet_scores_mapillary():
    """3264 x 2448 becomes 2048 x 1536; the crop leaves out 256 columns on either side."""
    columns = np.arange(3264, dtype=np.int32)[None].repeat(2448, axis=0)
    got = parse_protocol("robustnet1536").prepare_labels(columns)
    nearest = ((np.arange(256, 256 + 1536) + 0.5) * 3264 / 2048).astype(int)
    assert (got == nearest).all()


@pytest.fixture
def cfg(tmp_path):
    with registered(make_dataset(tmp_path, count=1)):
        yield data_config()


def test_a_data_set_may_have_its_own(cfg):
    assert protocol_of(cfg, "tiny_val") == Protocol()
    cfg.TEST.PROTOCOL = "half"
    cfg.TEST.PROTOCOL_OF = ["mapillary_val=robustnet1536", " tiny_train = fit64x32 + slide512 "]
    assert protocol_of(cfg, "tiny_val") == parse_protocol("half")
    assert protocol_of(cfg, "tiny_train") == parse_protocol("fit64x32+slide512")
    assert protocol_of(cfg, "mapillary_val") == parse_protocol("robustnet1536")


@pytest.mark.parametrize(
    ("entries", "value", "remedy"),
    [
        (["tiny_va=half"], "tiny_va", "tiny_val"),
        (["zzz=half"], "zzz", "DATASETS.TEST"),
        (["tiny_val"], "tiny_val", "mapillary_val=short1024"),
        (["tiny_val="], "tiny_val=", "mapillary_val=short1024"),
        (["=half"], "=half", "mapillary_val=short1024"),
        (["tiny_val=half", "tiny_val=flip"], "tiny_val", "Keep"),
        (["tiny_val=halv"], "halv", "half"),
    ],
)
def test_overrides_that_cannot_work(cfg, entries, value, remedy):
    cfg.TEST.PROTOCOL_OF = entries
    with expect_error(ConfigError, key="TEST.PROTOCOL_OF", value=value, remedy=remedy):
        protocol_of(cfg, "cityscapes_val")  # also for other datasets


def test_a_general_protocol_that_cannot_work(cfg):
    cfg.TEST.PROTOCOL = "fit"
    cfg.TEST.PROTOCOL_OF = ["tiny_val=half"]
    with expect_error(ConfigError, key="TEST.PROTOCOL", value="fit", remedy="fit<L>x<S>"):
        protocol_of(cfg, "tiny_val")


def test_padding_has_the_configs_ignore_label_or_the_released_programs(cfg):
    cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = 11
    cfg.TEST.PROTOCOL = "crop8x8"
    cfg.TEST.PROTOCOL_OF = ["tiny_train=half"]
    labels, own = np.ones((8, 4), int), protocol_of(cfg, "tiny_val")
    assert own.prepare_labels(labels).tolist() == [[11] * 2 + [1] * 4 + [11] * 2] * 8
    cfg.TEST.RELEASED_PADDING = True
    released = protocol_of(cfg, "tiny_val")
    assert released == parse_protocol("crop8x8+roadpadding")
    assert released.prepare_labels(labels).tolist() == [[0] * 2 + [1] * 4 + [0] * 2] * 8
    assert protocol_of(cfg, "tiny_train") == parse_protocol("half")  # pads nothing, so nothing changes


@pytest.mark.parametrize("text", ["crop8x8+roadpadding", "robustnet1536released+half"])
def test_a_protocol_with_its_own_padding_keeps_it(cfg, text):
    cfg.TEST.PROTOCOL = text
    for cfg.TEST.RELEASED_PADDING in (False, True):
        assert protocol_of(cfg, "tiny_val") == parse_protocol(text)


@pytest.fixture
def example():
    """The example of docs/EXTENDING.md."""
    yield load_tool("protocol", "examples/extending")
    del parts._PARTS["multiple<N>"]


def test_a_part_from_outside_scores_a_dataset(example, cfg, tmp_path):
    """The image of 24 x 32 pixels becomes 20 x 30; labels keep their size."""

    class Model(PerPixel):
        num_classes = 19

    cfg.TEST.PROTOCOL, cfg.OUTPUT_DIR = "flip+multiple10", str(tmp_path / "output")
    model = Model().eval()
    scores = Trainer.score(cfg, model, "tiny_val")["sem_seg"]
    assert model.seen == [[(20, 30)], [(20, 30)]]
    assert protocol_of(cfg, "tiny_val").name == "multiple10+flip"

    (record,) = DatasetCatalog.get("tiny_val")
    image = torch.from_numpy(np.array(Image.open(record["file_name"]))).permute(2, 0, 1)
    view = resize_image(image, (20, 30))
    evaluator = StreamingSemSegEvaluator("tiny_val")
    average = (show(model, view, (24, 32)).softmax(0) + show(model, view.flip(-1), (24, 32)).flip(-1).softmax(0)) / 2
    evaluator.process([record], [{"sem_seg": average}])
    assert scores["mIoU"] == pytest.approx(evaluator.evaluate()["sem_seg"]["mIoU"])


@pytest.mark.parametrize(
    ("form", "fields"), [("half", {"flip": True}), ("2x", {"flip": True}), ("a+b", {"flip": True}), ("a", {"zoom": 2})]
)
def test_parts_that_cannot_be_registered(form, fields):
    with pytest.raises(ValueError, match=re.escape(form)):
        register_part(form, fields)
    assert parts._PARTS.get(form) != fields


TEXT = (Path(__file__).parents[2] / "docs/PROTOCOLS.md").read_text()
CITYSCAPES = (1024, 2048)


def rows(heading: str) -> list[list[str]]:
    """Cells of the table below a heading."""
    section = TEXT.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_has_every_part_in_order():
    assert [cells[0].strip("`") for cells in rows("Parts")] == NAMES
    assert all(f"`{part}`" in TEXT for part in registered_parts())


@pytest.mark.parametrize("cells", rows("Parts"), ids=lambda cells: cells[0])
def test_costs_and_whether_ground_truth_is_left_alone(cells):
    part, images, scored = cells[0].strip("`"), cells[3], cells[4]
    if part in ("logits", "roadpadding"):
        assert not images
        return
    protocol = parse_protocol(part)
    assert protocol.forwards(CITYSCAPES) == int(images)
    assert (protocol.truth == parse_protocol("native").truth) == (scored in ("", "unchanged"))


def test_published_protocols_are_normalised_names():
    names = [name for cells in rows("Protocols of published results") for name in re.findall(r"`(\S+?)`", cells[2])]
    assert len(names) > 12
    for name in names:
        if name != "roadpadding":
            assert parse_protocol(name).name == name


def test_the_python_example(monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    got: list[Any] = []
    names = {"model": PerPixel().eval(), "loader": [make_batch((600, 520), labels=False)], "evaluator": None}
    real = inference_module.ProtocolInference.forward

    def forward(self: inference_module.ProtocolInference, inputs: list[dict[str, Any]]) -> Any:
        got.extend(real(self, inputs))
        return got

    monkeypatch.setattr(inference_module.ProtocolInference, "forward", forward)
    exec(example, names)
    assert names["protocol"].forwards(CITYSCAPES) == 36 and "# 36" in example
    assert got[0]["sem_seg"].shape == (4, 600, 520)
    torch.testing.assert_close(got[0]["sem_seg"].sum(0), torch.ones(600, 520))
