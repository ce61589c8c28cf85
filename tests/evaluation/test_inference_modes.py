"""ProtocolInference: what it holds in memory, its modes, and the real model in it."""

import weakref

import pytest
import torch
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset

from famix.evaluation.inference import ProtocolInference
from famix.evaluation.protocols import parse_protocol
from famix.evaluation.resampling import resize_image
from model_factory import NUM_CLASSES, make_batch, tiny_segmentor
from toy_segmentors import PerPixel, predict, show, windowed

# Memory


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


# Modes


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


# The real model


@pytest.mark.parametrize("size", [(70, 93), (93, 70)])
def test_the_real_segmentor(size):
    model, batch = tiny_segmentor().eval(), make_batch(size, labels=False)
    with torch.no_grad():
        plain = model(batch)[0]["sem_seg"]
    with torch.no_grad():
        assert torch.equal(predict(model, "native", batch)[0], plain)
    torch.testing.assert_close(predict(model, "slide512", batch)[0], plain.softmax(0))
    half = resize_image(batch[0]["image"], tuple(int(side * 0.5 + 0.5) for side in size))
    assert torch.equal(predict(model, "half", batch)[0], show(model, half, size))
    expected = (plain + show(model, half, size)) / 2
    torch.testing.assert_close(predict(model, "ensemble+logits", batch)[0], expected)
    one, several = (predict(model, "multiscale+slide48+flip", batch, window_batch=count)[0] for count in (1, 5))
    assert one.shape == (NUM_CLASSES, *size)
    torch.testing.assert_close(one, several, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one.sum(0), torch.ones(size))
