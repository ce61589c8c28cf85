"""Whole semantic runs of the query head with text through train_net: train, evaluate, continue and predict."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from error_matching import expect_error
from famix import Predictor
from famix.utils.errors import ConfigError, WeightsError
from open_clip_factory import tiny_open_clip
from run_factory import CONFIG, Workspace, assert_equal_state

TEXT = ("MODEL.MASK_FORMER.QUERIES", "text", "MODEL.MASK_FORMER.CLASSIFIER", "text")
QUICK = ("SOLVER.MAX_ITER", "1", "MODEL.STYLE.STRATEGY", "none", "DATASETS.TEST", "('tiny_val',)")


class QueryWorkspace(Workspace):
    """A folder for runs of a config of the query head."""

    def arguments(self, output: str, *options: str, flags: tuple[str, ...] = ()) -> list[str]:
        arguments = super().arguments(output, *options, flags=flags)
        arguments[arguments.index("--config-file") + 1] = str(CONFIG.with_name("famix_maskformer.yaml"))
        return arguments


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> QueryWorkspace:
    """A folder with a run with text queries and the text classifier in "finished"."""
    workspace = QueryWorkspace(tmp_path_factory.mktemp("queries"))
    workspace.run("finished", *TEXT)
    return workspace


def test_resumed_run_equals_an_undisturbed_one(workspace: QueryWorkspace) -> None:
    resumed = workspace.folder / "resumed"
    resumed.mkdir()
    for name in ("model_0000001.pth", "style_bank.safetensors"):
        shutil.copy(workspace.folder / "finished" / name, resumed)
    (resumed / "last_checkpoint").write_text("model_0000001.pth")
    workspace.run("resumed", *TEXT, flags=("--resume",))
    assert_equal_state(workspace.training_state("resumed"), workspace.training_state("finished"))


def test_predictions_need_no_clip(workspace: QueryWorkspace) -> None:
    image = np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)
    moved = workspace.clip.rename(workspace.clip.with_suffix(".moved"))
    try:
        result = Predictor.from_checkpoint(workspace.folder / "finished", protocol="flip", device="cpu")(image)
        plain = Predictor.from_checkpoint(workspace.folder / "finished", device="cpu")(image)
    finally:
        moved.rename(workspace.clip)
    for prediction in (result, plain):
        assert prediction.labels.shape == (50, 70) and prediction.segment_ids is None
        np.testing.assert_array_equal(prediction.scores, prediction.probabilities)
        np.testing.assert_allclose(prediction.probabilities.sum(axis=0), 1, atol=1e-5)
        assert (prediction.probabilities.argmax(axis=0) == prediction.labels).mean() > 0.999


def test_checkpoint_with_another_number_of_text_queries(workspace: QueryWorkspace, tmp_path: Path) -> None:
    content = workspace.checkpoint("finished")
    for name, value in content["model"].items():
        if name.endswith(("queries_features.text_embeddings", "queries_embedder.weight")):
            assert len(value) == 19
            content["model"][name] = value[:-1]
    torch.save(content, tmp_path / "model_final.pth")
    shutil.copy(workspace.folder / "finished/config.yaml", tmp_path)
    with expect_error(WeightsError, "decoder.transformer.queries_features.text_embeddings", (18, 16), "config"):
        Predictor.from_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("options", "key", "value"),
    [
        (("MODEL.MASK_FORMER.QUERIES", "words"), "MODEL.MASK_FORMER.QUERIES", "words"),
        (("MODEL.MASK_FORMER.NUM_QUERIES", "18"), "MODEL.MASK_FORMER.NUM_QUERIES", 18),
        (("MODEL.CLIP.OUTPUT_STRIDE", "16"), "MODEL.BACKBONE.NAME", "res4: 16"),
        (("MODEL.MASK_FORMER.OBJECT_THRESHOLD", "2.0"), "MODEL.MASK_FORMER.OBJECT_THRESHOLD", 2.0),
        ((*TEXT, "MODEL.CLIP.WEIGHTS", ""), "MODEL.CLIP.WEIGHTS", ""),
    ],
)
def test_invalid_settings_stop_the_run_at_the_start(
    options: tuple[str, ...], key: str, value: object, workspace: QueryWorkspace
) -> None:
    with expect_error(ConfigError, key, value):
        workspace.run("bad", *QUICK, *options)


@pytest.mark.parametrize(("family", "stage", "stride"), [("convnext", "res2", "32"), ("vit", "block1", "16")])
def test_other_backbones(family: str, stage: str, stride: str, workspace: QueryWorkspace) -> None:
    tiny = tiny_open_clip(family, workspace.folder)
    options = (
        "MODEL.BACKBONE.NAME", "build_clip_backbone", "MODEL.CLIP.WEIGHTS", str(tiny.file),
        "MODEL.CLIP.ARCHITECTURE", tiny.architecture, "MODEL.CLIP.TRAINABLE", "[]", "MODEL.FPN.OUT_CHANNELS", "8",
        "MODEL.STYLE.STAGE", stage, "MODEL.CLIP.OUTPUT_STRIDE", stride, "MODEL.MASK_FORMER.CLASSIFIER", "text",
    )  # fmt: skip
    results = workspace.run(family, *QUICK, *options, "MODEL.STYLE.STRATEGY", "mixstyle")
    assert 0 <= results["tiny_val"]["sem_seg"]["mIoU"] <= 100
