"""ProtocolInference and sliding windows around toy models, against plain loops."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from error_matching import expect_error
from famix.evaluation.protocols.inference import ProtocolInference, slide
from famix.evaluation.protocols.protocol import parse_protocol
from famix.evaluation.protocols.transforms import SlidingWindow, resize_image
from famix.utils.errors import ConfigError, DatasetError
from model_factory import make_batch
from toy_segmentors import Contextual, PerPixel, predict, show, windowed

SIZES = [(24, 40), (41, 23), (1, 1), (3, 50), (17, 17)]
every_size = pytest.mark.parametrize("size", SIZES)


class Recorder(nn.Module):
    """Returns a tensor of its own and keeps what it got."""

    def __init__(self):
        super().__init__()
        self.returned = [{"sem_seg": torch.rand(3, 4, 5), "panoptic_seg": "too"}]

    def forward(self, batched_inputs):
        self.got = batched_inputs
        return self.returned


def test_native_is_the_model_itself():
    model, batch = Recorder(), make_batch((8, 9))
    assert ProtocolInference(model.eval(), parse_protocol("native"))(batch) is model.returned
    assert model.got is batch


class Demanding(PerPixel):
    """Needs 15 pixels a side, as CLIP at output stride 16."""

    class Backbone(nn.Module):
        smallest_side = 15

    def __init__(self):
        super().__init__()
        self.backbone = self.Backbone()


@pytest.mark.parametrize(
    ("protocol", "size"), [("native", (14, 40)), ("native", (40, 1)), ("half", (28, 90)), ("half+flip", (40, 28))]
)
def test_images_smaller_than_a_protocol_can_take_are_named(protocol, size):
    batch = [{**inputs, "file_name": "street.png"} for inputs in make_batch(size, labels=False)]
    with expect_error(DatasetError, key="street.png", value=f"{size[0]} x {size[1]}", remedy="TEST.PROTOCOL"):
        predict(Demanding(), protocol, batch)


@pytest.mark.parametrize(("protocol", "size"), [("native", (15, 15)), ("half", (30, 30)), ("short20", (4, 5))])
def test_images_as_large_as_a_protocol_needs_are_predicted(protocol, size):
    (scores,) = predict(Demanding(), protocol, make_batch(size, labels=False)[:1])
    assert scores.isfinite().all()


@every_size
def test_one_window_over_the_whole_image_is_the_whole_image(size):
    batch = make_batch(size, labels=False)
    for model in (PerPixel(), Contextual()):
        (plain,) = predict(model, "native", batch)
        torch.testing.assert_close(predict(model, "slide512", batch)[0], plain.softmax(0))
        torch.testing.assert_close(predict(model, "slide512+logits", batch)[0], plain)
        (half,) = predict(model, "half", batch)
        torch.testing.assert_close(predict(model, "half+slide512", batch)[0], half.softmax(0))


@pytest.mark.parametrize("size", [(24, 40), (41, 23), (2, 3)])
@pytest.mark.parametrize("average", ["softmax", "logits"])
def test_multiscale_and_flip(size, average):
    (inputs,) = make_batch(size, labels=False)
    model, scores = Contextual(), []
    for scale in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75):
        height, width = (max(1, int(side * scale + 0.5)) for side in size)
        image = resize_image(inputs["image"], (height, width))
        scores += [show(model, image, size), show(model, image.flip(-1), size).flip(-1)]
    if average == "softmax":
        scores = [score.softmax(0) for score in scores]
    text = "multiscale+flip" + ("+logits" if average == "logits" else "")
    torch.testing.assert_close(predict(model, text, [inputs])[0], torch.stack(scores).mean(0))


@pytest.mark.parametrize("size", [(11, 19), (19, 11), (6, 14)])
@pytest.mark.parametrize("average", ["softmax", "logits"])
def test_windows_of_a_scaled_and_mirrored_image(size, average):
    """Windows of 8 at steps of 5 on the double image, plain and mirrored, put together and brought back to size."""
    (inputs,) = make_batch(size, labels=False)
    model, views = Contextual(), []
    image = resize_image(inputs["image"], (2 * size[0], 2 * size[1]))
    for mirrored in (False, True):
        view = image.flip(-1) if mirrored else image
        total, count = torch.zeros(4, *view.shape[1:]), torch.zeros(view.shape[1:])
        for top in sorted({min(t, view.shape[1] - 8) for t in range(0, view.shape[1], 5)}):
            for left in sorted({min(t, view.shape[2] - 8) for t in range(0, view.shape[2], 5)}):
                scores = show(model, view[:, top : top + 8, left : left + 8], (8, 8))
                total[:, top : top + 8, left : left + 8] += scores.softmax(0) if average == "softmax" else scores
                count[top : top + 8, left : left + 8] += 1
        score = F.interpolate((total / count)[None], size, mode="bilinear", align_corners=False)[0]
        views.append(score.flip(-1) if mirrored else score)
    protocol = windowed(8, 5, scales=(2.0,), flip=True, average=average)
    for window_batch in (1, 4):
        (got,) = predict(model, protocol, [inputs], window_batch=window_batch)
        torch.testing.assert_close(got, torch.stack(views).mean(0))


@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [1] * 6), (4, [4, 2]), (6, [6]), (7, [6])])
def test_windows_come_in_batches(batch_size, sizes):
    got = []

    def predict(windows):
        got.append(len(windows))
        return [window.clone() for window in windows]

    image = torch.rand(2, 4, 6)
    torch.testing.assert_close(slide(image, SlidingWindow(2, 2), predict, batch_size), image)
    assert got == sizes


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("native", [(30, 48)]),
        ("half", [(15, 24)]),
        ("ensemble", [(30, 48), (15, 24)]),
        ("fit64x32", [(32, 51)]),
        ("short60", [(60, 96)]),
        ("crop20x40", [(40, 20)]),
        ("crop20x40+half", [(20, 10)]),
        ("halftruth", [(30, 48)]),
        ("fit64x32+halftruth+flip", [(32, 51)] * 2),
        ("slide24/16", [(24, 24)] * 6),
        ("half+slide20/20", [(15, 20)] * 2),
        ("slide40/30", [(30, 40)] * 2),
    ],
)
def test_what_the_model_sees_and_what_comes_back(text, shown):
    model, protocol = PerPixel(), parse_protocol(text)
    batch = [{**inputs, "height": 30, "width": 48} for inputs in make_batch((30, 48), labels=False)]
    (got,) = predict(model, text, batch)
    assert [sizes for (sizes,) in model.seen] == shown
    assert len(shown) == protocol.forwards((30, 48))
    assert got.shape[1:] == protocol.prepare_labels(np.zeros((30, 48), np.uint8)).shape


def test_scores_lie_where_the_labels_lie():
    """A picture of its own classes is scored almost without mistakes under every frame, portraits included."""

    class Reader(PerPixel):
        def logits(self, image):
            return torch.stack([-(image[0] - 60 * label).abs() for label in range(3)])

    for size in ((60, 90), (90, 60)):
        labels = np.zeros(size, np.uint8)
        labels[10:40, 20:50], labels[45:, :33] = 1, 2
        image = torch.from_numpy(labels * np.uint8(60))[None].repeat(3, 1, 1)
        for text in [
            "short40",
            "short100",
            "crop50x50",
            "crop80x80",
            "crop80x80+half",
            "fit64x32",
            "halftruth",
            "half",
        ]:
            protocol = parse_protocol(text)
            (scores,) = predict(Reader(), text, [{"image": image}])
            truth = protocol.prepare_labels(labels)
            right = scores.argmax(0).numpy()[truth < 255] == truth[truth < 255]
            assert right.mean() > 0.94, (text, size)


def test_height_and_width_are_those_of_the_file():
    """A loader may have resized the image already; the protocol's sizes count from the file's."""
    model = PerPixel()
    batch = [{**inputs, "height": 40, "width": 60} for inputs in make_batch((20, 30), labels=False)]
    (got,) = predict(model, "short20", batch)
    assert (model.seen, got.shape[1:]) == ([[(20, 30)]], (20, 30))
    (got,) = predict(model, "half", batch)
    assert (model.seen[1:], got.shape[1:]) == ([[(20, 30)]], (40, 60))


def test_images_of_a_batch_have_their_own_sizes():
    batch = make_batch((24, 40), (41, 23), labels=False)
    got = predict(PerPixel(), "ensemble", batch)
    for scores, inputs in zip(got, batch, strict=True):
        torch.testing.assert_close(scores, predict(PerPixel(), "ensemble", [inputs])[0])


def test_labels_do_not_reach_the_model():
    """Those of the image would not fit its scales and windows."""
    model = Recorder()
    model.returned = [{"sem_seg": torch.rand(3, 8, 9)}]
    predict(model, "half", make_batch((8, 9), labels=True))
    assert model.got[0].keys() == {"image", "height", "width"}


def test_a_model_that_does_not_keep_to_the_size_is_named():
    class Stubborn(PerPixel):
        def predict(self, image, **others):
            return self.logits(image.float())

    for text in ("half", "ensemble"):
        with expect_error(ConfigError, f"protocol '{text}'", (4, 10, 15), "model"):
            predict(Stubborn(), text, make_batch((20, 30), labels=False))
