"""A run that is resumed with other settings: they apply, or they are refused before anything is written."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
Changes = tuple[str, ...]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A dataset, a CLIP, and the run "first" of 4 iterations with a checkpoint after the second."""
    workspace = Workspace(tmp_path_factory.mktemp("workspace"))
    workspace.run("first", *PLAIN)
    return workspace


@pytest.fixture
def stopped(workspace: Workspace) -> Iterator[Path]:
    """A copy of the run as if it had been stopped after two iterations."""
    folder = workspace.folder / "stopped"
    shutil.copytree(workspace.folder / "first", folder)
    (folder / "model_final.pth").unlink()
    (folder / "metrics.json").unlink()
    (folder / "last_checkpoint").write_text("model_0000001.pth")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def config(workspace: Workspace, stopped: Path) -> Iterator[Callable[..., CfgNode]]:
    """The config of the stopped run, with changes."""

    def make(*changes: str) -> CfgNode:
        arguments = workspace.parse("stopped", *PLAIN, *changes)
        return load_config(arguments.config_file, arguments.opts)

    with workspace.registered():
        yield make


def edit_checkpoint(run: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    content = torch.load(run / "model_0000001.pth", weights_only=True)
    edit(content)
    torch.save(content, run / "model_0000001.pth")


def forget_settings(run: Path) -> None:
    """Make a checkpoint of release 0.1, which stores no settings."""
    edit_checkpoint(run, lambda content: content.pop("settings"))


def edit_saved_config(run: Path, node: Callable[[dict[str, Any]], dict[str, Any]], **values: object) -> None:
    settings = yaml.safe_load((run / "config.yaml").read_text())
    node(settings).update(values)
    (run / "config.yaml").write_text(yaml.safe_dump(settings))


def resumed(workspace: Workspace, cfg: CfgNode) -> Trainer:
    with workspace.registered():
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=True)
    return trainer


def by_name(trainer: Trainer, of: Callable[[dict[str, Any], torch.Tensor], Any]) -> dict[str, Any]:
    """Something of every parameter that trains: name -> of(group, parameter)."""
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    groups = trainer.optimizer.param_groups
    return {names[parameter]: of(group, parameter) for group in groups for parameter in group["params"]}


def momenta(trainer: Trainer) -> dict[str, torch.Tensor]:
    return by_name(trainer, lambda _, parameter: trainer.optimizer.state[parameter]["momentum_buffer"])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def last_iteration(run: Path) -> dict[str, float]:
    lines = [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]
    (found,) = [line for line in lines if line["iteration"] == 3]
    return found


def test_a_resumed_checkpoint_is_read_once(
    workspace: Workspace, stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    load_tensors = checkpointer.load_tensors
    monkeypatch.setattr(checkpointer, "load_tensors", lambda file: read.append(file.name) or load_tensors(file))
    workspace.run("stopped", *PLAIN, flags=("--resume",))
    assert read == [str(stopped / "model_0000001.pth")]


# What applies


def test_a_tenth_of_the_learning_rate_is_a_tenth_in_metrics(workspace: Workspace, stopped: Path) -> None:
    workspace.run("stopped", *PLAIN, "SOLVER.BASE_LR", "0.01", flags=("--resume",))
    before, after = (last_iteration(workspace.folder / run) for run in ("first", "stopped"))
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
def test_rates_are_those_of_a_run_that_had_the_settings_from_the_start(
    changes: Changes, workspace: Workspace, stopped: Path, config: Callable[..., CfgNode]
) -> None:
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
    after = momenta(trainer)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("key", "value", "entry"),
    [
        ("SOLVER.WEIGHT_DECAY", 0.01, "weight_decay"),  # of two groups where there was one: norms keep theirs
        ("SOLVER.MOMENTUM", 0.5, "momentum"),
        ("SOLVER.NESTEROV", True, "nesterov"),
    ],
)
def test_other_settings_of_the_optimiser_apply(
    key: str, value: float, entry: str, workspace: Workspace, stopped: Path, config: Callable[..., CfgNode]
) -> None:
    before = momenta(resumed(workspace, config()))
    trainer = resumed(workspace, config(key, str(value)))
    found = by_name(trainer, lambda group, _: group[entry])
    expected = {name: 1e-4 if entry == "weight_decay" and is_norm(trainer, name) else value for name in found}
    assert found == expected
    assert all(torch.equal(before[name], momentum) for name, momentum in momenta(trainer).items())


def is_norm(trainer: Trainer, name: str) -> bool:
    return isinstance(trainer.model.get_submodule(name.rpartition(".")[0]), torch.nn.BatchNorm2d)


