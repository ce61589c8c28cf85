"""Memory of training: activations kept for the backward pass, checkpointing, and fused attention, for all families."""

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone.vit import SimpleFeaturePyramid
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from clip_factory import save_tiny_clip, tiny_clip
from famix.clip import CLIPImageTower, CLIPResNet, load_clip_state_dict
from famix.clip.adapters import add_adapters
from famix.engine import load_config
from model_factory import make_restyler
from open_clip_factory import CONFIGS, tiny_open_clip

FAMILIES = ("resnet", *CONFIGS)
LAST = {
    "resnet": "layer4",
    "convnext": "trunk.stages.3",
    "vit": "transformer.resblocks.2",
    "vit14": "transformer.resblocks.1",
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("open_clip")


def make_tower(family: str, folder: Path, trainable: tuple[str, ...], **kwargs: Any) -> CLIPImageTower:
    torch.manual_seed(0)
    if family == "resnet":
        return CLIPResNet.from_state_dict(tiny_clip((2, 1, 2, 3)).state_dict(), trainable=trainable, **kwargs).train()
    tiny = tiny_open_clip(family, folder)
    weights = load_clip_state_dict(str(tiny.file), tiny.architecture)
    return CLIPImageTower.from_state_dict(weights, trainable=trainable, **kwargs).train()


def last_part(family: str, tower: CLIPImageTower) -> str:
    return LAST.get(family) or f"trunk.blocks.{len(tower.stages) - 1}"


def images(seed: int = 0) -> Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(seed))


@contextmanager
def kept_tensors(module: nn.Module) -> Iterator[dict[int, int]]:
    """Collect the tensors that are saved for the backward pass, without weights: address of the memory -> bytes."""
    weights = {x.untyped_storage().data_ptr() for x in (*module.parameters(), *module.buffers())}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        memory = x.untyped_storage()
        if memory.data_ptr() not in weights:
            kept[memory.data_ptr()] = memory.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        yield kept


def kept_before(tower: CLIPImageTower, stage: str) -> tuple[int, int]:
    """Return how many tensors a forward pass keeps up to a stage, and in total."""
    found = []
    with kept_tensors(tower) as kept, tower.transform_stage(stage, lambda x: (found.append(len(kept)), x)[1]):
        features = tower(images())
    assert features.keys() == set(tower.stages)
    return found[0], len(kept)


# Activations in front of the first trained or restyled layer


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_layers_keep_no_activations(family: str, folder: Path) -> None:
    tower = make_tower(family, folder, ())
    assert kept_before(tower, tower.stages[-1]) == (0, 0)
    tower.freeze_except([last_part(family, tower)])
    before, total = kept_before(tower, tower.stages[-2])
    assert before == 0 < total


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_before_the_first_adapter_keep_no_activations(family: str, folder: Path) -> None:
    tower = make_tower(family, folder, ())
    add_adapters(tower, [f"{last_part(family, tower)}.*"], rank=2, alpha=2)
    before, total = kept_before(tower, tower.stages[-2])
    assert before == 0 < total


@pytest.mark.parametrize("strategy", ["noise", "mixstyle"])
@pytest.mark.parametrize("family", FAMILIES)
def test_restyled_features_of_frozen_layers_keep_no_activations(family: str, strategy: str, folder: Path) -> None:
    tower = make_tower(family, folder, ())
    restyler = make_restyler(strategy, grid=(2, 2), stage=tower.stages[0])
    with (
        kept_tensors(tower) as kept,
        tower.transform_stage(restyler.stage, lambda x: restyler(x, None, tower.rectified)),
    ):
        tower(images())
    assert not kept


# Activation checkpointing


def train_step(tower: CLIPImageTower, dtype: torch.dtype | None = None) -> tuple[Tensor, int]:
    """Return the loss of a step with drop path and a restyled stage, and the bytes kept for the backward pass."""
    torch.manual_seed(1)
    precision = torch.autocast("cpu", dtype) if dtype else nullcontext()
    restyler = make_restyler("noise", grid=(2, 2), stage=tower.stages[0])
    with (
        kept_tensors(tower) as kept, precision,
        tower.transform_stage(restyler.stage, lambda x: restyler(x, None, tower.rectified)),
    ):  # fmt: skip
        loss = tower(images())[tower.stages[-1]].float().square().mean()
    loss.backward()
    return loss.detach(), sum(kept.values())


