"""Training with torch.compile: same losses and gradients, styles still applied, names unchanged."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from error_matching import expect_error
from famix.engine import Trainer, load_config, setup
from famix.modeling.compiling import check_compilation, compile_layers
from famix.utils.errors import ConfigError
from model_factory import make_batch, make_restyler, tiny_backbone, tiny_head, tiny_segmentor
from run_factory import Workspace

BACKEND = "aot_eager"  # traces forward and backward passes as inductor does, without a C++ compiler


@pytest.fixture(autouse=True)
def clean_caches() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def make_segmentor() -> Any:
    backbone = tiny_backbone(trainable=["layer4"])
    restyler = make_restyler("noise", probability=0.5)
    return tiny_segmentor(restyler, backbone=backbone, sem_seg_head=tiny_head(backbone)).train()


def step(model: Any, batch: list[dict[str, Any]], seed: int) -> tuple[dict[str, float], list[torch.Tensor]]:
    """Return the losses and gradients of a training step."""
    model.restyler.reseed(seed)
    model.zero_grad()
    losses = model(batch)
    losses["loss_sem_seg"].backward()
    gradients = [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]
    return {name: value.item() for name, value in losses.items()}, gradients


def compiled_parts(model: nn.Module) -> list[nn.Module]:
    return [part for part in model.modules() if part._compiled_call_impl is not None]


def test_steps_with_styles_are_the_same() -> None:
    model = make_segmentor()
    compiled, batch = copy.deepcopy(model), make_batch((64, 96), (64, 96))
    compile_layers(compiled, BACKEND)
    for seed in range(2):  # the second step runs the compiled code with other styles
        (expected, gradients), (losses, found) = step(model, batch, seed), step(compiled, batch, seed)
        assert losses == pytest.approx(expected, rel=1e-5)
        for one, other in zip(gradients, found, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4 * float(one.abs().max()))
    blocks = [block for stage in range(1, 5) for block in compiled.backbone.get_submodule(f"layer{stage}")]
    assert compiled_parts(compiled) == [*blocks, *compiled.sem_seg_head.children()]
    assert compiled.state_dict().keys() == model.state_dict().keys()


def test_the_key_compiles_the_network_of_a_training(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    with workspace.registered():
        cfg = setup(workspace.parse("run", "MODEL.STYLE.STRATEGY", "none", "MODEL.COMPILE", BACKEND))
        model = Trainer(cfg).model
    assert set(model.sem_seg_head.children()) <= set(compiled_parts(model))
    assert model.backbone.compile_backend == BACKEND


def test_nothing_is_compiled_by_default() -> None:
    model = make_segmentor()
    compile_layers(model, load_config("").MODEL.COMPILE)
    model(make_batch((64, 96), (64, 96)))
    assert not compiled_parts(model)


@pytest.mark.parametrize(
    ("backend", "path", "value"), [("fastest", "/usr/bin", "'fastest'"), ("inductor", "/nowhere", "'inductor'")]
)
def test_backend_must_be_usable(backend: str, path: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = load_config("", ["MODEL.COMPILE", backend])
    monkeypatch.setenv("PATH", path)
    monkeypatch.delenv("CXX", raising=False)
    with expect_error(ConfigError, "MODEL.COMPILE", value, "''"):
        check_compilation(cfg)
