"""Frozen batch norms in the convolutions before them, against the layers as they stand."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_factory import tiny_clip
from famix.clip import CLIPResNet, resnet
from famix.clip.folding import conv_norm
from famix.engine import build_optimizer, load_config
from model_factory import make_batch, tiny_backbone, tiny_segmentor

LAYERS = (1, 2, 1, 2)


@pytest.fixture
def pair() -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """A frozen convolution and a frozen norm with statistics of their own."""
    generator = torch.Generator().manual_seed(0)
    conv, norm = nn.Conv2d(3, 5, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(5)
    with torch.no_grad():
        for tensor in (norm.weight, norm.running_var):
            tensor.uniform_(0.5, 2, generator=generator)
        for tensor in (conv.weight, norm.bias, norm.running_mean):
            tensor.normal_(generator=generator)
    return conv.requires_grad_(False), norm.requires_grad_(False).eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 9, 12, generator=torch.Generator().manual_seed(1))


def plain(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d, dilation: int = 1) -> Tensor:
    """Both layers, one after the other."""
    return norm(F.conv2d(x, conv.weight, stride=conv.stride, padding=dilation, dilation=dilation))


class Uncalled(nn.BatchNorm2d):
    """A norm that must not run by itself."""

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("the norm ran although it is frozen")


@pytest.mark.parametrize("dilation", [1, 2])
def test_one_convolution_does_both(pair: tuple, x: Tensor, dilation: int) -> None:
    conv, norm = pair
    expected = plain(x, conv, norm, dilation)
    norm.__class__ = Uncalled
    torch.testing.assert_close(conv_norm(x, conv, norm, dilation), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variance", [0.0, 1e-7, 1e-5, 1e-4])
def test_variances_near_the_norms_epsilon(pair: tuple, x: Tensor, variance: float) -> None:
    """There the epsilon decides the scale."""
    conv, norm = pair
    norm.running_var.fill_(variance)
    scale = norm.weight.double() / (variance + 1e-5) ** 0.5
    convolved = F.conv2d(x.double(), conv.weight.double(), stride=2, padding=1)
    centred = convolved - norm.running_mean.double()[:, None, None]
    expected = scale[:, None, None] * centred + norm.bias.double()[:, None, None]
    torch.testing.assert_close(conv_norm(x, conv, norm).double(), expected, rtol=1e-4, atol=1e-2)


def test_gradients_pass(pair: tuple, x: Tensor) -> None:
    x.requires_grad_()
    gradients = [torch.autograd.grad(f(x, *pair).square().sum(), x)[0] for f in (conv_norm, plain)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "thaw",
    [
        lambda conv, norm: norm.train(),
        lambda conv, norm: conv.requires_grad_(True),
        lambda conv, norm: norm.bias.requires_grad_(True),
    ],
    ids=["norm in training mode", "weight learns", "norm learns"],
)
def test_what_learns_is_not_folded(pair: tuple, x: Tensor, thaw: Callable[..., None]) -> None:
    conv, norm = pair
    thaw(conv, norm)
    got = conv_norm(x, conv, copy.deepcopy(norm))
    assert torch.equal(got, plain(x, conv, norm))


CHANGES: dict[str, Callable[[nn.Conv2d, nn.BatchNorm2d], object]] = {
    "weight in place": lambda conv, norm: conv.weight.mul_(2),
    "gain in place": lambda conv, norm: norm.weight.mul_(2),
    "statistics in place": lambda conv, norm: norm.running_mean.add_(1),
    "variance replaced": lambda conv, norm: setattr(norm, "running_var", norm.running_var * 3),
    "data replaced": lambda conv, norm: setattr(conv.weight, "data", conv.weight.data * 2),
    "bias loaded": lambda conv, norm: norm.load_state_dict({**norm.state_dict(), "bias": torch.full((5,), 7.0)}),
    "other type": lambda conv, norm: (conv.bfloat16().float(), norm.bfloat16().float()),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_any_change_is_noticed(pair: tuple, x: Tensor, change: Callable[..., object]) -> None:
    before = conv_norm(x, *pair)
    for _ in range(2):
        with torch.no_grad():
            change(*pair)
        torch.testing.assert_close(conv_norm(x, *pair), plain(x, *pair), rtol=1e-4, atol=1e-4)
    assert (conv_norm(x, *pair) - before).abs().max() > 2e-3


def test_unchanged_weights_are_folded_once(pair: tuple, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    conv2d = F.conv2d
    monkeypatch.setattr(
        F, "conv2d", lambda x, weight, *others: seen.append(weight.data_ptr()) or conv2d(x, weight, *others)
    )
    for _ in range(3):
        conv_norm(x, *pair)
    assert len(set(seen)) == 1 and seen[0] != pair[0].weight.data_ptr()


def test_a_fold_made_in_inference_mode_serves_a_training(pair: tuple, x: Tensor) -> None:
    with torch.inference_mode():
        conv_norm(x, *pair)
    x.requires_grad_()
    conv_norm(x, *pair).sum().backward()
    assert x.grad is not None


def test_a_copy_folds_its_own_weights(pair: tuple, x: Tensor) -> None:
    conv_norm(x, *pair)
    copied = copy.deepcopy(pair)
    with torch.no_grad():
        copied[0].weight.zero_()
    torch.testing.assert_close(conv_norm(x, *copied), plain(x, *copied))
    torch.testing.assert_close(conv_norm(x, *pair), plain(x, *pair), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("trainable", [(), ("layer4.1",), ("layer3", "layer4")])
def test_a_network_gives_the_same_features_and_keeps_its_weights(trainable: tuple[str, ...]) -> None:
    state = tiny_clip(LAYERS).state_dict()
    frozen = CLIPResNet.from_state_dict(state, trainable=trainable)
    whole = CLIPResNet.from_state_dict(state, trainable=("all",))
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        got, expected = frozen(images), whole(images)
    for stage, features in got.items():
        scale = expected[stage].abs().max().item()
        torch.testing.assert_close(features, expected[stage], rtol=1e-5, atol=1e-5 * scale)
        assert features.is_contiguous(memory_format=torch.channels_last)
    assert frozen.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in frozen.state_dict().items())


def test_an_exported_graph_has_the_networks_own_layers() -> None:
    model = CLIPResNet.from_state_dict(tiny_clip().state_dict(), trainable=()).eval()
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    program = torch.export.export(model, (images,))
    norms = [node for node in program.graph.nodes if "batch_norm" in str(node.target)]
    assert len(norms) == sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    for got, expected in zip(program.module()(images).values(), model(images).values(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_biases_are_rounded_as_in_release_0_1(pair: tuple, x: Tensor) -> None:
    """Mined styles follow from every bit: a pass that 0.1 began must go on with equal weights."""
    conv, norm = pair
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    torch.nn.init.zeros_(conv.weight)
    assert torch.equal(conv_norm(x, conv, norm)[0, :, 0, 0], norm.bias - norm.running_mean * scale)


def test_a_training_ends_as_without_folding(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64: in float32, rounding differences of any origin grow from step to step."""
    ended = []
    for fold in (True, False):
        monkeypatch.setattr(resnet, "conv_norm", conv_norm if fold else plain_layers)
        model = tiny_segmentor(backbone=tiny_backbone((1, 1, 1, 2), trainable=["layer4.1"])).double()
        optimizer = build_optimizer(load_config(""), model)
        for step in range(50):
            optimizer.zero_grad()
            model(make_batch((64, 64), (64, 64), seed=step))["loss_sem_seg"].backward()
            optimizer.step()
        ended.append({name: value.detach() for name, value in model.named_parameters() if value.requires_grad})
    for name, value in ended[0].items():
        assert (value - ended[1][name]).norm() <= 1e-4 * value.norm(), name


def plain_layers(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d, dilation: int = 1) -> Tensor:
    """Both layers with the padding of the convolution."""
    return norm(F.conv2d(x, conv.weight, None, conv.stride, [dilation * int(side) for side in conv.padding], dilation))
