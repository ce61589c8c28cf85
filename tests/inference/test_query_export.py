"""Exported query heads equal their network for one image size, and the example makes the segments of Predictor."""

import json
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from data_factory import forgotten_datasets
from famix.inference import Predictor
from famix.inference.export import make_graph, make_image
from inference.inference_factory import make_image as make_photo
from inference.inference_factory import make_run
from panoptic_factory import CONFIGS, write_recipe
from query_factory import Pyramid, tiny_maskformer
from run_factory import ROOT, load_tool

EXAMPLE = ROOT / "projects/FAMix/examples/onnx_runtime_example.py"
SIZE = (60, 83)  # of the run's images, which the network pads
OUTPUTS = ["class_logits", "mask_logits", "scores"]


# Before tracing


@pytest.fixture(scope="module")
def tiny():
    """A network without a trace."""
    model = tiny_maskformer(Pyramid((4, 8, 16, 32))).eval()
    with torch.no_grad():
        model.classifier.linear.weight.mul_(30)
    return model


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 96), (33, 70)])
def test_graph_is_the_network(tiny, size):
    image = make_image(size)
    outputs = make_graph(tiny, size)(image)
    (expected,) = tiny([{"image": image[0]}])
    torch.testing.assert_close(outputs["scores"][0], expected["sem_seg"])
    torch.testing.assert_close(make_graph(tiny, size, "BGR")(image.flip(1)), outputs)
    torch.testing.assert_close(make_graph(tiny, size)(image.float()), outputs)


def test_network_without_things_is_only_semantic():
    graph = make_graph(tiny_maskformer(Pyramid((4, 8, 16, 32)), things=()).eval(), (64, 96))
    assert graph.facts == {"tasks": '["semantic"]', "things": "[]"}


