"""Exported networks equal their network for images of any size; stripped checkpoints need no other file."""

import json
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO

import cv2
import numpy as np
import onnx
import pytest
import torch
from torch import nn

from data_factory import forgotten_datasets
from error_matching import expect_error, explains, line_of_mistake
from famix.inference import Predictor, load_model
from famix.inference.export import OPSET, SemanticGraph, compare, load_onnx, make_image, require_agreement, require_onnx
from famix.utils.errors import ConfigError, WeightsError
from famix.utils.messages import file_size
from famix_cli.export import main
from famix_cli.programs import export as program
from inference.inference_factory import make_image as make_photo
from model_factory import tiny_segmentor
from run_factory import ROOT, load_benchmark

EXAMPLE = ROOT / "projects/FAMix/examples/onnx_runtime_example.py"


@pytest.fixture(scope="module")
def shipped(pristine_run, tmp_path_factory):
    """Files that the tool writes, and "stdout", which it prints; tracing takes seconds."""
    output = tmp_path_factory.mktemp("shipped")
    arguments = [str(pristine_run), "--format", "onnx", "stripped", "--output", str(output)]
    with forgotten_datasets(), redirect_stdout(StringIO()) as out:
        assert main([*arguments, "--sizes", "64x96", "37x131", "--runs", "1"]) == 0
    (output / "stdout").write_text(out.getvalue())
    return output


@pytest.mark.parametrize("size", [(64, 96), (37, 131), (33, 32)])
@pytest.mark.parametrize("batch", [1, 2])
def test_onnx_is_the_network(shipped, loaded, size, batch):
    images = torch.cat([make_image(size, seed) for seed in range(batch)])
    expected = torch.stack([loaded.model([{"image": image}])[0]["sem_seg"] for image in images])
    logits = load_onnx(shipped / "model_final.onnx", threads=1)(images)
    assert logits.shape == (batch, 19, *size)
    assert (logits.softmax(1) - expected.softmax(1)).abs().max() < 1e-5
    assert (logits.argmax(1) == expected.argmax(1)).float().mean() > 0.999
    assert expected.argmax(1).unique().numel() > 1  # or equality would prove little


def test_tool_reports_agreement_and_times(shipped):
    out = (shipped / "stdout").read_text()
    rows = re.findall(r"^\| (\d+ x \d+) +\| ([\d.e-]+) +\| ([\d.]+)% +(?:\| +[\d.]+ +){4}\|$", out, flags=re.MULTILINE)
    assert [size for size, *_ in rows] == ["64 x 96", "37 x 131"]
    assert all(float(difference) < 1e-5 and float(equal) > 99.9 for _, difference, equal in rows)
    assert f"model_final.onnx: {file_size(shipped / 'model_final.onnx')}, opset 18" in out


class OneLayer(SemanticGraph):
    """A graph that is traced and loaded quickly."""

    def __init__(self, *arguments):
        nn.Module.__init__(self)
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 4, 1)

    def forward(self, image):
        return self.layer(image.float() / 255)


def test_torch_export_is_compared_as_it_was_written(run, monkeypatch, capsys):
    monkeypatch.setattr(program, "make_graph", OneLayer)
    monkeypatch.setattr(program, "network", lambda model: OneLayer())
    arguments = [str(run), "--format", "torch_export", "--float-input", "--sizes", "40x50", "--runs", "0"]
    assert main(arguments) == 0
    assert "| 40 x 50 " in capsys.readouterr().out
    image = torch.rand(2, 3, 33, 47)
    torch.testing.assert_close(torch.export.load(run / "model_final.pt2").module()(image), OneLayer()(image))


def test_onnx_file_describes_itself(shipped):
    model = onnx.load(shipped / "model_final.onnx")
    onnx.checker.check_model(model)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    axes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert axes == {"image": ["batch", 3, "height", "width"], "logits": ["batch", 19, "height", "width"]}
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata["class_names"])[0] == "road"
    assert json.loads(metadata["colors"])[0] == [128, 64, 128]
    assert "RGB" in metadata["input"] and metadata["size"] == "free" and "logits" in metadata["output"]
    assert json.loads(metadata["tasks"]) == ["semantic"] and json.loads(metadata["things"]) == []


