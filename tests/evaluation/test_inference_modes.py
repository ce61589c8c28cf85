"""ProtocolInference: what it holds in memory, its modes, and the real model in it."""

import weakref
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from torch import nn

from famix.evaluation.protocols.inference import ProtocolInference
from famix.evaluation.protocols.protocol import parse_protocol
from famix.evaluation.protocols.transforms import ReleasedResizeCrop, resize_image
from model_factory import NUM_CLASSES, make_batch, tiny_segmentor
from toy_segmentors import PerPixel, predict, show, windowed


class Spy(PerPixel):
    """Counts its score maps that somebody still holds while it is called."""

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
        (windowed(8, 8, scales=(0.5, 1.0, 1.5), flip=True), 1, 2 * (6 + 15 + 40)),
    ],
)
def test_no_map_of_an_earlier_call_is_held(protocol, window_batch, calls):
    spy = Spy()
    predict(spy, protocol, make_batch((24, 40), labels=False), window_batch=window_batch)
    assert (spy.calls, spy.most_alive) == (calls, 0)


def test_nothing_is_kept_for_a_backward_pass():
    batch = make_batch((24, 40), labels=False)
    for text, kept in (("half", False), ("ensemble", False), ("slide24/16+flip", False), ("native", True)):
        inference = ProtocolInference(PerPixel().eval(), parse_protocol(text))
        assert inference(batch)[0]["sem_seg"].requires_grad is kept  # native gives what the model gives


def test_train_mode_is_the_models():
    model, batch = PerPixel().train(), make_batch((8, 8))
    inference = ProtocolInference(model, parse_protocol("ensemble"))
    assert inference.training
    inference(batch)["loss"].backward()
    assert model.projection.weight.grad is not None


@pytest.mark.parametrize("training", [True, False])
def test_an_evaluation_leaves_the_mode_as_it_was(training):
    model, modes = PerPixel().train(training), []

    class Evaluator(DatasetEvaluator):
        def process(self, inputs, outputs):
            modes.append((model.training, tuple(outputs[0]["sem_seg"].shape)))

    inference_on_dataset(
        ProtocolInference(model, parse_protocol("short12")), [make_batch((8, 8), labels=False)] * 2, [Evaluator()]
    )
    assert modes == [(False, (4, 12, 12))] * 2
    assert model.training is training


@pytest.mark.parametrize("size", [(70, 93), (93, 70)])
def test_the_real_segmentor(size):
    model, batch = tiny_segmentor().eval(), make_batch(size, labels=False)
    with torch.no_grad():
        plain = model(batch)[0]["sem_seg"]
    assert torch.equal(predict(model, "native", batch)[0], plain)
    half = resize_image(batch[0]["image"], tuple(int(side * 0.5 + 0.5) for side in size))
    assert torch.equal(predict(model, "half", batch)[0], show(model, half, size))
    expected = (plain + show(model, half, size)) / 2
    torch.testing.assert_close(predict(model, "ensemble+logits", batch)[0], expected)
    one, several = (predict(model, "multiscale+slide48+flip", batch, window_batch=count)[0] for count in (1, 5))
    assert one.shape == (NUM_CLASSES, *size)
    torch.testing.assert_close(one, several, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one.sum(0), torch.ones(size))


def released_output(model, normalized):
    """What the released network returns: logits enlarged to its input."""
    logits = model.sem_seg_head.layers(model.backbone(normalized))
    return F.interpolate(logits, normalized.shape[-2:], mode="bilinear", align_corners=False)


@torch.no_grad()
def released_scores(model, image, scale, ensemble):
    """Logits (K, H, W) as the released program's test script makes them."""
    normalized = ((image - model.pixel_mean) / model.pixel_std)[None]
    small = F.interpolate(normalized, scale_factor=scale, mode="bilinear", align_corners=True)
    output = released_output(model, small)
    output = F.interpolate(output, size=image.shape[-2:], mode="bilinear", align_corners=True)
    return ((output + released_output(model, normalized)) / 2 if ensemble else output)[0]


@pytest.mark.parametrize("size", [(64, 96), (71, 93), (93, 70), (65, 65), (33, 127)])
@pytest.mark.parametrize("scale", [0.5, 0.75, 1.5])
def test_scales_are_the_released_programs(size, scale):
    model, batch = tiny_segmentor().eval(), make_batch(size, labels=False)
    for text, ensemble in ((f"famix{scale}", False), (f"famix1+{scale}", True)):
        (got,) = predict(model, text, batch)
        expected = released_scores(model, batch[0]["image"], scale, ensemble)
        assert got.shape == expected.shape and (got - expected).abs().max() <= 1e-6


def test_released_scales_of_a_released_crop():
    model, image = tiny_segmentor().eval(), make_batch((60, 91), labels=False)[0]["image"]
    transform = ReleasedResizeCrop(height=48, crop=(48, 48))
    protocol = replace(parse_protocol("robustnet1536released+famix1+0.5"), image=transform, truth=transform)
    crop = protocol.image.apply_image(image, (60, 91))
    (got,) = predict(model, protocol, [{"image": image}])
    assert (got - released_scores(model, crop, 0.5, ensemble=True)).abs().max() <= 1e-6


def test_released_scales_around_a_wrapped_model_leave_it_as_it_was():
    """DistributedDataParallel wraps a model, and its buffers then have other names."""

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


def test_released_scales_of_a_model_that_does_not_normalise():
    (inputs,) = make_batch((20, 31), labels=False)
    small = F.interpolate(inputs["image"][None].float(), (10, 15), mode="bilinear", align_corners=True)[0]
    scores = F.interpolate(show(PerPixel(), small, (10, 15))[None], (20, 31), mode="bilinear", align_corners=True)[0]
    torch.testing.assert_close(predict(PerPixel(), "famix0.5", [inputs])[0], scores)


def test_released_scales_with_mirror_images_and_windows():
    model, batch = tiny_segmentor().eval(), make_batch((40, 52), labels=False)
    mirrored = [{"image": batch[0]["image"].flip(-1)}]
    expected = [predict(model, "famix0.5", one)[0] for one in (batch, mirrored)]
    (got,) = predict(model, "famix0.5+flip+logits", batch)
    torch.testing.assert_close(got, (expected[0] + expected[1].flip(-1)) / 2, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(predict(model, "famix0.5+slide26+logits", batch)[0], expected[0])  # one window
    assert predict(model, "famix0.5+slide16", batch)[0].shape == (NUM_CLASSES, 40, 52)
