"""Whole runs with each CLIP family: mine, train with adapters, resume, evaluate, predict, export."""

import errno
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_factory import forgotten_datasets
from error_matching import expect_error
from famix import Predictor, StyleBank, load_clip_state_dict
from famix.clip import clip_weights_hash
from famix.config import load_config
from famix.inference.export import SemanticGraph, export_graph
from famix.inference.loading import load_model, save_adapters
from famix.utils.errors import BankError, ConfigError, WeightsError
from open_clip_factory import make_unigram, tiny_open_clip
from run_factory import Workspace, assert_equal_state, load_tool

STAGES = {
    "convnext": ("res2", "['res2', 'res5']"),
    "vit": ("block1", "['p2', 'p4']"),
    "eva02": ("block1", "['p2', 'p4']"),
    "siglip": ("block1", "['p2', 'p4']"),
}

SAVES_MEMORY = {
    "vit": (
        "SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16", "STYLE_MINING.DTYPE", "bfloat16",
        "MODEL.CLIP.CHECKPOINT_ACTIVATIONS", "True",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("families"))


@pytest.fixture(scope="module", params=["convnext", "vit"])
def options(request: pytest.FixtureRequest, workspace: Workspace) -> tuple[str, ...]:
    """Options of a family, after a run in the folder of its name."""
    return run_family(request.param, workspace)


def run_family(family: str, workspace: Workspace) -> tuple[str, ...]:
    """Mine, train and evaluate in a folder of the family's name, and return the options."""
    tiny, (stage, features) = tiny_open_clip(family, workspace.folder), STAGES[family]
    tokenizer = make_unigram(workspace.folder / "tokenizer") if family == "siglip" else ""
    options = (
        "MODEL.BACKBONE.NAME", "build_clip_backbone", "MODEL.CLIP.WEIGHTS", str(tiny.file),
        "MODEL.CLIP.ARCHITECTURE", tiny.architecture, "MODEL.CLIP.TRAINABLE", "[]", "MODEL.FPN.OUT_CHANNELS", "8",
        "MODEL.ADAPTERS.RANK", "2", "MODEL.STYLE.STAGE", stage, "MODEL.SEM_SEG_HEAD.IN_FEATURES", features,
        "STYLE_MINING.STEPS", "100", "MODEL.CLIP.TOKENIZER", str(tokenizer), *SAVES_MEMORY.get(family, ()),
    )  # fmt: skip
    workspace.run(family, *options)
    return options


@pytest.fixture(scope="module")
def finished(options: tuple[str, ...], workspace: Workspace) -> Path:
    return workspace.folder / Path(options[3]).stem


def test_styles_are_mined_in_signed_features(finished: Path) -> None:
    bank = StyleBank.load(finished / "style_bank.safetensors")
    assert bank.metadata["rectified"] == "false" and bank.mean.min() < 0 and bank.std.min() > 0
    losses = [bank.annotations[f"{name}_loss"].mean() for name in ("initial", "final")]
    assert losses[1] < 0.9 * losses[0]


def test_only_adapters_and_head_are_trained(finished: Path, options: tuple[str, ...]) -> None:
    start = torch.load(options[3], weights_only=True)
    after = torch.load(finished / "model_final.pth", weights_only=True)["model"]
    prefix = "backbone.net." if any(name.startswith("backbone.net.") for name in after) else "backbone."
    own = {name.removeprefix(prefix): x for name, x in after.items() if name.startswith(prefix)}
    assert any(name.endswith(".up") and x.abs().max() > 0 for name, x in own.items())
    assert all(torch.equal(x, start[f"visual.{name}"]) for name, x in own.items() if not name.startswith("adapters."))


def test_resumed_run_equals_an_undisturbed_one(finished: Path, options: tuple[str, ...], workspace: Workspace) -> None:
    resumed = workspace.folder / f"{finished.name}_resumed"
    resumed.mkdir()
    for name in ("model_0000001.pth", "style_bank.safetensors"):
        shutil.copy(finished / name, resumed)
    (resumed / "last_checkpoint").write_text("model_0000001.pth")
    workspace.run(resumed.name, *options, flags=("--resume",))
    assert_equal_state(workspace.training_state(resumed.name), workspace.training_state(finished.name))


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)


