import pytest
import torch
import torch.nn.functional as F

from error_matching import expect_error
from famix.engine import load_config
from famix.mining import MiningSettings, PromptTable
from famix.mining.miner import first_patches
from famix.style import optimize_styles
from famix.utils.errors import ConfigError

CROP = [[0, 1, 1], [255, 0, 2]]
OTHER_CROP = [[1, 1, 0], [0, 0, 0]]
NAMES = ("road", "sky", "car")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# Prompts


@pytest.fixture
def table():
    return PromptTable(NAMES, ("Foggy style", "Pop Art style"))


def test_prompts_are_numbered_class_by_class(table):
    styles = [f"{style} {name}" for name in NAMES for style in ("Foggy style", "Pop Art style")]
    assert table.prompts == [*styles, "photo"]
    assert table.texts(torch.tensor([6, 3])) == ["photo", "Pop Art style sky"]
    assert table.texts(torch.tensor([], dtype=torch.int64)) == []


def test_prompts_are_drawn_uniformly_and_independently():
    table, generator = PromptTable(NAMES, [f"style {i}" for i in range(4)]), seeded()
    draws = torch.stack([table.draw(torch.arange(3), generator) for _ in range(1000)])
    for class_id in range(3):
        ids, counts = draws[:, class_id].unique(return_counts=True)
        assert ids.tolist() == list(range(4 * class_id, 4 * class_id + 4))
        assert ((counts - 250.0) ** 2 / 250).sum() < 16.3  # the 0.999 quantile of chi-square, 3 degrees of freedom
    assert (draws[:, 0] % 4 != draws[:, 1] % 4).any()


def test_draw_does_not_depend_on_the_other_classes(table):
    everything = torch.tensor([0, 1, 2, 255])
    for seed in range(10):
        expected = table.draw(everything, seeded(seed))
        for some in ([0, 2], [1, 255], [2], [255], []):
            ids = torch.tensor(some, dtype=torch.int64)
            assert torch.equal(table.draw(ids, seeded(seed)), expected[torch.isin(everything, ids)])
    assert len({tuple(table.draw(everything, seeded(seed)).tolist()) for seed in range(30)}) == 8


@pytest.mark.parametrize("class_ids", [[0, 3], [254, 255]])
def test_draw_rejects_classes_without_a_name(table, class_ids):
    with expect_error(ConfigError, "Label ids", class_ids, "MODEL.SEM_SEG_HEAD.IGNORE_VALUE"):
        table.draw(torch.tensor(class_ids), seeded())


@pytest.mark.parametrize("styles", [[], "Foggy style", [""], ["Foggy style", 3]])
def test_prompt_table_rejects_styles_that_are_not_texts(styles):
    with expect_error(ConfigError, "STYLE_MINING.STYLES"):
        PromptTable(NAMES, styles)


# Settings


@pytest.mark.parametrize(
    ("key", "value"),
    [("DTYPE", "float16"), ("METRIC", "cosine"), ("STYLES", []), ("TEMPLATES", ["none"]), ("IMS_PER_BATCH", 0)]
    + [(key, -1) for key in ("STEPS", "LR", "MOMENTUM", "WEIGHT_DECAY", "POOL_SIZE", "SEED", "MAX_BATCHES")]
    + [("LR", float("nan"))],
)
def test_from_config_rejects_settings_out_of_range(key, value):
    cfg = load_config("")
    cfg.STYLE_MINING[key] = value
    with expect_error(ConfigError, f"STYLE_MINING.{key}", value[0] if key == "TEMPLATES" else value):
        MiningSettings.from_config(cfg)


# Patches