# A traced network


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder of a panoptic run."""
    folder = tmp_path_factory.mktemp("queries")
    definition = write_recipe(folder, splits=("train", "val", "night"))
    wide = ("MODEL.MASK_FORMER.HIDDEN_DIM", "128")  # norms of few channels would amplify rounding errors
    run = make_run(folder, CONFIGS / "famix_panoptic_maskformer.yaml", *wide, definition=definition)
    content = torch.load(run / "model_final.pth", weights_only=True)
    last_layer = "decoder.transformer.decoder.mask_predictor.mask_embedder.2.0.weight"
    content["model"][last_layer] *= 5  # or the network, hardly trained, would predict a single class
    torch.save(content, run / "model_final.pth")
    return run


@pytest.fixture(scope="module")
def predictor(run):
    with forgotten_datasets():
        return Predictor.from_checkpoint(run, device="cpu")


@pytest.fixture(scope="module")
def programs():
    """What the tool has read from the .pt2 file that it wrote: reading takes seconds."""
    return []


@pytest.fixture(scope="module")
def shipped(run, programs):
    """Folder with the files that the tool writes, and "stdout", which it prints. All tests share it: tracing is slow."""
    words = [str(run), "--format", "onnx", "torch_export", "--runs", "0", "--sizes", "60x83", "64x96"]
    read = torch.export.load
    with forgotten_datasets(), redirect_stdout(StringIO()) as out, pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.export, "load", lambda path: programs.append(read(path)) or programs[-1])
        assert load_tool("export").main([*words, "--output", str(run.parent)]) == 0
    (run.parent / "stdout").write_text(out.getvalue())
    return run.parent


@pytest.fixture(scope="module")
def exported(shipped, programs):
    """The ONNX and the .pt2 file, each as a function from images to named outputs."""
    session = onnxruntime.InferenceSession(shipped / "model_final.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run_onnx(images):
        return dict(zip(names, map(torch.from_numpy, session.run(None, {"image": images.numpy()})), strict=True))

    (program,) = programs
    return run_onnx, program.module()


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 8])
def test_exports_are_the_network(exported, predictor, batch):
    images = torch.cat([make_image(SIZE, seed) for seed in range(batch)])
    expected = torch.stack([result["sem_seg"] for result in predictor.inference.model([{"image": x} for x in images])])
    for network in exported:
        outputs = network(images)
        assert list(outputs) == OUTPUTS
        assert outputs["class_logits"].shape == (batch, outputs["mask_logits"].shape[1], expected.shape[1] + 1)
        assert outputs["mask_logits"].shape[-2:] == (16, 24)
        assert outputs["scores"].shape == expected.shape
        assert (outputs["scores"] - expected).abs().max() < 1e-4
        equal = outputs["scores"].argmax(1) == expected.argmax(1)
        best, second = expected.topk(2, dim=1).values.unbind(1)
        assert equal[best - second > 2e-4].all()
        assert batch == 1 or equal.float().mean() >= 0.9999  # a single image has too few pixels for one tie
    assert batch == 1 or expected.argmax(1).unique().numel() > 1  # or equality would prove little


def test_onnx_file_describes_itself(shipped, predictor):
    model, metadata = onnx.load(shipped / "model_final.onnx"), metadata_of(shipped)
    onnx.checker.check_model(model)
    axes = [axis.dim_param or axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim]
    assert axes == ["batch", 3, *SIZE]
    assert metadata["size"] == "60x83" and "(batch, 3, 60, 83)" in metadata["input"]
    assert tuple(json.loads(metadata["class_names"])) == predictor(make_photo(*SIZE)).class_names
    assert json.loads(metadata["things"]) == sorted(predictor.inference.model.things)
    assert json.loads(metadata["tasks"]) == ["semantic", "panoptic", "instance"]
    assert json.loads(metadata["panoptic"]) == {"object_threshold": 0.0, "overlap_threshold": 0.0}
    assert json.loads(metadata["instance"]) == {"most_instances": 100}
    assert [line.split(":")[0] for line in metadata["output"].splitlines()] == OUTPUTS


def test_tool_says_that_the_size_is_fixed(shipped):
    out = (shipped / "stdout").read_text()
    assert "60 x 83" in out and "64 x 96" not in out
    assert out.count("(batch, 3, 60, 83) uint8 RGB -> class_logits, mask_logits, scores") == 2


def test_example_makes_the_segments_of_the_predictor(exported, shipped, predictor):
    example = load_tool("query_segments", "examples")
    photo = make_photo(*SIZE)
    prediction = predictor(photo)
    outputs = {name: value[0].numpy() for name, value in exported[0](pixels_of(photo)).items()}
    things, panoptic, instance = (json.loads(metadata_of(shipped)[key]) for key in ("things", "panoptic", "instance"))
    arguments = (outputs["class_logits"], outputs["mask_logits"], photo.shape[:2], things)

    ids, segments = example.panoptic_segments(*arguments, **panoptic)
    assert (ids == prediction.segment_ids).mean() >= 0.9999
    assert len(segments) == len(prediction.segments) > 1
    for got, expected in zip(segments, prediction.segments, strict=True):
        assert (got["id"], got["category_id"], got["isthing"]) == (expected.id, expected.class_id, expected.is_thing)
        assert got["score"] == pytest.approx(expected.score, abs=1e-4)
        assert got["area"] == pytest.approx(expected.area, abs=1)

    with torch.no_grad():
        (result,) = predictor.inference.model([{"image": pixels_of(photo)[0]}])
    found = example.instances(*arguments, **instance)
    assert [entry["category_id"] for entry in found] == result["instances"].pred_classes.tolist()
    assert [entry["score"] for entry in found] == pytest.approx(result["instances"].scores.tolist(), abs=1e-4)
    masks = np.stack([entry["mask"] for entry in found])
    assert (masks == result["instances"].pred_masks.numpy()).mean() >= 0.9999


def test_example_draws_segments_with_the_onnx_file_alone(shipped, predictor, tmp_path):
    photo = make_photo(*SIZE)
    cv2.imwrite(str(tmp_path / "street.png"), photo[..., ::-1])
    command = [sys.executable, str(EXAMPLE), str(shipped / "model_final.onnx"), "street.png", "seen.png"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    lines = result.stdout.splitlines()
    prediction = predictor(photo)
    shares = {line.split("% ")[1]: float(line.split("%")[0]) for line in lines if "segment" not in line}
    expected = {prediction.class_names[k]: 100 * (prediction.labels == k).mean() for k in np.unique(prediction.labels)}
    assert shares == pytest.approx(expected, abs=0.06)
    assert sum("segment" in line for line in lines) == len(prediction.segments)
    assert cv2.imread(str(tmp_path / "seen.png")).shape == photo.shape


def pixels_of(photo):
    return torch.from_numpy(photo.transpose(2, 0, 1).copy())[None]


def metadata_of(folder):
    return {entry.key: entry.value for entry in onnx.load(folder / "model_final.onnx").metadata_props}