def test_checkpoints_predict_without_the_clip(finished: Path, options: tuple[str, ...], image: np.ndarray) -> None:
    moved = Path(options[3]).rename(Path(options[3]).with_suffix(".moved"))
    try:
        result = Predictor.from_checkpoint(finished)(image)
    finally:
        moved.rename(options[3])
    assert result.labels.shape == (50, 70)


def test_banks_of_other_families_are_refused(finished: Path, options: tuple[str, ...], workspace: Workspace) -> None:
    tiny, bank = tiny_open_clip("eva02", workspace.folder), finished / "style_bank.safetensors"
    other = (
        "MODEL.CLIP.WEIGHTS", str(tiny.file), "MODEL.CLIP.ARCHITECTURE", tiny.architecture, "MODEL.STYLE.BANK", str(bank),
    )  # fmt: skip
    maps = ("MODEL.SEM_SEG_HEAD.IN_FEATURES", "['p2', 'p4']")
    if finished.name == "convnext":
        with expect_error(ConfigError, "MODEL.SEM_SEG_HEAD.IN_FEATURES", "res2", "p2"):
            workspace.run("refused", *options, *other)
        with expect_error(ConfigError, "MODEL.STYLE.STAGE", "res2", "stage"):
            workspace.run("refused", *options, *other, *maps)
        other = (*other, "MODEL.STYLE.STAGE", "block1")
    with expect_error(BankError, "clip_hash", str(bank), "MODEL.CLIP.WEIGHTS"):
        workspace.run("refused", *options, *other, *maps)


def test_crops_must_have_a_cell_for_each_patch(options: tuple[str, ...], workspace: Workspace) -> None:
    small = ("MODEL.STYLE.GRID", "[9, 9]", "INPUT.CROP.SIZE", "[32, 32]")
    with expect_error(ConfigError, "MODEL.STYLE.GRID", remedy="INPUT.CROP.SIZE"):
        workspace.run("small", *options, *small)


def test_timm_backbone_trains_with_noise_and_cannot_mine(workspace: Workspace) -> None:
    options = (
        "MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "test_vit", "MODEL.CLIP.TRAINABLE", "[]",
        "MODEL.ADAPTERS.RANK", "1", "MODEL.FPN.OUT_CHANNELS", "8", "MODEL.STYLE.STAGE", "block1",
        "MODEL.SEM_SEG_HEAD.IN_FEATURES", "['p2', 'p4']", "SOLVER.MAX_ITER", "1",
    )  # fmt: skip
    assert "tiny_val" in workspace.run("timm", *options, "MODEL.STYLE.STRATEGY", "noise")
    with expect_error(ConfigError, "MODEL.TIMM.NAME", "test_vit", "MODEL.STYLE.STRATEGY"):
        workspace.run("timm_bank", *options)


