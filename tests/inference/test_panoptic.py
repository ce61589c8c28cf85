"""Predictors of both panoptic networks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Instances

from error_matching import expect_error, explains
from famix.inference import Predictor
from famix.utils.errors import ConfigError
from inference.inference_factory import make_image, make_run
from panoptic_factory import CONFIGS, write_recipe
from run_factory import load_tool

HEADS = ("famix_panoptic_deeplab", "famix_panoptic_fpn")
ROAD, CAR = 0, 13


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folder of a run of each head."""
    folder = tmp_path_factory.mktemp("panoptic")
    definition = write_recipe(folder, splits=("train", "val", "night"))
    return {head: make_run(folder / head, CONFIGS / f"{head}.yaml", definition=definition) for head in HEADS}


@pytest.mark.parametrize("head", HEADS)
def test_segments_cover_their_pixels_and_a_stripped_checkpoint_finds_the_same(
    runs: dict[str, Path], tmp_path: Path, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prediction = Predictor.from_checkpoint(runs[head], device="cpu")(make_image())
    assert prediction.segment_ids is not None
    assert prediction.segment_ids.shape == prediction.labels.shape == (72, 112)
    assert [segment.id for segment in prediction.segments] == list(range(1, len(prediction.segments) + 1))
    assert prediction.segments
    for segment in prediction.segments:
        assert (prediction.segment_ids == segment.id).sum() == segment.area
        assert prediction.class_names[segment.class_id] == segment.class_name
        assert segment.is_thing == (segment.class_id in prediction.classes.things)
    assert prediction.classes.things == tuple(range(11, 19))
    assert prediction.overlay(make_image()).shape == (72, 112, 3)

    assert load_tool("export").main([str(runs[head]), "--format", "stripped", "--output", str(tmp_path)]) == 0
    monkeypatch.setattr("famix.inference.loading.register_datasets", lambda files: 1 / 0)  # none is needed any more
    alone = Predictor.from_checkpoint(tmp_path / "model_final_stripped.pth", device="cpu")(make_image())
    assert alone.segments == prediction.segments
    np.testing.assert_array_equal(alone.segment_ids, prediction.segment_ids)  # type: ignore[arg-type]


def test_segments_are_those_that_the_network_returns(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor.from_checkpoint(runs["famix_panoptic_fpn"], device="cpu")
    panoptic = torch.zeros(40, 64, dtype=torch.int32)
    panoptic[:10], panoptic[20:, 32:] = 5, 9
    described = [
        {"id": 5, "isthing": False, "category_id": ROAD, "area": 640},
        {"id": 9, "isthing": True, "category_id": CAR, "score": 0.5},
    ]
    result = {
        "sem_seg": torch.zeros(19, 40, 64),
        "panoptic_seg": (panoptic, described),
        "instances": Instances((40, 64)),
    }
    monkeypatch.setattr(predictor.inference.model, "forward", lambda _: [result])
    prediction = predictor(make_image(40, 64))
    assert [(s.class_name, s.area, s.score) for s in prediction.segments] == [("road", 640, None), ("car", 640, 0.5)]
    assert np.unique(prediction.segment_ids).tolist() == [0, 1, 2]  # type: ignore[arg-type]


def test_protocol_that_averages_is_refused(runs: dict[str, Path]) -> None:
    with expect_error(ConfigError, key="--protocol", value="flip", remedy="native"):
        Predictor.from_checkpoint(runs[HEADS[0]], protocol="flip", device="cpu")


def test_panoptic_networks_become_no_graph(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert load_tool("export").main([str(runs[HEADS[0]]), "--format", "torch_export"]) == 2
    explains(capsys.readouterr().err, "MODEL.META_ARCHITECTURE", "FAMixPanopticDeepLab", "stripped")
