"""benchmarks/bench.py: how it measures and judges, and that its plain versions compute what the fast ones do."""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from data_factory import forgotten_datasets
from report_factory import tables
from run_factory import ROOT

MODULES = ("mining", "plain", "setting", "training")


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """The script and, as attributes, its modules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        script = importlib.import_module("bench")
        yield SimpleNamespace(script=script, **{name: importlib.import_module(f"speed.{name}") for name in MODULES})
    for name in ["bench", "speed", *(f"speed.{module}" for module in MODULES)]:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def setting(bench: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return bench.setting.Setting(bench.setting.SIZES["quick"], "cpu", 0, tmp_path_factory.mktemp("bench"))


def test_contenders_take_turns_and_the_least_counts(bench: Any) -> None:
    order: list[str] = []
    times = {"a": iter([1.0, 5.0, 3.0]), "b": iter([2.0, 7.0, 8.0])}

    def contender(name: str) -> Any:
        return lambda: order.append(name) or next(times[name])

    assert bench.setting.in_turns({name: contender(name) for name in "ab"}, rounds=2) == {"a": 3.0, "b": 7.0}
    assert order == ["a", "b"] * 3, "one round of them warms up"


def test_tables_judge_targets(bench: Any) -> None:
    row = bench.setting.Row
    rows = [
        row("step", 1.1, "limit", 1.0, target="fast", at_most=1.0),
        row("copy", 2.0, "limit", 8.0, unit="ms"),
        row("count", 100.0, "plain", 200.0, unit="", target="few", at_most=1.0),
    ]
    ((_, *cells),) = tables(bench.setting.format_table(rows))
    assert cells == [
        ["step", "1.100 s", "limit", "1.000 s", "1.100"],
        ["copy", "2.00 ms", "limit", "8.00 ms", "0.250"],
        ["count", "100", "plain", "200", "0.500"],
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
    for run in (lambda: step(step.model, batch), lambda: step.unfolded(batch), lambda: step(step.detectron2, batch)):
        run()
        gradients.append(parameter.grad.clone())
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-3, atol=1e-3 * float(gradients[0].abs().max()))


def test_quick_run_has_every_row(
    bench: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = tmp_path / "speed.md"
    monkeypatch.setattr(sys, "argv", ["bench.py", "--quick", "--report", str(report)])
    with forgotten_datasets():
        bench.script.main()
    text = report.read_text()
    assert text.strip() in capsys.readouterr().out
    for what in (
        "mining step, per style", "in bfloat16", "prompt in 80 sentences", "mining batch", "bank of grouped batches",
        "styles from a bank", "noise as styles", "SemanticSegmentor", "unfolded", "restyling alone",
        "evaluation, per image",
    ):  # fmt: skip
        assert what in text, what
    same = re.search(r"grouped batches.* (met|missed.*?) *\|$", text, flags=re.MULTILINE)
    assert same and same[1] == "met"