def test_example_needs_the_onnx_file_alone(shipped, predictor, tmp_path):
    photo = make_photo(60, 83)
    cv2.imwrite(str(tmp_path / "street.png"), photo[..., ::-1])
    command = [sys.executable, str(EXAMPLE), str(shipped / "model_final.onnx"), "street.png", "seen.png"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    prediction = predictor(photo)
    shares = {line.split("% ")[1]: float(line.split("%")[0]) for line in result.stdout.splitlines()}
    expected = {prediction.class_names[k]: 100 * (prediction.labels == k).mean() for k in np.unique(prediction.labels)}
    assert shares == pytest.approx(expected, abs=0.06)
    blended = photo / 2 + prediction.color_image() / 2
    np.testing.assert_allclose(cv2.imread(str(tmp_path / "seen.png"))[..., ::-1], blended, atol=1)
    model = onnx.load(shipped / "model_final.onnx")
    next(entry for entry in model.metadata_props if entry.key == "size").value = "64x96"  # as if fixed by the export
    onnx.save(model, tmp_path / "fixed.onnx")
    subprocess.run([*command[:2], "fixed.onnx", *command[3:]], capture_output=True, check=True, cwd=tmp_path)
    assert cv2.imread(str(tmp_path / "seen.png")).shape == photo.shape
    for place, name in ((2, "absent.onnx"), (3, "absent.png")):
        words = [*command[:place], name, *command[place + 1 :]]
        absent = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
        assert absent.returncode and name in absent.stderr and len(absent.stderr.splitlines()) == 1
    source = EXAMPLE.read_text()
    assert len(source.splitlines()) <= 50 and "famix" not in source and "torch" not in source


def test_stripped_checkpoint_predicts_the_same_by_itself(shipped, pristine_run, predictor, tmp_path):
    file = shutil.copy(shipped / "model_final_stripped.pth", tmp_path / "street.pth")
    alone, image = Predictor.from_checkpoint(file, device="cpu"), make_photo()
    np.testing.assert_array_equal(alone(image).scores, predictor(image).scores)
    assert alone.classes == predictor.classes
    cfg = load_model(file, opts=["INPUT.FORMAT", "BGR"], device="cpu").cfg
    assert cfg.INPUT.FORMAT == "BGR" and cfg.STYLE_MINING.STYLES
    content = torch.load(file, weights_only=True)
    assert content.keys() == {"model", "iteration", "inference"} and content["iteration"] == 3
    paths = ("MODEL.CLIP.WEIGHTS", "MODEL.WEIGHTS", "MODEL.STYLE.BANK", "DATASETS.FILES")
    assert not any(content["inference"]["config"][key] for key in paths)
    assert str(pristine_run.parent) not in repr(content["inference"])


def test_stripping_drops_unused_weights_and_halves_matrices(run, tmp_path):
    content = torch.load(run / "model_final.pth", weights_only=True)
    content["model"]["backbone.attnpool.c_proj.weight"] = torch.zeros(16, 256)
    torch.save(content, run / "model_final.pth")
    output = ["--output", str(tmp_path / "a.pth"), "--half", "--sizes", "32x40"]
    assert main([str(run), "--format", "stripped", *output]) == 0
    stripped = torch.load(tmp_path / "a.pth", weights_only=True)["model"]
    assert not any("attnpool" in name for name in stripped)
    assert {value.dtype for value in stripped.values() if value.ndim > 1} == {torch.float16}
    assert {value.dtype for name, value in stripped.items() if name.endswith("running_var")} == {torch.float32}
    for name, value in load_model(tmp_path / "a.pth", device="cpu").model.state_dict().items():
        torch.testing.assert_close(value, content["model"][name], rtol=1e-3, atol=1e-3)


def test_damaged_stripped_checkpoints_are_refused(shipped, tmp_path):
    content = torch.load(shipped / "model_final_stripped.pth", weights_only=True)
    entry, classes = content["inference"], content["inference"]["classes"]
    broken = ({"colors": classes["colors"][1:]}, {"colors": [[0, 0, 256]] * 19}, {"things": [19]})
    entries = ["text", {}, {**entry, "config": []}, *({**entry, "classes": {**classes, **change}} for change in broken)]
    for damaged in entries:
        torch.save({**content, "inference": damaged}, tmp_path / "a.pth")
        with expect_error(WeightsError, key="Entry 'inference'", value=tmp_path / "a.pth", remedy="tools/export.py"):
            load_model(tmp_path / "a.pth", device="cpu")


def test_graph_expects_rgb_and_any_dtype():
    model, image = tiny_segmentor().eval(), make_image((40, 64))
    with torch.no_grad():
        torch.testing.assert_close(SemanticGraph(model, "BGR")(image.flip(1)), SemanticGraph(model, "RGB")(image))
        torch.testing.assert_close(SemanticGraph(model)(image.float()), SemanticGraph(model)(image))


def test_graph_refuses_other_networks():
    with expect_error(ConfigError, key="MODEL.META_ARCHITECTURE", value="Identity", remedy="stripped"):
        SemanticGraph(nn.Identity())


def constant(*scores):
    """A network with equal scores at every pixel."""
    return lambda images: torch.tensor(scores).reshape(1, -1, 1, 1).expand(len(images), -1, *images.shape[-2:])


def test_agreement_of_probabilities_and_labels():
    image = make_image((32, 40))
    same = compare(constant(1.0, 0.0), constant(2.0, 1.0), image)  # logits that differ by a constant
    assert same == (pytest.approx(0, abs=1e-7), 1.0)
    assert compare(constant(0.0, 0.0), constant(0.0, float(np.log(3))), image) == (pytest.approx(0.25), 0.0)
    require_agreement(*same, (32, 40), "a.onnx")
    for difference, equal in ((0.25, 1.0), (0.0, 0.5), (float("nan"), 1.0)):
        with expect_error(WeightsError, key="a.onnx", value="32 x 40", remedy="stripped"):
            require_agreement(difference, equal, (32, 40), "a.onnx")


def test_latency_is_measured_in_turns_after_a_warm_up(monkeypatch):
    clock, calls = [0.0], []

    def network(name, *seconds):
        def run(images):
            clock[0] += seconds[calls.count(name)]
            calls.append(name)

        return run

    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    networks = [network("a", 9.0, 0.5, 0.125, 0.25), network("b", 9.0, 1.0, 1.0, 2.0)]
    assert program.measure_latency(networks, make_image((32, 40)), runs=3) == [[500, 125, 250], [1000, 1000, 2000]]
    assert "".join(calls) == "abababab"


def test_export_that_disagrees_is_not_written(run, monkeypatch, capsys):
    monkeypatch.setattr(program, "export_graph", lambda graph, float_input: None)
    monkeypatch.setattr(program, "write_onnx", lambda program, part, *arguments, **facts: part.write_text("other"))
    monkeypatch.setattr(program, "load_onnx", lambda part, threads: constant(*map(float, range(19))))
    before = sorted(run.iterdir())
    assert main([str(run), "--format", "onnx", "--sizes", "32x40"]) == 2
    explains(capsys.readouterr().err, "model_final.onnx", "32 x 40", "stripped")
    assert sorted(run.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "key", "remedy"),
    [
        (["RUN/gone.pth", "--format", "stripped"], "RUN/gone.pth", "model_final.pth"),
        (["RUN", "--format", "stripped", "--output", "RUN/model_final.pth"], "--output", "another"),
        (["RUN", "--format", "onnx", "stripped", "--output", "a.onnx"], "--output", "folder"),
        (["RUN", "--format", "stripped", "--output", "RUN/config.yaml/a.pth"], "RUN/config.yaml", "another"),
    ],
)
def test_mistakes_end_with_one_line_and_status_2(run, capsys, arguments, key, remedy):
    words = [argument.replace("RUN", str(run)) for argument in arguments]
    explains(line_of_mistake(capsys, main, *words), key.replace("RUN", str(run)), remedy=remedy)


@pytest.mark.parametrize("word", ["64", "64x", "axb", "64x96x3"])
def test_malformed_sizes_are_refused(word, capsys):
    with pytest.raises(SystemExit):
        main(["run", "--format", "stripped", "--sizes", word])
    explains(capsys.readouterr().err, "argument --sizes", repr(word))


def test_onnx_requires_its_packages(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with expect_error(ConfigError, key="--format onnx", value="onnxscript", remedy="pip install"):
        require_onnx()


def test_benchmark_makes_a_run_with_random_weights(tmp_path):
    benchmark = load_benchmark("export")
    with forgotten_datasets():
        benchmark.make_run(benchmark.CONFIG, tmp_path)
        prediction = Predictor.from_checkpoint(tmp_path, device="cpu")(make_photo(96, 128))
    assert len(prediction.visible_classes()) > 1
