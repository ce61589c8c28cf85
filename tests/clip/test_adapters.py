"""Low-rank adapters on towers of all families."""

import copy
from pathlib import Path

import pytest
import torch

from clip_factory import tiny_clip
from error_matching import expect_error
from famix.clip import CLIPImageTower, CLIPResNet, load_clip_state_dict
from famix.clip.adapters import LowRank, add_adapters, merge_adapters
from famix.utils.errors import ConfigError
from open_clip_factory import CONFIGS, tiny_open_clip


@pytest.fixture(params=["resnet", *CONFIGS])
def tower(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CLIPImageTower:
    if request.param == "resnet":
        return CLIPResNet.from_state_dict(tiny_clip().state_dict(), trainable=())
    tiny = tiny_open_clip(request.param, Path(tmp_path_factory.getbasetemp()))
    return CLIPImageTower.from_state_dict(load_clip_state_dict(str(tiny.file), tiny.architecture), trainable=())


def patterns(tower: CLIPImageTower) -> list[str]:
    """Return patterns for 1x1 and larger convolutions, depthwise ones, linear layers and attention."""
    if isinstance(tower, CLIPResNet):
        return ["layer*.conv?.weight", "*.downsample.0.weight"]
    return ["*attn*", "*mlp*", "*.conv_dw.*", "*.downsample.*"]


def images() -> torch.Tensor:
    return torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def last_map(tower: CLIPImageTower) -> torch.Tensor:
    return tower(images())[tower.stages[-1]]


def randomize(tower: CLIPImageTower) -> None:
    for part in tower.modules():
        if isinstance(part, LowRank):
            torch.nn.init.normal_(part.up, std=0.1)


def test_adapters_start_at_zero_and_are_the_only_trained_parameters(tower):
    before = last_map(tower)
    names = add_adapters(tower, patterns(tower), rank=2, alpha=4)
    assert names
    torch.testing.assert_close(last_map(tower), before, rtol=1e-4, atol=1e-5)  # adapted layers are not folded
    last_map(tower).square().mean().backward()
    trained = [name for name, x in tower.named_parameters() if x.requires_grad]
    assert len(trained) == 2 * len(names) and all(".0." in name for name in trained)
    assert any(
        x.grad is not None and x.grad.abs().max() > 0 for name, x in tower.named_parameters() if name.endswith("up")
    )


def test_weights_follow_the_formula():
    linear = torch.nn.Sequential(torch.nn.Linear(3, 4))
    weight = linear[0].weight.detach().clone()
    assert add_adapters(linear, ["*"], rank=2, alpha=6) == ["0.weight"]
    (adapter,) = (part for part in linear.modules() if isinstance(part, LowRank))
    torch.nn.init.normal_(adapter.up)
    torch.testing.assert_close(linear[0].weight, weight + 3 * adapter.up @ adapter.down)


def test_names_of_the_backbone_stay_and_checkpoints_round_trip(tower):
    plain = copy.deepcopy(tower)
    names = add_adapters(tower, patterns(tower), rank=2, alpha=2)
    randomize(tower)
    state = tower.state_dict()
    assert set(state) - set(plain.state_dict()) == {
        f"adapters.{name}.{part}" for name in names for part in ("down", "up")
    }
    assert all(torch.equal(state[name], x) for name, x in plain.state_dict().items())
    other = copy.deepcopy(plain)
    add_adapters(other, patterns(tower), rank=2, alpha=2)
    assert not torch.equal(last_map(other), last_map(tower))
    other.load_state_dict(copy.deepcopy(state))
    assert torch.equal(last_map(other), last_map(tower))
    nested = torch.nn.ModuleDict({"backbone": tower})
    assert {f"backbone.{name}" for name in state} == set(nested.state_dict())
    nested.load_state_dict(nested.state_dict())


@torch.no_grad()
def test_merged_weights_give_the_same_maps_under_the_plain_names(tower):
    names = set(tower.state_dict())
    add_adapters(tower, patterns(tower), rank=2, alpha=2)
    randomize(tower)
    adapted = last_map(tower)
    merge_adapters(tower)
    assert not any(isinstance(part, LowRank) for part in tower.modules()) and set(tower.state_dict()) == names
    assert (last_map(tower) - adapted).abs().max() <= 1e-5 * adapted.abs().max()


@pytest.mark.parametrize(("choice", "rank", "alpha", "key", "value"), [
    (["*mpl*"], 2, 1, "MODEL.ADAPTERS.PATTERNS", ["*mpl*"]),
    (["*"], 0, 1, "MODEL.ADAPTERS.RANK", 0),
    (["*"], 1, 0, "MODEL.ADAPTERS.RANK", 0),
])  # fmt: skip
def test_invalid_settings_are_rejected(choice, rank, alpha, key, value):
    with expect_error(ConfigError, key, value):
        add_adapters(torch.nn.Linear(2, 2), choice, rank, alpha)
