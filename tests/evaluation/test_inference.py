"""ProtocolInference around toy models and the real one, against plain loops and the reference implementation."""

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from torch import nn

from error_matching import expect_error
from famix.evaluation.protocols.inference import ProtocolInference
from famix.evaluation.protocols.protocol import parse_protocol
from famix.evaluation.protocols.transforms import ReleasedResizeCrop, resize_image
from famix.utils.errors import ConfigError, DatasetError
from model_factory import NUM_CLASSES, make_batch, tiny_segmentor
from toy_segmentors import Contextual, PerPixel, predict, show, windowed


class Recorder(nn.Module):
    """Returns a tensor of its own and keeps its inputs."""

    def __init__(self):
        super().__init__()
        self.returned = [{"sem_seg": torch.rand(3, 8, 9), "panoptic_seg": "too"}]

    def forward(self, batched_inputs):
        self.got = batched_inputs
        return self.returned


def test_native_is_the_model_itself_and_others_pass_no_labels():
    model, batch = Recorder().eval(), make_batch((8, 9))
    assert ProtocolInference(model, parse_protocol("native"))(batch) is model.returned
    assert model.got is batch
    predict(model, "half", batch)
    assert model.got[0].keys() == {"image", "height", "width"}


class Demanding(PerPixel):
    """Needs 15 pixels a side, as CLIP at output stride 16."""

    class Backbone(nn.Module):
        smallest_side = 15

    def __init__(self):
        super().__init__()
        self.backbone = self.Backbone()


@pytest.mark.parametrize(
    ("protocol", "size", "is_enough"),
    [
        ("native", (14, 40), False),
        ("native", (40, 1), False),
        ("half", (28, 90), False),
        ("half+flip", (40, 28), False),
        ("native", (15, 15), True),
        ("half", (30, 30), True),
        ("short20", (4, 5), True),
    ],
)
def test_smallest_image(protocol, size, is_enough):
    batch = [{**make_batch(size, labels=False)[0], "file_name": "street.png"}]
    if is_enough:
        assert predict(Demanding(), protocol, batch)[0].isfinite().all()
    else:
        with expect_error(DatasetError, key="street.png", value=f"{size[0]} x {size[1]}", remedy="TEST.PROTOCOL"):
            predict(Demanding(), protocol, batch)


@pytest.mark.parametrize("size", [(24, 40), (41, 23), (1, 1), (3, 50), (17, 17)])
def test_one_window_equals_the_whole_image(size):
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
def test_windows_of_a_scaled_and_flipped_image(size, average):
    """Windows of 8 pixels with a stride of 5 on the image at scale 2 and its flip."""
    (inputs,) = make_batch(size, labels=False)
    model, views = Contextual(), []
    image = resize_image(inputs["image"], (2 * size[0], 2 * size[1]))
    for flipped in (False, True):
        view = image.flip(-1) if flipped else image
        total, count = torch.zeros(4, *view.shape[1:]), torch.zeros(view.shape[1:])
        for top in sorted({min(t, view.shape[1] - 8) for t in range(0, view.shape[1], 5)}):
            for left in sorted({min(t, view.shape[2] - 8) for t in range(0, view.shape[2], 5)}):
                scores = show(model, view[:, top : top + 8, left : left + 8], (8, 8))
                total[:, top : top + 8, left : left + 8] += scores.softmax(0) if average == "softmax" else scores
                count[top : top + 8, left : left + 8] += 1
        score = F.interpolate((total / count)[None], size, mode="bilinear", align_corners=False)[0]
        views.append(score.flip(-1) if flipped else score)
    protocol = windowed(8, 5, scales=(2.0,), flip=True, average=average)
    for window_batch in (1, 4):
        (got,) = predict(model, protocol, [inputs], window_batch=window_batch)
        torch.testing.assert_close(got, torch.stack(views).mean(0))


