"""Picture styles: mined on the statistics of pixels, they train any backbone and suit other training loops."""

import pickle

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T

from data_factory import forgotten_datasets
from error_matching import expect_error
from famix import StyleBank
from famix.clip import IMAGE, CLIPImageTower, ImageStage, load_clip_state_dict
from famix.style import channel_mean_std
from famix.style.pictures import PictureStyleAugmentation, PictureStyles, PictureTransform
from famix.utils.errors import BankError, ConfigError
from famix_cli.bank import main
from model_factory import NUM_CLASSES, make_batch, make_restyler, tiny_segmentor
from open_clip_factory import tiny_open_clip
from run_factory import Workspace

PICTURES = ("MODEL.STYLE.STAGE", IMAGE, "MODEL.STYLE.GRID", "[1, 1]", "STYLE_MINING.LR", "1.0")


def make_bank(count=4, seed=0, **metadata):
    generator = torch.Generator().manual_seed(seed)
    bank = StyleBank({"stage": IMAGE, **metadata})
    mean, std = (torch.rand(count, 3, generator=generator) * size + 20 for size in (180, 60))
    bank.add(torch.arange(count) % NUM_CLASSES, mean, std)
    return bank


# Inside networks


def images_seen_by(model, batch, seed=0):
    """Return the images in pixel values that reach the backbone in training."""
    seen = []
    hook = model.backbone.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    model.train()
    if model.restyler is not None:
        model.restyler.reseed(seed)
    loss = model(batch)["loss_sem_seg"]
    hook.remove()
    (images,) = seen
    return images * model.pixel_std + model.pixel_mean, loss


def test_own_statistics_change_nothing():
    batch = make_batch((32, 48), (32, 48))
    plain, loss = images_seen_by(tiny_segmentor(), batch)
    for restyler in (make_restyler("bank", stage=IMAGE, probability=0.0), make_restyler("bank", stage=IMAGE)):
        restyler.use_bank(make_bank(1) if restyler.probability == 0 else StyleBank({"stage": IMAGE}))
        same, same_loss = images_seen_by(tiny_segmentor(restyler), batch)
        torch.testing.assert_close(same, plain, rtol=0, atol=255e-5)
        torch.testing.assert_close(same_loss, loss, rtol=1e-5, atol=0)


def test_network_sees_images_that_a_loop_restyles():
    batch = make_batch((32, 48), (32, 48), (32, 48))
    restyler = make_restyler("bank", (1, 1), stage=IMAGE, mix=False)
    restyler.use_bank(make_bank(2, seed=1))
    for x in batch:
        x["sem_seg"] = torch.full_like(x["sem_seg"], 1)
    model = tiny_segmentor(restyler)
    restyled, _ = images_seen_by(model, batch)
    mean, std = restyler.strategies[0].bank.mean[1], restyler.strategies[0].bank.std[1]
    assert not torch.equal(restyled[0], images_seen_by(tiny_segmentor(), batch)[0][0])
    for image, x in zip(restyled, batch, strict=True):
        pixels = x["image"].float()
        for channel in range(3):
            own = pixels[channel]
            expected = (own - own.mean()) / (own.var() + 1e-5).sqrt() * std[channel] + mean[channel]
            torch.testing.assert_close(image[channel], expected.clamp(0, 255), rtol=0, atol=2e-3)


def test_pixel_values_stay_in_range():
    bank = StyleBank({"stage": IMAGE})
    bank.add(torch.arange(NUM_CLASSES), torch.full((NUM_CLASSES, 3), 250.0), torch.full((NUM_CLASSES, 3), 200.0))
    restyler = make_restyler("bank", stage=IMAGE, mix=False)
    restyler.use_bank(bank)
    images, _ = images_seen_by(tiny_segmentor(restyler), make_batch((32, 48)))
    assert images.min() > -1e-3 and images.max() < 255 + 1e-3
    assert images.max() - images.min() > 200


def test_hook_is_removed_and_inference_has_no_styles():
    restyler = make_restyler("bank", stage=IMAGE)
    model, plain = tiny_segmentor(restyler), tiny_segmentor()
    with expect_error(ConfigError, "MODEL.STYLE.STRATEGY", "bank", "use_bank"):
        images_seen_by(model, make_batch((32, 48)))
    assert not model.backbone._forward_pre_hooks
    batch = make_batch((32, 48), labels=False)
    with torch.no_grad():
        assert torch.equal(model.eval()(batch)[0]["sem_seg"], plain.eval()(batch)[0]["sem_seg"])


