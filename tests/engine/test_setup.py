"""The command line, and what is checked before any work is done: every mistake has its message."""

import logging
from pathlib import Path

import pytest
import torch
import yaml

from data_factory import make_dataset, registered
from error_matching import expect_error
from famix.engine import argument_parser, check_config, load_config, setup
from famix.utils.errors import ConfigError, DatasetError

BASE = Path(__file__).parents[2] / "projects/FAMix/configs/Base-FAMix.yaml"


@pytest.fixture(scope="module")
def definition(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data"), count=2)


@pytest.fixture
def make_config(definition, tmp_path):
    """A config that passes all checks, with changes."""

    def make(*opts):
        sound = ["MODEL.DEVICE", "cpu", "MODEL.STYLE.STRATEGY", "none", "OUTPUT_DIR", str(tmp_path / "output")]
        sound += ["DATASETS.TRAIN", "('tiny_train',)", "DATASETS.TEST", "('tiny_val',)"]
        return load_config(str(BASE), [*sound, *opts])

    with registered(definition):
        yield make


@pytest.fixture
def loggers():
    """Undo what the set-up does to log output, so that other tests see records again."""
    yield
    for name in ("detectron2", "fvcore", "famix"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.NOTSET)
        logger.propagate = True


def parse(*words):
    return argument_parser().parse_args(words)


# Command line


def test_arguments():
    args = parse("--config-file", "a.yaml", "--mine-styles-only", "--resume", "MODEL.DEVICE", "cpu")
    assert (args.config_file, args.mine_styles_only, args.resume, args.eval_only) == ("a.yaml", True, True, False)
    assert args.opts == ["MODEL.DEVICE", "cpu"]
    assert not parse().mine_styles_only


def test_help_shows_every_way_to_run():
    text = argument_parser().format_help()
    options = text[: text.index("Examples:")]
    for option in ("--config-file", "--mine-styles-only", "--eval-only", "--resume", "--num-gpus", "--dist-url"):
        assert option in options
    assert "mine the style bank" in options
    assert "train_net.py --config-file CONFIG --mine-styles-only" in text


# Checking it


def test_a_sound_config_passes_and_its_output_folder_exists(make_config):
    cfg = make_config()
    for words in ((), ("--eval-only",), ("--mine-styles-only",)):
        check_config(cfg, parse(*words))
    assert list(Path(cfg.OUTPUT_DIR).iterdir()) == []


def assert_refused(cfg, key, value, remedy, *words, error=ConfigError):
    with expect_error(error, key, value, remedy):
        check_config(cfg, parse(*words))


def test_a_source_is_needed_but_for_evaluation(make_config):
    cfg = make_config("DATASETS.TRAIN", "()")
    for words in ((), ("--mine-styles-only",)):
        assert_refused(cfg, "DATASETS.TRAIN", None, "source", "--config-file", str(BASE), *words)
    check_config(cfg, parse("--eval-only"))


def test_targets_are_needed_but_for_mining(make_config):
    cfg = make_config("DATASETS.TEST", "()")
    for words in ((), ("--eval-only",)):
        assert_refused(cfg, "DATASETS.TEST", None, "target", "--config-file", str(BASE), *words)
    check_config(cfg, parse("--mine-styles-only"))


@pytest.mark.parametrize("words", [(), ("--eval-only",), ("--mine-styles-only",)])
def test_without_a_config_file_that_is_what_is_missing(words):
    with expect_error(ConfigError, key="--config-file", remedy="famix_RN50.yaml"):
        check_config(load_config("", ["MODEL.DEVICE", "cpu"]), parse(*words))


@pytest.mark.parametrize(
    ("opts", "key", "value", "remedy"),
    [
        (("MODEL.SEM_SEG_HEAD.NAME", "CLIPDeepLabHead"), "MODEL.SEM_SEG_HEAD.NAME", "CLIPDeepLabHead", "CLIPDeepLabV3PlusHead"),
        (("MODEL.BACKBONE.NAME", "build_clip"), "MODEL.BACKBONE.NAME", "build_clip", "README.md"),
        (("MODEL.CLIP.TRAINABLE", "['layer9']"), "MODEL.CLIP.TRAINABLE", "layer9", ""),
        (("MODEL.CLIP.OUTPUT_STRIDE", "12"), "MODEL.CLIP.OUTPUT_STRIDE", 12, ""),
        (("SOLVER.OPTIMIZER", "LION"), "SOLVER.OPTIMIZER", "LION", ""),
        (("SOLVER.LR_SCHEDULER_NAME", "Poly"), "SOLVER.LR_SCHEDULER_NAME", "Poly", ""),
        (("SOLVER.ACCUMULATE", "3"), "SOLVER.ACCUMULATE", 3, ""),
        (("SOLVER.AMP.ENABLED", "True"), "SOLVER.AMP.DTYPE", "float16", ""),
        (("INPUT.FORMAT", "BGR"), "INPUT.FORMAT", "BGR", "RGB"),
        (("INPUT.SCALE_RANGE", "[2.0, 1.0]"), "INPUT.SCALE_RANGE", [2.0, 1.0], ""),
        (("MODEL.STYLE.STRATEGY", "noise", "MODEL.STYLE.GRID", "[999, 2]"), "MODEL.STYLE.GRID", None, "INPUT.CROP.SIZE"),
        (("MODEL.STYLE.STRATEGY", "bank", "MODEL.CLIP.WEIGHTS", "RN50", "STYLE_MINING.DTYPE", "half"), "STYLE_MINING.DTYPE", "half", "bfloat16"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_found_without_the_data(make_config, opts, key, value, remedy):
    """No image is needed for that: a wrong key must not wait for a check of a million files."""
    with expect_error(ConfigError, key, value, remedy):
        check_config(make_config(*opts), parse())


def test_checks_leave_the_random_state_and_touch_no_weights(make_config):
    state = torch.random.get_rng_state()
    check_config(make_config(), parse())
    assert torch.equal(state, torch.random.get_rng_state())


def test_only_one_thing_can_be_the_only_one(make_config):
    assert_refused(make_config(), "--eval-only", "both", "Omit", "--eval-only", "--mine-styles-only")


@pytest.mark.parametrize("key", ["TRAIN", "TEST"])
def test_unknown_data_sets(make_config, key):
    cfg = make_config(f"DATASETS.{key}", "('cityscape_val',)")
    assert_refused(cfg, "cityscape_val", None, "cityscapes_val", error=DatasetError)


def test_data_sets_that_the_run_does_not_read_do_not_matter(make_config):
    check_config(make_config("DATASETS.TRAIN", "('absent',)"), parse("--eval-only"))
    check_config(make_config("DATASETS.TEST", "('absent',)"), parse("--mine-styles-only"))


def test_other_numbers_of_classes(make_config):
    key = "MODEL.SEM_SEG_HEAD.NUM_CLASSES"
    assert_refused(make_config(key, "11"), key, 11, f"{key} 19")
    assert_refused(make_config("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", "0"), key, 0, "MODEL.SEM_SEG_HEAD.IGNORE_VALUE 255")


def test_targets_of_other_classes(make_config, tmp_path):
    classes = [{"name": name, "color": [i, i, i]} for i, name in enumerate(("road", "sky", "car"))]
    other = make_dataset(tmp_path / "other", count=1, name="other", classes=classes)
    with registered(other):
        cfg = make_config("DATASETS.TEST", "('other_val',)")
        assert_refused(cfg, "tiny_train", "other_val", "", error=DatasetError)


def test_no_gpu(make_config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:1"):
        cfg = make_config("MODEL.DEVICE", device)
        assert_refused(cfg, "MODEL.DEVICE", device, "MODEL.DEVICE cpu")


def test_unknown_device(make_config):
    assert_refused(make_config("MODEL.DEVICE", "gpu"), "MODEL.DEVICE", "gpu", "cpu")


def test_an_output_folder_below_a_file(make_config, tmp_path):
    (tmp_path / "file").touch()
    cfg = make_config("OUTPUT_DIR", str(tmp_path / "file/output"))
    assert_refused(cfg, "OUTPUT_DIR", tmp_path / "file/output", "another")


def test_styles_without_bank_and_clip(make_config, tmp_path):
    cfg = make_config("MODEL.STYLE.STRATEGY", "bank", "MODEL.CLIP.WEIGHTS", "")
    assert_refused(cfg, "MODEL.STYLE.STRATEGY", "bank", "MODEL.CLIP.WEIGHTS")
    check_config(cfg, parse("--eval-only"))
    (tmp_path / "bank.safetensors").touch()
    check_config(make_config(*cfg_bank(tmp_path), "MODEL.CLIP.WEIGHTS", ""), parse())
    check_config(make_config("MODEL.STYLE.STRATEGY", "bank", "MODEL.CLIP.WEIGHTS", "RN50"), parse())


def cfg_bank(folder):
    return ("MODEL.STYLE.STRATEGY", "bank", "MODEL.STYLE.BANK", str(folder / "bank.safetensors"))


# All of it


@pytest.mark.usefixtures("loggers")
def test_setup(definition, tmp_path):
    config_file = tmp_path / "config.yaml"
    config_file.write_text(f"_BASE_: {BASE}\nSEED: -1\nMODEL: {{DEVICE: cpu, STYLE: {{STRATEGY: none}}}}")
    opts = ["DATASETS.FILES", f"['{definition}']", "DATASETS.TRAIN", "('tiny_train',)"]
    opts += ["DATASETS.TEST", "('tiny_val',)", "OUTPUT_DIR", str(tmp_path / "output")]
    with registered():
        cfg = setup(parse("--config-file", str(config_file), *opts))
    assert cfg.is_frozen() and cfg.DATASETS.TRAIN == ("tiny_train",)
    assert cfg.SEED >= 0, "a run without a seed gets one, to be resumed with"
    saved = load_config(str(tmp_path / "output/config.yaml"))
    assert yaml.safe_load(saved.dump()) == yaml.safe_load(cfg.dump()), "the run can be repeated from what it saved"
    assert "Checked 4 image and label pairs" in (tmp_path / "output/log.txt").read_text()
