"""Training, mining and scoring stay finite for constant, unlabeled and small images and for single images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clip_factory import tiny_clip
from data_factory import data_config, make_dataset, registered, write_image, write_label
from error_matching import expect_error
from famix.clip import CLIPResNet
from famix.data import build_mining_batches, build_train_loader
from famix.engine import check_config, load_config
from famix.mining import MiningSettings, PromptTable, StyleMiner
from famix.modeling import FAMixSemanticSegmentor
from famix.style import StyleBank
from famix.utils.errors import ConfigError
from model_factory import NUM_CLASSES, make_batch, make_restyler, tiny_segmentor
from run_factory import CONFIG, Workspace

CHANNELS = 32  # of the tiny network's res2
IGNORE = 255


def styled_segmentor(strategy: str) -> FAMixSemanticSegmentor:
    restyler = make_restyler(strategy)
    if strategy == "bank":
        bank = StyleBank()
        mean, std = torch.rand(2, 3, CHANNELS, generator=torch.Generator().manual_seed(0))
        bank.add(torch.tensor([0, 1, IGNORE]), mean, std)
        restyler.use_bank(bank)
    restyler.reseed(0)
    return tiny_segmentor(restyler).train()


def step(model: FAMixSemanticSegmentor, batch: list[dict[str, Any]]) -> torch.Tensor:
    """Return the loss of a training step after checking that it, all gradients and all batch norms are finite."""
    loss = model(batch)["loss_sem_seg"]
    loss.backward()
    assert loss.isfinite()
    trained = [value for value in model.parameters() if value.requires_grad]
    assert trained and all(value.grad is not None and value.grad.isfinite().all() for value in trained)
    assert all(value.isfinite().all() for value in model.buffers())
    return loss


@pytest.mark.parametrize("value", [0, 128, 255])
@pytest.mark.parametrize("strategy", ["bank", "noise", "mixstyle"])
def test_constant_images_train(strategy: str, value: int) -> None:
    batch = make_batch((64, 96), (64, 96))
    for sample in batch:
        sample["image"].fill_(value)
    step(styled_segmentor(strategy), batch)


@pytest.mark.parametrize("strategy", ["bank", "noise", "mixstyle"])
def test_unlabeled_images_have_no_loss(strategy: str) -> None:
    batch = make_batch((64, 96), (64, 96))
    for sample in batch:
        sample["sem_seg"].fill_(IGNORE)
    assert step(styled_segmentor(strategy), batch) == 0


def test_an_unlabeled_patch_is_styled() -> None:
    batch = make_batch((64, 96), (64, 96))
    batch[0]["sem_seg"][:32, :32] = IGNORE
    assert step(styled_segmentor("bank"), batch) > 0


@pytest.mark.parametrize("strategy", ["bank", "noise", "mixstyle"])
def test_batches_of_one_image_train(strategy: str) -> None:
    assert step(styled_segmentor(strategy), make_batch((64, 96))) > 0


def test_padding_is_ignored() -> None:
    sizes = (64, 96), (40, 70)
    model = styled_segmentor("noise")
    batch = make_batch(*sizes)
    loss = step(model, batch)
    model.zero_grad()
    model.restyler.reseed(0)
    padded = make_batch(*sizes)
    padded[1]["sem_seg"] = torch.nn.functional.pad(padded[1]["sem_seg"], (0, 26, 0, 24), value=IGNORE)
    mean = model.pixel_mean.flatten().round().byte()  # padding comes after normalization: it is the mean color
    image = mean[:, None, None].expand(3, 64, 96).clone()
    image[:, :40, :70] = padded[1]["image"]
    padded[1]["image"] = image
    torch.testing.assert_close(loss, model(padded)["loss_sem_seg"], rtol=1e-3, atol=1e-4)


def test_images_smaller_than_the_crop_are_mined_and_trained(tmp_path: Path) -> None:
    file = make_dataset(tmp_path, count=4, size=(20, 30), folders=("train",))
    cfg = data_config(crop=(64, 96))
    with registered(file):
        batch = next(iter(build_train_loader(cfg)))
        _, mined = next(iter(build_mining_batches(cfg)))
    for sample in (*batch, *mined):
        assert sample["image"].shape == (3, 64, 96) and (sample["sem_seg"][20:] == IGNORE).all()
    for sample in batch:
        sample["sem_seg"][(sample["sem_seg"] >= NUM_CLASSES) & (sample["sem_seg"] != IGNORE)] = 0
    step(styled_segmentor("noise"), batch)
    styles = miner().mine_batch(0, mined)
    assert styles.mean.isfinite().all() and styles.std.isfinite().all()


def miner() -> StyleMiner:
    return StyleMiner(
        clip=CLIPResNet.from_state_dict(tiny_clip().state_dict()),
        prompts=PromptTable(tuple(f"class {number}" for number in range(19)), ("Foggy style",)),
        encode_prompts=lambda texts: torch.nn.functional.normalize(torch.ones(len(texts), 16), dim=1),
        settings=MiningSettings(
            pixel_mean=(120.0, 115.0, 100.0), pixel_std=(60.0, 60.0, 70.0), grid=(2, 3), steps=5
        ),
    )  # fmt: skip


@pytest.mark.parametrize("value", [0, 255])
def test_styles_of_constant_images_are_finite(value: int) -> None:
    samples = [
        {"image": torch.full((3, 64, 96), value, dtype=torch.uint8), "sem_seg": torch.zeros(64, 96, dtype=torch.int64)}
    ]
    mined = miner().mine_batch(0, samples)
    assert mined.class_ids.tolist() == [0]
    assert all(getattr(mined, name).isfinite().all() for name in ("mean", "std", "initial_loss", "final_loss"))


def test_unlabeled_images_give_unlabeled_styles() -> None:
    samples = [{"image": torch.randint(256, (3, 64, 96)).byte(), "sem_seg": torch.full((64, 96), IGNORE)}]
    mined = miner().mine_batch(0, samples)
    assert mined.class_ids.tolist() == [IGNORE] and mined.mean.isfinite().all()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace(tmp_path_factory.mktemp("numbers"))
    for split, index, value in (("train", 0, 0), ("train", 1, 255), ("val", 0, 7)):
        shape = (72, 112)
        write_image(made.folder / f"data/images/{split}/{index}.png", np.full((*shape, 3), value, dtype=np.uint8))
        write_label(made.folder / f"data/labels/{split}/{index}.png", np.full(shape, 9, dtype=np.uint8))  # ignore
    return made


def test_run_over_single_black_and_unlabeled_images(workspace: Workspace) -> None:
    options = ("SOLVER.IMS_PER_BATCH", "1", "STYLE_MINING.IMS_PER_BATCH", "1", "SOLVER.MAX_ITER", "3")
    results = workspace.run("one", *options)
    assert 0 <= results["tiny_night"]["sem_seg"]["mIoU"] <= 100
    weights = workspace.checkpoint("one")["model"]
    assert all(value.isfinite().all() for value in weights.values() if value.is_floating_point())


def test_large_batches_repeat_images(workspace: Workspace) -> None:
    options = ("SOLVER.IMS_PER_BATCH", "8", "SOLVER.MAX_ITER", "1", "MODEL.STYLE.STRATEGY", "noise")
    workspace.run("many", *options)
    assert workspace.checkpoint("many")["iteration"] == 0


@pytest.mark.parametrize(
    ("options", "value"),
    [
        (("INPUT.CROP.SIZE", "[17, 17]", "SOLVER.IMS_PER_BATCH", "1"), [1, 1]),
        (("INPUT.CROP.SIZE", "[16, 16]", "SOLVER.ACCUMULATE", "2"), [16, 16]),
        (("INPUT.CROP_RESIZED_TO", "[16, 16]", "SOLVER.IMS_PER_BATCH", "1"), [16, 16]),
        (("INPUT.CROP.SIZE", "[3, 300]"), [0, 18]),
    ],
)
def test_too_small_crops_are_rejected(workspace: Workspace, options: tuple[str, ...], value: list[int]) -> None:
    args = workspace.parse("small", *options)
    with workspace.registered(), expect_error(ConfigError, "INPUT.CROP", value, "[32, 32]"):
        check_config(load_config(str(CONFIG), args.opts), args)


def test_smallest_crop_trains(workspace: Workspace) -> None:
    options = ("INPUT.CROP.SIZE", "[15, 31]", "SOLVER.IMS_PER_BATCH", "1", "MODEL.STYLE.GRID", "[1, 1]")
    workspace.run("smallest", *options, "MODEL.STYLE.STRATEGY", "noise", "SOLVER.MAX_ITER", "1")
    assert workspace.checkpoint("smallest")["iteration"] == 0
