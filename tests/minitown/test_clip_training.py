"""Training the town's CLIP: targets, noise, resuming, the command from scenes to a file, and the shipped weights."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from error_matching import expect_error
from famix.clip import CLIPImageTower, CLIPResNet, PromptEncoder, load_clip_state_dict
from famix.clip.export import rounded, save_compact
from famix.data import CITYSCAPES_CLASSES
from famix.utils.errors import ConfigError
from famix_minitown.clip import captions, contrastive
from famix_minitown.clip.captions import vocabulary
from famix_minitown.clip.compact_clip import CompactCLIP, to_input, zero_shot_accuracy
from famix_minitown.clip.contrastive import TrainingPlan, soft_targets, style_noise, train_clip
from famix_minitown.clip.crops import LOOK_NAMES, CropPlan, TownSource, crops_of_scene
from famix_minitown.datasets import CLIP_ARCHITECTURES, register
from famix_minitown.rendering.looks import LOOKS
from run_factory import ROOT, load_tool

CLASS_NAMES = [entry.name for entry in CITYSCAPES_CLASSES]


@pytest.fixture(scope="module")
def crops() -> np.ndarray:
    return np.concatenate([crops_of_scene(TownSource(100_000, 6), CropPlan(seed=1), index) for index in range(6)])


def plan(**changes: object) -> TrainingPlan:
    return TrainingPlan(**{"steps": 4, "batch": 8, "width": 4, "warmup": 1, "log_every": 2, "save_every": 2, **changes})


def make_model(width: int = 4, seed: int = 0) -> CompactCLIP:
    return CompactCLIP(width, vocabulary(CLASS_NAMES), seed)


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def normalized(features: torch.Tensor) -> torch.Tensor:
    return (features - features.mean((2, 3), True)) / features.std((2, 3), keepdim=True)


def test_soft_targets_by_hand() -> None:
    expected = torch.tensor([[0.5, 0.0, 0.5], [0.0, 1.0, 0.0], [0.5, 0.0, 0.5]])
    assert torch.equal(soft_targets(torch.tensor([4, 7, 4])), expected)


def test_style_noise_changes_statistics_only() -> None:
    features = torch.rand(3, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    changed = style_noise(features, 0.3, torch.Generator().manual_seed(1))
    assert not torch.allclose(changed.mean((2, 3)), features.mean((2, 3)), rtol=0.01)
    torch.testing.assert_close(normalized(changed), normalized(features), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(style_noise(features, 0.0, torch.Generator()), features)


def test_tokens_are_those_of_clip() -> None:
    model, texts = make_model().eval(), ["a photo of the very golden blurry car.", "sky."]
    with torch.no_grad():
        own = model.encode_text(model.tokenize(texts))
    torch.testing.assert_close(own, PromptEncoder(model.full_state_dict())(texts, ["{}"]), rtol=0, atol=1e-5)
    with expect_error(ConfigError, "tokens of captions", remedy="captions"):
        model.tokenize(["zebra"])


def test_resuming_gives_the_same_weights(tmp_path: Path, crops: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tmp_path / "checkpoint.pt"
    whole = train_clip(crops, CLASS_NAMES, plan()).full_state_dict()
    update, calls = contrastive._update, []

    def stop_in_third(*arguments: object) -> float:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return update(*arguments)

    monkeypatch.setattr(contrastive, "_update", stop_in_third)
    with pytest.raises(KeyboardInterrupt):
        train_clip(crops, CLASS_NAMES, plan(), checkpoint)
    monkeypatch.undo()
    assert_same(train_clip(crops, CLASS_NAMES, plan(), checkpoint).full_state_dict(), whole)
    with expect_error(ConfigError, str(checkpoint), value=5, remedy="Remove"):
        train_clip(crops, CLASS_NAMES, plan(seed=5), checkpoint)


@pytest.mark.parametrize("content", [b"", b"torn", {"plan": 3}, {"model": []}, [], None])
def test_damaged_checkpoint_is_named(crops: np.ndarray, tmp_path: Path, content: object) -> None:
    checkpoint = tmp_path / "checkpoint.pt"
    if content is None:
        os.mkfifo(checkpoint)
    elif isinstance(content, bytes):
        checkpoint.write_bytes(content)
    else:
        torch.save(content, checkpoint)
    with expect_error(ConfigError, str(checkpoint), remedy="Remove"):
        train_clip(crops, CLASS_NAMES, plan(), checkpoint)


def test_checkpoint_of_another_origin_is_refused(tmp_path: Path, crops: np.ndarray) -> None:
    checkpoint, made_of = tmp_path / "checkpoint.pt", {"source": "town", "scenes": 6}
    own = {"plan": plan(steps=2), "initial": make_model(seed=9).full_state_dict(), "made_of": made_of}
    first = train_clip(crops, CLASS_NAMES, checkpoint=checkpoint, **own).full_state_dict()
    assert_same(train_clip(crops, CLASS_NAMES, checkpoint=checkpoint, **own).full_state_dict(), first)
    for change, difference in (
        ({"made_of": {"source": "other", "scenes": 6}}, r"with source of crops 'town' instead of 'other'\."),
        ({"made_of": None}, "source of crops 'town' instead of None, scenes of crops 6 instead of None"),
        ({"initial": None}, "weights of initial '[0-9a-f]{64}' instead of ''"),
        ({"plan": plan(steps=2, seed=5, batch=4)}, "seed of plan 0 instead of 5, batch of plan 8 instead of 4"),
    ):
        with pytest.raises(ConfigError, match=f"{difference}.* Remove it to start from scratch"):
            train_clip(crops, CLASS_NAMES, checkpoint=checkpoint, **{**own, **change})


def test_initial_weights_of_another_size_are_refused(crops: np.ndarray) -> None:
    start = make_model(8).full_state_dict()
    with pytest.raises(ConfigError, match=r"must have width 4 .* got width 8 "):
        train_clip(crops, CLASS_NAMES, plan(), initial=start)
    shallow = {name: tensor for name, tensor in start.items() if not name.startswith("transformer.resblocks.3.")}
    with pytest.raises(ConfigError, match=r"4 blocks, 77 .* got width 8 .* 3 blocks, 77 "):
        make_model(8).load_full_state_dict(shallow)


@pytest.mark.parametrize("family", ["convnext", "vit"])
def test_family_trains_to_weights_that_load(crops: np.ndarray, tmp_path: Path, family: str) -> None:
    register()
    model = train_clip(crops, CLASS_NAMES, plan(family=family, style_noise=0.5))
    weights, path = rounded(model.full_state_dict()), tmp_path / "clip.safetensors"
    model.load_full_state_dict(weights)
    save_compact(weights, path, model.token_ids, {})
    loaded = load_clip_state_dict(str(path), CLIP_ARCHITECTURES[family])
    assert_same(weights, loaded)
    images, texts = to_input(crops["image"][:3]), ["a photo of the very golden blurry car.", "sky."]
    with torch.no_grad():
        own, embedded = model.encode_image(images), CLIPImageTower.from_state_dict(loaded).encode_image(images)
        torch.testing.assert_close(F.normalize(embedded), own, rtol=0, atol=1e-5)
        text = model.encode_text(model.tokenize(texts))
    torch.testing.assert_close(text, PromptEncoder(loaded)(texts, ["{}"]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("family", "prefix"), [("convnext", 0), ("vit", 1)])
def test_noise_changes_the_map_of_the_first_stage_in_training(crops: np.ndarray, family: str, prefix: int) -> None:
    register()
    model, outputs = CompactCLIP(4, vocabulary(CLASS_NAMES), 0, family), []
    contrastive.hook_noise(model, 0.1, torch.Generator().manual_seed(0))
    stage = model.clip.visual.get_submodule(contrastive._FIRST_STAGES[family])
    stage.register_forward_hook(lambda module, inputs, output: outputs.append(output.detach()))
    for mode in (False, True):
        model.train(mode)
        model.encode_image(to_input(crops["image"][:2]))
    plain, noisy = outputs
    assert torch.equal(plain[:, :prefix], noisy[:, :prefix])  # the class token
    maps = [x[:, 1:].mT[..., None] if prefix else x for x in outputs]
    torch.testing.assert_close(*map(normalized, maps), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(maps[0].mean((2, 3)), maps[1].mean((2, 3)), rtol=0.01)


def test_no_warmup_equals_one_update(crops: np.ndarray) -> None:
    one, none = (train_clip(crops, CLASS_NAMES, plan(warmup=updates)).full_state_dict() for updates in (1, 0))
    assert_same(one, none)


def test_batches_and_scores_are_on_the_model_device(crops: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """On torch's "meta" device, which refuses to mix with others as a GPU does."""
    model, devices = make_model().to("meta"), []
    contrastive.hook_noise(model.train(), 0.1, torch.Generator())
    images, tokens, keys = contrastive.draw_batch(crops, CLASS_NAMES, model, plan(), 0)
    logits = model.encode_image(images) @ model.encode_text(tokens).t()
    loss = torch.nn.functional.cross_entropy(logits, soft_targets(keys))
    assert {entry.device.type for entry in (images, tokens, keys, loss)} == {"meta"}

    def encode(inputs: torch.Tensor) -> torch.Tensor:
        devices.append(inputs.device.type)
        return torch.ones(len(inputs), 2)

    monkeypatch.setattr(model.eval(), "encode_text", encode)
    monkeypatch.setattr(model, "encode_image", encode)
    zero_shot_accuracy(model, crops, CLASS_NAMES)
    assert len(devices) > 2 and set(devices) == {"meta"}


