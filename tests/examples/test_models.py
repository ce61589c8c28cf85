"""The examples of a CLIP family, a head and a meta-architecture train and predict."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY

from clip_factory import tiny_clip
from famix import Predictor, StyleBank, load_clip_state_dict
from famix.clip import CLIP_FAMILY_REGISTRY, CLIPImageTower, PromptEncoder
from famix.style import restyle_patches
from famix.style.statistics import patch_mean_std
from run_factory import Workspace, load_tool

ITERATIONS = ("SOLVER.MAX_ITER", "2")


@pytest.fixture(scope="module", autouse=True)
def clip_family() -> Iterator[ModuleType]:
    """Module of the family; the classes of all examples are registered during the tests of this file."""
    module, *_ = (load_tool(name, "examples/extending") for name in ("clip_family", "head", "meta_architecture"))
    yield module
    del CLIP_FAMILY_REGISTRY._obj_map["TwoStageCLIP"]
    del SEM_SEG_HEADS_REGISTRY._obj_map["LinearHead"]
    del META_ARCH_REGISTRY._obj_map["PresenceSegmentor"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def two_stage(workspace: Workspace, clip_family: ModuleType) -> Path:
    """File of the example's image tower with random weights and the text tower of a tiny CLIP."""
    torch.manual_seed(0)
    tower = clip_family.TwoStageCLIP(clip_family.Sizes(width=8, embed_dim=16))
    visual = {f"visual.{name}": value for name, value in tower.state_dict().items()}
    text = {name: value for name, value in tiny_clip().state_dict().items() if not name.startswith("visual.")}
    torch.save({**visual, **text}, workspace.folder / "two_stage.pt")
    return workspace.folder / "two_stage.pt"


def test_family_fulfills_the_contract(two_stage: Path) -> None:
    weights = load_clip_state_dict(str(two_stage))
    assert str(weights.text_design) == "gelu and a causal mask"
    assert PromptEncoder(weights)(["road"]).shape == (1, 16)
    tower = CLIPImageTower.from_state_dict(weights)
    assert type(tower).__name__ == "TwoStageCLIP" and tower.input_side("stage1") is None
    images = torch.randn(2, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    features = tower(images)
    assert {name: tuple(value.shape) for name, value in features.items()} == {
        name: (2, shape.channels, 40 // shape.stride, 56 // shape.stride)
        for name, shape in tower.output_shape().items()
    }
    for stage in tower.stages:
        assert torch.equal(tower.features_at(stage, images), features[stage])
        torch.testing.assert_close(tower.encode_from(stage, features[stage]), tower.encode_image(images))
    signed = features["stage1"]
    own = patch_mean_std(signed, (2, 2))
    assert signed.min() < -0.1
    kept = restyle_patches(signed, own.mean, own.std, 0.0, (2, 2), rectify=tower.rectified)
    torch.testing.assert_close(kept, signed, rtol=0, atol=1e-5)


def test_family_is_mined_trained_and_loaded(two_stage: Path, workspace: Workspace) -> None:
    options = (
        "MODEL.BACKBONE.NAME", "build_clip_backbone", "MODEL.CLIP.WEIGHTS", str(two_stage),
        "MODEL.CLIP.TRAINABLE", "['stage2']", "MODEL.STYLE.STAGE", "stage1",
        "MODEL.SEM_SEG_HEAD.IN_FEATURES", "['stage1', 'stage2']", *ITERATIONS,
    )  # fmt: skip
    workspace.run("family", *options)
    bank = StyleBank.load(workspace.folder / "family/style_bank.safetensors")
    assert bank.num_channels == 8 and bank.metadata["stage"] == "stage1" and bank.mean.min() < 0
    trained = workspace.checkpoint("family")["model"]
    weights = torch.load(two_stage, weights_only=True)
    assert torch.equal(trained["backbone.stage1.weight"], weights["visual.stage1.weight"])
    assert not torch.equal(trained["backbone.stage2.weight"], weights["visual.stage2.weight"])
    two_stage.rename(two_stage.with_suffix(".moved"))
    image = torch.zeros(3, 50, 70, dtype=torch.uint8).movedim(0, -1).numpy()
    assert Predictor.from_checkpoint(workspace.folder / "family")(image).labels.shape == (50, 70)


@pytest.mark.parametrize(
    ("options", "trained"),
    [
        (("MODEL.SEM_SEG_HEAD.NAME", "LinearHead"), "sem_seg_head.classifiers.1.weight"),
        (("MODEL.META_ARCHITECTURE", "PresenceSegmentor"), "presence.weight"),
    ],
)
def test_head_and_meta_architecture_train_with_styles(
    options: tuple[str, ...], trained: str, workspace: Workspace
) -> None:
    weights = []
    for strategy in ("noise", "none"):
        results = workspace.run(
            strategy, *options, "MODEL.STYLE.STRATEGY", strategy, *ITERATIONS, flags=("--overwrite",)
        )
        assert {"tiny_val", "tiny_night"} <= set(results)
        weights.append(workspace.checkpoint(strategy)["model"][trained])
    assert not torch.equal(*weights)
