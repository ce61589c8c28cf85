"""Measured statistics: banks, the basis of metric "source", and the scale of matching noise."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from error_matching import expect_error, explains, line_of_mistake
from famix.clip import CLIPImageTower, CLIPResNet, load_clip_state_dict
from famix.data import build_mining_batches
from famix.engine import load_config
from famix.mining import matching_noise_scale, measure_bank, obtain_style_bank
from famix.mining.measured import measure_source_basis
from famix.style import BankStyles, NoiseStyles, Statistics, StyleBank, channel_mean_std, source_basis
from famix.utils.errors import BankError
from famix_cli.bank import main
from open_clip_factory import tiny_open_clip
from run_factory import CONFIG, Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    made = Workspace(tmp_path)
    with made.registered():
        yield made


def settings(workspace: Workspace, *more: str) -> list[str]:
    return ["DATASETS.FILES", f"['{workspace.definition}']", "MODEL.CLIP.WEIGHTS", str(workspace.clip), *more]


def measure(workspace: Workspace, dataset: str) -> StyleBank:
    bank = workspace.folder / "bank.safetensors"
    options = ["--config-file", str(CONFIG), "--output", str(bank), "--datasets", dataset, "--"]
    assert main(["measure", *options, *settings(workspace)]) == 0
    return StyleBank.load(bank)


def test_measured_bank_has_the_statistics_of_every_patch(workspace: Workspace) -> None:
    bank = measure(workspace, "tiny_night")
    cfg = load_config(str(CONFIG), settings(workspace, "DATASETS.TRAIN", "['tiny_night']"))
    _, (sample, *_) = next(iter(build_mining_batches(cfg)))
    assert len(bank) == 2 * 2 * 3  # two images, a grid of 2 x 3
    pixel_mean, pixel_std = (torch.tensor(v).view(-1, 1, 1) for v in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))
    clip = CLIPResNet.from_state_dict(load_clip_state_dict(str(workspace.clip)))
    with torch.no_grad():
        features = clip.features_at("res2", ((sample["image"] - pixel_mean) / pixel_std)[None])
    corner = features[..., : features.shape[-2] // 2, : -(-features.shape[-1] // 3)]
    mean, std = channel_mean_std(corner)
    torch.testing.assert_close(bank.mean[0], mean.flatten(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(bank.std[0], std.flatten(), rtol=1e-4, atol=1e-6)
    labels = sample["sem_seg"]
    patch = labels[: labels.shape[0] // 2, : -(-labels.shape[1] // 3)]
    assert bank.class_ids[0] == patch.flatten().mode().values
    assert bank.metadata["measured"] == "tiny_night"


def test_pixel_statistics_of_the_family_are_used(workspace: Workspace) -> None:
    tiny, path = tiny_open_clip("siglip", workspace.folder), workspace.folder / "signed.safetensors"
    family = (
        "MODEL.BACKBONE.NAME", "build_clip_backbone", "MODEL.CLIP.WEIGHTS", str(tiny.file),
        "MODEL.CLIP.ARCHITECTURE", tiny.architecture, "MODEL.STYLE.STAGE", "block1",
    )  # fmt: skip
    options = ["--config-file", str(CONFIG), "--output", str(path), "--datasets", "tiny_night", "--"]
    assert main(["measure", *options, *settings(workspace, *family)]) == 0
    cfg = load_config(str(CONFIG), settings(workspace, *family, "DATASETS.TRAIN", "['tiny_night']"))
    assert cfg.MODEL.PIXEL_MEAN == cfg.MODEL.PIXEL_STD == [127.5] * 3
    _, (sample, *_) = next(iter(build_mining_batches(cfg)))
    clip = CLIPImageTower.from_state_dict(load_clip_state_dict(str(tiny.file), tiny.architecture))
    with torch.no_grad():
        features = clip.features_at("block1", (sample["image"] / 127.5 - 1)[None]) + 0
    mean, std = channel_mean_std(features[..., : features.shape[-2] // 2, : -(-features.shape[-1] // 3)])
    bank = StyleBank.load(path)
    torch.testing.assert_close(bank.mean[0], mean.flatten(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(bank.std[0], std.flatten(), rtol=1e-4, atol=1e-5)


def test_unknown_dataset_is_one_line(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    output = workspace.folder / "bank.safetensors"
    words = [
        "measure",
        "--config-file",
        CONFIG,
        "--output",
        output,
        "--datasets",
        "tiny_nigth",
        "--",
        *settings(workspace),
    ]
    explains(line_of_mistake(capsys, main, *words), "tiny_nigth", remedy="tiny_night")
    assert not output.exists()


@pytest.mark.parametrize(("output", "named"), [("/proc/none/bank.safetensors", "/proc/none"), (".", "")])
def test_output_is_checked_before_the_images_are_read(
    workspace: Workspace, output: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config-file", CONFIG, "--output", workspace.folder / output, "--datasets", "unknown", "--"]
    line = line_of_mistake(capsys, main, "measure", *words, *settings(workspace))
    explains(line, named or str(workspace.folder), remedy="folder" if named else "file")


def test_metric_source_uses_the_patches_of_the_source(workspace: Workspace) -> None:
    cfg = load_config(str(CONFIG), settings(workspace))
    bank = measure_bank(cfg, cfg.DATASETS.TRAIN)
    basis = measure_source_basis(cfg, load_clip_state_dict(str(workspace.clip)))
    torch.testing.assert_close(basis, source_basis(torch.cat([bank.mean, bank.std], dim=1)))
    assert basis.shape == (2 * bank.num_channels, 2 * bank.num_channels)
    mined = {}
    for metric in ("euclidean", "source"):
        path = str(workspace.folder / f"{metric}.safetensors")
        options = ("STYLE_MINING.METRIC", metric, "STYLE_MINING.STEPS", "3", "MODEL.STYLE.BANK", path)
        mined[metric] = obtain_style_bank(load_config(str(CONFIG), settings(workspace, *options)))
        assert mined[metric].metadata["metric"] == metric
    assert torch.equal(mined["euclidean"].class_ids, mined["source"].class_ids)
    assert not torch.allclose(mined["euclidean"].mean, mined["source"].mean)


def make_bank(*styles: tuple[int, list[float], list[float]]) -> StyleBank:
    bank = StyleBank()
    for class_id, mean, std in styles:
        bank.add(torch.tensor([class_id]), torch.tensor([mean]), torch.tensor([std]))
    return bank


def test_noise_scale_by_hand() -> None:
    own = make_bank((0, [1.0], [2.0]), (0, [3.0], [2.0]), (1, [0.0], [1.0]))  # |x|^2: 5, 13, 1
    styles = make_bank((0, [2.0], [2.0]), (0, [1.0], [0.0]), (1, [0.0], [4.0]))
    # From (1, 2): 1 and 4, on average 2.5. From (3, 2): 1 and 8, on average 4.5. From (0, 1): 9.
    assert matching_noise_scale(styles, own) == pytest.approx(((2.5 + 4.5 + 9) / (5 + 13 + 1)) ** 0.5)
    unlabeled = make_bank((255, [3.0], [9.0]))
    assert matching_noise_scale(unlabeled, make_bank((4, [3.0], [4.0]))) == pytest.approx(1.0)
    no_move_of_class_4 = make_bank((0, [3.0], [4.0]), (4, [3.0], [4.0]))
    assert matching_noise_scale(make_bank((0, [3.0], [9.0])), no_move_of_class_4) == pytest.approx((25 / 50) ** 0.5)


def test_matching_noise_moves_patches_as_far_as_the_bank() -> None:
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(400) % 3
    statistics = Statistics(*(5 + torch.rand(400, 8, generator=generator) for _ in range(2)))
    own, styles = StyleBank(), StyleBank()
    own.add(classes, statistics.mean, statistics.std)
    styles.add(classes, *(5 + torch.randn(400, 8, generator=generator) for _ in range(2)))
    patches = Statistics(*(value.reshape(1, 20, 20, 8).movedim(-1, 1) for value in (statistics.mean, statistics.std)))

    def move(strategy: BankStyles | NoiseStyles) -> float:
        new = strategy.sample(patches, classes.reshape(1, 20, 20), generator)
        return float((new.mean - patches.mean).square().sum() + (new.std - patches.std).square().sum()) ** 0.5

    noise = NoiseStyles(matching_noise_scale(styles, own))
    assert move(noise) == pytest.approx(move(BankStyles(styles)), rel=0.05)


def test_noise_scale_rejects_banks_that_do_not_fit() -> None:
    own = make_bank((0, [1.0], [1.0]))
    with expect_error(BankError, "Style banks", 2):
        matching_noise_scale(make_bank((0, [1.0, 1.0], [1.0, 1.0])), own)
    with expect_error(BankError, "Source statistics", 0):
        matching_noise_scale(own, make_bank((0, [0.0], [0.0])))
