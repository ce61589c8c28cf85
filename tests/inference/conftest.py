"""Runs for prediction: configs and random weights as after a training. Session fixtures must not be changed."""

import shutil

import pytest

from data_factory import forgotten_datasets
from famix.inference import Predictor, load_model
from inference.inference_factory import make_run
from run_factory import CONFIG


@pytest.fixture(scope="session")
def pristine_run(tmp_path_factory):
    """Folder of a semantic run, without CLIP's file and the data."""
    return make_run(tmp_path_factory.mktemp("inference"), CONFIG)


@pytest.fixture(scope="session")
def loaded(pristine_run):
    with forgotten_datasets():
        return load_model(pristine_run, device="cpu")


@pytest.fixture(scope="session")
def predictor(loaded):
    return Predictor(loaded.model, loaded.classes)


@pytest.fixture
def run(pristine_run, tmp_path):
    """A copy of the run's folder, which a test may change."""
    return shutil.copytree(pristine_run, tmp_path / "run")
