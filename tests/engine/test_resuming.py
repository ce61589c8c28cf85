"""Runs that are resumed with changed settings: they apply, or they are refused before anything is written."""

import json
import shutil
from fnmatch import fnmatchcase

import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.utils.events import get_event_storage

from error_matching import expect_error
from famix.config import flat_settings
from famix.engine import SafeCheckpointer, Trainer, load_config
from famix.engine.hooks import KeepingCheckpointer
from famix.engine.resuming import APPLIED, FREE, take_up_run
from famix.io import checkpointer
from famix.modeling import FAMixSemanticSegmentor
from famix.utils.errors import ConfigError, TrainingError, WeightsError
from run_factory import Workspace

PLAIN = ("MODEL.STYLE.STRATEGY", "none")
RESUME = ("--resume",)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A workspace with the run "first" of 4 iterations, with a checkpoint after the second."""
    workspace = Workspace(tmp_path_factory.mktemp("workspace"))
    workspace.run("first", *PLAIN)
    return workspace


@pytest.fixture
def stopped(workspace):
    """A copy of the run as if it had been stopped after two iterations."""
    folder = workspace.folder / "stopped"
    shutil.copytree(workspace.folder / "first", folder)
    (folder / "model_final.pth").unlink()
    (folder / "metrics.json").unlink()
    (folder / "last_checkpoint").write_text("model_0000001.pth")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def config(workspace, stopped):
    """A function that makes the config of the stopped run, with changes."""

    def make(*changes):
        arguments = workspace.parse("stopped", *PLAIN, *changes)
        return load_config(arguments.config_file, arguments.opts)

    with workspace.registered():
        yield make


def edit_checkpoint(run, edit):
    content = torch.load(run / "model_0000001.pth", weights_only=True)
    edit(content)
    torch.save(content, run / "model_0000001.pth")


def forget_settings(run):
    """Make a checkpoint of release 0.1, which stores no settings."""
    edit_checkpoint(run, lambda content: content.pop("settings"))


def edit_saved_config(run, section, **values):
    settings = yaml.safe_load((run / "config.yaml").read_text())
    section(settings).update(values)
    (run / "config.yaml").write_text(yaml.safe_dump(settings))


def resumed(workspace, cfg):
    with workspace.registered():
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=True)
    return trainer


def by_name(trainer, of):
    """Name of every parameter that trains -> of(its group, the parameter)."""
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    groups = trainer.optimizer.param_groups
    return {names[parameter]: of(group, parameter) for group in groups for parameter in group["params"]}


def momenta(trainer):
    return by_name(trainer, lambda _, parameter: trainer.optimizer.state[parameter]["momentum_buffer"])


def assert_same_momenta(before, after):
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def last_metrics(run):
    lines = [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]
    (found,) = [line for line in lines if line["iteration"] == 3]
    return found


# Settings that apply


def test_lower_learning_rate_applies(workspace, stopped, monkeypatch):
    read, load_tensors = [], checkpointer.load_tensors
    monkeypatch.setattr(checkpointer, "load_tensors", lambda file: read.append(file.name) or load_tensors(file))
    workspace.run("stopped", *PLAIN, "SOLVER.BASE_LR", "0.01", flags=RESUME)
    assert read == [str(stopped / "model_0000001.pth")], "a checkpoint is read once"
    before, after = (last_metrics(workspace.folder / run) for run in ("first", "stopped"))
    assert after["lr"] == pytest.approx(before["lr"] / 10) and before["lr"] > 0.01
    assert after["total_loss"] != before["total_loss"]


@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("SOLVER.BASE_LR", "0.01"),
        ("SOLVER.BACKBONE_LR_FACTOR", "1.0"),  # one group less
        ("SOLVER.BIAS_LR_FACTOR", "2.0"),  # more groups
        ("SOLVER.BASE_LR", "0.01", "SOLVER.POLY_LR_FLOOR", "0.004"),
        ("SOLVER.WARMUP_ITERS", "4", "SOLVER.WARMUP_FACTOR", "0.5"),
        ("SOLVER.MAX_ITER", "10"),
        ("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.MAX_ITER", "8"),
        ("SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "SOLVER.STEPS", "(2,)", "SOLVER.MAX_ITER", "8"),
    ],
)
def test_rates_equal_those_of_uninterrupted_run(changes, workspace, config):
    before = momenta(resumed(workspace, config()))
    cfg = config(*changes)
    trainer = resumed(workspace, cfg)
    with workspace.registered():
        fresh = Trainer(cfg)
    for _ in range(2):
        fresh.optimizer.step()
        fresh.scheduler.step()
    rates = by_name(trainer, lambda group, _: group["lr"])
    assert rates == pytest.approx(by_name(fresh, lambda group, _: group["lr"]))
    assert trainer.scheduler.last_epoch == trainer.start_iter == 2
    assert_same_momenta(before, momenta(trainer))


@pytest.mark.parametrize(
    ("key", "value", "entry"),
    [
        ("SOLVER.WEIGHT_DECAY", 0.01, "weight_decay"),  # two groups in place of one: norms keep their decay
        ("SOLVER.MOMENTUM", 0.5, "momentum"),
        ("SOLVER.NESTEROV", True, "nesterov"),
    ],
)
def test_optimizer_settings_apply(key, value, entry, workspace, config):
    before = momenta(resumed(workspace, config()))
    trainer = resumed(workspace, config(key, str(value)))
    modules = dict(trainer.model.named_modules())
    norms = {name for name in before if isinstance(modules[name.rpartition(".")[0]], torch.nn.BatchNorm2d)}
    expected = {name: 1e-4 if entry == "weight_decay" and name in norms else value for name in before}
    assert by_name(trainer, lambda group, _: group[entry]) == expected
    assert_same_momenta(before, momenta(trainer))


@pytest.mark.parametrize(
    ("changes", "end"),
    [(("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16"), 3), (("SOLVER.MAX_ITER", "1"), 1)],
    ids=["different precision", "fewer iterations than done"],
)
def test_training_settings_apply(workspace, stopped, changes, end):
    workspace.run("stopped", *PLAIN, *changes, flags=RESUME)
    assert workspace.checkpoint("stopped")["iteration"] == end


# Settings without effect on the weights


@pytest.mark.parametrize(
    "changes",
    [
        ("SOLVER.CHECKPOINT_PERIOD", "1", "SOLVER.CHECKPOINTS_KEPT", "3", "VIS_PERIOD", "7"),
        ("TEST.EVAL_PERIOD", "1", "TEST.PROTOCOL", "half", "DATASETS.TEST", "('tiny_val',)"),
        ("DATALOADER.NUM_WORKERS", "3", "MODEL.DEVICE", "cuda", "SOLVER.ACCUMULATE", "2"),
        ("MODEL_SELECTION.PERIOD", "5", "SOLVER.MAX_SKIPPED_BATCHES", "9", "MODEL.WEIGHTS", "other.pth"),
        ("INPUT.MIN_SIZE_TRAIN", "(800,)", "INPUT.MIN_SIZE_TRAIN_SAMPLING", "range", "INPUT.MIN_SIZE_TEST", "800"),
        ("MODEL.CLIP.ARCHITECTURE", "RN50"),  # the checkpoint says "": decided by the file
    ],
)
def test_free_settings_may_change(changes, config):
    take_up_run(config(*changes))


def test_clip_may_move(workspace, config, tmp_path):
    (tmp_path / "clip.pt").write_bytes(b"different")
    with expect_error(ConfigError, "MODEL.CLIP.WEIGHTS", str(workspace.clip), "--resume"):
        take_up_run(config("MODEL.CLIP.WEIGHTS", str(tmp_path / "clip.pt")))
    shutil.copy(workspace.clip, tmp_path / "renamed.pt")
    take_up_run(config("MODEL.CLIP.WEIGHTS", str(tmp_path / "renamed.pt")))


def test_drawn_seed_is_kept(config, tmp_path):
    cfg = config("SEED", "-1")
    take_up_run(cfg)
    assert cfg.SEED == 1
    cfg = config("OUTPUT_DIR", str(tmp_path), "SOLVER.OPTIMIZER", "ADAM", "SEED", "-1")
    take_up_run(cfg)  # an empty folder
    assert cfg.SEED == -1


def test_patterns_of_keys_match(config):
    keys = flat_settings(config())
    free, applied = ([{key for key in keys if fnmatchcase(key, p)} for p in patterns] for patterns in (FREE, APPLIED))
    assert all(free) and all(applied)
    assert not set.union(*free) & set.union(*applied)


# Settings that are refused


@pytest.mark.parametrize(
    ("key", "before", "value"),
    [
        ("SOLVER.OPTIMIZER", "SGD", "ADAMW"),
        ("SOLVER.IMS_PER_BATCH", 2, 4),
        ("SOLVER.CLIP_GRADIENTS.ENABLED", False, True),
        ("INPUT.CROP.SIZE", [64, 96], [48, 48]),
        ("INPUT.COLOR_JITTER", [0.8, 0.8, 0.8], [0.0, 0.0, 0.0]),
        ("DATASETS.TRAIN", ("tiny_train",), ("tiny_val",)),
        ("DATASETS.BALANCED", False, True),
        ("MODEL.STYLE.STRATEGY", "none", "noise"),
        ("MODEL.CLIP.TRAINABLE", ["layer4"], ["layer3", "layer4"]),
        ("MODEL.SEM_SEG_HEAD.CONVS_DIM", 8, 16),
        ("MODEL_SELECTION.EMA_DECAY", 0.0, 0.9),
        ("SEED", 1, 2),
    ],
)
def test_changed_settings_are_refused(key, before, value, workspace, stopped):
    files = contents(stopped)
    with expect_error(ConfigError, key, value, "--resume") as caught:
        workspace.run("stopped", *PLAIN, key, str(value), flags=RESUME)
    assert repr(before) in str(caught.value)
    assert contents(stopped) == files


def test_trainer_refuses_changed_settings(workspace, config):
    with expect_error(ConfigError, "SOLVER.OPTIMIZER", "ADAM", "OUTPUT_DIR"):
        resumed(workspace, config("SOLVER.OPTIMIZER", "ADAM"))


def test_keys_missing_in_checkpoint(stopped, config):
    edit_checkpoint(stopped, lambda content: content["settings"].pop("MODEL.STYLE.PROBABILITY"))
    take_up_run(config())
    with expect_error(ConfigError, "MODEL.STYLE.PROBABILITY", 0.5, "--resume"):
        take_up_run(config("MODEL.STYLE.PROBABILITY", "0.5"))  # compared with the default
    cfg = config()
    cfg.MODEL.OWN = CfgNode({"DEPTH": 3})
    take_up_run(cfg)  # added by other code, without a default
    edit_checkpoint(stopped, lambda content: content["settings"].update({"MODEL.OWN.DEPTH": 2}))
    with expect_error(ConfigError, "MODEL.OWN.DEPTH", 3, "--resume"):
        take_up_run(cfg)


# Checkpoints of release 0.1


def test_old_checkpoint_is_compared_with_config_of_its_run(workspace, stopped):
    forget_settings(stopped)
    edit_saved_config(stopped, lambda settings: settings["INPUT"]["CROP"], SIZE=[32, 32])
    files = contents(stopped)
    with expect_error(ConfigError, "INPUT.CROP.SIZE", [64, 96], "--resume") as caught:
        workspace.run("stopped", *PLAIN, flags=RESUME)
    assert "[32, 32]" in str(caught.value)
    assert contents(stopped) == files


def test_old_checkpoint_applies_new_rates_and_decays(workspace, stopped, config):
    before = momenta(resumed(workspace, config()))
    forget_settings(stopped)
    options = ("SOLVER.WEIGHT_DECAY", "0.01", "SOLVER.BASE_LR", "0.01")
    take_up_run(config(*options))
    edit_saved_config(stopped, lambda settings: settings["SOLVER"], WEIGHT_DECAY=0.01)  # as the resumed run leaves it
    trainer = resumed(workspace, config(*options))
    assert set(by_name(trainer, lambda group, _: group["weight_decay"]).values()) == {0.01, 1e-4}
    assert_same_momenta(before, momenta(trainer))
    take_up_run(config(*options))  # killed before its first checkpoint, and resumed once more


def test_old_checkpoint_without_config(workspace, stopped, config):
    forget_settings(stopped)
    (stopped / "config.yaml").unlink()
    take_up_run(config("SOLVER.BASE_LR", "0.01"))
    trainer = resumed(workspace, config("SOLVER.BASE_LR", "0.01"))
    assert max(by_name(trainer, lambda group, _: group["lr"]).values()) < 0.01


# Weights and losses that are not finite

BREAKDOWN = ("SOLVER.MAX_ITER", "6", "SOLVER.BASE_LR", "1e30")
SLOWER = ("SOLVER.MAX_ITER", "6", "SOLVER.BASE_LR", "0.001")


def test_resume_after_breakdown_with_lower_rate(workspace, stopped):
    """Also from a checkpoint of a broken model, which the error names."""
    with expect_error(TrainingError, "SOLVER.BASE_LR", remedy="--resume") as caught:
        workspace.run("stopped", *PLAIN, *BREAKDOWN, "SOLVER.CHECKPOINT_PERIOD", "1", flags=RESUME)
    assert "remove" not in str(caught.value)
    broken = stopped / "model_0000002.pth"
    with expect_error(TrainingError, str(broken), remedy="--resume"):
        workspace.run("stopped", *PLAIN, *SLOWER, flags=RESUME)
    broken.unlink()
    workspace.run("stopped", *PLAIN, *SLOWER, flags=RESUME)
    assert workspace.checkpoint("stopped")["iteration"] == 5
    assert all(value.isfinite().all() for value in workspace.checkpoint("stopped")["model"].values())


def test_resume_after_bad_batch_skips_it(workspace, stopped, monkeypatch):
    forward = FAMixSemanticSegmentor.forward

    def spoilt(model, inputs):
        losses = forward(model, inputs)
        bad = model.training and get_event_storage().iter == 2
        return {name: loss * torch.nan for name, loss in losses.items()} if bad else losses

    monkeypatch.setattr(FAMixSemanticSegmentor, "forward", spoilt)
    with expect_error(TrainingError, "iteration 2", remedy="SOLVER.MAX_SKIPPED_BATCHES"):
        workspace.run("stopped", *PLAIN, flags=RESUME)
    workspace.run("stopped", *PLAIN, "SOLVER.MAX_SKIPPED_BATCHES", "1", flags=RESUME)
    assert workspace.checkpoint("stopped")["iteration"] == 3


def test_broken_weights_are_neither_saved_nor_resumed(tmp_path):
    model = torch.nn.Linear(2, 2)
    saver = SafeCheckpointer(model, str(tmp_path))
    keeping = KeepingCheckpointer(saver, period=2, kept=1)
    keeping.max_iter = 4
    keeping.step(1)
    torch.nn.init.constant_(model.bias, torch.inf)
    with expect_error(TrainingError, "bias", remedy="SOLVER.BASE_LR"):
        keeping.step(3)
    assert {path.name for path in tmp_path.glob("*.pth")} == {"model_0000001.pth"}
    saver.save("model_0000003", iteration=3)
    found = SafeCheckpointer(torch.nn.Linear(2, 2), str(tmp_path)).resume_or_load("", resume=True)
    assert found["iteration"] == 1
    (tmp_path / "model_0000001.pth").unlink()
    with expect_error(WeightsError, "bias"):
        SafeCheckpointer(torch.nn.Linear(2, 2), str(tmp_path)).resume_or_load("", resume=True)