@pytest.mark.parametrize(
    ("changes", "end"),
    [(("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16"), 3), (("SOLVER.MAX_ITER", "1"), 1)],
    ids=["another precision", "fewer iterations than were done"],
)
def test_other_settings_of_the_training_apply(workspace: Workspace, stopped: Path, changes: Changes, end: int) -> None:
    workspace.run("stopped", *PLAIN, *changes, flags=("--resume",))
    assert workspace.checkpoint("stopped")["iteration"] == end


# What is free


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
def test_free_settings_may_change(changes: Changes, config: Callable[..., CfgNode]) -> None:
    take_up_run(config(*changes))


def test_files_may_move(workspace: Workspace, config: Callable[..., CfgNode], tmp_path: Path) -> None:
    (tmp_path / "clip.pt").write_bytes(b"another one")
    with expect_error(ConfigError, "MODEL.CLIP.WEIGHTS", str(workspace.clip), "--resume"):
        take_up_run(config("MODEL.CLIP.WEIGHTS", str(tmp_path / "clip.pt")))
    shutil.copy(workspace.clip, tmp_path / "renamed.pt")
    take_up_run(config("MODEL.CLIP.WEIGHTS", str(tmp_path / "renamed.pt")))


def test_an_empty_folder_has_nothing_to_compare(config: Callable[..., CfgNode], tmp_path: Path) -> None:
    cfg = config("OUTPUT_DIR", str(tmp_path), "SOLVER.OPTIMIZER", "ADAM", "SEED", "-1")
    take_up_run(cfg)
    assert cfg.SEED == -1


def test_a_drawn_seed_is_drawn_once(config: Callable[..., CfgNode]) -> None:
    cfg = config("SEED", "-1")
    take_up_run(cfg)
    assert cfg.SEED == 1


def test_the_lists_name_keys_that_exist(config: Callable[..., CfgNode]) -> None:
    keys = set(flat_settings(config()))
    nodes = [name for name in FREE if name.endswith(".")]
    assert {*FREE, *APPLIED} - set(nodes) <= keys
    assert all(any(key.startswith(node) for key in keys) for node in nodes)
    assert not set(FREE) & set(APPLIED)


# What is refused


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
def test_other_settings_are_refused_and_nothing_is_written(
    key: str, before: object, value: object, workspace: Workspace, stopped: Path
) -> None:
    files = contents(stopped)
    with expect_error(ConfigError, key, value, "--resume") as caught:
        workspace.run("stopped", *PLAIN, key, str(value), flags=("--resume",))
    assert repr(before) in str(caught.value)
    assert contents(stopped) == files


def test_the_trainer_alone_refuses_too(workspace: Workspace, config: Callable[..., CfgNode]) -> None:
    with expect_error(ConfigError, "SOLVER.OPTIMIZER", "ADAM", "OUTPUT_DIR"):
        resumed(workspace, config("SOLVER.OPTIMIZER", "ADAM"))


def test_a_key_that_the_settings_lack_has_its_default(stopped: Path, config: Callable[..., CfgNode]) -> None:
    edit_checkpoint(stopped, lambda content: content["settings"].pop("MODEL.STYLE.PROBABILITY"))
    take_up_run(config())
    with expect_error(ConfigError, "MODEL.STYLE.PROBABILITY", 0.5, "--resume"):
        take_up_run(config("MODEL.STYLE.PROBABILITY", "0.5"))


def test_keys_that_other_code_adds_are_compared_too(
    workspace: Workspace, stopped: Path, config: Callable[..., CfgNode]
) -> None:
    cfg = config()
    cfg.MODEL.OWN = CfgNode({"DEPTH": 3})
    take_up_run(cfg)  # not in the checkpoint, and without a default
    edit_checkpoint(stopped, lambda content: content["settings"].update({"MODEL.OWN.DEPTH": 2}))
    with expect_error(ConfigError, "MODEL.OWN.DEPTH", 3, "--resume"):
        take_up_run(cfg)


# Checkpoints of release 0.1


def test_a_checkpoint_without_settings_is_compared_with_the_config_of_its_run(
    workspace: Workspace, stopped: Path
) -> None:
    forget_settings(stopped)
    edit_saved_config(stopped, lambda settings: settings["INPUT"]["CROP"], SIZE=[32, 32])
    files = contents(stopped)
    with expect_error(ConfigError, "INPUT.CROP.SIZE", [64, 96], "--resume") as caught:
        workspace.run("stopped", *PLAIN, flags=("--resume",))
    assert "[32, 32]" in str(caught.value)
    assert contents(stopped) == files


