"""Checkpoints of the reference implementation: loaded safely, renamed, complete, and giving the same network."""

import os
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from error_matching import expect_error
from famix.engine import SafeCheckpointer
from famix.io.released_checkpoint import load_released_checkpoint, read_released_checkpoint, save_weights
from famix.utils.errors import WeightsError
from model_factory import make_batch, tiny_segmentor
from released_factory import PIXEL_MEAN, PIXEL_STD, SMALL, released_logits, released_state, write_checkpoint

CONV = "backbone.conv1.weight"


def small_state() -> dict[str, torch.Tensor]:
    return released_state(**SMALL, classes=5)


def write(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def test_released_weights_give_the_released_logits(tmp_path: Path) -> None:
    state, model = small_state(), tiny_segmentor().eval()
    for buffer, values in ((model.pixel_mean, PIXEL_MEAN), (model.pixel_std, PIXEL_STD)):
        buffer.copy_(255 * torch.tensor(values).view(3, 1, 1))
    model.load_state_dict(load_released_checkpoint(write_checkpoint(tmp_path / "released.pth", state)))
    batch = make_batch((64, 96), labels=False)
    with torch.no_grad():
        got, expected = model(batch)[0]["sem_seg"], released_logits(state, batch[0]["image"], SMALL["layers"])
    assert expected.std() > 0.1
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("numbers", "iterations", "score"),
    [
        ({"cur_itrs": 40_000, "best_score": 0.4851}, 40_000, 0.4851), ({}, None, None),
        ({"cur_itrs": float("inf"), "best_score": 10**400}, None, None), ({"cur_itrs": "many"}, None, None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("prefix", ["", "module."])
def test_iterations_and_score_are_read(
    tmp_path: Path, numbers: Any, iterations: int | None, score: float | None, prefix: str
) -> None:
    state = {prefix + name: value for name, value in small_state().items()}
    read = read_released_checkpoint(write(tmp_path / "r.pth", {"model_state": state, **numbers}))
    assert (read.iterations, read.best_score) == (iterations, score)
    assert read.weights.keys() == tiny_segmentor().state_dict().keys()


@pytest.mark.parametrize(
    ("content", "key", "value"),
    [
        ({"model": {}}, "model_state", "model"),
        ({"model_state": {"a": 1}}, "model_state", "int"),
        ({"model_state": {1: torch.zeros(1)}}, "model_state", 1),
        ({"model_state": {CONV: torch.zeros(1, 3, 3, 3)}}, "missing", "classifier.classifier.3.weight"),
        ({"model_state": small_state() | {CONV: torch.tensor(1.0)}}, "missing", CONV),
        ({"model_state": {"decoder.weight": torch.zeros(1)}}, "unknown", "decoder.weight"),
        (torch.zeros(2), "model_state", "Tensor"),
    ],
)
def test_other_content_is_refused(tmp_path: Path, content: Any, key: str, value: Any) -> None:
    with expect_error(WeightsError, key, value):
        load_released_checkpoint(write(tmp_path / "r.pth", content))


@pytest.mark.parametrize(("size", "says"), [(0, "empty"), (100, "truncated"), (3000, "truncated")])
def test_truncated_files_are_refused(tmp_path: Path, size: int, says: str) -> None:
    path = write_checkpoint(tmp_path / "r.pth", small_state())
    os.truncate(path, size)
    with expect_error(WeightsError, str(path), says):
        load_released_checkpoint(path)


def test_saved_weights_load_into_a_model(tmp_path: Path) -> None:
    weights = {name: value + 1 for name, value in tiny_segmentor().state_dict().items()}
    save_weights(weights, tmp_path / "new/model.pth")
    model = tiny_segmentor()
    SafeCheckpointer(model, strict=True).load(str(tmp_path / "new/model.pth"))
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_save_weights_reports_the_disk_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(content: Any, part: IO[bytes]) -> None:
        try:
            raise OSError(28, "No space left on device")
        finally:
            raise RuntimeError("writer failed\nat ...")

    monkeypatch.setattr(torch, "save", fail)
    with expect_error(WeightsError, str(tmp_path / "model.pth"), "No space left on device", "another file"):
        save_weights({}, tmp_path / "model.pth")
