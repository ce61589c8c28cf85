"""Files and command lines of release 0.1 work with the current code. `released_0_1/README.md` says how the files were made."""

import json
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import famix

PROJECT = Path(__file__).parent.parent / "projects/FAMix"
RELEASED = Path(__file__).parent / "released_0_1"
SIZE = (64, 96)
SPLITS = {"train": 6, "val": 2, "night": 2}
ROAD, SKY, CAR = 7, 23, 26
COLOURS = {0: (10, 10, 10), ROAD: (90, 90, 95), SKY: (120, 170, 230), CAR: (200, 40, 40)}


def draw_bands(folder: Path) -> None:
    """Draw sky above road with a car, as images, semantic labels and panoptic labels, without random numbers.

    Args:
        folder: root of the dataset; the definitions name it "bands".
    """
    rows, columns = np.indices(SIZE)
    for split, count in SPLITS.items():
        annotations = []
        for index in range(count):
            ids = np.where(rows < 24 + 3 * index, SKY, ROAD).astype(np.uint8)
            ids[28:54, 9 * index : 9 * index + 36] = CAR
            ids[-4:] = 0
            light = 0.3 if split == "night" else 1.0
            texture = (7 * rows + 13 * columns + 29 * index) % 23 - 11
            pixels = np.zeros((*SIZE, 3))
            for label, colour in COLOURS.items():
                pixels[ids == label] = colour
            segments = np.zeros((*SIZE, 3), np.uint8)
            segments[..., 0] = ids
            pictures = {
                "images": (pixels * light + texture[..., None]).clip(0, 255).astype(np.uint8),
                "labels": ids,
                "panoptic": segments,
            }
            for kind, picture in pictures.items():
                path = folder / kind / split / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(path)
            infos = [{"id": label, "category_id": label, "iscrowd": 0} for label in (ROAD, SKY, CAR)]
            annotations.append({"image_id": f"{index}", "file_name": f"{index}.png", "segments_info": infos})
        categories = [
            {"id": ROAD, "name": "road", "isthing": 0},
            {"id": SKY, "name": "sky", "isthing": 0},
            {"id": CAR, "name": "car", "isthing": 1},
        ]
        content = {"annotations": annotations, "categories": categories}
        (folder / f"panoptic_{split}.json").write_text(json.dumps(content))


@pytest.fixture(autouse=True)
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A writable copy of the release's files, as the current folder, with the dataset of its runs."""
    folder = shutil.copytree(RELEASED, tmp_path / "release")
    draw_bands(folder / "bands")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DETECTRON2_DATASETS", ".")
    return folder


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """Results that release 0.1 computed."""
    with np.load(RELEASED / "expected.npz") as arrays:
        return dict(arrays)


def command(monkeypatch: pytest.MonkeyPatch, script: str, *arguments: str) -> None:
    """Run a script of the project in this process, as a command line does; the exit status must be 0."""
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    monkeypatch.syspath_prepend(str((PROJECT / script).parent))
    status = None
    try:
        runpy.run_path(str(PROJECT / script), run_name="__main__")
    except SystemExit as end:
        status = end.code
    assert not status, f"{script} ended with {status}"


def read_scores(results: str, dataset: str, task: str) -> dict[str, float]:
    """Return the scores of a dataset by name, without the absent classes."""
    scores = json.loads(Path(results).read_text())[dataset][task]
    return {name: score for name, score in scores.items() if isinstance(score, int | float)}


def assert_same_scores(results: str, released: str, dataset: str, task: str = "sem_seg") -> None:
    """Compare two results.json; another processor may round a pixel to another class."""
    scores, before = read_scores(results, dataset, task), read_scores(released, dataset, task)
    assert len(before) > 3
    assert {name: scores[name] for name in before} == pytest.approx(before, abs=0.1)


