"""Checkpoints of the released program: loaded safely, renamed, complete, and giving the same network."""

import os
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from error_matching import expect_error
from famix.engine import SafeCheckpointer
from famix.io.released_checkpoint import load_released_checkpoint, read_released_checkpoint, require_fit, save_weights
from famix.utils.errors import WeightsError
from model_factory import make_batch, tiny_segmentor
from released_factory import PIXEL_MEAN, PIXEL_STD, released_logits, released_state, write_checkpoint

LAYERS = (1, 1, 1, 1)  # of tiny_segmentor, as the sizes below
CONV, PREDICTOR = "backbone.conv1.weight", "sem_seg_head.classifier.3.weight"


def small_state() -> dict[str, torch.Tensor]:
    return released_state(layers=LAYERS, width=8, decoder=8, low=4, classes=5)


def write(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def test_released_weights_give_the_released_networks_logits(tmp_path: Path) -> None:
    state, model = small_state(), tiny_segmentor().eval()
    for buffer, values in ((model.pixel_mean, PIXEL_MEAN), (model.pixel_std, PIXEL_STD)):
        buffer.copy_(255 * torch.tensor(values).view(3, 1, 1))
    weights = load_released_checkpoint(write_checkpoint(tmp_path / "released.pth", state))
    require_fit(weights, model.state_dict())
    model.load_state_dict(weights)
    batch = make_batch((64, 96), labels=False)
    with torch.no_grad():
        got, expected = model(batch)[0]["sem_seg"], released_logits(state, batch[0]["image"], LAYERS)
    assert expected.std() > 0.1
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_what_the_file_says_of_itself_is_read(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "released.pth", small_state())
    checkpoint = read_released_checkpoint(path)
    assert (checkpoint.iterations, checkpoint.best_score) == (40_000, pytest.approx(0.4851))
    bare = read_released_checkpoint(write(tmp_path / "bare.pth", {"model_state": small_state()}))
    assert (bare.iterations, bare.best_score) == (None, None)
    assert bare.weights.keys() == checkpoint.weights.keys()


def test_names_of_a_parallel_model_are_taken_too(tmp_path: Path) -> None:
    state = {f"module.{name}": value for name, value in small_state().items()}
    assert set(load_released_checkpoint(write_checkpoint(tmp_path / "r.pth", state))) == set(
        tiny_segmentor().state_dict()
    )


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_both_forms_of_torch_files_are_read(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "r.pth"
    torch.save({"model_state": small_state()}, path, _use_new_zipfile_serialization=zipped)
    assert torch.equal(load_released_checkpoint(path)[CONV], small_state()[CONV])


@pytest.mark.parametrize(
    ("content", "key", "value"),
    [
        ({"model": {}}, "model_state", "model"),
        ({"model_state": {"a": 1}}, "model_state", None),
        ({"model_state": {1: torch.zeros(1)}}, "model_state", None),
        ({"model_state": {CONV: torch.zeros(1, 3, 3, 3)}}, "missing", "classifier.classifier.3.weight"),
        ({"model_state": small_state() | {CONV: torch.tensor(1.0)}}, "missing", CONV),
        ({"model_state": {"decoder.weight": torch.zeros(1)}}, "unknown", "decoder.weight"),
        (torch.zeros(2), "model_state", "Tensor"),
    ],
)
def test_another_content_is_refused(tmp_path: Path, content: Any, key: str, value: str | None) -> None:
    with expect_error(WeightsError, key, value):
        load_released_checkpoint(write(tmp_path / "r.pth", content))


@pytest.mark.parametrize("size", [0, 100, 3000])
def test_truncated_files(tmp_path: Path, size: int) -> None:
    path = write_checkpoint(tmp_path / "r.pth", small_state())
    os.truncate(path, size)
    with expect_error(WeightsError, str(path), "truncated"):
        load_released_checkpoint(path)


def test_weights_that_do_not_fit_are_named() -> None:
    expected = tiny_segmentor().state_dict()
    weights = {name: value for name, value in expected.items() if name != CONV}
    weights |= {"backbone.attnpool.weight": torch.zeros(1), PREDICTOR: torch.zeros(19, 8, 1, 1)}
    with pytest.raises(WeightsError) as error:
        require_fit(weights, expected)
    assert f"1 missing: {CONV}" in str(error.value)
    assert "1 left over: backbone.attnpool.weight" in str(error.value)
    assert f"1 of another shape: {PREDICTOR} (19, 8, 1, 1) instead of (5, 8, 1, 1)" in str(error.value)


def test_saved_weights_are_what_a_model_loads(tmp_path: Path) -> None:
    weights = {name: value + 1 for name, value in tiny_segmentor().state_dict().items()}
    save_weights(weights, tmp_path / "new/model.pth")
    model = tiny_segmentor()
    SafeCheckpointer(model, strict=True).load(str(tmp_path / "new/model.pth"))
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_a_disk_error_is_told_although_torch_raises_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(content: Any, part: IO[bytes]) -> None:
        try:
            raise OSError(28, "No space left on device")
        finally:
            raise RuntimeError("writer failed\nat ...")

    monkeypatch.setattr(torch, "save", fail)
    with expect_error(WeightsError, str(tmp_path / "model.pth"), "No space left on device", "another file"):
        save_weights({}, tmp_path / "model.pth")