def test_view_of_a_tower_embeds_pixel_values(clip_file):
    tower = CLIPImageTower.from_state_dict(load_clip_state_dict(clip_file), trainable=())
    view, side = ImageStage(tower), tower.input_resolution
    images = torch.randn(2, 3, side, side)
    pixels = view.features_at(IMAGE, images)
    expected = images * torch.tensor(tower.pixel_std).view(3, 1, 1) + torch.tensor(tower.pixel_mean).view(3, 1, 1)
    torch.testing.assert_close(pixels, expected)
    torch.testing.assert_close(view.encode_from(IMAGE, pixels), tower.encode_image(images), rtol=1e-4, atol=1e-5)
    assert not view.rectified and view.output_shape()[IMAGE].channels == 3


# Whole runs


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return Workspace(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def bank(workspace):
    """Bank of a run with the ResNet, of many steps."""
    workspace.run("resnet", *PICTURES, "STYLE_MINING.STEPS", "40", "SOLVER.MAX_ITER", "1")
    return StyleBank.load(workspace.folder / "resnet/style_bank.safetensors")


def test_mining_lowers_every_loss_and_keeps_deviations_positive(bank):
    assert bank.num_channels == 3 and bank.metadata["stage"] == IMAGE and bank.metadata["rectified"] == "false"
    initial, final = (bank.annotations[f"{name}_loss"] for name in ("initial", "final"))
    assert (final < initial).all() and (bank.std > 0).all()
    assert bank.mean.min() > -100 and bank.mean.max() < 355


FAMILIES = {
    "convnext": "['res2', 'res5']",
    "vit": "['p2', 'p4']",
    "eva02": "['p2', 'p4']",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_families_mine_and_train_with_picture_styles(workspace, family):
    tiny = tiny_open_clip(family, workspace.folder)
    workspace.run(
        family, *PICTURES, "MODEL.BACKBONE.NAME", "build_clip_backbone", "MODEL.CLIP.WEIGHTS", str(tiny.file),
        "MODEL.CLIP.ARCHITECTURE", tiny.architecture, "MODEL.CLIP.TRAINABLE", "[]", "MODEL.FPN.OUT_CHANNELS", "8",
        "MODEL.SEM_SEG_HEAD.IN_FEATURES", FAMILIES[family], "STYLE_MINING.STEPS", "2", "SOLVER.MAX_ITER", "1",
        flags=("--overwrite",),
    )  # fmt: skip
    assert (workspace.folder / family / "results.json").exists()


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "test_convnext"])
def test_backbones_without_text_train_with_styles_of_any_clip(workspace, bank, name):
    features = "['res2', 'res5']" if "convnext" in name else "['p2', 'p4']"
    options = (
        *PICTURES, "MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", name, "MODEL.CLIP.TRAINABLE", "[]",
        "MODEL.FPN.OUT_CHANNELS", "8", "MODEL.SEM_SEG_HEAD.IN_FEATURES", features, "STYLE_MINING.STEPS", "2",
        "SOLVER.MAX_ITER", "1",
    )  # fmt: skip
    if "convnext" in name:  # mined for this run, by the tiny CLIP
        workspace.run(name, *options)
        assert StyleBank.load(workspace.folder / name / "style_bank.safetensors").num_channels == 3
    else:  # the bank of a network with another backbone and other pixel statistics
        path = str(workspace.folder / "resnet/style_bank.safetensors")
        workspace.run(name, *options, "MODEL.STYLE.BANK", path, "MODEL.CLIP.WEIGHTS", "")
    assert (workspace.folder / name / "results.json").exists()


def test_bank_of_images_is_refused_for_features(workspace, bank):
    path = str(workspace.folder / "resnet/style_bank.safetensors")
    with expect_error(BankError, "stage", IMAGE, "MODEL.STYLE.STAGE"):
        workspace.run("other", "MODEL.STYLE.BANK", path, "MODEL.STYLE.GRID", "[1, 1]")


def test_bank_of_features_is_refused_for_images(workspace, bank):
    path = workspace.folder / "features.safetensors"
    features = StyleBank({**bank.metadata, "stage": "res2"})
    features.add(bank.class_ids, bank.mean, bank.std)
    features.save(path)
    with expect_error(BankError, "stage", "res2", "MODEL.STYLE.STAGE"):
        workspace.run("other", *PICTURES, "MODEL.STYLE.BANK", str(path))