def test_checkpoint_gets_the_scores_of_the_release(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--num-gpus", "0", "--num-machines", "1", "--machine-rank", "0", "--dist-url", "auto", "--eval-only"]
    options = ["MODEL.WEIGHTS", "run/seed1/model_ema.pth", "OUTPUT_DIR", "scored"]
    command(monkeypatch, "train_net.py", "--config-file", "run/seed1/config.yaml", *flags, *options)
    for dataset in ("bands_val", "bands_night"):
        assert_same_scores("scored/results.json", "run/seed1/results.json", dataset)


def test_stripped_panoptic_checkpoint_gets_the_scores_of_the_release(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("panopticapi")
    options = ["MODEL.WEIGHTS", "panoptic/stripped.pth", "OUTPUT_DIR", "scored"]
    command(monkeypatch, "train_net.py", "--config-file", "panoptic/config.yaml", "--eval-only", *options)
    for task in ("sem_seg", "panoptic_seg"):
        assert_same_scores("scored/results.json", "panoptic/results.json", "bands_val_panoptic", task)


@pytest.mark.parametrize("config", ["recipe.yaml", "run/seed1/config.yaml"])
def test_run_resumes_to_the_weights_of_the_release(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(config, "resumed.yaml")
    Path("run/seed1/model_ema.pth").unlink()
    command(monkeypatch, "train_net.py", "--config-file", "resumed.yaml", "--resume")
    assert torch.load("run/seed1/model_final.pth", weights_only=True)["iteration"] == 301
    average, released = (
        torch.load(folder / "run/seed1/model_ema.pth", weights_only=True)["model"] for folder in (Path(), RELEASED)
    )
    assert average.keys() == released.keys()
    for name, tensor in released.items():
        torch.testing.assert_close(average[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    assert_same_scores("run/seed1/results.json", str(RELEASED / "run/seed1/results.json"), "bands_val")


def test_predictor_predicts_the_labels_of_the_release(expected: dict[str, Any]) -> None:
    prediction = famix.Predictor.from_checkpoint("run/seed1", device="cpu")("bands/images/val/1.png")
    assert (prediction.labels != expected["labels"]).mean() < 0.001


def test_predictor_predicts_the_segments_of_the_release(expected: dict[str, Any]) -> None:
    pytest.importorskip("panopticapi")
    prediction = famix.Predictor.from_checkpoint("panoptic/stripped.pth", device="cpu")("bands/images/val/1.png")
    assert (prediction.labels != expected["panoptic_labels"]).mean() < 0.001
    assert (prediction.segment_ids != expected["segment_ids"]).mean() < 0.001


def test_compact_clip_gives_the_embeddings_of_the_release(expected: dict[str, Any]) -> None:
    clip = famix.load_clip_state_dict("clip.safetensors")
    texts = ["dusk style road", "rainy style car"]
    prompts = famix.PromptEncoder(clip)(texts, templates=["a photo of a {}."])
    np.testing.assert_allclose(prompts.numpy(), expected["prompts"], atol=1e-4)
    image = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)
    embedding = famix.CLIPResNet.from_state_dict(clip).eval().encode_image(image)
    np.testing.assert_allclose(embedding.detach().numpy(), expected["embedding"], atol=1e-4)


@pytest.mark.parametrize("file", ["run/seed1/style_bank.safetensors", "format_1.safetensors"])
def test_banks_of_both_formats_give_the_samples_of_the_release(file: str, expected: dict[str, Any]) -> None:
    mean, std = famix.StyleBank.load(file).sample(torch.arange(256) % 20, torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(mean.numpy(), expected["mean"])
    np.testing.assert_array_equal(std.numpy(), expected["std"])


def test_mining_finds_the_styles_of_the_release(monkeypatch: pytest.MonkeyPatch) -> None:
    command(monkeypatch, "train_net.py", "--config-file", "recipe.yaml", "--mine-styles-only", "OUTPUT_DIR", "mined")
    mined = famix.StyleBank.load("mined/style_bank.safetensors")
    released = famix.StyleBank.load("run/seed1/style_bank.safetensors")
    assert mined.counts() == released.counts()
    # The same patches and prompts. The optimized values are chaotic in so small a random CLIP: they differ between CPUs.
    for name in ("batch_id", "prompt_id", "initial_loss"):
        torch.testing.assert_close(mined.annotations[name], released.annotations[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("bank", ["run/seed1/style_bank.safetensors", "format_1.safetensors", "measured.safetensors"])
def test_new_run_trains_with_a_bank_of_the_release(bank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["MODEL.STYLE.BANK", bank, "OUTPUT_DIR", "new", "SOLVER.MAX_ITER", "2"]
    before = Path(bank).read_bytes()
    command(monkeypatch, "train_net.py", "--config-file", "recipe.yaml", *options)
    assert Path("new/model_final.pth").is_file()
    assert Path(bank).read_bytes() == before


def test_panoptic_recipe_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("panopticapi")
    options = ["MODEL.STYLE.BANK", "run/seed1/style_bank.safetensors", "SOLVER.MAX_ITER", "1", "OUTPUT_DIR", "new"]
    command(monkeypatch, "train_net.py", "--config-file", "recipe_panoptic.yaml", *options)
    assert Path("new/results.json").is_file()


def test_runs_are_compared_and_reported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command(monkeypatch, "tools/compare_runs.py", "run/seed1", "run/seed2/results.json", "--output", "table.md")
    table = Path("table.md").read_text()
    assert "1, 2" in table  # one method with two seeds
    scores = [read_scores(f"run/seed{seed}/results.json", "bands_night", "sem_seg")["mIoU"] for seed in (1, 2)]
    assert f"{np.mean(scores):.1f}" in table
    command(monkeypatch, "tools/report.py", "run/seed1", "--output", "report.html", "--examples", "1")
    page = Path("report.html").read_text()
    assert f"{scores[0]:.1f}" in page
    assert "<img" in page or "data:image" in page


def test_tools_take_the_command_lines_of_the_release(monkeypatch: pytest.MonkeyPatch) -> None:
    image, bank = "bands/images/night/0.png", "run/seed1/style_bank.safetensors"
    recipe = ["--config-file", "recipe.yaml"]
    demo = ["--weights", "run/seed1", "--input", image, "--output", "seen", "--view", "labels", "--protocol", "flip"]
    command(monkeypatch, "demo.py", *demo, "--device", "cpu")
    assert list(Path("seen").iterdir())
    stripped = ["--format", "stripped", "--output", "stripped.pth", "--runs", "0"]
    command(monkeypatch, "tools/export.py", "run/seed1/model_ema.pth", *stripped)
    assert famix.Predictor.from_checkpoint("stripped.pth", device="cpu")(image).labels.shape == SIZE
    command(monkeypatch, "tools/measure_bank.py", *recipe, "--datasets", "bands_night", "--output", "new.safetensors")
    measured, released = famix.StyleBank.load("new.safetensors"), famix.StyleBank.load("measured.safetensors")
    torch.testing.assert_close(measured.mean, released.mean, rtol=1e-3, atol=1e-4)
    command(monkeypatch, "tools/inspect_bank.py", bank, "--html", "bank.html", "--clip", "clip.safetensors")
    command(monkeypatch, "tools/inspect_bank.py", "merge", bank, "format_1.safetensors", "--output", "both.safetensors")
    assert len(famix.StyleBank.load("both.safetensors")) == 2 * len(famix.StyleBank.load(bank))
    command(monkeypatch, "tools/inspect_bank.py", "validate", bank)
    preview = ["--image", image, "--weights", "run/seed1/model_ema.pth", "--bank", bank, "--output", "preview"]
    command(monkeypatch, "tools/preview_styles.py", *recipe, *preview)
    assert {path.name for path in Path("preview").iterdir()} >= {"distances.png", "predictions.png"}
