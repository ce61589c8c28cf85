"""Experiment trackers as Detectron2 event writers, and predictions as images for TensorBoard and trackers."""

import importlib
import json
import logging
import os
import re
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import HookBase
from detectron2.evaluation.evaluator import inference_context
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, get_event_storage
from numpy.typing import NDArray
from torch import nn

from famix.config import flat_settings
from famix.data.classes import classes_of
from famix.data.corruption import read_input
from famix.data.vocabulary import vocabulary_of
from famix.inference import Predictor
from famix.io import parse_json
from famix.io.atomic import whole_file
from famix.utils.errors import ConfigError
from famix.utils.messages import first_line
from famix.visualization.overlay import downsample

IDS_FILE = "trackers.json"
"""File in OUTPUT_DIR with the id of the run in each tracker, so that a resumed run continues there."""

_PROJECT = "famix"
_WINDOW = 20  # iterations in the median of a scalar, as for TensorBoard
_LONGEST = 6000  # characters of a parameter in MLflow
_IMAGES, _WIDTH = 2, 640  # images per dataset, and their maximum width in pixels


class TrackerWriter(EventWriter):
    """Event writer that sends the settings, scalars and images of a run to an experiment tracker.

    The run starts with the first scalars. An error of the tracker ends the transmission but not the training.

    Args:
        cfg: config of the run.
    """

    package = ""

    def __init__(self, cfg: CfgNode) -> None:
        self._cfg = cfg
        self._api: Any = None
        self._written, self._failed = -1, False

    @abstractmethod
    def start(self, run_id: str | None) -> str:
        """Start a run, or continue the one with an id, and return its id."""

    @abstractmethod
    def log(self, scalars: dict[str, float], images: dict[str, NDArray[np.uint8]], step: int) -> None:
        """Send scalars and images (H, W, 3) of one iteration. Iterations never decrease."""

    @abstractmethod
    def finish(self) -> None:
        """Complete the run."""

    def write(self) -> None:
        """Send everything that is new."""
        storage = get_event_storage()
        steps: dict[int, tuple[dict[str, float], dict[str, Any]]] = defaultdict(lambda: ({}, {}))
        for name, (value, step) in storage.latest_with_smoothing_hint(_WINDOW).items():
            if step > self._written:
                steps[step][0][name] = value
        for name, image, step in storage._vis_data:  # cleared by the writer for TensorBoard, which comes later
            steps[step][1][name] = np.asarray(image).transpose(1, 2, 0)
        if steps and not self._failed:
            self._written = max(steps)
            self._send(sorted(steps.items()))

    def close(self) -> None:
        """Complete the run."""
        if self._api is not None and not self._failed:
            self._guarded(self.finish)

    def _send(self, steps: Iterable[tuple[int, tuple[dict[str, float], dict[str, Any]]]]) -> None:
        def send() -> None:
            if self._api is None:
                self._open()
            for step, (scalars, images) in steps:
                self.log(scalars, images, step)

        self._guarded(send)

    def _open(self) -> None:
        self._api = importlib.import_module(self.package)
        path = Path(self._cfg.OUTPUT_DIR) / IDS_FILE
        ids = dict(parse_json(path.read_text())) if path.is_file() else {}
        ids[self.package] = self.start(ids.get(self.package))
        with whole_file(path) as part:
            part.write_text(json.dumps(ids))

    def _guarded(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:  # a server may fail in any way, which must not end a training of days
            self._failed = True
            logging.getLogger(__name__).warning(
                "%s failed (%s) and receives nothing more of this run. All values are in %s.",
                self.package, first_line(error), os.path.join(self._cfg.OUTPUT_DIR, "metrics.json"),
            )  # fmt: skip


class WandbWriter(TrackerWriter):
    """Event writer for Weights & Biases. Its environment variables select project, server and mode."""

    package = "wandb"

    def start(self, run_id: str | None) -> str:
        """See TrackerWriter."""
        folder = self._cfg.OUTPUT_DIR
        self._run = self._api.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT), dir=folder, name=Path(folder).name, id=run_id, resume="allow",
            config=flat_settings(self._cfg), settings=self._api.Settings(console="off"),
        )  # fmt: skip
        return str(self._run.id)

    def log(self, scalars: dict[str, float], images: dict[str, NDArray[np.uint8]], step: int) -> None:
        """See TrackerWriter."""
        self._run.log({**scalars, **{name: self._api.Image(image) for name, image in images.items()}}, step=step)

    def finish(self) -> None:
        """See TrackerWriter."""
        self._run.finish()


class MLflowWriter(TrackerWriter):
    """Event writer for MLflow. Its environment variables select server and experiment."""

    package = "mlflow"

    def start(self, run_id: str | None) -> str:
        """See TrackerWriter."""
        self._api.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT))
        run = self._api.start_run(run_id=run_id, run_name=Path(self._cfg.OUTPUT_DIR).name)
        if run_id is None:
            self._api.log_params({key: str(value)[:_LONGEST] for key, value in flat_settings(self._cfg).items()})
        return str(run.info.run_id)

    def log(self, scalars: dict[str, float], images: dict[str, NDArray[np.uint8]], step: int) -> None:
        """See TrackerWriter."""
        self._api.log_metrics({_plain(name): value for name, value in scalars.items()}, step=step)
        for name, image in images.items():
            self._api.log_image(image, key=_plain(name), step=step)

    def finish(self) -> None:
        """See TrackerWriter."""
        self._api.end_run()


_WRITERS: dict[str, type[TrackerWriter]] = {writer.package: writer for writer in (WandbWriter, MLflowWriter)}


def build_trackers(cfg: CfgNode) -> list[EventWriter]:
    """Build the writers for the trackers in TRACKERS.

    Raises:
        ConfigError: a tracker is unknown or not installed.
    """
    for name in cfg.TRACKERS:
        if name not in _WRITERS:
            raise ConfigError(f"TRACKERS must list some of {', '.join(_WRITERS)}, got {name!r}. Correct the name.")
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"TRACKERS lists {name}, which cannot be imported ({first_line(error)}). Install it with pip install "
                f"'famix[trackers]'."
            ) from error
    return [_WRITERS[name](cfg) for name in dict.fromkeys(cfg.TRACKERS)]


class PredictionImages(HookBase):
    """Hook that shows predictions for the first images of every test dataset as images in TensorBoard and trackers.

    Args:
        cfg: config; VIS_PERIOD is the number of iterations between images, and 0 disables them.
        model: trained network.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        self._cfg, self._model = cfg, model

    def after_step(self) -> None:
        """Predict if images are due."""
        if self._cfg.VIS_PERIOD > 0 and (self.trainer.iter + 1) % self._cfg.VIS_PERIOD == 0 and comm.is_main_process():
            with inference_context(self._model):
                self._predict()

    def _predict(self) -> None:
        cfg, vocabulary = self._cfg, vocabulary_of(self._cfg)
        classes = classes_of(cfg) if vocabulary is None else vocabulary.table
        predictor = Predictor(self._model, classes, image_format=cfg.INPUT.FORMAT, max_pixels=cfg.INPUT.MAX_PIXELS)
        for name in cfg.DATASETS.TEST:
            for index, entry in enumerate(DatasetCatalog.get(name)[:_IMAGES]):
                image = read_input(entry, cfg.INPUT.MAX_PIXELS)
                shown = downsample(predictor(image).overlay(image), _WIDTH, smooth=True)
                self.trainer.storage.put_image(f"{name}/{index}", shown.transpose(2, 0, 1))


def _plain(name: str) -> str:
    """Replace characters that MLflow rejects."""
    return re.sub(r"[^\w\-./ ]", "_", name)
