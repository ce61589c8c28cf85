"""The command line, and the checks of a config before anything is loaded."""

import re
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.utils import comm

from data_factory import make_dataset, registered
from error_matching import expect_error, explains
from famix.data import FAMixDatasetMapper, get_dataset_dicts
from famix.engine import argument_parser, check_config, load_config, setup
from famix.engine.config_checks import check_source
from famix.utils.errors import ConfigError, DatasetError

BASE = Path(__file__).parents[2] / "projects/FAMix/configs/Base-FAMix.yaml"
MODES = ("--eval-only", "--mine-styles-only", "--resume")
EVAL, MINE = MODES[:2]

Make = Callable[..., CfgNode]


def parse(*words: str) -> Namespace:
    return argument_parser().parse_args(words)


TRAIN = parse()


@pytest.fixture(scope="module")
def definition(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"), count=2)


@pytest.fixture
def make_config(definition: Path, tmp_path: Path) -> Iterator[Make]:
    """A config that passes all checks, with changes."""

    def make(*opts: object) -> CfgNode:
        sound = ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path / "output")]
        sound += ["DATASETS.TRAIN", "('tiny_train',)", "DATASETS.TEST", "('tiny_val',)"]
        return load_config(str(BASE), [*sound, *map(str, opts)])

    with registered(definition):
        yield make


def test_arguments() -> None:
    args = parse("--config-file", "a.yaml", MINE, "--resume", "MODEL.DEVICE", "cpu")
    assert (args.config_file, args.mine_styles_only, args.resume, args.eval_only) == ("a.yaml", True, True, False)
    assert args.opts == ["MODEL.DEVICE", "cpu"] and not TRAIN.mine_styles_only


