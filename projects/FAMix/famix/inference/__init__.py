"""Trained networks at work: prediction, pictures, video and export."""

from famix.data.class_table import ClassTable
from famix.inference.loading import LoadedModel, load_model
from famix.inference.prediction import Prediction
from famix.inference.predictor import Predictor
from famix.inference.segments import Segment

__all__ = ["ClassTable", "LoadedModel", "Prediction", "Predictor", "Segment", "load_model"]