def test_preview_shows_the_restyled_pictures(workspace, bank, monkeypatch, capsys):
    from PIL import Image

    output = workspace.folder / "preview"
    image = next((workspace.folder / "data").rglob("*.png"))
    config = workspace.folder / "resnet/config.yaml"
    with forgotten_datasets():
        main(["preview", "--config-file", str(config), "--image", str(image), "--output", str(output)])
    assert str(output / "pictures.png") in capsys.readouterr().out
    with Image.open(output / "pictures.png") as picture:
        assert np.asarray(picture.convert("RGB")).std() > 5


# Other training loops


def test_torch_transform_gives_an_image_the_statistics_of_a_style():
    bank = make_bank(1)
    image = torch.randint(90, 160, (3, 30, 40), dtype=torch.uint8)
    restyled = PictureStyles(bank, probability=1.0)(image)
    assert restyled.dtype == torch.uint8
    mean, std = (value.flatten() for value in channel_mean_std(restyled[None].float()))
    inside = (bank.mean[0] - 2 * bank.std[0] > 0) & (bank.mean[0] + 2 * bank.std[0] < 255)
    assert inside.any()
    torch.testing.assert_close(mean[inside], bank.mean[0][inside], rtol=0, atol=1.0)
    torch.testing.assert_close(std[inside], bank.std[0][inside], rtol=0, atol=1.0)


def test_draws_come_from_the_generator_and_cover_the_bank():
    bank, image = make_bank(3), torch.randint(256, (3, 8, 8), dtype=torch.uint8)

    def series(**options):
        styles = PictureStyles(bank, generator=torch.Generator().manual_seed(0), **options)
        return [styles(image) for _ in range(60)]

    assert all(map(torch.equal, series(), series()))
    half = series(probability=0.5)
    assert 15 < sum(one is image for one in half) < 45
    assert len({one.numpy().tobytes() for one in series(probability=1.0)}) == 3
    assert len({one.numpy().tobytes() for one in series(probability=1.0, beta=0.5)}) > 30, "mixed with its own"


def test_own_statistics_as_a_style_change_nothing():
    image = torch.randint(256, (3, 20, 30), dtype=torch.uint8)
    mean, std = (value.flatten()[None] for value in channel_mean_std(image[None].float()))
    bank = StyleBank({"stage": IMAGE})
    bank.add(torch.zeros(1, dtype=torch.int64), mean, std)
    for beta in (None, 0.1):
        assert torch.equal(PictureStyles(bank, probability=1.0, beta=beta)(image), image)
    float_image = image.float()
    torch.testing.assert_close(PictureStyles(bank, probability=1.0)(float_image), float_image, rtol=0, atol=255e-5)


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_augmentation_equals_the_torch_transform(image_format):
    bank = make_bank(4)
    image = torch.randint(256, (3, 20, 30), dtype=torch.uint8)
    step = 1 if image_format == "RGB" else -1
    array = image.permute(1, 2, 0).numpy()[..., ::step].copy()

    def styles():
        return PictureStyles(bank, probability=1.0, beta=0.5, generator=torch.Generator().manual_seed(3))

    inputs = T.AugInput(array, sem_seg=np.arange(600).reshape(20, 30))
    change = T.AugmentationList([PictureStyleAugmentation(styles(), image_format)])(inputs)
    expected = styles()(image).permute(1, 2, 0).numpy()[..., ::step]
    assert np.array_equal(inputs.image, expected) and not np.array_equal(inputs.image, array)
    assert np.array_equal(inputs.sem_seg, np.arange(600).reshape(20, 30))
    assert np.array_equal(change.apply_box(np.array([[1.0, 2, 3, 4]])), [[1.0, 2, 3, 4]])
    never = PictureStyleAugmentation(PictureStyles(bank, probability=0.0)).get_transform(array)
    assert isinstance(never, T.NoOpTransform)


def test_drawn_map_commutes_with_flips_and_crops():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    change = pickle.loads(pickle.dumps(PictureTransform([1.5, 0.5, 2.0], [-20.0, 90.0, -200.0])))
    for geometric in (T.HFlipTransform(30), T.CropTransform(3, 4, 11, 12)):
        one, other = (
            geometric.apply_image(change.apply_image(image)),
            change.apply_image(geometric.apply_image(image)),
        )
        assert np.array_equal(one, other)
    by_hand = np.clip(np.round(image[5, 6] * [1.5, 0.5, 2.0] + [-20.0, 90.0, -200.0]), 0, 255)
    assert np.array_equal(change.apply_image(image)[5, 6], by_hand.astype(np.uint8))


