"""benchmarks/bench.py: how it measures and judges, and that its plain versions compute what the fast ones do."""

import importlib
import re
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from data_factory import forgotten_datasets
from famix.engine import argument_parser, load_config
from open_clip_factory import tiny_open_clip
from report_factory import tables
from run_factory import ROOT

MODULES = ("evaluation", "growth", "memory", "mining", "plain", "processes", "profiles", "setting", "training")


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """The script and, as attributes, its modules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        script = importlib.import_module("bench")
        yield SimpleNamespace(script=script, **{name: importlib.import_module(f"speed.{name}") for name in MODULES})
    for name in ["bench", "gpu", "speed", *(f"speed.{module}" for module in MODULES)]:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def setting(bench: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return bench.setting.Setting(bench.setting.SIZES["quick"], "cpu", 0, tmp_path_factory.mktemp("bench"))


def test_contenders_take_turns(bench: Any) -> None:
    order: list[str] = []
    times = {"a": iter([1.0, 5.0, 3.0]), "b": iter([2.0, 7.0, 8.0])}

    def contender(name: str) -> Any:
        return lambda: order.append(name) or next(times[name])

    taken = bench.setting.in_turns({name: contender(name) for name in "ab"}, rounds=2)
    assert taken == {"a": [5.0, 3.0], "b": [7.0, 8.0]}
    assert order == ["a", "b"] * 3, "one round of them warms up"


def test_tables_judge_targets(bench: Any) -> None:
    row = bench.setting.Row
    rows = [
        row("step", [1.0, 1.1, 4.0], "limit", [1.0, 1.0, 2.0], target="fast", at_most=1.0),
        row("copy", [2.0], "limit", [8.0], unit="ms"),
        row("count", [100.0], "plain", [200.0], unit="", target="few", at_most=1.0),
    ]
    ((_, *cells),) = tables(bench.setting.format_table(rows))
    assert cells == [
        ["step", "1.100 s", "limit", "1.000 s", "1.100", "1.000 to 2.000", "3"],
        ["copy", "2.00 ms", "limit", "8.00 ms", "0.250", "", "1"],
        ["count", "100", "plain", "200", "0.500", "", "1"],
    ]
    ((_, *targets),) = tables(bench.setting.format_targets(rows))
    assert targets == [["fast", "1.1", "1", "missed by 10%"], ["few", "0.5", "1", "met"]]


def test_plain_network_is_the_same_map(bench: Any, setting: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    images, patches = (torch.randn(2, *shape, generator=generator) for shape in ((3, 96, 96), (32, 8, 8)))
    network = bench.mining.CLIPResNet.from_state_dict(setting.clip.state_dict(), trainable=())
    plain = bench.plain.plain_features(setting.clip, images)
    torch.testing.assert_close(plain, network.features_at("res2", images), rtol=1e-4, atol=1e-4)
    ours = bench.mining.encoder(setting)(patches)
    torch.testing.assert_close(bench.plain.plain_tail(setting.clip, patches), ours, rtol=1e-4, atol=1e-5)


def test_plain_layers_give_the_same_gradients(bench: Any, setting: Any) -> None:
    step = bench.training.TrainingStep(setting)
    for module in step.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    batch = setting.random_batch(2, 96)
    parameter = dict(step.model.named_parameters())[f"backbone.{setting.last_block}.conv3.weight"]
    step.optimizer = SimpleNamespace(zero_grad=step.model.zero_grad, step=lambda: None)
    gradients = []
    runs = (
        lambda: step(step.model, batch),
        lambda: step(step.detectron2, batch),
        lambda: step.with_channels_first().unfolded(batch),
    )
    for run in runs:
        run()
        gradients.append(parameter.grad.clone())
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-3, atol=1e-3 * float(gradients[0].abs().max()))


def test_plain_restyling_is_the_same_map(bench: Any) -> None:
    features, mean, std, alpha = torch.rand(4, 2, 3, 12, 18, generator=torch.Generator().manual_seed(1))
    labels = torch.randint(9, (2, 24, 36), generator=torch.Generator().manual_seed(2))
    grid = (2, 3)
    drawn, weights = (mean[..., :2, :3], std[..., :2, :3]), alpha[..., :1, :1]
    for rectify in (False, True):
        ours = bench.plain.restyler.restyle_patches(features, *drawn, weights, grid, rectify)
        torch.testing.assert_close(bench.plain.plain_restyle(features, *drawn, weights, grid, rectify), ours)
    classes = bench.plain.restyler.patch_classes(labels, grid, 255)
    assert torch.equal(bench.plain.plain_patch_classes(labels, grid, 255), classes)


def test_least_peaks_are_compared(bench: Any, setting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0.5 < bench.memory.step_peak(setting, False) / bench.memory.step_peak(setting, True) < 2
    peaks = {False: iter([3.0, 2.0]), True: iter([4.0, 5.0])}
    pool = SimpleNamespace(apply=lambda function, arguments: next(peaks[arguments[1]]))
    context = SimpleNamespace(Pool=lambda *args, **kwargs: nullcontext(pool))
    monkeypatch.setattr(bench.memory.multiprocessing, "get_context", lambda kind: context)
    (row,) = bench.memory.memory_rows(setting, processes=2)
    assert row.ratio == 0.5


def test_exponents_are_those_of_the_work(bench: Any) -> None:
    growth = bench.growth.Growth("step", "side", None, (2, 3, 4), power=2)
    cells = bench.growth.describe(growth, [(4.0, 1.0), (9.0, 1.0), (16.0, 1.0)])
    assert cells == ["1, 2.25, 4", "4.00, 9.00, 16.00", "1.00", "1.00, 1.00, 1.00", "0.00", "yes"]
    assert bench.growth.describe(growth, [(4.0, 1.0), (27.0, 1.0), (64.0, 1.0)])[-1] == "no"


def test_every_growth_can_be_measured(bench: Any, setting: Any) -> None:
    bench.growth.write_scenes(setting)
    threads = torch.get_num_threads()
    with forgotten_datasets():
        for growth in bench.growth.GROWTHS:
            seconds, _ = bench.growth.measure_size(setting, growth, growth.sizes[0])
            assert seconds > 0
    torch.set_num_threads(threads)


def test_processes_scale_as_measured(bench: Any) -> None:
    start, per_batch = bench.processes.line_through(lambda length: 3 + 0.5 * length)
    assert (start, per_batch) == (pytest.approx(3), pytest.approx(0.5))
    names = ("training, 8 images per batch", "training, 16 images per batch")
    found = {(name, processes): (3.0, 1.2 / processes) for name in names for processes in (1, 2)}
    text = bench.processes.scaling_table({**found, (names[1], 2): (3.0, 1.3)})
    ((_, *rows),) = tables(text)
    assert [row[-1] for row in rows] == ["1.00", "2.00", "1.00", "0.92"] and "1.08" in text


@pytest.mark.parametrize("work", ["train", "mine"])
def test_the_program_is_run_as_documented(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: str
) -> None:
    program = "import os, sys; print(os.environ['OMP_NUM_THREADS'], *sys.argv[1:], sep='\\n', file=open('words', 'w'))"
    (tmp_path / "train_net.py").write_text(program)
    monkeypatch.setattr(bench.processes, "PROJECT", tmp_path)
    monkeypatch.chdir(tmp_path)
    options = bench.processes.mine_options(3) if work == "mine" else bench.processes.train_options(16)(3)
    assert bench.processes.run_program(tmp_path, options, 2) > 0
    threads, *words = (tmp_path / "words").read_text().splitlines()
    arguments = argument_parser().parse_args(words)
    cfg = load_config(arguments.config_file, arguments.opts)
    assert (threads, arguments.num_gpus, arguments.mine_styles_only) == ("1", 2, work == "mine")
    assert (cfg.STYLE_MINING.MAX_BATCHES == 6) if work == "mine" else cfg.SOLVER.MAX_ITER == 3
    assert (8 if work == "mine" else 16) == cfg.SOLVER.IMS_PER_BATCH


def test_operations_are_grouped(bench: Any) -> None:
    calls = {"mm": (2, 1.0), "addmm": (1, 3.0), "copy_": (5, 0.5), "add": (1, 0.5), "convolution_backward": (1, 5.0)}
    items = bench.profiles.group(calls, {"mm": 10, "addmm": 30, "convolution_backward": 100})
    assert [(item.name, item.calls, item.seconds, item.flops) for item in items] == [
        ("convolutions, backward", 1, 5.0, 100), ("matrix products", 3, 4.0, 40), ("copy_", 5, 0.5, 0), ("add", 1, 0.5, 0),
    ]  # fmt: skip
    assert bench.profiles.shares(items) == (0.9, 0.05)
    ((_, *rows),) = tables(bench.profiles.format_items(items, peak=20.0))
    assert [row[3:] for row in rows][:3] == [
        ["50.0 %", "0", "100 %", "arithmetic"], ["40.0 %", "0", "50 %", "arithmetic"], ["5.0 %", "", "", "memory"],
    ]  # fmt: skip


def test_profiles_count_what_runs(bench: Any) -> None:
    image, weight = torch.randn(1, 3, 32, 32), torch.randn(8, 3, 3, 3)
    items = bench.profiles.profile_of(lambda: torch.nn.functional.conv2d(image, weight) @ torch.randn(30, 5))
    flops = {item.name: item.flops for item in items}
    assert flops["convolutions, forward"] == 2 * 8 * 30 * 30 * 27
    assert flops["matrix products"] == 2 * 8 * 30 * 30 * 5


def test_quick_run_has_every_row(
    bench: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = tmp_path / "speed.md"
    sections = ["mining", "training", "evaluation", "loading"]
    monkeypatch.setattr(sys, "argv", ["bench.py", "--quick", "--only", *sections, "--report", str(report)])
    with forgotten_datasets():
        bench.script.main()
    text = report.read_text()
    assert text.strip() in capsys.readouterr().out
    for what in (
        "mining step, per style", "in bfloat16", "prompt in 80 sentences", "mining batch", "bank of grouped batches",
        "styles from a bank", "noise as styles", "SemanticSegmentor", "unfolded", "restyling alone",
        "plain: loops over patches", "evaluation of an image, native", "evaluation of an image, slide1024", "ensemble",
        "decoded and augmented", "images per second",
    ):  # fmt: skip
        assert what in text, what
    same = re.search(r"grouped batches.* (met|missed.*?) *\|$", text, flags=re.MULTILINE)
    assert same and same[1] == "met"


def test_the_script_for_gpus_runs_on_a_cpu(
    bench: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = importlib.import_module("gpu")
    monkeypatch.setitem(script.NETWORKS, "ConvNeXt-L", tiny_open_clip("convnext", tmp_path).architecture)
    monkeypatch.setattr(script, "WARM_UP", 0)
    backends: list[str] = []
    monkeypatch.setattr(script, "compile_layers", lambda model, backend: backends.append(backend))
    sizes = ["--crop", "64", "--images", "2", "--steps", "1", "--backend", "aot_eager"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--quick", "--networks", "ConvNeXt-L", *sizes])
    with forgotten_datasets():
        script.main()
    text = capsys.readouterr().out
    (_, *steps), (_, *rows), _ = tables(text)
    assert [row[:2] for row in steps] == [["ConvNeXt-L", mode] for mode in script.MODES]
    assert backends == ["", "", "aot_eager", "", ""]
    assert steps[-1][-1] == "1.00" and all(float(row[3]) > 0 for row in steps)
    assert {"mining step, per style", "evaluation of an image, native"} <= {row[0] for row in rows}
    assert re.search(r"waits for images during \d+ %", text)
