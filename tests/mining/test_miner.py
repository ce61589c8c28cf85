import pytest
import torch

from famix.mining.miner import PatchPositions, first_patches, take_patches
from famix.style import optimize_styles
from famix.utils.errors import ConfigError

CROP = [[0, 1, 1], [255, 0, 2]]
OTHER_CROP = [[1, 1, 0], [0, 0, 0]]


def first_by_loop(patch_labels):
    """Class -> (image, row, col), in the recipe's order of patches."""
    found = {}
    batch, rows, cols = patch_labels.shape
    for row in range(rows):
        for col in range(cols):
            for image in range(batch):
                found.setdefault(patch_labels[image, row, col].item(), (image, row, col))
    return found


def as_dict(positions):
    columns = (positions.image, positions.row, positions.col)
    return dict(zip(positions.class_ids.tolist(), zip(*(c.tolist() for c in columns), strict=True), strict=True))


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 3), (4, 3, 3), (5, 2, 7), (16, 3, 3)])
def test_first_patches_equal_a_plain_loop(shape):
    labels = torch.tensor([0, 3, 7, 18, 255])[torch.randint(5, shape, generator=torch.Generator().manual_seed(0))]
    positions = first_patches(labels)
    assert as_dict(positions) == first_by_loop(labels)
    assert positions.class_ids.tolist() == sorted(as_dict(positions))


@pytest.mark.parametrize(("size", "grid"), [((6, 9), (2, 3)), ((7, 11), (3, 2)), ((8, 8), (3, 3)), ((4, 3), (4, 3))])
def test_take_patches_equals_slicing(size, grid):
    features = torch.rand(3, 5, *size)
    cells = torch.cartesian_prod(torch.arange(3), torch.arange(grid[0]), torch.arange(grid[1]))
    positions = PatchPositions(torch.arange(len(cells)), *cells.unbind(1))
    taken = take_patches(features, positions, grid)
    height, width = size[0] // grid[0], size[1] // grid[1]
    assert taken.shape == (len(cells), 5, height, width)
    for patch, (image, row, col) in zip(taken, cells.tolist(), strict=True):
        whole = features[image].tensor_split(grid[0], 1)[row].tensor_split(grid[1], 2)[col]
        assert torch.equal(patch, whole[:, :height, :width])


def test_prompts_are_those_of_the_classes(make_miner, make_samples):
    miner = make_miner(steps=0)
    for index in range(10):
        texts = miner.prompts.texts(miner.mine_batch(index, make_samples(CROP)).prompt_ids)
        assert [text.split()[-1] for text in texts] == ["road", "sky", "car", "photo"]