def test_training_improves_the_accuracy(crops: np.ndarray) -> None:
    few = crops[:16]
    model = train_clip(few, CLASS_NAMES, plan(steps=60, batch=16, width=8, warmup=5, style_noise=0.0))
    clear = few.copy()
    clear["looks"][:, 1:] = -1
    before, after = (
        zero_shot_accuracy(network, clear, CLASS_NAMES)["class"] for network in (make_model(8).eval(), model)
    )
    assert after > before + 0.2


def test_bfloat16_changes_the_products_alone(crops: np.ndarray) -> None:
    exact, rounded = (train_clip(crops, CLASS_NAMES, plan(dtype=name)).full_state_dict() for name in contrastive.DTYPES)
    name, start = "visual.layer1.0.conv1.weight", make_model().full_state_dict()
    assert 0 < (exact[name] - rounded[name]).norm() < 0.5 * (exact[name] - start[name]).norm()
    assert all(tensor.dtype == torch.float32 for tensor in rounded.values())


def test_command_writes_a_clip_that_loads(tmp_path: Path) -> None:
    tool, path, log = load_tool("train_mini_clip"), tmp_path / "clip.safetensors", tmp_path / "logs/log.txt"
    sizes = ["--scenes", "2", "--steps", "2", "--batch", "4", "--width", "4", "--workers", "1"]
    tool.main(["--output", str(path), *sizes, "--log", str(log)])
    report = json.loads(path.with_suffix(".json").read_text())
    assert report["made_by"]["steps"] == 2 and 0 <= report["zero_shot"]["look"] <= 1 and log.exists()
    state_dict = load_clip_state_dict(str(path))
    assert PromptEncoder(state_dict).unknown_words(["sepia traffic sign", "zebra"]) == ["zebra"]
    further, cache = tmp_path / "further.safetensors", ["--crops-cache", f"{path}.crops.npy", *sizes, "--steps", "0"]
    tool.main(["--output", str(further), *cache, "--initial", str(path)])
    assert_same(state_dict, load_clip_state_dict(str(further)))
    assert len(json.loads(further.with_suffix(".json").read_text())["made_by"]["initial"]) == 64
    tool.main(["--output", str(further), *cache, "--initial", "minitown", "--width", "16", "--device", "cpu"])
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob("*checkpoint*"))


