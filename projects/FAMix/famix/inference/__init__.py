"""Inference with trained networks: prediction, views, video and export."""

from famix.data.classes import ClassTable
from famix.inference.loading import LoadedModel, load_model, strip_checkpoint
from famix.inference.prediction import Prediction, Segment
from famix.inference.predictor import Predictor

__all__ = ["ClassTable", "LoadedModel", "Prediction", "Predictor", "Segment", "load_model", "strip_checkpoint"]
