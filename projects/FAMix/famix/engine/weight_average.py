"""An exponential moving average of a model's weights, kept while it trains."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.engine import HookBase
from torch import Tensor, nn

from famix.utils.errors import ConfigError

__all__ = ["WeightAverage", "WeightAverageHook", "borrowed_weights", "changing_tensors"]


class WeightAverage:
    """Moving average of everything in a model that training changes: trainable parameters and batch norm statistics.

    It starts as a copy, and update number t = 1, 2, ... makes it d * average + (1 - d) * model with
    d = min(decay, t / (9 + t)), so that the random start is soon forgotten. Frozen weights are not copied.

    Args:
        model: whose weights are averaged.
        decay: in [0, 1); the average reaches about 1 / (1 - decay) updates back.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._tensors = {name: value.clone() for name, value in changing_tensors(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the model's present weights in."""
        self.updates += 1
        decay = min(self.decay, self.updates / (9 + self.updates))
        for name, value in changing_tensors(model).items():
            self._tensors[name].lerp_(value, 1 - decay)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The average: name in the model's state dict -> value."""
        return self._tensors

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes."""
        return {"updates": self.updates, "tensors": dict(self._tensors)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state, bit for bit.

        Raises:
            ConfigError: it is the average of other weights.
        """
        tensors = state["tensors"]
        shapes, expected = ({name: value.shape for name, value in of.items()} for of in (tensors, self._tensors))
        if shapes != expected:
            different = sorted(name for name in shapes.keys() | expected if shapes.get(name) != expected.get(name))
            raise ConfigError(
                f"the checkpoint averages other weights than this config trains, e.g. {different[0]}; resume with the "
                "MODEL.CLIP.TRAINABLE that it was trained with"
            )
        self.updates = int(state["updates"])
        for name, value in self._tensors.items():
            value.copy_(tensors[name])


class WeightAverageHook(HookBase):
    """Averages a model's weights after every iteration; the average is part of the trainer's checkpoints.

    It belongs before the hook that saves checkpoints.

    Args:
        model: that trains.
        decay: see `WeightAverage`.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model = model
        self._decay = decay
        self._average: WeightAverage | None = None

    @property
    def average(self) -> WeightAverage:
        """The average so far.

        Raises:
            RuntimeError: training has not begun.
        """
        if self._average is None:
            raise RuntimeError("nothing is averaged before training begins")
        return self._average

    def before_train(self) -> None:
        """Start with the weights as they are by now, unless a checkpoint has brought an average."""
        self._average = self._average or WeightAverage(self._model, self._decay)

    def after_step(self) -> None:
        """Take the weights of this iteration in."""
        self.average.update(self._model)

    def state_dict(self) -> dict[str, Any]:
        """The average."""
        return self.average.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with the average of a checkpoint."""
        self._average = WeightAverage(self._model, self._decay)
        self._average.load_state_dict(state)


def changing_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What training changes of a model's state: parameters with gradients, and statistics of layers that are not frozen.

    Args:
        model: with its frozen parameters marked by `requires_grad`.

    Returns:
        Name in the state dict -> the tensor itself. Integers, such as the count of batches, are left out; so are the
        buffers of a layer that has parameters, of which none trains.
    """
    saved = model.state_dict()
    tensors = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    for prefix, module in model.named_modules():
        parameters = list(module.parameters(recurse=False))
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            continue
        for name, buffer in module.named_buffers(prefix, recurse=False):
            if name in saved and buffer.is_floating_point():
                tensors[name] = buffer
    return tensors


@contextmanager
def borrowed_weights(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """For a while, a model has other values for what training changes of it.

    Args:
        model: gets its own values back.
        tensors: name in the state dict -> value, for all `changing_tensors`; others are not looked at.
    """
    own = {name: value.clone() for name, value in changing_tensors(model).items()}
    _copy(tensors, model)
    try:
        yield
    finally:
        _copy(own, model)


@torch.no_grad()
def _copy(tensors: Mapping[str, Tensor], model: nn.Module) -> None:
    for name, value in changing_tensors(model).items():
        value.copy_(tensors[name])