@pytest.mark.parametrize("mode", ["all", "adapters"])
@pytest.mark.parametrize(
    ("family", "dtype"), [*((name, None) for name in FAMILIES), *((name, torch.bfloat16) for name in LAST)]
)
def test_checkpointing_saves_memory_without_changing_a_step(
    family: str, dtype: torch.dtype | None, mode: str, folder: Path
) -> None:
    tower = make_tower(family, folder, ("all",) if mode == "all" else (), output_stride=16, with_embedding=False)
    if mode == "adapters":
        add_adapters(tower, ["layer*.conv1.weight", "*attn*", "*mlp*"], rank=2, alpha=2)
    checkpointed = copy.deepcopy(tower)
    checkpointed.checkpoint_activations = True
    (loss, memory), (same_loss, less_memory) = train_step(tower, dtype), train_step(checkpointed, dtype)
    assert torch.equal(loss, same_loss)
    assert 0 < less_memory < 0.7 * memory
    for (name, own), other in zip(tower.named_parameters(), checkpointed.parameters(), strict=True):
        assert (own.grad is None) == (other.grad is None)
        assert own.grad is None or torch.equal(own.grad, other.grad), name
    for (name, own), other in zip(tower.named_buffers(), checkpointed.buffers(), strict=True):
        assert torch.equal(own, other), name  # running statistics are updated once


def config(backbone: str, folder: Path) -> CfgNode:
    cfg = load_config("")
    cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.FPN.OUT_CHANNELS = ["res2", "res3", "res4", "res5"], 8
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.CLIP.TRAINABLE = backbone, ["all"]
    cfg.MODEL.CLIP.OUTPUT_STRIDE, cfg.MODEL.CLIP.WEIGHTS = 32, str(save_tiny_clip(folder / "clip.pt"))
    cfg.MODEL.TIMM.NAME = "test_vit"
    return cfg


@pytest.mark.parametrize("name", ["build_clip_backbone", "build_clip_resnet_fpn_backbone", "build_timm_backbone"])
def test_checkpointing_is_set_by_the_config(name: str, folder: Path) -> None:
    cfg, kept = config(name, folder), []
    for value in (False, True):
        cfg.MODEL.CLIP.CHECKPOINT_ACTIVATIONS = value
        backbone = build_backbone(cfg).train()
        with kept_tensors(backbone) as memory:
            backbone(images())
        kept.append(sum(memory.values()))
    assert kept[1] < 0.8 * kept[0]


def test_pyramids_free_the_maps_of_earlier_blocks(folder: Path) -> None:
    cfg = config("build_timm_backbone", folder)
    tower = build_backbone(cfg).bottom_up
    assert list(tower(images())) == [tower.stages[-1]]
    with tower.transform_stage("block1", lambda x: 0 * x):  # later blocks still see it
        restyled = tower(images())[tower.stages[-1]]
    assert not torch.equal(restyled, tower(images())[tower.stages[-1]])


def test_pyramid_computes_that_of_detectron2(folder: Path) -> None:
    pyramid: Any = build_backbone(config("build_timm_backbone", folder))
    theirs = SimpleFeaturePyramid(pyramid.bottom_up, pyramid.bottom_up.stages[-1], 8, (4.0, 2.0, 1.0, 0.5))
    varied = {
        name: x + 0.1 * torch.randn_like(x) if ".norm." in name else x for name, x in pyramid.state_dict().items()
    }
    for one in (pyramid, theirs):
        one.load_state_dict(varied)
    got, expected = pyramid(images()), theirs(images())
    for name in got:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-5)


# Attention


class CountCalls(TorchDispatchMode):
    """Counts the calls of each operator."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def calls_in(function: Callable[[], Tensor]) -> Counter[str]:
    with CountCalls() as counter:
        function().sum().backward()
    return counter.calls


@pytest.mark.parametrize("mode", ["all", "adapters", "checkpointing"])
@pytest.mark.parametrize("family", [name for name in CONFIGS if name != "convnext"])
def test_attention_is_fused_in_training(family: str, mode: str, folder: Path) -> None:
    tower = make_tower(family, folder, () if mode == "adapters" else ("all",), with_embedding=False)
    tower.checkpoint_activations = mode == "checkpointing"
    if mode == "adapters":
        add_adapters(tower, ["*attn*", "*mlp*"], rank=2, alpha=2)
    calls = calls_in(lambda: tower(images())[tower.stages[-1]])
    forward = sum(count for name, count in calls.items() if "scaled_dot_product" in name and "backward" not in name)
    backward = sum(count for name, count in calls.items() if "scaled_dot_product" in name and "backward" in name)
    assert (forward, backward) == (len(tower.stages) * (1 + (mode == "checkpointing")), len(tower.stages))
    assert not calls["_softmax"] and not calls["bmm"]


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_of_embeddings_is_fused_in_mining(family: str, folder: Path) -> None:
    tower = make_tower(family, folder, ()).eval()
    with torch.no_grad():
        features = tower.features_at(tower.stages[0], torch.randn(1, 3, *[tower.input_resolution] * 2))
    styled = (features + 0).requires_grad_()
    calls = calls_in(lambda: tower.encode_from(tower.stages[0], tower.replace_map(features, styled)))
    assert not calls["_softmax"] and not calls["bmm"]
    assert styled.grad is not None and styled.grad.abs().max() > 0
