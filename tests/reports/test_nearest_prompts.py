"""CLIP recognizes the prompts of styles on content that they were not mined on."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clip_factory import tiny_clip
from error_matching import expect_error
from famix.clip import CLIPImageTower, CLIPResNet, PromptEncoder, clip_weights_hash, load_clip_state_dict
from famix.reports.nearest_prompts import find_nearest_prompts, noise_image, require_clip
from famix.style import StyleBank, optimize_styles
from famix.utils.errors import BankError
from open_clip_factory import tiny_open_clip
from reports.banks import CLASSES, STYLES, make_bank, measured_bank
from run_factory import load_tool


@pytest.fixture(scope="module")
def clip_state() -> dict[str, Tensor]:
    return tiny_clip().state_dict()


@pytest.fixture(scope="module")
def mined(clip_state: dict[str, Tensor]) -> StyleBank:
    """A style for every prompt of every class, optimized on random patches."""
    blank = make_bank(6, clip_hash=clip_weights_hash(clip_state))
    prompts = json.loads(blank.metadata["prompts"])[:6]
    clip = CLIPResNet.from_state_dict(clip_state, trainable=())
    patches = torch.rand(6, 32, 16, 16, generator=torch.Generator().manual_seed(0))
    texts = PromptEncoder(clip_state)(prompts, ["a {}."])
    # Texts of a random CLIP hardly differ, so the mean over the prompts of a class is subtracted.
    targets = F.normalize(texts - texts.unflatten(0, (3, 2)).mean(dim=1).repeat_interleave(2, 0), dim=1)
    settings = {"steps": 40, "lr": 3.0, "momentum": 0.9, "weight_decay": 0.0}
    styles = optimize_styles(patches, targets, lambda x: clip.encode_from("res2", x), **settings)
    bank = StyleBank(blank.metadata)
    bank.add(torch.arange(6) // 2, styles.mean, styles.std, {"prompt_id": torch.arange(6)})
    return bank


def test_ranks_of_mined_and_swapped_prompts(mined: StyleBank, clip_state: dict[str, Tensor]) -> None:
    nearest = find_nearest_prompts(mined, clip_state)
    assert nearest.rows.tolist() == list(range(6)) and nearest.ranks.tolist() == [1] * 6
    assert nearest.prompts[3] == ("night sky", "foggy sky")
    swapped = StyleBank(mined.metadata)
    swapped.add(mined.class_ids, mined.mean, mined.std, {"prompt_id": torch.arange(6) ^ 1})
    assert find_nearest_prompts(swapped, clip_state).ranks.tolist() == [2] * 6
    images = [torch.randint(256, (3, 96, 130), generator=torch.Generator().manual_seed(1)).float()]
    assert find_nearest_prompts(mined, clip_state, images).ranks.tolist().count(1) >= 5
    seen: list[int] = []
    few = find_nearest_prompts(
        mined, clip_state, most_styles=3, progress=lambda rows: (seen.append(r) or r for r in rows)
    )
    assert seen == few.rows.tolist() == [0, 2, 5]


def test_prompts_of_styles_mined_on_image_patches(tmp_path: Path) -> None:
    tiny = tiny_open_clip("vit", tmp_path)
    clip_state = load_clip_state_dict(str(tiny.file), tiny.architecture)
    clip = CLIPImageTower.from_state_dict(clip_state, trainable=())
    blank = make_bank(6, stage="block1", clip_hash=clip_weights_hash(clip_state), activation="gelu", causal="true")
    texts = PromptEncoder(clip_state)(json.loads(blank.metadata["prompts"])[:6], ["a {}."])
    targets = F.normalize(texts - texts.unflatten(0, (3, 2)).mean(dim=1).repeat_interleave(2, 0), dim=1)
    images = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own = clip.features_at("block1", images)
    styles = optimize_styles(
        own, targets, lambda x: clip.encode_from("block1", clip.replace_map(own, x)),
        steps=60, lr=1.0, momentum=0.9, weight_decay=0.0, rectify=False, relative=True,
    )  # fmt: skip
    bank = StyleBank(blank.metadata)
    bank.add(torch.arange(6) // 2, styles.mean, styles.std, {"prompt_id": torch.arange(6)})
    bank.save(tmp_path / "bank.safetensors")
    assert find_nearest_prompts(bank, clip_state).ranks.tolist().count(1) >= 5
    options = ["--clip", str(tiny.file), "--architecture", tiny.architecture]
    load_tool("inspect_bank").main(["validate", str(tmp_path / "bank.safetensors"), *options])


def test_class_names_with_equal_ends(clip_state: dict[str, Tensor]) -> None:
    names = ["traffic sign", "sign"]
    prompts = [f"{style} {name}" for name in names for style in STYLES] + ["photo"]
    bank = StyleBank(make_bank(class_names=names, prompts=prompts).metadata)
    bank.add(torch.tensor([1, 255]), torch.rand(2, 32), torch.rand(2, 32), {"prompt_id": torch.tensor([2, 4])})
    nearest = find_nearest_prompts(bank, clip_state)
    assert nearest.rows.tolist() == [0], "unlabeled patches have a single prompt"
    assert sorted(nearest.prompts[0]) == ["foggy sign", "night sign"]


def test_unsuitable_banks_are_refused(mined: StyleBank, clip_state: dict[str, Tensor]) -> None:
    with expect_error(BankError, "--clip", remedy="Mine one"):
        find_nearest_prompts(measured_bank(0, channels=32, class_names=CLASSES), clip_state)
    with expect_error(BankError, "--clip", 32, "res2"):
        find_nearest_prompts(make_bank(), clip_state)
    for bank in (mined, make_bank(clip_hash=None)):
        require_clip(bank, clip_state, "clip.pt")
    other = tiny_clip(seed=1).state_dict()
    with expect_error(BankError, "clip_hash", clip_weights_hash(other), clip_weights_hash(clip_state)):
        require_clip(mined, other, "clip.pt")


def test_noise_has_natural_frequencies() -> None:
    noise = noise_image(64)
    assert noise.shape == (3, 64, 64) and torch.equal(noise, noise_image(64))
    frequencies = torch.fft.fftfreq(64)
    radius = torch.hypot(frequencies[:, None], frequencies[None]) * 64
    amplitude = torch.fft.fft2(noise).abs().mean(dim=0)
    low, high = (amplitude[(radius >= start) & (radius < 2 * start)].mean() for start in (4, 16))
    assert low / high == pytest.approx(4, rel=0.15)  # amplitudes fall with one over the frequency
    assert torch.allclose(noise.mean(dim=(1, 2)), torch.tensor([122.8, 116.7, 104.1]), atol=0.1)
