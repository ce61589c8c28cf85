"""Training the town's CLIP: crops, targets, noise, resuming, and the command from scenes to a file that mines."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from error_matching import expect_error
from famix.clip import PromptEncoder, load_clip_state_dict
from famix.data import CITYSCAPES_CLASSES
from famix.utils.errors import ConfigError
from famix_minitown import contrastive
from famix_minitown.captions import vocabulary
from famix_minitown.compact_clip import CompactCLIP, zero_shot_accuracy
from famix_minitown.contrastive import TrainingPlan, soft_targets, style_noise, train_clip
from famix_minitown.crops import CropPlan, TownSource, attributes_of, crops_of_scene
from run_factory import load_tool

CLASS_NAMES = [entry.name for entry in CITYSCAPES_CLASSES]
TOWN = TownSource(100_000, 6)


@pytest.fixture(scope="module")
def crops() -> np.ndarray:
    return np.concatenate([crops_of_scene(TOWN, CropPlan(seed=1), index) for index in range(6)])


def _plan(**changes: object) -> TrainingPlan:
    return TrainingPlan(**{"steps": 4, "batch": 8, "width": 4, "warmup": 1, "log_every": 2, "save_every": 2, **changes})


def test_crops_show_what_they_are_called(crops: np.ndarray) -> None:
    assert len(crops) == 6 * 4 * 5 and crops["image"].shape[1:] == (64, 64, 3)
    labels, counts = np.unique(crops["label"], return_counts=True)
    assert set(labels.tolist()) == {0, 1, 2, 3, 5, 7, 8, 10, 11, 13}
    assert counts.max() < 0.4 * len(crops)
    again = crops_of_scene(TOWN, CropPlan(seed=1), 3)
    assert again.tobytes() == crops[60:80].tobytes()


def test_single_looks_for_validation() -> None:
    records = crops_of_scene(TOWN, CropPlan(seed=2, looks=12, crops=1, single_looks=True), 0)
    looks = [attributes_of(record) for record in records]
    assert all(len(look) <= 1 for look in looks) and any(looks)
    assert all(0.7 <= strength <= 1 for look in looks for _, strength in look)


def test_soft_targets_by_hand() -> None:
    expected = torch.tensor([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5]])
    assert torch.equal(soft_targets(torch.tensor([4, 7, 4])), expected)


def test_style_noise_changes_statistics_only() -> None:
    features = torch.rand(3, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    changed = style_noise(features, 0.3, torch.Generator().manual_seed(1))
    assert not torch.allclose(changed.mean((2, 3)), features.mean((2, 3)), rtol=0.01)

    def normalised(x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean((2, 3), keepdim=True)) / x.std((2, 3), keepdim=True)

    torch.testing.assert_close(normalised(changed), normalised(features), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(style_noise(features, 0.0, torch.Generator()), features)


def test_tokens_are_those_of_clip() -> None:
    model = CompactCLIP(4, vocabulary(CLASS_NAMES), seed=0).eval()
    texts = ["a photo of the very golden blurry car.", "sky."]
    encoder = PromptEncoder(model.full_state_dict())
    with torch.no_grad():
        own = model.encode_text(model.tokenize(texts))
    torch.testing.assert_close(own, encoder(texts, ["{}"]), rtol=0, atol=1e-5)
    with pytest.raises(ConfigError, match="only tokens of captions"):
        model.tokenize(["zebra"])


def test_resuming_gives_the_same_weights(tmp_path: Path, crops: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tmp_path / "checkpoint.pt"
    whole = train_clip(crops, CLASS_NAMES, _plan()).full_state_dict()
    update, calls = contrastive._update, []

    def stop_in_third(*arguments: object) -> float:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return update(*arguments)

    monkeypatch.setattr(contrastive, "_update", stop_in_third)
    with pytest.raises(KeyboardInterrupt):
        train_clip(crops, CLASS_NAMES, _plan(), checkpoint)
    monkeypatch.undo()
    resumed = train_clip(crops, CLASS_NAMES, _plan(), checkpoint).full_state_dict()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in resumed.items())
    with pytest.raises(ConfigError, match="Remove it to start from scratch"):
        train_clip(crops, CLASS_NAMES, _plan(seed=5), checkpoint)


@pytest.mark.parametrize("content", [b"", b"torn", {"plan": 3}, {"model": []}, [], None])
def test_a_damaged_checkpoint_is_named(crops: np.ndarray, tmp_path: Path, content: object) -> None:
    checkpoint = tmp_path / "checkpoint.pt"
    if content is None:
        os.mkfifo(checkpoint)
    elif isinstance(content, bytes):
        checkpoint.write_bytes(content)
    else:
        torch.save(content, checkpoint)
    with expect_error(ConfigError, str(checkpoint), remedy="Remove"):
        train_clip(crops, CLASS_NAMES, _plan(), checkpoint)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"made_of": {"source": "other", "scenes": 6}}, r"with source of crops 'town' instead of 'other'\."),
        ({"made_of": None}, "source of crops 'town' instead of None, scenes of crops 6 instead of None"),
        ({"initial": None}, "weights of initial '[0-9a-f]{64}' instead of ''"),
        ({"plan": _plan(steps=2, seed=5, batch=4)}, "seed of plan 0 instead of 5, batch of plan 8 instead of 4"),
    ],
)
def test_a_checkpoint_of_another_origin_is_refused(
    tmp_path: Path, crops: np.ndarray, change: dict, difference: str
) -> None:
    checkpoint = tmp_path / "checkpoint.pt"
    own = {
        "plan": _plan(steps=2),
        "initial": CompactCLIP(4, vocabulary(CLASS_NAMES), seed=9).full_state_dict(),
        "made_of": {"source": "town", "scenes": 6},
    }
    first = train_clip(crops, CLASS_NAMES, checkpoint=checkpoint, **own).full_state_dict()
    again = train_clip(crops, CLASS_NAMES, checkpoint=checkpoint, **own).full_state_dict()
    assert all(torch.equal(tensor, first[name]) for name, tensor in again.items())
    with pytest.raises(ConfigError, match=f"{difference}.* Remove it to start from scratch"):
        train_clip(crops, CLASS_NAMES, checkpoint=checkpoint, **{**own, **change})


def test_a_start_of_another_width_is_refused(crops: np.ndarray) -> None:
    start = CompactCLIP(8, vocabulary(CLASS_NAMES), seed=0).full_state_dict()
    with pytest.raises(ConfigError, match=r"must have width 4 .* got width 8 "):
        train_clip(crops, CLASS_NAMES, _plan(), initial=start)
    shallow = {name: tensor for name, tensor in start.items() if not name.startswith("transformer.resblocks.3.")}
    with pytest.raises(ConfigError, match=r"4 blocks, 77 .* got width 8 .* 3 blocks, 77 "):
        CompactCLIP(8, vocabulary(CLASS_NAMES), seed=0).load_full_state_dict(shallow)


def test_no_warmup_is_that_of_one_update(crops: np.ndarray) -> None:
    one, none = (train_clip(crops, CLASS_NAMES, _plan(warmup=updates)).full_state_dict() for updates in (1, 0))
    assert all(torch.equal(tensor, none[name]) for name, tensor in one.items())


@pytest.mark.parametrize("device", ["meta", "no_such_device", "cuda:98"])
def test_devices_that_cannot_be_used(crops: np.ndarray, device: str) -> None:
    with pytest.raises(ConfigError, match=f"--device must be usable here, got '{device}'"):
        train_clip(crops, CLASS_NAMES, _plan(), device=device)


def test_everything_is_where_the_model_is(crops: np.ndarray) -> None:
    """On torch's "meta" device, which refuses to mix with others as a GPU does."""
    model = CompactCLIP(4, vocabulary(CLASS_NAMES), seed=0).to("meta")
    contrastive._hook_noise(model.train(), 0.1, torch.Generator())
    images, tokens, keys = contrastive._Batches(crops, CLASS_NAMES, model, _plan())(0)
    logits = model.encode_image(images) @ model.encode_text(tokens).t()
    loss = torch.nn.functional.cross_entropy(logits, soft_targets(keys))
    assert {entry.device.type for entry in (images, tokens, keys, loss)} == {"meta"}


