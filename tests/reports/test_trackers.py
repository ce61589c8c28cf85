"""Experiment trackers receive the metrics, settings and images of a run, in their offline modes."""

import struct
import sys
from pathlib import Path

import mlflow
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

from error_matching import expect_error
from famix.utils.errors import ConfigError
from run_factory import CallBeforeStep, Workspace, assert_equal_state, train_net_with

ITERATIONS = ("SOLVER.MAX_ITER", "4", "TEST.EVAL_PERIOD", "2", "MODEL.STYLE.STRATEGY", "noise")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace(tmp_path_factory.mktemp("trackers"))
    workspace.run("plain", *ITERATIONS)
    return workspace


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    uri = f"file://{tmp_path}/mlruns"
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_SILENT", "true"), ("MLFLOW_ALLOW_FILE_STORE", "true")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    return uri


def records(folder: Path) -> list[Record]:
    """Return what a run of Weights & Biases has stored offline, in files in the format of LevelDB's log."""
    found, parts = [], b""
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        content, place = path.read_bytes(), 7
        while place + 7 <= len(content):
            if 32768 - place % 32768 < 7:  # no header crosses the border of a block
                place += 32768 - place % 32768
            _, size, kind = struct.unpack_from("<IHB", content, place)
            parts += content[place + 7 : place + 7 + size]
            place += 7 + size
            if kind in (1, 4):  # a whole record, or its last part
                found.append(Record.FromString(parts))
                parts = b""
    return found


def test_run_is_tracked_and_resumed(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    options = (*ITERATIONS, "TRACKERS", "['mlflow', 'wandb']", "VIS_PERIOD", "3", "SOLVER.CHECKPOINT_PERIOD", "2")

    def stop() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, workspace.registered(), pytest.raises(KeyboardInterrupt):
        train_net_with(CallBeforeStep(2, stop), patch).run(workspace.parse("tracked", *options))
    workspace.run("tracked", *options, flags=("--resume",))
    folder = workspace.folder / "tracked"
    assert_equal_state(workspace.checkpoint("tracked")["model"], workspace.checkpoint("plain")["model"])
    (run,) = mlflow.search_runs(experiment_names=["famix"], output_format="list")
    events = EventAccumulator(str(folder))
    events.Reload()
    final = {name: value for name, value in run.data.metrics.items() if name.endswith("/mIoU")}
    assert final.keys() == {"tiny_val/sem_seg/mIoU", "tiny_night/sem_seg/mIoU"}
    for name, value in final.items():
        assert value == pytest.approx(events.Scalars(name)[-1].value, rel=1e-5)
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "total_loss")
    assert len({value.step for value in history}) == len(history), "each value is sent once"
    assert run.data.params["SOLVER.MAX_ITER"] == "4" and "total_loss" in run.data.metrics
    names = {item.key for record in records(folder) for item in record.history.item} | {
        "/".join(item.nested_key) for record in records(folder) for item in record.history.item
    }
    assert {*final, "total_loss", "tiny_val/0/_type", "tiny_val/1/_type"} <= names
    assert any("SOLVER.MAX_ITER" in item.key for record in records(folder) for item in record.run.config.update)
    assert len({record.run.run_id for record in records(folder) if record.run.run_id}) == 1
    (event,) = events.Images("tiny_val/0")
    assert event.step == 2 and event.width > 0 and len(events.Tags()["images"]) == 4


def test_failing_tracker_does_not_stop_the_training(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(mlflow, "log_metrics", fail)
    workspace.run("failing", *ITERATIONS, "TRACKERS", "['mlflow']")
    mlflow.end_run()
    assert_equal_state(workspace.checkpoint("failing")["model"], workspace.checkpoint("plain")["model"])
    assert (workspace.folder / "failing/log.txt").read_text().count("no route to host") == 1


def test_unknown_and_absent_trackers(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    with expect_error(ConfigError, "TRACKERS", "tensorboard", "wandb"):
        workspace.run("unknown", "TRACKERS", "['tensorboard']")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with expect_error(ConfigError, "TRACKERS", "wandb", "famix[trackers]"):
        workspace.run("absent", "TRACKERS", "['wandb']")