@pytest.mark.parametrize(
    ("text", "inputs"),
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
def test_sizes_of_inputs_and_outputs(text, inputs):
    model, protocol = PerPixel(), parse_protocol(text)
    (got,) = predict(model, text, make_batch((30, 48), labels=False))
    assert [sizes for (sizes,) in model.seen] == inputs
    assert len(inputs) == protocol.forwards((30, 48))
    assert got.shape[1:] == protocol.prepare_labels(np.zeros((30, 48), np.uint8)).shape


def test_height_and_width_are_those_of_the_file():
    """A loader may have resized the image; the protocol's sizes refer to the file."""
    model = PerPixel()
    batch = [{**inputs, "height": 40, "width": 60} for inputs in make_batch((20, 30), labels=False)]
    assert [predict(model, text, batch)[0].shape[1:] for text in ("short20", "half")] == [(20, 30), (40, 60)]
    assert model.seen == [[(20, 30)], [(20, 30)]]


@pytest.mark.parametrize(
    "text", ["short40", "short100", "crop50x50", "crop80x80", "crop80x80+half", "fit64x32", "halftruth", "half"]
)
def test_scores_are_aligned_with_labels(text):
    """An image of its own classes is scored almost without mistakes, landscapes and portraits."""

    class Reader(PerPixel):
        def logits(self, image):
            return torch.stack([-(image[0] - 60 * label).abs() for label in range(3)])

    for size in ((60, 90), (90, 60)):
        labels = np.zeros(size, np.uint8)
        labels[10:40, 20:50], labels[45:, :33] = 1, 2
        image = torch.from_numpy(labels * np.uint8(60))[None].repeat(3, 1, 1)
        (scores,) = predict(Reader(), text, [{"image": image}])
        truth = parse_protocol(text).prepare_labels(labels)
        assert (scores.argmax(0).numpy()[truth < 255] == truth[truth < 255]).mean() > 0.94, size


def test_images_of_a_batch_have_their_own_sizes():
    batch = make_batch((24, 40), (41, 23), labels=False)
    got = predict(PerPixel(), "ensemble", batch)
    for scores, inputs in zip(got, batch, strict=True):
        torch.testing.assert_close(scores, predict(PerPixel(), "ensemble", [inputs])[0])


@pytest.mark.parametrize("text", ["half", "ensemble"])
def test_model_must_return_the_requested_size(text):
    class Stubborn(PerPixel):
        def predict(self, image, **others):
            return self.logits(image.float())

    with expect_error(ConfigError, f"Protocol '{text}'", (4, 10, 15), "model"):
        predict(Stubborn(), text, make_batch((20, 30), labels=False))


class Spy(PerPixel):
    """Counts its score maps that are still alive while it is called."""

    def __init__(self):
        super().__init__()
        self.alive, self.most_alive, self.calls = weakref.WeakSet(), 0, 0

    def forward(self, batched_inputs):
        self.calls += 1
        self.most_alive = max(self.most_alive, len(self.alive))
        results = super().forward(batched_inputs)
        for result in results:
            self.alive.add(result["sem_seg"])
        return results


@pytest.mark.parametrize(
    ("protocol", "window_batch", "calls"),
    [
        (parse_protocol("multiscale+flip"), 1, 12),
        (parse_protocol("multiscale+flip+logits"), 1, 12),
        (windowed(8, 5), 1, 40),
        (windowed(8, 5, average="logits"), 1, 40),
        (windowed(8, 5), 4, 10),
        (windowed(8, 5), 7, 6),
        (windowed(8, 5), 99, 1),
        (windowed(8, 8, scales=(0.5, 1.0, 1.5), flip=True), 1, 2 * (6 + 15 + 40)),
    ],
)
def test_no_map_of_an_earlier_call_is_kept(protocol, window_batch, calls):
    spy = Spy()
    predict(spy, protocol, make_batch((24, 40), labels=False), window_batch=window_batch)
    assert (spy.calls, spy.most_alive) == (calls, 0)


def test_train_mode_and_gradients_are_those_of_the_model():
    model, batch = PerPixel().train(), make_batch((24, 40))
    inference = ProtocolInference(model, parse_protocol("ensemble"))
    assert inference.training
    inference(batch)["loss"].backward()
    assert model.projection.weight.grad is not None
    for text, kept in (("half", False), ("ensemble", False), ("slide24/16+flip", False), ("native", True)):
        inference = ProtocolInference(PerPixel().eval(), parse_protocol(text))
        assert inference(batch)[0]["sem_seg"].requires_grad is kept


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_restores_the_mode(training):
    model, modes = PerPixel().train(training), []

    class Evaluator(DatasetEvaluator):
        def process(self, inputs, outputs):
            modes.append((model.training, tuple(outputs[0]["sem_seg"].shape)))

    batches = [make_batch((8, 8), labels=False)] * 2
    inference_on_dataset(ProtocolInference(model, parse_protocol("short12")), batches, [Evaluator()])
    assert modes == [(False, (4, 12, 12))] * 2
    assert model.training is training


@pytest.mark.parametrize("size", [(70, 93), (93, 70)])
def test_the_real_segmentor(size):
    model, batch = tiny_segmentor().eval(), make_batch(size, labels=False)
    plain = show(model, batch[0]["image"], size)
    half = show(model, resize_image(batch[0]["image"], tuple(int(side * 0.5 + 0.5) for side in size)), size)
    assert torch.equal(predict(model, "native", batch)[0], plain)
    assert torch.equal(predict(model, "half", batch)[0], half)
    torch.testing.assert_close(predict(model, "ensemble+logits", batch)[0], (plain + half) / 2)
    one, several = (predict(model, "multiscale+slide48+flip", batch, window_batch=count)[0] for count in (1, 5))
    assert one.shape == (NUM_CLASSES, *size)
    torch.testing.assert_close(one, several, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one.sum(0), torch.ones(size))


@torch.no_grad()
def reference_scores(model, image, scale, ensemble):
    """Logits (K, H, W) as in the test script of the reference implementation."""

    def output(normalized):
        logits = model.sem_seg_head.layers(model.backbone(normalized))
        return F.interpolate(logits, normalized.shape[-2:], mode="bilinear", align_corners=False)

    normalized = ((image - model.pixel_mean) / model.pixel_std)[None]
    small = F.interpolate(normalized, scale_factor=scale, mode="bilinear", align_corners=True)
    scores = F.interpolate(output(small), size=image.shape[-2:], mode="bilinear", align_corners=True)
    return ((scores + output(normalized)) / 2 if ensemble else scores)[0]


@pytest.mark.parametrize("size", [(64, 96), (71, 93), (93, 70), (65, 65), (33, 127)])
@pytest.mark.parametrize("scale", [0.5, 0.75, 1.5])
def test_released_scales_equal_the_reference(size, scale):
    model, batch = tiny_segmentor().eval(), make_batch(size, labels=False)
    for text, ensemble in ((f"famix{scale}", False), (f"famix1+{scale}", True)):
        (got,) = predict(model, text, batch)
        expected = reference_scores(model, batch[0]["image"], scale, ensemble)
        assert got.shape == expected.shape and (got - expected).abs().max() <= 1e-6


def test_released_scales_of_a_released_crop():
    model, image = tiny_segmentor().eval(), make_batch((60, 91), labels=False)[0]["image"]
    transform = ReleasedResizeCrop(height=48, crop=(48, 48))
    protocol = replace(parse_protocol("robustnet1536released+famix1+0.5"), image=transform, truth=transform)
    crop = protocol.image.apply_image(image, (60, 91))
    (got,) = predict(model, protocol, [{"image": image}])
    assert (got - reference_scores(model, crop, 0.5, ensemble=True)).abs().max() <= 1e-6


def test_released_scales_of_wrapped_and_unnormalized_models():
    """DistributedDataParallel wraps a model, and renames its buffers."""

    class Wrapped(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, *inputs):
            return self.module(*inputs)

    model, batch = tiny_segmentor().eval(), make_batch((40, 51), labels=False)
    before = model.pixel_mean.clone(), model.pixel_std.clone()
    assert torch.equal(predict(Wrapped(model), "famix0.5", batch)[0], predict(model, "famix0.5", batch)[0])
    assert torch.equal(model.pixel_mean, before[0]) and torch.equal(model.pixel_std, before[1])

    small = F.interpolate(batch[0]["image"][None].float(), (20, 25), mode="bilinear", align_corners=True)[0]
    scores = F.interpolate(show(PerPixel(), small, (20, 25))[None], (40, 51), mode="bilinear", align_corners=True)[0]
    torch.testing.assert_close(predict(PerPixel(), "famix0.5", batch)[0], scores)


def test_released_scales_with_flips_and_windows():
    model, batch = tiny_segmentor().eval(), make_batch((40, 52), labels=False)
    plain, flipped = (
        predict(model, "famix0.5", [{"image": i}])[0] for i in (batch[0]["image"], batch[0]["image"].flip(-1))
    )
    (got,) = predict(model, "famix0.5+flip+logits", batch)
    torch.testing.assert_close(got, (plain + flipped.flip(-1)) / 2, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(predict(model, "famix0.5+slide26+logits", batch)[0], plain)  # one window
    assert predict(model, "famix0.5+slide16", batch)[0].shape == (NUM_CLASSES, 40, 52)