def test_model_card_lists_the_words_of_the_captions() -> None:
    card = (ROOT / "projects/FAMix/famix_minitown/weights/README.md").read_text()
    rows = [line.split("|")[1:3] for line in card.split("## Words")[1].split("## ")[0].splitlines() if "`" in line]
    (styles, adverbs), (classes, _), (templates, _) = (
        [re.findall("`(.+?)`", cell) for cell in reversed(row)] for row in rows
    )
    assert styles == [*(phrase for look in LOOKS.values() for phrase in look.phrases), *captions.PLAIN_PHRASES]
    assert adverbs[1:] == list(captions._ADVERBS) and templates == list(captions.TEMPLATES)
    assert classes == [name for key, others in captions._SYNONYMS.items() for name in (key, *others)]
    texts = [*styles, *adverbs[1:], *classes, *(template.format("road") for template in templates)]
    register()
    for clip in ("minitown", "minitown_convnext", "minitown_vit"):
        assert PromptEncoder(load_clip_state_dict(clip)).unknown_words(texts) == []


def test_shipped_clip_knows_looks_and_classes() -> None:
    register()
    weights = load_clip_state_dict("minitown")
    settings = CropPlan(seed=9, looks=5, crops=3, single_looks=True)
    crops = np.concatenate([crops_of_scene(TownSource(300_000, 20), settings, index) for index in range(20)])
    crops = crops[crops["looks"][:, 0] >= 0]
    labels = sorted(set(crops["label"].tolist()))
    texts = [f"{LOOKS[look].phrases[0]} {CLASS_NAMES[label]}" for look in LOOK_NAMES for label in labels]
    with torch.no_grad():
        images = CLIPResNet.from_state_dict(weights).encode_image(to_input(crops["image"]))
        guesses = (images @ PromptEncoder(weights)(texts, ["a photo of a {}."]).t()).argmax(1).numpy()
    assert len(crops) > 200
    assert (guesses // len(labels) == crops["looks"][:, 0]).mean() > 0.75  # chance: 1 of 35
    assert (np.array(labels)[guesses % len(labels)] == crops["label"]).mean() > 0.5  # chance: 1 of 10
