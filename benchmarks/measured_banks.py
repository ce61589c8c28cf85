"""Banks of measured statistics, which are made once for the same CLIP, settings and images."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from famix.data import register_datasets
from famix.mining.measured import measure_bank
from famix_minitown.experiment import Experiment

__all__ = ["measured_bank"]


def measured_bank(experiment: Experiment, datasets: Sequence[str], folder: Path, name: str) -> Path:
    """The file of a bank that holds the statistics of labelled images, with the CLIP and the settings of an experiment.

    Args:
        experiment: without a bank of its own.
        datasets: registered names.
        folder: of the file.
        name: begins the file's name.
    """
    key = hashlib.sha256(json.dumps([experiment.settings(), list(datasets)], sort_keys=True).encode()).hexdigest()
    path = folder / f"{name}_{key[:12]}.safetensors"
    if not path.exists():
        cfg = experiment.load_config()
        register_datasets(cfg.DATASETS.FILES)
        measure_bank(cfg, list(datasets)).save(path)
    return path
