"""What is frozen stays frozen: without gradients, and in eval mode whatever the surrounding model is told."""

import pytest
import torch
from torch import nn

from error_matching import expect_error
from famix.utils.errors import ConfigError
from model_factory import tiny_backbone

LAYERS = (1, 1, 2, 3)
CASES = {
    "nothing": ((), ()),
    "last block": (("layer4.2",), ("layer4.2.",)),
    "last stage": (("layer4",), ("layer4.",)),
    "two parts": (("layer3.1", "layer4"), ("layer3.1.", "layer4.")),
    "everything": (("all",), ("",)),
}


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(("trainable", "prefixes"), CASES.values(), ids=CASES.keys())
def test_gradients_and_modes(trainable, prefixes):
    model = tiny_backbone(LAYERS, trainable=trainable)
    got = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert got == {name for name, _ in model.named_parameters() if name.startswith(prefixes)}
    assert bool(got) == bool(trainable)
    outer = nn.Sequential(model)  # detectron2 switches the meta-architecture, not the backbone
    norms = {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    for mode in (True, False, True, True):
        assert outer.train(mode) is outer
        assert model.training is mode
        assert all(norm.training == (mode and name.startswith(prefixes)) for name, norm in norms.items())


def train_steps(model, optimizer, steps=2):
    model.train()
    for _ in range(steps):
        loss = model(torch.randn(2, 3, 32, 32))["res5"].square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("trainable", [("layer4.2",), ("layer4",), ("all",)])
def test_frozen_parts_are_bit_identical_after_train_eval_train(trainable):
    torch.manual_seed(0)
    model = tiny_backbone(LAYERS, trainable=trainable)
    # Momentum and weight decay would move a frozen weight that had a gradient of 0; none must be in the optimiser.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1)
    before = snapshot(model)
    train_steps(model, optimizer)
    after_training = snapshot(model)
    model.eval()
    with torch.no_grad():
        model(torch.randn(2, 3, 32, 32))
    assert all(torch.equal(value, after_training[name]) for name, value in snapshot(model).items())
    train_steps(model, optimizer)
    prefixes = ("",) if trainable == ("all",) else tuple(f"{name}." for name in trainable)
    for name, value in model.state_dict().items():
        same_as_before, same_as_then = torch.equal(value, before[name]), torch.equal(value, after_training[name])
        if name.startswith(prefixes):
            assert not same_as_before and not same_as_then, f"{name} did not train before and after the evaluation"
        else:
            assert same_as_before, f"{name} is frozen but changed"


@pytest.mark.parametrize("name", ["layer4.3", "layer5", "layer4.2.conv1.weight", "ALL"])
def test_unknown_names_are_refused(name):
    with expect_error(ConfigError, "MODEL.CLIP.TRAINABLE", name, "layer4.2"):
        tiny_backbone(LAYERS, trainable=("layer4", name))
