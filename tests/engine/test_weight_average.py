"""The moving average of weights, beside sums computed by hand."""

import copy
import io

import pytest
import torch
from torch import nn

from error_matching import expect_error
from famix.engine.hooks import WeightAverageHook, changing_tensors
from famix.engine.model_selection import borrowed_weights
from famix.utils.errors import ConfigError


class Model(nn.Module):
    """A frozen layer, a trainable one, a batch norm that trains, and one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.trained = nn.Linear(2, 1, bias=False)
        self.norm = nn.BatchNorm1d(1)
        self.frozen_norm = nn.BatchNorm1d(2).requires_grad_(False)
        self.plain_norm = nn.BatchNorm1d(2, affine=False)
        self.register_buffer("constant", torch.ones(1), persistent=False)


NAMES = {
    "trained.weight", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var",
    "plain_norm.running_mean", "plain_norm.running_var",
}  # fmt: skip


def started(model: nn.Module, decay: float) -> WeightAverageHook:
    hook = WeightAverageHook(model, decay)
    hook.before_train()
    return hook


def fill(model: nn.Module, value: float) -> None:
    for tensor in changing_tensors(model).values():
        tensor.fill_(value)


def test_what_training_changes_is_averaged_and_nothing_else() -> None:
    assert changing_tensors(Model()).keys() == NAMES
    assert started(Model(), 0.9).tensors.keys() == NAMES


def test_average_by_hand() -> None:
    model = Model()
    fill(model, 10.0)
    average = started(model, decay=0.2)
    fill(model, 20.0)
    average.after_step()  # decay min(0.2, 1 / 10)
    assert all(value.unique().item() == pytest.approx(0.1 * 10 + 0.9 * 20) for value in average.tensors.values())
    fill(model, 30.0)
    average.after_step()  # min(0.2, 2 / 11)
    expected = 2 / 11 * 19 + 9 / 11 * 30
    assert average.tensors["norm.running_var"].item() == pytest.approx(expected)
    fill(model, 40.0)
    average.after_step()  # min(0.2, 3 / 12)
    for value in average.tensors.values():
        assert value.unique().item() == pytest.approx(0.2 * expected + 0.8 * 40)
    assert model.trained.weight.unique().item() == 40


def test_borrowed_weights_are_given_back_also_after_an_error() -> None:
    model = Model()
    before = copy.deepcopy(model.state_dict())
    other = {name: torch.full_like(value, 5.0) for name, value in changing_tensors(model).items()}
    with borrowed_weights(model, other):
        assert model.norm.running_mean.item() == 5 and model.trained.weight.unique().item() == 5
        assert torch.equal(model.frozen.weight, before["frozen.weight"])
    assert_unchanged(model, before)
    with pytest.raises(KeyError), borrowed_weights(model, other):
        raise KeyError
    assert_unchanged(model, before)


def assert_unchanged(model: nn.Module, before: dict[str, torch.Tensor]) -> None:
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_state_that_went_through_a_file_continues_bit_for_bit() -> None:
    torch.manual_seed(0)
    model, values = Model(), [torch.rand(1).item() for _ in range(6)]
    undisturbed, first = started(model, 0.7), started(model, 0.7)
    for value in values[:3]:
        fill(model, value)
        undisturbed.after_step()
        first.after_step()
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = WeightAverageHook(model, 0.7)
    second.load_state_dict(torch.load(file, weights_only=True))
    second.before_train()
    for value in values[3:]:
        fill(model, value)
        undisturbed.after_step()
        second.after_step()
    assert second.updates == undisturbed.updates == 6
    for name, tensor in undisturbed.tensors.items():
        assert torch.equal(tensor, second.tensors[name]), name


def test_a_state_of_other_weights_is_refused() -> None:
    other = Model()
    other.frozen.requires_grad_(True)
    with expect_error(ConfigError, "MODEL.CLIP.TRAINABLE", "frozen.bias", "MODEL.CLIP.TRAINABLE"):
        WeightAverageHook(Model(), 0.9).load_state_dict(started(other, 0.9).state_dict())


def test_the_average_starts_with_the_weights_that_training_starts_with() -> None:
    model = Model()
    hook = WeightAverageHook(model, 0.5)
    fill(model, 7.0)  # as a checkpoint would, after the hook was made
    hook.before_train()
    assert hook.tensors["norm.bias"].item() == 7