def test_equals_the_recipe_step_by_step(make_miner, make_samples, clip):
    """res2 of normalised pixels, the first patch of every class, its prompt, SGD through a pool to CLIP's own size."""
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
    styles = optimize_styles(
        patches,
        miner.encode_prompts(miner.prompts.texts(mined.prompt_ids)),
        lambda x: clip.encode_from("res2", torch.nn.functional.interpolate(x, (16, 16))),
        steps=3,
        lr=0.5,
        momentum=0.9,
        weight_decay=1e-4,
    )
    torch.testing.assert_close(mined.mean, styles.mean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mined.std, styles.std, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mined.initial_loss, styles.style_losses[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(mined.final_loss, styles.style_losses[-1], atol=1e-5, rtol=1e-4)


def test_larger_patches_are_averaged_to_clips_size(make_miner, make_samples, clip):
    """Each of the 16 x 16 cells that CLIP sees is the mean of 2 x 3 cells of the patch."""
    samples = make_samples([[0]], size=(128, 192))
    miner = make_miner(steps=0, grid=(1, 1))
    mined = miner.mine_batch(0, samples)
    with torch.no_grad():
        patch = clip.features_at("res2", ((samples[0]["image"] - miner.pixel_mean) / miner.pixel_std)[None])
        assert patch.shape[-2:] == (32, 48)
        image = clip.encode_from("res2", patch.unflatten(2, (16, 2)).unflatten(4, (16, 3)).mean((3, 5)))
    text = miner.encode_prompts(miner.prompts.texts(mined.prompt_ids))
    torch.testing.assert_close(mined.final_loss, 1 - torch.cosine_similarity(image, text), atol=1e-5, rtol=0)


@pytest.mark.parametrize("stage", ["res2", "res3", "res4"])
@pytest.mark.parametrize("size", [(64, 96), (80, 76)])
def test_every_style_comes_closer_to_its_prompt(make_miner, make_samples, stage, size):
    mined = make_miner(steps=6, lr=2.0, stage=stage).mine_batch(0, make_samples(CROP, OTHER_CROP, size=size))
    assert (mined.final_loss < mined.initial_loss).all()
    assert mined.mean.shape[1] == {"res2": 32, "res3": 64, "res4": 128}[stage]


def test_a_batch_depends_on_its_number_samples_and_seed_alone(make_miner, make_samples):
    miner, samples = make_miner(), make_samples(CROP, seed=3)
    for index in range(2):
        miner.mine_batch(index, make_samples(OTHER_CROP, seed=index))
    torch.manual_seed(123)
    after_others = miner.mine_batch(5, samples)
    alone = make_miner().mine_batch(5, samples)
    assert all(torch.equal(getattr(alone, name), getattr(after_others, name)) for name in ("mean", "std", "prompt_ids"))


@pytest.mark.parametrize("basis", [None, torch.eye(64).roll(1, 0)], ids=["euclidean", "basis"])
def test_batches_mined_together_are_those_mined_alone(make_miner, make_samples, basis):
    """Each style's gradient has the size that it has in its own batch, whatever the sizes of the others."""
    batches = [
        (index, make_samples(*crops, seed=index))
        for index, crops in enumerate([(CROP,), (CROP, OTHER_CROP), ([[1, 1, 1], [1, 1, 1]],), (OTHER_CROP,)])
    ]
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


def test_bfloat16_rounds_the_network_alone(make_miner, make_samples):
    """Styles are close to those of float32 and not the same; what they start from is the same."""
    samples, steps = make_samples(CROP, OTHER_CROP), {"steps": 20, "lr": 4.0, "momentum": 0.0}
    exact = make_miner(**steps).mine_batch(0, samples)
    rounded = make_miner(**steps, dtype=torch.bfloat16).mine_batch(0, samples)
    assert rounded.mean.dtype == rounded.final_loss.dtype == torch.float32
    assert not torch.equal(rounded.mean, exact.mean)
    torch.testing.assert_close(rounded.final_loss, exact.final_loss, rtol=0.05, atol=0.02)
    unchanged = [make_miner(steps=0, dtype=dtype).mine_batch(0, samples) for dtype in (torch.float32, torch.bfloat16)]
    assert torch.equal(unchanged[0].mean, unchanged[1].mean) and torch.equal(unchanged[0].std, unchanged[1].std)


@pytest.mark.parametrize("vary", ["seed", "index"])
def test_seed_and_number_decide_the_prompts(make_miner, make_samples, vary):
    samples = make_samples(CROP)
    drawn = {
        tuple(
            make_miner(steps=0, **({"seed": i} if vary == "seed" else {}))
            .mine_batch(i if vary == "index" else 0, samples)
            .prompt_ids.tolist()
        )
        for i in range(8)
    }
    assert len(drawn) > 3


def test_another_ignore_label_means_255_in_the_bank(make_miner, make_samples):
    miner = make_miner(ignore_label=11)
    mined = miner.mine_batch(0, make_samples([[0, 11, 11], [0, 2, 1]]))
    assert mined.class_ids.tolist() == [0, 1, 2, 255]
    assert miner.prompts.texts(mined.prompt_ids)[-1] == "photo"


def test_a_pool_that_the_attention_pool_cannot_take_is_refused(make_miner, make_samples):
    assert make_miner().pool_size == 16 and make_miner(stage="res3").pool_size == 8
    with pytest.raises(ConfigError, match="must have 4 cells"):
        make_miner(pool_size=32).mine_batch(0, make_samples(CROP))


def test_clip_stays_as_it_is(make_miner, make_samples, clip):
    clip.train().requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in clip.state_dict().items()}
    make_miner().mine_batch(0, make_samples(CROP))
    assert all(torch.equal(tensor, before[name]) for name, tensor in clip.state_dict().items())
    assert not clip.training and not any(p.requires_grad or p.grad is not None for p in clip.parameters())
