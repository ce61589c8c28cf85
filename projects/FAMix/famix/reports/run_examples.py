"""What the models of runs make of a few images of every data set."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from famix.data import FAMixDatasetMapper, get_dataset_dicts, get_label_readers, label_file_of, read_image
from famix.data.class_table import ClassTable
from famix.evaluation import ProtocolInference, protocol_of
from famix.inference.loading import CONFIG_FILE, LoadedModel, load_model
from famix.reports.run_folder import Run
from famix.reports.run_metadata import file_sha256
from famix.utils.errors import ConfigError
from famix.visualization.label_pictures import Ids, Pixels

__all__ = ["Example", "chosen_images", "predict_examples"]

Progress = Callable[[Iterable[Any]], Iterable[Any]]


@dataclass(frozen=True)
class Example:
    """An image of a data set, and what a run makes of it.

    Attributes:
        data_set: its name.
        title: name of the file.
        image: (H, W, 3) RGB.
        truth: (h, w) train ids, as the run's protocol scores them.
        predicted: (h, w) train ids.
        classes: of the network.
    """

    data_set: str
    title: str
    image: Pixels
    truth: Ids
    predicted: Ids
    classes: ClassTable


def chosen_images(count: int, most: int) -> list[int]:
    """Numbers of at most `most` of `count` images: in the middle of as many equal parts, whatever they show."""
    chosen = min(count, most)
    return [(2 * part + 1) * count // (2 * chosen) for part in range(chosen)]


@torch.inference_mode()
def predict_examples(run: Run, most: int, device: str | None = None, progress: Progress = iter) -> list[Example]:
    """Let the model that a run scored label images of every data set that it was scored on.

    Args:
        run: its folder holds config.yaml and the weights that were scored.
        most: images of a data set.
        device: to compute on; None takes a GPU where there is one.
        progress: wraps the images while they are worked on, e.g. tqdm.

    Raises:
        FAMixError: weights, config or images are missing, or the weights are not those that were scored.
    """
    loaded = load_model(_scored_weights(run), run.folder / CONFIG_FILE, device=device)
    mapper = FAMixDatasetMapper(loaded.cfg, is_train=False)
    work = [(name, record) for name in run.report.data_sets for record in _records(name, most)]
    return [_predict(loaded, mapper, name, record) for name, record in progress(work)]


def _predict(loaded: LoadedModel, mapper: FAMixDatasetMapper, name: str, record: dict[str, Any]) -> Example:
    protocol = protocol_of(loaded.cfg, name)
    (result,) = ProtocolInference(loaded.model, protocol)([mapper(record)])
    max_pixels = loaded.cfg.INPUT.MAX_PIXELS
    truth = protocol.prepare_labels(get_label_readers([name], max_pixels)[name].read(label_file_of(record)))
    return Example(
        data_set=name,
        title=Path(record["file_name"]).name,
        image=np.asarray(read_image(record["file_name"], max_pixels=max_pixels)),
        truth=truth.astype(np.uint8),
        predicted=result["sem_seg"].argmax(0).to("cpu", torch.uint8).numpy(),
        classes=loaded.classes,
    )


def _records(name: str, most: int) -> list[dict[str, Any]]:
    records = get_dataset_dicts([name])
    return [records[index] for index in chosen_images(len(records), most)]


def _scored_weights(run: Run) -> Path:
    """The file of the weights that the scores are of.

    Raises:
        ConfigError: it is not in the folder, or holds other weights by now.
    """
    facts = run.report.run.weights
    path = run.folder / (facts.file or "")
    if not facts.file or not os.path.isfile(path):
        raise ConfigError(f"{run.folder} has no {facts.file or 'file of weights'}, which was scored")
    if facts.sha256 and file_sha256(path) != facts.sha256:
        raise ConfigError(f"{path} holds other weights by now than those that were scored; score it with --eval-only")
    return path
