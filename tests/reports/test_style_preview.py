"""Effects of styles on an image, compared with values that follow from the restyling."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from error_matching import expect_error, explains, line_of_mistake
from famix.modeling import FAMixSemanticSegmentor
from famix.reports.style_preview import Effect, changed_by_class, changed_share, preview_styles
from famix.style import StyleBank, channel_mean_std
from famix.utils.errors import ConfigError
from famix_cli.bank import main
from model_factory import make_restyler, tiny_segmentor
from reports.banks import make_bank
from run_factory import Workspace

GRID = (2, 3)


@pytest.fixture(scope="module")
def model() -> FAMixSemanticSegmentor:
    return tiny_segmentor(make_restyler()).eval()


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.randint(256, (3, 64, 96), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def preview(model: nn.Module, bank: StyleBank, image: torch.Tensor, **options: object) -> list[Effect]:
    return list(preview_styles(model, bank, image, **{"stage": "res2", "grid": GRID, **options}))  # type: ignore[arg-type]


def test_effects_of_style_words(model: FAMixSemanticSegmentor, image: torch.Tensor) -> None:
    plain, foggy, night = preview(model, make_bank(12, channels=32), image)
    assert (foggy.name, night.name, foggy.styles, night.styles) == ("foggy", "night", 6, 6)
    assert list(foggy.distances) == ["res2", "res3", "res4", "res5"]
    assert min(foggy.distances.values()) > 0 == max(plain.distances.values()) and foggy.distances != night.distances
    with torch.no_grad():
        (expected,) = model([{"image": image}])
    assert np.array_equal(plain.predicted, expected["sem_seg"].argmax(0))
    assert not np.array_equal(plain.predicted, foggy.predicted)
    for effect in preview(model, make_bank(12, channels=32), image, own_weight=1.0)[1:]:
        assert max(effect.distances.values()) < 1e-5 and np.array_equal(effect.predicted, plain.predicted)


def test_style_of_the_image_changes_nothing(model: FAMixSemanticSegmentor, image: torch.Tensor) -> None:
    with torch.no_grad():
        features = model.backbone((image[None] - model.pixel_mean) / model.pixel_std)["res2"]
    mean, std = (values.flatten(1) for values in channel_mean_std(features))
    bank = StyleBank()
    bank.add(torch.tensor([0, 1]), torch.cat([mean, mean]), torch.cat([std, 2 * std]))
    _, same, scaled = preview(model, bank, image, grid=(1, 1))
    assert (same.name, scaled.name) == ("0", "1")
    assert same.distances["res2"] < 1e-5 < 0.01 < scaled.distances["res2"]


def test_patches_get_styles_of_their_predicted_class(model: FAMixSemanticSegmentor, image: torch.Tensor) -> None:
    predicted = preview(model, make_bank(1, channels=32), image)[0].predicted
    assert predicted is not None
    common = int(np.bincount(predicted.ravel()).argmax())
    base = make_bank(1, channels=32)
    both, one = StyleBank(), StyleBank()
    both.add(torch.tensor([common, 9]), torch.cat([base.mean, base.mean + 50]), base.std.repeat(2, 1))
    one.add(torch.tensor([common]), base.mean, base.std)
    # One style word of two classes: the image, as a single patch, gets the style of its own class for every seed.
    for bank in (both, one):
        bank.metadata["prompts"] = '["foggy"]'
        bank.annotations["prompt_id"] = torch.zeros(len(bank), dtype=torch.int64)
    expected = preview(model, one, image, grid=(1, 1))[1].distances
    assert all(preview(model, both, image, grid=(1, 1), seed=seed)[1].distances == expected for seed in range(5))


def test_seeds_and_untrained_networks(model: FAMixSemanticSegmentor, image: torch.Tensor) -> None:
    bank = make_bank(60, channels=32)
    runs = [[one.distances for one in preview(model, bank, image, seed=seed)] for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    effects = preview(model, make_bank(12, channels=64), image, trained=False, stage="res3")
    assert [one.predicted for one in effects] == [None] * 3
    assert list(effects[1].distances) == ["res3", "res4", "res5"]


def test_unsupported_models_and_weights_are_refused(model: FAMixSemanticSegmentor, image: torch.Tensor) -> None:
    with expect_error(ConfigError, "MODEL.META_ARCHITECTURE", "Identity"):
        preview(nn.Identity(), make_bank(channels=32), image)
    with expect_error(ConfigError, "--own-weight", 1.5):
        preview_styles(model, make_bank(channels=32), image, stage="res2", grid=GRID, own_weight=1.5)


def test_changed_shares() -> None:
    plain, *others = np.array([[[0, 0, 1, 1]], [[0, 2, 1, 1]], [[2, 2, 0, 1]]], np.uint8)
    assert changed_share(plain, others[0]) == 0.25
    assert changed_by_class(plain, others) == {0: 0.75, 1: 0.25}


def run_tool(workspace: Workspace, *arguments: str, options: tuple[str, ...] = ()) -> None:
    config, *overrides = workspace.arguments("run", *options)[1:]
    image = str(workspace.folder / "data/images/val/0.png")
    with workspace.registered():
        assert main(["preview", "--config-file", config, "--image", image, *arguments, "--", *overrides]) == 0


def test_command_with_weights(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    run_tool(workspace, "--weights", str(workspace.folder / "run/model_final.pth"))
    text = capsys.readouterr().out
    assert re.search(r"^style word +styles +res2 +res3 +res4 +res5 +pixels changed$", text, flags=re.MULTILINE)
    assert re.search(r"^res2, res3, res4, res5: .*\bRMS\b", text, flags=re.MULTILINE), "the unit of the columns"
    assert re.search(r"^(?:foggy|night) +\d+ +\d\.\d\d .* \d+\.\d %$", text, flags=re.MULTILINE)
    assert re.search(r"^predicted without styles +share of image +changed", text, flags=re.MULTILINE)
    shares = [float(share) for share in re.findall(r"^[a-z ]+? +([\d.]+) % +[\d.]+ %$", text, flags=re.MULTILINE)]
    assert sum(shares) == pytest.approx(100, abs=0.5)
    for name in ("distances", "predictions"):
        with Image.open(workspace.folder / f"run/preview/{name}.png") as figure:
            assert figure.width > 600 and len(figure.convert("RGB").getcolors(1 << 24)) > 20


def test_command_without_weights(workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_tool(workspace, "--output", str(tmp_path), "--own-weight", "0.5")
    assert [file.name for file in tmp_path.iterdir()] == ["distances.png"]
    assert "pixels changed" not in capsys.readouterr().out


def test_output_is_checked_before_the_effects_are_shown(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    config, *overrides = workspace.arguments("run")[1:]
    image = str(workspace.folder / "data/images/val/0.png")
    words = ["--config-file", config, "--image", image, "--output", "/proc/none", "--"]
    with workspace.registered():
        line = line_of_mistake(capsys, main, "preview", *words, *overrides)
    explains(line, "/proc/none", remedy="folder")