def test_scores_are_made_where_the_model_is(crops: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    model, devices = CompactCLIP(4, vocabulary(CLASS_NAMES), seed=0).eval().to("meta"), []

    def encode(inputs: torch.Tensor) -> torch.Tensor:
        devices.append(inputs.device.type)
        return torch.ones(len(inputs), 2)

    monkeypatch.setattr(model, "encode_text", encode)
    monkeypatch.setattr(model, "encode_image", encode)
    zero_shot_accuracy(model, crops, CLASS_NAMES)
    assert len(devices) > 2 and set(devices) == {"meta"}


def test_learns_what_it_is_shown(crops: np.ndarray) -> None:
    few = crops[:16]
    model = train_clip(few, CLASS_NAMES, _plan(steps=60, batch=16, width=8, warmup=5, style_noise=0.0))
    clear = few.copy()
    clear["looks"][:, 1:] = -1
    untrained = CompactCLIP(8, vocabulary(CLASS_NAMES), 0).eval()
    before, after = (zero_shot_accuracy(network, clear, CLASS_NAMES)["class"] for network in (untrained, model))
    assert after > before + 0.2


def test_half_of_the_bits_change_the_products_alone(crops: np.ndarray) -> None:
    exact, rounded = (
        train_clip(crops, CLASS_NAMES, _plan(dtype=name)).full_state_dict() for name in contrastive.DTYPES
    )
    start = CompactCLIP(4, vocabulary(CLASS_NAMES), seed=0).full_state_dict()
    name = "visual.layer1.0.conv1.weight"
    moved, apart = (exact[name] - start[name]).norm(), (exact[name] - rounded[name]).norm()
    assert 0 < apart < 0.5 * moved
    assert all(tensor.dtype == torch.float32 for tensor in rounded.values())


def test_command_writes_a_clip_that_loads(tmp_path: Path) -> None:
    tool = load_tool("train_mini_clip")
    path = tmp_path / "clip.safetensors"
    sizes = ["--scenes", "2", "--steps", "2", "--batch", "4", "--width", "4", "--workers", "1"]
    tool.main(["--output", str(path), *sizes])
    report = json.loads(path.with_suffix(".json").read_text())
    assert report["made_by"]["steps"] == 2 and 0 <= report["zero_shot"]["look"] <= 1
    state_dict = load_clip_state_dict(str(path))
    assert PromptEncoder(state_dict).unknown_words(["sepia traffic sign", "zebra"]) == ["zebra"]
    further = tmp_path / "further.safetensors"
    untouched = ["--initial", str(path), "--steps", "0"]
    tool.main(["--output", str(further), "--crops-cache", f"{path}.crops.npy", *sizes, *untouched])
    again = load_clip_state_dict(str(further))
    assert all(torch.equal(tensor, again[name]) for name, tensor in state_dict.items())
    assert len(json.loads(further.with_suffix(".json").read_text())["made_by"]["initial"]) == 64
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob("*checkpoint*"))
