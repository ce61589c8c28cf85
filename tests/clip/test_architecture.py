import pytest
import torch

from clip_factory import tiny_clip
from error_matching import expect_error
from famix.clip import CLIPArchitecture, CLIPResNet, clip_weights_hash
from famix.clip.export import random_clip
from famix.utils.errors import ConfigError


def test_architecture_is_read_from_shapes():
    model = tiny_clip(layers=(1, 2, 3, 1), width=12, resolution=96, embed_dim=24)
    architecture = CLIPArchitecture.from_state_dict(model.state_dict())
    assert architecture == CLIPArchitecture((1, 2, 3, 1), width=12, embed_dim=24, input_resolution=96)
    assert architecture.heads == model.visual.attnpool.num_heads


def test_random_weights_follow_the_seed_alone():
    architecture = CLIPArchitecture((1, 1, 1, 1), 8, 16, 64)
    state = torch.get_rng_state()
    first, second, third = (
        clip_weights_hash(random_clip(architecture, seed=seed, random_norms=True).state_dict()) for seed in (1, 1, 2)
    )
    assert first == second != third
    assert torch.equal(torch.get_rng_state(), state)
    got = random_clip(architecture).state_dict()
    assert got["ln_final.weight"].shape == (64,) and CLIPArchitecture.from_state_dict(got) == architecture


def test_calibrated_norms_keep_features_from_fading():
    architecture = CLIPArchitecture((1, 1, 1, 1), 8, 16, 64)
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    spread = []
    for calibrated in (False, True):
        backbone = CLIPResNet.from_state_dict(
            random_clip(architecture, calibrated_norms=calibrated).state_dict(), with_embedding=False
        ).eval()
        spread.append(backbone(images)["res5"].std())
        assert all(m.momentum == 0.1 for m in backbone.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert spread[0] < 0.01 < 0.1 < spread[1]


def test_residual_branches_count_with_random_norms():
    architecture = CLIPArchitecture((1, 1, 1, 1), 8, 16, 64)
    for random_norms in (False, True):
        weights = random_clip(architecture, random_norms=random_norms).state_dict()
        assert bool(weights["visual.layer1.0.bn3.weight"].any()) == random_norms


@pytest.mark.parametrize(
    ("sizes", "text_width"),
    [
        (((1, 1, 1), 8, 16, 64), None),
        (((1, 1, 1, 0), 8, 16, 64), None),
        (((1, 1, 1, 1), 7, 16, 64), None),
        (((1, 1, 1, 1), 8, 16, 60), None),
        (((1, 1, 1, 1), 8, 16, 64), 100),
    ],
)
def test_impossible_sizes(sizes, text_width):
    with expect_error(ConfigError, "CLIP", text_width, "sizes"):
        random_clip(CLIPArchitecture(*sizes), text_width=text_width)
