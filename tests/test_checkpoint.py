"""Checkpoints of the released program: loaded safely, renamed, and giving the same network."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from famix.checkpoint import load_released_checkpoint
from famix.errors import WeightsError
from model_factory import make_batch, tiny_segmentor


def released(model: torch.nn.Module) -> dict[str, Any]:
    """What the released program saves of a model, with its names."""
    state = {name.replace("sem_seg_head.", "classifier."): value for name, value in model.state_dict().items()}
    return {
        "cur_itrs": 40000,
        "model_state": state,
        "optimizer_state": {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]},
        "scheduler_state": {"last_epoch": 40000, "base_lrs": [0.01, 0.1]},
        "best_score": np.float64(0.48),
    }


def write(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def test_released_weights_give_the_same_predictions(tmp_path: Path) -> None:
    model, other = tiny_segmentor().eval(), tiny_segmentor().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    other.load_state_dict(load_released_checkpoint(write(tmp_path / "released.pth", released(model))))
    batch = make_batch((32, 48), labels=False)
    with torch.no_grad():
        assert torch.equal(other(batch)[0]["sem_seg"], model(batch)[0]["sem_seg"])


def test_names_of_a_parallel_model_are_taken_too(tmp_path: Path) -> None:
    content = released(tiny_segmentor())
    content["model_state"] = {f"module.{name}": value for name, value in content["model_state"].items()}
    assert set(load_released_checkpoint(write(tmp_path / "r.pth", content))) == set(tiny_segmentor().state_dict())


def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    trace = tmp_path / "executed"

    class Hostile:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(trace),)

    with pytest.raises(WeightsError, match="read safely"):
        load_released_checkpoint(write(tmp_path / "r.pth", {"model_state": Hostile()}))
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {}}, "no 'model_state'.*model"),
        ({"model_state": {"a": 1}}, "no 'model_state' of tensors"),
        ({"model_state": {"backbone.conv1.weight": torch.zeros(1)}}, "missing .*classifier.classifier.3.weight"),
        ({"model_state": {"decoder.weight": torch.zeros(1)}}, "unknown .*decoder.weight"),
        (torch.zeros(2), "holds Tensor"),
    ],
)
def test_another_content_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        load_released_checkpoint(write(tmp_path / "r.pth", content))


def test_missing_and_truncated_files(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="does not exist"):
        load_released_checkpoint(tmp_path / "r.pth")
    path = write(tmp_path / "r.pth", released(tiny_segmentor()))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(WeightsError, match="read safely"):
        load_released_checkpoint(path)
