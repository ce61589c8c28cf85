"""Detectron2's evaluators, set up for label files of any encoding."""

import logging
import os

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, SemSegEvaluator

__all__ = ["build_evaluator"]


def build_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
    """The evaluator of a data set.

    Args:
        cfg: the effective config.
        dataset_name: a registered data set.
        output_folder: where the evaluator writes; None for OUTPUT_DIR/inference/<data set>.

    Returns:
        Detectron2's SemSegEvaluator, reading labels with the data set's own reader.
    """
    reader = MetadataCatalog.get(dataset_name).label_reader

    def load_label(path: str, dtype: type = np.int64) -> np.ndarray:
        return reader.read(path).astype(dtype)

    # It logs a dictionary of some 80 numbers in one line; famix.evaluation.table lays the same out.
    logging.getLogger(SemSegEvaluator.__module__).setLevel(logging.WARNING)
    return SemSegEvaluator(
        dataset_name,
        distributed=True,
        output_dir=output_folder or os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name),
        sem_seg_loading_fn=load_label,
    )