@pytest.mark.parametrize(
    ("batch", "grid", "size"), [(1, (1, 1), (4, 3)), (1, (3, 3), (8, 8)), (4, (2, 3), (6, 9)), (16, (3, 2), (7, 11))]
)
def test_first_patches_equal_plain_loop(batch, grid, size):
    """In the order of the recipe: by grid cell, then by image."""
    labels = torch.tensor([0, 3, 7, 18, 255])[torch.randint(5, (batch, *grid), generator=seeded())]
    features = torch.rand(batch, 5, *size)
    expected = {}
    for row, band in enumerate(features.tensor_split(grid[0], 2)):
        for col, patches in enumerate(band.tensor_split(grid[1], 3)):
            for patch, label in zip(patches, labels[:, row, col].tolist(), strict=True):
                expected.setdefault(label, patch[:, : size[0] // grid[0], : size[1] // grid[1]])
    class_ids, patches = first_patches(features, labels)
    assert class_ids.tolist() == sorted(expected)
    assert torch.equal(patches, torch.stack([expected[class_id] for class_id in sorted(expected)]))


# Mining


def test_mine_batch_equals_the_recipe(make_miner, make_samples, clip):
    miner, samples = make_miner(steps=3, lr=0.5), make_samples(CROP, OTHER_CROP)
    mined = miner.mine_batch(7, samples)
    images = torch.stack([sample["image"] for sample in samples]).float()
    images = (images - torch.tensor([120.0, 115, 100]).view(3, 1, 1)) / torch.tensor([60.0, 60, 70]).view(3, 1, 1)
    with torch.no_grad():
        features = clip(images)["res2"]
    assert features.shape[-2:] == (16, 24)
    # Classes 0, 1, 2 and 255: each patch has 8 x 8 cells.
    patches = torch.stack(
        [features[0, :, :8, :8], features[1, :, :8, :8], features[0, :, 8:, 16:], features[0, :, 8:, :8]]
    )
    texts = miner.prompts.texts(mined.prompt_ids)
    assert [text.split()[-1] for text in texts] == ["road", "sky", "car", "photo"]
    styles = optimize_styles(
        patches,
        miner.encode_prompts(texts),
        lambda x: clip.encode_from("res2", F.interpolate(x, (16, 16))),
        steps=3,
        lr=0.5,
        momentum=0.9,
        weight_decay=1e-4,
    )
    torch.testing.assert_close(mined.mean, styles.mean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mined.std, styles.std, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mined.initial_loss, styles.style_losses[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(mined.final_loss, styles.style_losses[-1], atol=1e-5, rtol=1e-4)


def test_larger_patches_are_average_pooled(make_miner, make_samples, clip):
    """Each of the 16 x 16 cells that CLIP sees is the mean of 2 x 3 cells of the patch."""
    samples = make_samples([[0]], size=(128, 192))
    miner = make_miner(steps=0, grid=(1, 1), pixel_mean=(0.0,) * 3, pixel_std=(50.0,) * 3)
    mined = miner.mine_batch(0, samples)
    with torch.no_grad():
        patch = clip.features_at("res2", (samples[0]["image"] / 50)[None])
        assert patch.shape[-2:] == (32, 48)
        image = clip.encode_from("res2", patch.unflatten(2, (16, 2)).unflatten(4, (16, 3)).mean((3, 5)))
    text = miner.encode_prompts(miner.prompts.texts(mined.prompt_ids))
    torch.testing.assert_close(mined.final_loss, 1 - torch.cosine_similarity(image, text), atol=1e-5, rtol=0)


@pytest.mark.parametrize("stage", ["res2", "res3", "res4"])
@pytest.mark.parametrize("size", [(64, 96), (80, 76)])
def test_styles_approach_their_prompts(make_miner, make_samples, stage, size):
    mined = make_miner(steps=6, lr=2.0, stage=stage).mine_batch(0, make_samples(CROP, OTHER_CROP, size=size))
    assert (mined.final_loss < mined.initial_loss).all()
    assert mined.mean.shape[1] == {"res2": 32, "res3": 64, "res4": 128}[stage]


def test_batch_depends_on_number_samples_and_seed_alone(make_miner, make_samples):
    miner, samples = make_miner(), make_samples(CROP, seed=3)
    miner.mine_batch(0, make_samples(OTHER_CROP))
    torch.manual_seed(123)
    after_others, alone = miner.mine_batch(5, samples), make_miner().mine_batch(5, samples)
    assert all(torch.equal(getattr(alone, name), getattr(after_others, name)) for name in ("mean", "std", "prompt_ids"))
    seeds = {tuple(make_miner(steps=0, seed=i).mine_batch(0, samples).prompt_ids.tolist()) for i in range(8)}
    numbers = {tuple(make_miner(steps=0).mine_batch(i, samples).prompt_ids.tolist()) for i in range(8)}
    assert len(seeds) > 3 and len(numbers) > 3


@pytest.mark.parametrize("basis", [None, torch.eye(64).roll(1, 0)], ids=["euclidean", "basis"])
def test_batches_mined_together_equal_those_mined_alone(make_miner, make_samples, basis):
    crops = [(CROP,), (CROP, OTHER_CROP), ([[1, 1, 1], [1, 1, 1]],), (OTHER_CROP,)]
    batches = [(index, make_samples(*crop, seed=index)) for index, crop in enumerate(crops)]
    miner = make_miner(steps=5, lr=2.0, weight_decay=0.01, basis=basis)
    together = miner.mine_batches(batches)
    assert [len(mined.class_ids) for mined in together] == [4, 4, 1, 2]
    for mined, batch in zip(together, batches, strict=True):
        alone = miner.mine_batch(*batch)
        assert mined.index == alone.index
        assert torch.equal(mined.class_ids, alone.class_ids) and torch.equal(mined.prompt_ids, alone.prompt_ids)
        for name in ("mean", "std", "initial_loss", "final_loss"):
            got, expected = getattr(mined, name), getattr(alone, name)
            assert ((got - expected).norm() / expected.norm()).item() < 1e-4, name
        assert ((alone.final_loss - alone.initial_loss) / alone.initial_loss).abs().max() > 0.01


def test_bfloat16_rounds_only_the_network(make_miner, make_samples):
    samples, steps = make_samples(CROP, OTHER_CROP), {"steps": 20, "lr": 4.0, "momentum": 0.0}
    exact = make_miner(**steps).mine_batch(0, samples)
    rounded = make_miner(**steps, dtype=torch.bfloat16).mine_batch(0, samples)
    assert rounded.mean.dtype == rounded.final_loss.dtype == torch.float32
    assert not torch.equal(rounded.mean, exact.mean)
    torch.testing.assert_close(rounded.final_loss, exact.final_loss, rtol=0.05, atol=0.02)
    unchanged = [make_miner(steps=0, dtype=dtype).mine_batch(0, samples) for dtype in (torch.float32, torch.bfloat16)]
    assert torch.equal(unchanged[0].mean, unchanged[1].mean) and torch.equal(unchanged[0].std, unchanged[1].std)


def test_other_ignore_labels_become_255(make_miner, make_samples):
    miner = make_miner(ignore_label=11)
    mined = miner.mine_batch(0, make_samples([[0, 11, 11], [0, 2, 1]]))
    assert mined.class_ids.tolist() == [0, 1, 2, 255]
    assert miner.prompts.texts(mined.prompt_ids)[-1] == "photo"


def test_rejects_pool_sizes_that_clip_does_not_accept(make_miner, make_samples):
    assert make_miner().pool_size == 16 and make_miner(stage="res3").pool_size == 8
    with expect_error(ConfigError, "cells", 4):
        make_miner(pool_size=32).mine_batch(0, make_samples(CROP))


def test_clip_is_frozen(make_miner, make_samples, clip):
    clip.train().requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in clip.state_dict().items()}
    make_miner().mine_batch(0, make_samples(CROP))
    assert all(torch.equal(tensor, before[name]) for name, tensor in clip.state_dict().items())
    assert not clip.training and not any(p.requires_grad or p.grad is not None for p in clip.parameters())
