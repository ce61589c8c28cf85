"""Settings of styles and mining that cannot work are found before anything is loaded."""

from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

from data_factory import make_dataset, registered
from error_matching import expect_error
from famix.engine import check_config, load_config
from famix.utils.errors import ConfigError

BASE = Path(__file__).parents[2] / "projects/FAMix/configs/Base-FAMix.yaml"
TRAIN = Namespace(eval_only=False, mine_styles_only=False)

Make = Callable[..., CfgNode]


@pytest.fixture
def make_config(tmp_path: Path) -> Iterator[Make]:
    """A config that passes all checks, with changes."""

    def make(*opts: object) -> CfgNode:
        sound = ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path / "output")]
        sound += ["DATASETS.TRAIN", "('tiny_train',)", "DATASETS.TEST", "('tiny_val',)"]
        return load_config(str(BASE), [*sound, *map(str, opts)])

    with registered(make_dataset(tmp_path / "data", count=1)):
        yield make


def test_the_recipe_passes(make_config: Make) -> None:
    check_config(make_config(), TRAIN)


def test_mining_settings_are_checked_before_the_run(make_config: Make) -> None:
    with expect_error(ConfigError, "STYLE_MINING.STEPS", -1):
        check_config(make_config("STYLE_MINING.STEPS", -1), TRAIN)


@pytest.mark.parametrize(
    ("key", "value", "others"),
    [
        ("SOLVER.BASE_LR", "-0.1", ()), ("SOLVER.BASE_LR", "1e999", ()), ("SOLVER.MOMENTUM", "-0.5", ()),
        ("SOLVER.WEIGHT_DECAY", "-1e-4", ()), ("SOLVER.WEIGHT_DECAY_BIAS", "-1.0", ()),
        ("SOLVER.BACKBONE_LR_FACTOR", "1e999", ()), ("SOLVER.NESTEROV", "True", ("SOLVER.MOMENTUM", "0.0")),
        ("MODEL.PIXEL_STD", "[0.0, 1.0, 1.0]", ()), ("MODEL.PIXEL_MEAN", "[1.0, 2.0]", ()),
        ("MODEL.PIXEL_MEAN", "[1.0, 2.0, 1e999]", ()),
    ],
)  # fmt: skip
def test_numbers_that_no_training_can_use(make_config: Make, key: str, value: str, others: tuple[str, ...]) -> None:
    got = value.replace("1e999", "inf").replace("-1e-4", "-0.0001")
    with expect_error(ConfigError, key, got):
        check_config(make_config(key, value, *others), TRAIN)


PANOPTIC_DEEPLAB = (
    "MODEL.META_ARCHITECTURE",
    "FAMixPanopticDeepLab",
    "MODEL.SEM_SEG_HEAD.LOSS_TYPE",
    "hard_pixel_mining",
)


@pytest.mark.parametrize(
    ("key", "value", "others"),
    [
        ("MODEL.SEM_SEG_HEAD.NORM", "SyncBN", ()),
        ("MODEL.SEM_SEG_HEAD.NORM", "nnSyncBN", ()),
        ("MODEL.FPN.NORM", "SyncBN", ()),
        ("MODEL.INS_EMBED_HEAD.NORM", "SyncBN", PANOPTIC_DEEPLAB),
    ],
)
def test_synchronised_norms_need_gpus(
    key: str, value: str, others: tuple[str, ...], make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("famix.engine.config_checks.check_panoptic", lambda *_: None)
    cfg = make_config(key, value, *others)
    check_config(cfg, TRAIN)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with expect_error(ConfigError, key, value, "naiveSyncBN"):
        check_config(cfg, TRAIN)
    check_config(cfg, Namespace(eval_only=True, mine_styles_only=False))
    cfg.merge_from_list([key, "naiveSyncBN"])
    check_config(cfg, TRAIN)


@pytest.mark.parametrize("value", [-1, 0, 178_956_971])
def test_limits_on_pixels_that_cannot_be(make_config: Make, value: int) -> None:
    with expect_error(ConfigError, key="INPUT.MAX_PIXELS", value=value, remedy="default"):
        check_config(make_config("INPUT.MAX_PIXELS", value), TRAIN)


@pytest.mark.parametrize(
    ("options", "key", "value"),
    [
        (("MODEL.STYLE.STAGE", "res9"), "MODEL.STYLE.STAGE", "res9"),
        (("MODEL.STYLE.STRATEGY", "fog"), "MODEL.STYLE.STRATEGY", "fog"),
        (("MODEL.STYLE.BETA", "0.0"), "MODEL.STYLE.BETA", 0.0),
        (("STYLE_MINING.TEMPLATES", "['no place']"), "STYLE_MINING.TEMPLATES", None),
        (("STYLE_MINING.STYLES", "[]"), "STYLE_MINING.STYLES", None),
        (("MODEL.CLIP.WEIGHTS", "", "MODEL.CLIP.ARCHITECTURE", "RN5"), "MODEL.CLIP.ARCHITECTURE", "RN5"),
        (("SOLVER.IMS_PER_BATCH", "0"), "SOLVER.IMS_PER_BATCH", 0),
        (("SOLVER.MAX_ITER", "0"), "SOLVER.MAX_ITER", 0),
        (("SOLVER.MAX_ITER", "-5"), "SOLVER.MAX_ITER", -5),
        (("MODEL.META_ARCHITECTURE", "MySegmentor"), "MODEL.META_ARCHITECTURE", "MySegmentor"),
    ],
)
def test_settings_that_cannot_work(make_config: Make, options: tuple[str, ...], key: str, value: object) -> None:
    with expect_error(ConfigError, key, value):
        check_config(make_config(*options), TRAIN)


@pytest.mark.parametrize("what", ["eval_only", "mine_styles_only"])
def test_iterations_matter_to_a_training_alone(make_config: Make, what: str) -> None:
    check_config(make_config("SOLVER.MAX_ITER", "0"), Namespace(**{**vars(TRAIN), what: True}))


def test_folder_of_the_bank_that_cannot_be_written_to(make_config: Make, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with expect_error(ConfigError, "MODEL.STYLE.BANK", tmp_path / "file/banks", "another folder"):
        check_config(make_config("MODEL.STYLE.BANK", tmp_path / "file/banks/a.safetensors"), TRAIN)


def test_batch_that_the_processes_cannot_share(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    with expect_error(ConfigError, "SOLVER.IMS_PER_BATCH", 8, "3"):
        check_config(make_config(), TRAIN)


def test_devices_of_several_processes(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a GPU of its own; processes on the CPU may run beside GPUs."""
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_config(
        make_config("SOLVER.IMS_PER_BATCH", 8, "MODEL.CLIP.WEIGHTS", "", "MODEL.STYLE.STRATEGY", "none"), TRAIN
    )
    with expect_error(ConfigError, "MODEL.DEVICE", "cuda:1", "cuda"):
        check_config(make_config("MODEL.DEVICE", "cuda:1"), TRAIN)
