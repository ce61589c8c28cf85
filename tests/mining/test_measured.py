"""Measured banks: the statistics of the images themselves, of every patch, under the class that fills it."""

from pathlib import Path

import pytest
import torch

from famix.clip import CLIPResNet, load_clip_state_dict
from famix.data import build_mining_batches
from famix.engine import load_config
from famix.mining import obtain_style_bank
from famix.mining.measured import measure_bank, measure_source_basis
from famix.style import StyleBank, channel_mean_std, source_basis
from run_factory import CONFIG, Workspace, load_tool


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def _command(workspace: Workspace, *datasets: str) -> list[str]:
    settings = ["DATASETS.FILES", f"['{workspace.definition}']", "MODEL.CLIP.WEIGHTS", str(workspace.clip)]
    bank = str(workspace.folder / "bank.safetensors")
    return ["--config-file", str(CONFIG), "--output", bank, "--datasets", *datasets, "--", *settings]


def test_every_patch_with_its_own_statistics(workspace: Workspace) -> None:
    command = _command(workspace, "tiny_night")
    with workspace.registered():
        load_tool("measure_bank").main(command)
        settings = [*command[command.index("--") + 1 :], "DATASETS.TRAIN", "['tiny_night']"]
        cfg = load_config(str(CONFIG), settings)
        _, (sample, *_) = next(iter(build_mining_batches(cfg)))
    bank = StyleBank.load(workspace.folder / "bank.safetensors")
    assert len(bank) == 2 * 2 * 3  # two images, a grid of 2 x 3
    pixel_mean, pixel_std = (torch.tensor(v).view(-1, 1, 1) for v in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))
    clip = CLIPResNet.from_state_dict(load_clip_state_dict(str(workspace.clip)))
    with torch.no_grad():
        features = clip.features_at("res2", ((sample["image"] - pixel_mean) / pixel_std)[None])
    corner = features[..., : features.shape[-2] // 2, : -(-features.shape[-1] // 3)]
    mean, std = channel_mean_std(corner)
    torch.testing.assert_close(bank.mean[0], mean.flatten(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(bank.std[0], std.flatten(), rtol=1e-4, atol=1e-6)
    patch = sample["sem_seg"][: sample["sem_seg"].shape[0] // 2, : -(-sample["sem_seg"].shape[1] // 3)]
    assert bank.class_ids[0] == patch.flatten().mode().values
    assert bank.metadata["measured"] == "tiny_night"


def test_source_basis_is_that_of_the_patches_of_the_source(workspace: Workspace) -> None:
    settings = _command(workspace, "tiny_day")[-4:]
    with workspace.registered():
        cfg = load_config(str(CONFIG), settings)
        bank = measure_bank(cfg, cfg.DATASETS.TRAIN)
        basis = measure_source_basis(cfg, load_clip_state_dict(str(workspace.clip)))
    torch.testing.assert_close(basis, source_basis(torch.cat([bank.mean, bank.std], dim=1)))
    assert basis.shape == (2 * bank.num_channels, 2 * bank.num_channels)


def test_metric_source_mines_other_styles(workspace: Workspace) -> None:
    def mine(metric: str) -> StyleBank:
        settings = [*_command(workspace, "tiny_day")[-4:], "STYLE_MINING.METRIC", metric, "STYLE_MINING.STEPS", "3"]
        path = str(workspace.folder / f"{metric}.safetensors")
        return obtain_style_bank(load_config(str(CONFIG), [*settings, "MODEL.STYLE.BANK", path]))

    with workspace.registered():
        plain, along = mine("euclidean"), mine("source")
    assert (plain.metadata["metric"], along.metadata["metric"]) == ("euclidean", "source")
    assert torch.equal(plain.class_ids, along.class_ids)
    assert not torch.allclose(plain.mean, along.mean)


def test_unknown_dataset_is_one_line(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    with workspace.registered(), pytest.raises(SystemExit) as stop:
        load_tool("measure_bank").main(_command(workspace, "tiny_nigth"))
    assert stop.value.code == 2
    assert "'tiny_nigth' is unknown" in capsys.readouterr().err.splitlines()[-1]
    assert not (workspace.folder / "bank.safetensors").exists()
