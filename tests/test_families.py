"""Whole runs with each CLIP family: mine, train with adapters, resume, evaluate, predict, export."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from error_matching import expect_error
from famix import Predictor, StyleBank
from famix.config import load_config
from famix.inference.export import SemanticGraph, export_graph
from famix.utils.errors import ConfigError
from open_clip_factory import tiny_open_clip
from run_factory import Workspace, assert_equal_state, load_tool

STAGES = {
    "convnext": ("res2", "['res2', 'res5']"),
    "vit": ("block1", "['p2', 'p4']"),
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
    tiny, (stage, features) = tiny_open_clip(request.param, workspace.folder), STAGES[request.param]
    options = (
        "MODEL.BACKBONE.NAME", "build_clip_backbone", "MODEL.CLIP.WEIGHTS", str(tiny.file),
        "MODEL.CLIP.ARCHITECTURE", tiny.architecture, "MODEL.CLIP.TRAINABLE", "[]", "MODEL.FPN.OUT_CHANNELS", "8",
        "MODEL.ADAPTERS.RANK", "2", "MODEL.STYLE.STAGE", stage, "MODEL.SEM_SEG_HEAD.IN_FEATURES", features,
        "STYLE_MINING.STEPS", "100", *SAVES_MEMORY.get(request.param, ()),
    )  # fmt: skip
    workspace.run(request.param, *options)
    return options


@pytest.fixture(scope="module")
def finished(options: tuple[str, ...], workspace: Workspace) -> Path:
    return workspace.folder / Path(options[3]).stem


def test_styles_are_mined_in_signed_features(finished: Path) -> None:
    bank = StyleBank.load(finished / "style_bank.safetensors")
    assert bank.metadata["rectified"] == "false" and bank.mean.min() < 0 and bank.std.min() > 0
    losses = [bank.annotations[f"{name}_loss"].mean() for name in ("initial", "final")]
    assert losses[1] < 0.8 * losses[0]


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


def test_checkpoints_predict_without_the_clip(finished: Path, options: tuple[str, ...]) -> None:
    image = np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)
    moved = Path(options[3]).rename(Path(options[3]).with_suffix(".moved"))
    try:
        result = Predictor.from_checkpoint(finished)(image)
    finally:
        moved.rename(options[3])
    assert result.labels.shape == (50, 70)


def test_pixel_statistics_come_with_the_family(workspace: Workspace) -> None:
    tiny = tiny_open_clip("siglip", workspace.folder)
    options = (
        "MODEL.BACKBONE.NAME", "build_clip_backbone", "MODEL.CLIP.WEIGHTS", str(tiny.file),
        "MODEL.CLIP.ARCHITECTURE", tiny.architecture, "MODEL.CLIP.TRAINABLE", "[]", "MODEL.FPN.OUT_CHANNELS", "8",
        "MODEL.STYLE.STAGE", "block2", "MODEL.STYLE.STRATEGY", "mixstyle", "MODEL.SEM_SEG_HEAD.IN_FEATURES", "['p2', 'p4']",
        "SOLVER.MAX_ITER", "1",
    )  # fmt: skip
    workspace.run("siglip", *options)
    cfg = load_config(str(workspace.folder / "siglip/config.yaml"))
    assert cfg.MODEL.PIXEL_MEAN == cfg.MODEL.PIXEL_STD == [127.5] * 3


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


def test_export_tool_merges_adapters(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(finished), "--format", "stripped", "torch_export", "--sizes", "70x101", "--runs", "0"]
    assert not load_tool("export").main([*arguments, "--output", str(finished / "exported")])
    image = np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)
    stripped = next((finished / "exported").glob("*stripped*"))
    assert not any("adapters" in name for name in torch.load(stripped, weights_only=True)["model"])
    exported, trained = (Predictor.from_checkpoint(path)(image) for path in (stripped, finished))
    assert (exported.labels == trained.labels).mean() > 0.99