@torch.no_grad()
def test_exported_graph_is_the_network(finished: Path) -> None:
    model = Predictor.from_checkpoint(finished).inference.model
    graph = SemanticGraph(model)
    for size in ((70, 101), (96, 160)):
        image = torch.randint(256, (1, 3, *size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        expected = model([{"image": image[0], "height": size[0], "width": size[1]}])[0]["sem_seg"]
        assert (graph(image)[0] - expected).abs().max() <= 1e-4 * expected.abs().max()
    exported = export_graph(graph).module()  # of sizes that the backbone need not pad
    assert (exported(image)[0] - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_export_tool_merges_adapters(finished: Path, image: np.ndarray) -> None:
    stripped = finished / "exported_stripped.pth"
    assert not load_tool("export").main([str(finished), "--format", "stripped", "--output", str(stripped)])
    assert not any("adapters" in name for name in torch.load(stripped, weights_only=True)["model"])
    exported, trained = (Predictor.from_checkpoint(path)(image) for path in (stripped, finished))
    assert np.abs(exported.probabilities - trained.probabilities).max() < 1e-5


@pytest.mark.parametrize("family", ["eva02", "siglip"])
def test_vits_of_timm_give_whole_runs(family: str, workspace: Workspace, image: np.ndarray) -> None:
    options = run_family(family, workspace)
    finished = workspace.folder / family
    test_styles_are_mined_in_signed_features(finished)
    test_resumed_run_equals_an_undisturbed_one(finished, options, workspace)
    test_checkpoints_predict_without_the_clip(finished, options, image)
    test_exported_graph_is_the_network(finished)
    cfg = load_config(str(finished / "config.yaml"))
    assert (cfg.MODEL.PIXEL_MEAN == [127.5] * 3) == (family == "siglip")


# Adapter-only checkpoints


@pytest.fixture(scope="module")
def adapters(finished: Path) -> Path:
    """The adapter-only checkpoint of a run."""
    file = finished / "exported_adapters.pth"
    with forgotten_datasets():
        assert not load_tool("export").main([str(finished), "--format", "adapters", "--output", str(file)])
    return file


def test_adapters_predict_exactly_like_the_run(
    adapters: Path, finished: Path, options: tuple[str, ...], workspace: Workspace, image: np.ndarray
) -> None:
    weights = torch.load(adapters, weights_only=True)["model"]
    base = {name.removeprefix("visual.") for name in torch.load(options[3], weights_only=True)}
    prefixes = ("backbone.net.", "backbone.")
    assert not any(name.removeprefix(prefix) in base for name in weights for prefix in prefixes)
    assert any(".adapters." in name for name in weights) and any(name.startswith("sem_seg_head.") for name in weights)
    assert np.array_equal(*(Predictor.from_checkpoint(path)(image).scores for path in (adapters, finished)))
    scores = [
        workspace.run(f"{finished.name}_{path.stem}", *options, "MODEL.WEIGHTS", str(path), flags=("--eval-only",))
        for path in (adapters, finished / "model_final.pth")
    ]
    assert len(scores[0]) == 2
    for name, score in scores[0].items():
        assert score["sem_seg"]["mIoU"] == scores[1][name]["sem_seg"]["mIoU"]


@pytest.mark.parametrize(("file", "rank"), [("adapters", 0), ("adapters", 4), ("stripped", 2)])
def test_other_ranks_are_refused(
    adapters: Path, finished: Path, options: tuple[str, ...], workspace: Workspace, file: str, rank: int
) -> None:
    path = adapters if file == "adapters" else finished / "exported_stripped.pth"
    if file == "stripped" and not path.exists():
        with forgotten_datasets():
            assert not load_tool("export").main([str(finished), "--format", "stripped", "--output", str(path)])
    changed = (*options, "MODEL.WEIGHTS", str(path), "MODEL.ADAPTERS.RANK", str(rank))
    with expect_error(WeightsError, "MODEL.ADAPTERS.RANK", rank, "2" if file == "adapters" else "0"):
        workspace.run(f"{finished.name}_other_rank", *changed, flags=("--eval-only",))


def test_adapters_start_a_training(adapters: Path, options: tuple[str, ...], workspace: Workspace) -> None:
    states = []
    for path in (adapters, adapters.with_name("model_final.pth")):
        name = f"{adapters.parent.name}_{path.stem}_continued"
        settings = ("MODEL.WEIGHTS", str(path), "MODEL.STYLE.STRATEGY", "none", "SOLVER.MAX_ITER", "1")
        workspace.run(name, *options, *settings)
        states.append(workspace.training_state(name))
    assert_equal_state(*states)


def test_adapters_are_refused_on_another_base(
    adapters: Path, options: tuple[str, ...], workspace: Workspace, tmp_path: Path
) -> None:
    other = tmp_path / "other.pt"
    state = torch.load(options[3], weights_only=True)
    torch.save({name: x + 1e-3 if x.is_floating_point() else x for name, x in state.items()}, other)
    hashes = [clip_weights_hash(load_clip_state_dict(path, options[5])) for path in (options[3], str(other))]
    settings = ("MODEL.CLIP.WEIGHTS", str(other))
    for load in (
        lambda: Predictor.from_checkpoint(adapters, opts=settings),
        lambda: workspace.run("refused", *options, *settings, "MODEL.WEIGHTS", str(adapters), flags=("--eval-only",)),
    ):
        with expect_error(WeightsError, "MODEL.CLIP.WEIGHTS", hashes[0], "Set MODEL.CLIP.WEIGHTS") as caught:
            load()
        assert hashes[1] in str(caught.value) and "\n" not in str(caught.value)


def test_failed_writes_keep_the_old_file(adapters: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, before = load_model(finished, device="cpu"), adapters.read_bytes()

    def fill_disk(content: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", fill_disk)
    with expect_error(WeightsError, str(adapters)):
        save_adapters(loaded, adapters)
    assert adapters.read_bytes() == before and not list(finished.glob("*.part*"))