def test_mistakes_are_explained():
    features = StyleBank({"stage": "res2"})
    features.add(torch.zeros(1, dtype=torch.int64), torch.ones(1, 3), torch.ones(1, 3))
    for bank in (features, StyleBank()):
        with expect_error(BankError, "bank", len(bank), "MODEL.STYLE.STAGE"):
            PictureStyles(bank)
    with expect_error(ConfigError, key="probability", value=1.5, remedy="1"):
        PictureStyles(make_bank(), probability=1.5)
    with expect_error(ConfigError, key="beta", value=0.0, remedy="0.1"):
        PictureStyles(make_bank(), beta=0.0)
    for image, got in ((torch.zeros(2, 3, 8, 8), "(2, 3, 8, 8)"), (torch.zeros(1, 8, 8), "(1, 8, 8)"), ("x", "str")):
        with expect_error(ConfigError, "image", got, "one by one"):
            PictureStyles(make_bank(), probability=1.0)(image)
    with expect_error(ConfigError, key="image_format", value="YUV", remedy="INPUT.FORMAT"):
        PictureStyleAugmentation(PictureStyles(make_bank()), "YUV")


@pytest.mark.parametrize(
    "options",
    [
        {"bank": "bank.safetensors"},
        {"probability": "x"},
        {"probability": None},
        {"probability": float("nan")},
        {"beta": "x"},
        {"beta": float("inf")},
        {"generator": 3},
    ],
)
def test_arguments_of_a_wrong_type_are_explained(options):
    ((key, value),) = options.items()
    with expect_error(ConfigError, key, "str" if key == "bank" else value):
        PictureStyles(**{"bank": make_bank(), **options})


RAMP = torch.linspace(0, 1, 3 * 8 * 8).view(3, 8, 8)


@pytest.mark.parametrize(
    "image",
    [
        RAMP,  # 0-1
        RAMP.double(),
        (RAMP - 0.5) / 0.25,  # normalized
        RAMP * 255 * 255,
        RAMP * torch.nan,
        (RAMP * 127).to(torch.int8),
        RAMP > 0.5,
        RAMP + 0j,
        torch.zeros(3, 0, 8),
    ],
)
def test_images_outside_0_to_255_are_explained(image):
    with expect_error(ConfigError, "image"):
        PictureStyles(make_bank(), probability=1.0)(image)


@pytest.mark.parametrize(
    "image",
    [RAMP * 255, RAMP * 275 - 10, torch.zeros(3, 8, 8), (RAMP * 1.4).byte(), (RAMP * 255).to(torch.int16), 2 * RAMP],
)
def test_images_in_0_to_255_are_accepted(image):
    """Also floats that left the range when they were resized, and black or nearly black images."""
    changed = PictureStyles(make_bank(), probability=1.0)(image)
    assert changed.dtype == image.dtype and changed.min() >= 0 and changed.max() <= 255


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), object),
        torch.zeros(8, 8, 3), [[1, 2, 3]], RAMP.permute(1, 2, 0).numpy(),
    ],
)  # fmt: skip
def test_augmentation_explains_wrong_images(image):
    with expect_error(ConfigError, "image"):
        PictureStyleAugmentation(PictureStyles(make_bank(), probability=1.0)).get_transform(image)


def test_numbers_of_numpy_are_accepted():
    styles = PictureStyles(make_bank(), probability=np.float32(1), beta=np.float32(0.5))
    assert not torch.equal(styles(RAMP * 255), RAMP * 255)


def test_augmentation_needs_the_loaded_styles():
    with expect_error(ConfigError, "styles", "str", "PictureStyles.load"):
        PictureStyleAugmentation("bank.safetensors")


def test_strategies_without_a_bank_act_on_images_as_well():
    batch = make_batch(*[(32, 48)] * 4)
    for strategy in ("noise", "mixstyle"):
        images, _ = images_seen_by(tiny_segmentor(make_restyler(strategy, stage=IMAGE)), batch)
        assert not torch.equal(images, images_seen_by(tiny_segmentor(), batch)[0])