def test_a_checkpoint_without_settings_takes_new_rates_and_decays(
    workspace: Workspace, stopped: Path, config: Callable[..., CfgNode]
) -> None:
    before = momenta(resumed(workspace, config()))
    forget_settings(stopped)
    options = ("SOLVER.WEIGHT_DECAY", "0.01", "SOLVER.BASE_LR", "0.01")
    take_up_run(config(*options))
    edit_saved_config(stopped, lambda settings: settings["SOLVER"], WEIGHT_DECAY=0.01)  # as the resumed run leaves it
    trainer = resumed(workspace, config(*options))
    assert set(by_name(trainer, lambda group, _: group["weight_decay"]).values()) == {0.01, 1e-4}
    assert all(torch.equal(before[name], momentum) for name, momentum in momenta(trainer).items())
    take_up_run(config(*options))  # killed before its first checkpoint, and resumed once more


def test_a_checkpoint_that_nothing_describes_is_taken_as_it_is(
    workspace: Workspace, stopped: Path, config: Callable[..., CfgNode]
) -> None:
    forget_settings(stopped)
    (stopped / "config.yaml").unlink()
    take_up_run(config("SOLVER.BASE_LR", "0.01"))
    trainer = resumed(workspace, config("SOLVER.BASE_LR", "0.01"))
    assert max(by_name(trainer, lambda group, _: group["lr"]).values()) < 0.01


# The advice of the error for losses that are not finite


BREAKDOWN = ("SOLVER.MAX_ITER", "6", "SOLVER.BASE_LR", "1e30")
SLOWER = ("SOLVER.MAX_ITER", "6", "SOLVER.BASE_LR", "0.001")


def test_after_a_breakdown_a_lower_rate_goes_on(workspace: Workspace, stopped: Path) -> None:
    with expect_error(TrainingError, "SOLVER.BASE_LR", remedy="--resume"):
        workspace.run("stopped", *PLAIN, *BREAKDOWN, flags=("--resume",))
    workspace.run("stopped", *PLAIN, *SLOWER, flags=("--resume",))
    weights = workspace.checkpoint("stopped")["model"]
    assert workspace.checkpoint("stopped")["iteration"] == 5
    assert all(value.isfinite().all() for value in weights.values())


def test_after_a_bad_batch_it_is_left_out(workspace: Workspace, stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = FAMixSemanticSegmentor.forward

    def spoilt(model: FAMixSemanticSegmentor, inputs: list[Any]) -> Any:
        losses = forward(model, inputs)
        bad = model.training and get_event_storage().iter == 2
        return {name: loss * torch.nan for name, loss in losses.items()} if bad else losses

    monkeypatch.setattr(FAMixSemanticSegmentor, "forward", spoilt)
    with expect_error(TrainingError, "iteration 2", remedy="SOLVER.MAX_SKIPPED_BATCHES"):
        workspace.run("stopped", *PLAIN, flags=("--resume",))
    workspace.run("stopped", *PLAIN, "SOLVER.MAX_SKIPPED_BATCHES", "1", flags=("--resume",))
    assert workspace.checkpoint("stopped")["iteration"] == 3


def test_a_checkpoint_of_a_broken_model_is_named_to_be_removed(workspace: Workspace, stopped: Path) -> None:
    with expect_error(TrainingError, "SOLVER.BASE_LR", remedy="--resume") as caught:
        workspace.run("stopped", *PLAIN, *BREAKDOWN, "SOLVER.CHECKPOINT_PERIOD", "1", flags=("--resume",))
    assert "remove" not in str(caught.value)
    broken = stopped / "model_0000002.pth"
    with expect_error(TrainingError, str(broken), remedy="--resume"):
        workspace.run("stopped", *PLAIN, *SLOWER, flags=("--resume",))
    broken.unlink()
    workspace.run("stopped", *PLAIN, *SLOWER, flags=("--resume",))
    assert workspace.checkpoint("stopped")["iteration"] == 5


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    keeping = KeepingCheckpointer(SafeCheckpointer(model, str(tmp_path)), period=2, kept=1)
    keeping.max_iter = 4
    keeping.step(1)
    torch.nn.init.constant_(model.bias, torch.inf)
    with expect_error(TrainingError, "bias", remedy="SOLVER.BASE_LR"):
        keeping.step(3)
    assert (tmp_path / "model_0000001.pth").is_file()
    assert not (tmp_path / "model_final.pth").exists()


def test_weights_that_are_not_finite_give_way_to_the_checkpoint_before(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    saver = SafeCheckpointer(model, str(tmp_path))
    saver.save("model_0000001", iteration=1)
    torch.nn.init.constant_(model.bias, torch.nan)
    saver.save("model_0000003", iteration=3)
    found = SafeCheckpointer(torch.nn.Linear(2, 2), str(tmp_path)).resume_or_load("", resume=True)
    assert found["iteration"] == 1
    (tmp_path / "model_0000001.pth").unlink()
    with expect_error(WeightsError, "bias"):
        SafeCheckpointer(torch.nn.Linear(2, 2), str(tmp_path)).resume_or_load("", resume=True)
