"""Runs to predict with: configs and random weights, as a training would leave them."""

import shutil
from pathlib import Path

import pytest

from data_factory import forgotten_datasets
from famix.inference import LoadedModel, Predictor, load_model
from inference.inference_factory import make_run
from run_factory import CONFIG


@pytest.fixture(scope="session")
def pristine_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a semantic run; CLIP's file and the data are gone."""
    return make_run(tmp_path_factory.mktemp("inference"), CONFIG)


@pytest.fixture(scope="session")
def loaded(pristine_run: Path) -> LoadedModel:
    """The network of the run; not to be changed."""
    with forgotten_datasets():
        return load_model(pristine_run, device="cpu")


@pytest.fixture(scope="session")
def predictor(loaded: LoadedModel) -> Predictor:
    """The network as a predictor; not to be changed."""
    return Predictor(loaded.model, loaded.classes)


@pytest.fixture
def run(pristine_run: Path, tmp_path: Path) -> Path:
    """A copy of the run's folder, that a test may change."""
    return Path(shutil.copytree(pristine_run, tmp_path / "run"))