@pytest.mark.parametrize(
    ("words", "named"),
    [
        *(((one, other), (one, other)) for one, other in ((EVAL, MINE), *(("--overwrite", o) for o in MODES))),
        *(
            ((word, "cpu"), ("without dashes", f"Use {word[2:14]}"))
            for word in ("--MODEL.DEVICE", "--MODEL.DEVICE=cpu")
        ),
        (("--SEED", "1"), ("without dashes", "Use SEED")),
    ],
)
def test_invalid_options(words: tuple[str, ...], named: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(*words)
    last = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and all(option in last for option in named)


def test_valid_config_passes(make_config: Make) -> None:
    cfg, state = make_config(), torch.random.get_rng_state()
    for words in ((), (EVAL,), (MINE,)):
        check_config(cfg, parse(*words))
    assert list(Path(cfg.OUTPUT_DIR).iterdir()) == []
    assert torch.equal(torch.random.get_rng_state(), state), "building a model to check it must not change the run"


@pytest.mark.parametrize(
    ("key", "needed", "ignored"), [("DATASETS.TRAIN", ((), (MINE,)), EVAL), ("DATASETS.TEST", ((EVAL,),), MINE)]
)
def test_datasets_are_required_where_used(make_config: Make, key: str, needed: Any, ignored: str) -> None:
    unknown = make_config(key, "('cityscape_val',)")
    for words in needed:
        with expect_error(ConfigError, key, (), "famix_RN50.yaml"):
            check_config(make_config(key, "()"), parse(*words))
    for words in {*needed, ()}:
        with expect_error(DatasetError, "cityscape_val", remedy="cityscapes_val"):
            check_config(unknown, parse(*words))
    for cfg in (make_config(key, "()"), unknown):
        check_config(cfg, parse(ignored))


@pytest.mark.parametrize(
    ("opts", "value", "remedy"),
    [
        (("MODEL.SEM_SEG_HEAD.NAME", "CLIPDeepLabHead"), "CLIPDeepLabHead", "CLIPDeepLabV3PlusHead"),
        (("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 11), 11, "MODEL.SEM_SEG_HEAD.NUM_CLASSES to 19"),
        (("MODEL.BACKBONE.NAME", "build_clip"), "build_clip", "README.md"),
        (("MODEL.META_ARCHITECTURE", "MySegmentor"), "MySegmentor", ""),
        (("MODEL.CLIP.TRAINABLE", "['layer9']"), "layer9", ""),
        (("MODEL.CLIP.ARCHITECTURE", "RN5", "MODEL.CLIP.WEIGHTS", ""), "RN5", ""),
        (("MODEL.DEVICE", "gpu"), "gpu", "cpu"),
        (("MODEL.COMPILE", "fastest"), "fastest", "inductor"),
        (("MODEL.PIXEL_STD", "[0.0, 1.0, 1.0]"), "[0.0, 1.0, 1.0]", ""),
        (("MODEL.PIXEL_MEAN", "[1.0, 2.0]"), "[1.0, 2.0]", ""),
        (("MODEL.STYLE.GRID", "[999, 2]", "MODEL.STYLE.STRATEGY", "noise"), None, "INPUT.CROP.SIZE"),
        (("MODEL.STYLE.STAGE", "res9"), "res9", ""),
        (("MODEL.STYLE.STRATEGY", "bank", "MODEL.CLIP.WEIGHTS", ""), "bank", "MODEL.CLIP.WEIGHTS"),
        (("STYLE_MINING.DTYPE", "half", "MODEL.CLIP.WEIGHTS", "RN50"), "half", "bfloat16"),
        (("INPUT.FORMAT", "BGR"), "BGR", "RGB"),
        (("INPUT.MAX_PIXELS", 0), 0, ""),
        (("SOLVER.OPTIMIZER", "LION"), "LION", "SGD"),
        (("SOLVER.LR_SCHEDULER_NAME", "Poly"), "Poly", ""),
        (("SOLVER.ACCUMULATE", 3), 3, ""),
        (("SOLVER.MAX_SKIPPED_BATCHES", -1), -1, ""),
        *((("SOLVER.AMP.DTYPE", t, "SOLVER.AMP.ENABLED", True), t, "bfloat16") for t in ("float16", "float32", "half")),
        (("SOLVER.IMS_PER_BATCH", 0), 0, ""),
        (("SOLVER.MAX_ITER", 0), 0, ""),
        (("SOLVER.BASE_LR", -0.1), -0.1, ""),
        (("SOLVER.BASE_LR", "1e999"), "inf", ""),
        (("SOLVER.NESTEROV", True, "SOLVER.MOMENTUM", 0.0), True, ""),
        (("SOLVER.WEIGHT_DECAY_BIAS", -1.0), -1.0, ""),
        (("SOLVER.BACKBONE_LR_FACTOR", "1e999"), "inf", ""),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_invalid_settings(make_config: Make, opts: tuple[object, ...], value: object, remedy: str) -> None:
    with expect_error(ConfigError, str(opts[0]), value, remedy):
        check_config(make_config(*opts), TRAIN)


def test_ignored_label_must_match_datasets(make_config: Make) -> None:
    with expect_error(ConfigError, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 0, "MODEL.SEM_SEG_HEAD.IGNORE_VALUE to 255"):
        check_config(make_config("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 0), TRAIN)


def test_target_with_different_classes(make_config: Make, tmp_path: Path) -> None:
    classes = [{"name": name, "color": [i, i, i]} for i, name in enumerate(("road", "sky", "car"))]
    other = make_dataset(tmp_path / "other", count=1, name="other", classes=classes)
    with registered(other), expect_error(DatasetError, "tiny_train", "other_val"):
        check_config(make_config("DATASETS.TEST", "('other_val',)"), TRAIN)


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_no_gpu(make_config: Make, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with expect_error(ConfigError, "MODEL.DEVICE", device, "MODEL.DEVICE to cpu"):
        check_config(make_config("MODEL.DEVICE", device), TRAIN)


@pytest.mark.parametrize(("key", "value"), [("OUTPUT_DIR", "output"), ("MODEL.STYLE.BANK", "banks/a.safetensors")])
def test_unwritable_folder(make_config: Make, tmp_path: Path, key: str, value: str) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / value
    with expect_error(ConfigError, key, path.parent if path.suffix else path, "another"):
        check_config(make_config(key, path), TRAIN)


def test_training_requires_bank_or_clip(make_config: Make, tmp_path: Path) -> None:
    no_clip = ("MODEL.STYLE.STRATEGY", "bank", "MODEL.CLIP.WEIGHTS", "")
    check_config(make_config(*no_clip), parse(EVAL))
    (tmp_path / "bank.safetensors").touch()
    check_config(make_config(*no_clip, "MODEL.STYLE.BANK", tmp_path / "bank.safetensors"), TRAIN)
    for word in (EVAL, MINE):  # only training reads the number of iterations
        check_config(make_config("SOLVER.MAX_ITER", "0"), parse(word))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.SEM_SEG_HEAD.NORM", "SyncBN"),
        ("MODEL.SEM_SEG_HEAD.NORM", "nnSyncBN"),
        ("MODEL.FPN.NORM", "SyncBN"),
        ("MODEL.INS_EMBED_HEAD.NORM", "SyncBN"),
    ],
)
def test_synchronized_norms_require_gpus(
    key: str, value: str, make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("famix.engine.config_checks.check_panoptic", lambda *_: None)
    head = ("MODEL.META_ARCHITECTURE", "FAMixPanopticDeepLab", "MODEL.SEM_SEG_HEAD.LOSS_TYPE", "hard_pixel_mining")
    cfg = make_config(key, value, *(head if "INS_EMBED" in key else ()))
    check_config(cfg, TRAIN)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with expect_error(ConfigError, key, value, "naiveSyncBN"):
        check_config(cfg, TRAIN)
    check_config(cfg, parse(EVAL))
    cfg.merge_from_list([key, "naiveSyncBN"])
    check_config(cfg, TRAIN)


def test_several_processes_share_batch_and_have_own_gpus(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    with expect_error(ConfigError, "SOLVER.IMS_PER_BATCH", 8, "3"):
        check_config(make_config(), TRAIN)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_config(make_config(), TRAIN)  # on the CPU of a machine with GPUs
    with expect_error(ConfigError, "MODEL.DEVICE", "cuda:1", "cuda"):
        check_config(make_config("MODEL.DEVICE", "cuda:1"), TRAIN)


@pytest.mark.parametrize("crop", [[96, 64], [30, 60], [24, 32], [16, 16]])
@pytest.mark.parametrize("scales", [[1.0, 1.0], [0.5, 2.5]])
def test_padded_crops(
    make_config: Make, caplog: pytest.LogCaptureFixture, crop: list[int], scales: list[float]
) -> None:
    """Images of 24 x 32; the shares are those of the samples of the mapper, which pads with gray."""
    plain = "INPUT.RANDOM_FLIP", "none", "INPUT.COLOR_JITTER", [0, 0, 0], "STYLE_MINING.IMS_PER_BATCH", 2
    cfg = make_config("INPUT.CROP.SIZE", crop, "INPUT.SCALE_RANGE", scales, *plain)
    with caplog.at_level("WARNING", logger="famix"):
        check_source(cfg, TRAIN)
    cfg.INPUT.SCALE_RANGE = [sum(scales) / 2] * 2
    (image, *_) = get_dataset_dicts(cfg.DATASETS.TRAIN)
    shares = []
    for mining in (False, True):
        sample = FAMixDatasetMapper(cfg, is_mining=mining)(image, np.random.default_rng(0))
        rows, columns = (sample["image"] != 128).any(0).nonzero().max(0).values + 1
        shares.append(1 - float(rows * columns) / np.prod(crop))
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == (max(shares) > 0.5)
    if texts:
        found = [float(share) for share in re.findall(r"(\d+) %", texts[0])]
        assert found == pytest.approx([100 * share for share in shares], abs=1.5)  # the mapper rounds sizes
        assert "INPUT.CROP.SIZE" in texts[0] and str(crop) in texts[0] and "24 x 32" in texts[0]


def test_mining_batches_need_enough_images(make_config: Make, definition: Path, tmp_path: Path) -> None:
    cfg = make_config("STYLE_MINING.IMS_PER_BATCH", 3)
    for args in (TRAIN, parse(MINE)):
        with expect_error(ConfigError, "STYLE_MINING.IMS_PER_BATCH", "3", "2"):
            check_source(cfg, args)
    check_source(make_config("STYLE_MINING.IMS_PER_BATCH", 2), TRAIN)
    check_source(make_config("STYLE_MINING.IMS_PER_BATCH", 3, "MODEL.STYLE.STRATEGY", "noise"), TRAIN)
    words = ["DATASETS.FILES", f"['{definition}']", "STYLE_MINING.IMS_PER_BATCH", "3", "MODEL.DEVICE", "cpu"]
    words += ["DATASETS.TRAIN", "('tiny_train',)", "OUTPUT_DIR", str(tmp_path / "new"), "MODEL.CLIP.WEIGHTS", "RN50"]
    with expect_error(ConfigError, "STYLE_MINING.IMS_PER_BATCH", "3", "2"):
        setup(parse("--config-file", str(BASE), MINE, *words))  # before CLIP is downloaded and mining announced
    bank = tmp_path / "bank.safetensors"
    bank.touch()
    check_source(make_config("STYLE_MINING.IMS_PER_BATCH", 3, "MODEL.STYLE.BANK", bank), parse(MINE))


def test_setup(definition: Path, tmp_path: Path) -> None:
    config_file = tmp_path / "config.yaml"
    config_file.write_text(f"_BASE_: {BASE}\nSEED: -1\nMODEL: {{DEVICE: cpu, STYLE: {{STRATEGY: none}}}}")
    opts = ["DATASETS.FILES", f"['{definition}']", "DATASETS.TRAIN", "('tiny_train',)"]
    opts += ["DATASETS.TEST", "('tiny_val',)", "OUTPUT_DIR", str(tmp_path / "output")]
    with registered():
        cfg = setup(parse("--config-file", str(config_file), *opts))
    assert cfg.is_frozen() and cfg.DATASETS.TRAIN == ("tiny_train",)
    assert cfg.SEED >= 0, "a run without a seed draws one, which resuming requires"
    saved = load_config(str(tmp_path / "output/config.yaml"))
    assert yaml.safe_load(saved.dump()) == yaml.safe_load(cfg.dump()), "the saved config repeats the run"
    assert "Checked 4 image/label pairs" in (tmp_path / "output/log.txt").read_text()


@pytest.mark.parametrize(
    ("opts", "warned"),
    [
        ((), True),
        (("SOLVER.OPTIMIZER", "ADAMW"), True),
        (("SOLVER.OPTIMIZER", "ADAMW", "SOLVER.BASE_LR", "0.0001"), False),
    ],
)
def test_queries_with_the_rate_of_other_heads(
    opts: tuple[str, ...], warned: bool, definition: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["DATASETS.FILES", f"['{definition}']", "DATASETS.TRAIN", "('tiny_train',)", "DATASETS.TEST", "['tiny_val']"]
    queries = ["MODEL.META_ARCHITECTURE", "FAMixMaskFormer", "MODEL.CLIP.OUTPUT_STRIDE", "32", "MODEL.DEVICE", "cpu"]
    queries += ["STYLE_MINING.IMS_PER_BATCH", "2"]
    with registered():
        setup(parse("--config-file", str(BASE), *data, *queries, "OUTPUT_DIR", str(tmp_path / "output"), *opts))
    warnings = [line for line in capsys.readouterr().out.splitlines() if "diverges" in line]
    assert len(warnings) == warned
    for text in warnings:
        explains(text, "SOLVER.OPTIMIZER", remedy="ADAMW")
        explains(text, "SOLVER.BASE_LR", 0.1, "0.0001")
