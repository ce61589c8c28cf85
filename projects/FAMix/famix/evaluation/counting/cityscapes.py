"""The score of Cityscapes' own script, through Detectron2's CityscapesSemSegEvaluator."""

import glob
import importlib
import os
from collections import OrderedDict
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.evaluation import CityscapesSemSegEvaluator
from detectron2.utils import comm

from famix.data.classes import CITYSCAPES_CLASSES
from famix.data.records import label_file_of
from famix.evaluation.counting.scores import ZERO, segmentation_scores
from famix.utils.errors import ConfigError

__all__ = ["CityscapesScriptEvaluator", "require_cityscapes_files"]

_SCRIPT = "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling"
_LABEL_SUFFIX = "_gtFine_labelIds.png"


class CityscapesScriptEvaluator(CityscapesSemSegEvaluator):
    """CityscapesSemSegEvaluator for registered datasets, without instance-level scores.

    The script's code for iIoU calls functions that NumPy 2.4 removed, and needs further files.

    Args:
        dataset_name: a registered dataset, see `require_cityscapes_files`.

    Raises:
        ConfigError: see `require_cityscapes_files`.
    """

    def __init__(self, dataset_name: str) -> None:
        super().__init__(dataset_name)
        self._metadata = SimpleNamespace(gt_dir=require_cityscapes_files(dataset_name))
        self._script = importlib.import_module(_SCRIPT)

    def evaluate(self) -> "OrderedDict[str, dict[str, float]] | None":
        """Compute the scores of all images.

        Returns:
            {"sem_seg": {"mIoU", "mIoU-zero": the script's mean over classes, "mIoU-categories": its mean over
            categories, "mIoU-skip": the mean without classes that are nowhere labeled, and IoU-<name> and ACC-<name> of
            every class}} in percent on the main process, None on others.
        """
        comm.synchronize()
        if not comm.is_main_process():
            return None
        args = self._script.args
        args.predictionPath, args.predictionWalk = os.path.abspath(self._temp_dir), None
        args.JSONOutput = args.colorized = args.evalInstLevelScore = False
        args.quiet = True
        truths = sorted(glob.glob(os.path.join(self._metadata.gt_dir, "*", f"*{_LABEL_SUFFIX}")))
        predictions = [self._script.getPrediction(args, truth) for truth in truths]
        scores = self._script.evaluateImgLists(predictions, truths, args)
        self._working_dir.cleanup()
        return OrderedDict(sem_seg=_read_scores(scores))


def _read_scores(scores: Mapping[str, Any]) -> dict[str, float]:
    """The script's IoU, and ours of its confusion matrix, whose rows and columns are label ids; in percent."""
    names = [entry.name for entry in CITYSCAPES_CLASSES]
    ids = [scores["labels"][name] for name in names]
    confusion = np.array(scores["confMatrix"])[np.ix_(ids, ids)]
    own = segmentation_scores(confusion, names, absent=ZERO)
    return {
        "mIoU": 100 * float(scores["averageScoreClasses"]),
        "mIoU-categories": 100 * float(scores["averageScoreCategories"]),
        **{f"IoU-{name}": 100 * float(scores["classScores"][name]) for name in names},
        **{name: value for name, value in own.items() if name.startswith(("ACC-", "mIoU-"))},
    }


def require_cityscapes_files(dataset_name: str) -> str:
    """Check that Cityscapes' script can score a dataset.

    Args:
        dataset_name: a registered dataset.

    Returns:
        The folder of the labels, <folder>/<city>/<image>_gtFine_labelIds.png.

    Raises:
        ConfigError: the script is not installed, labels have other names, or the dataset is a part of its folder.
    """
    try:
        importlib.import_module(_SCRIPT)
    except ImportError as error:
        raise ConfigError(
            f"TEST.EVALUATOR cityscapes requires the package cityscapesscripts, got: {error}. Run pip install "
            "cityscapesscripts, or set TEST.EVALUATOR streaming."
        ) from error
    labels = [label_file_of(record) for record in DatasetCatalog.get(dataset_name)]
    folders = {os.path.dirname(os.path.dirname(path)) for path in labels}
    if len(folders) != 1 or not all(path.endswith(_LABEL_SUFFIX) for path in labels):
        raise ConfigError(
            f"TEST.EVALUATOR cityscapes requires label files FOLDER/CITY/*{_LABEL_SUFFIX}, got '{labels[0]}' of "
            f"{dataset_name}. Set TEST.EVALUATOR streaming."
        )
    (folder,) = folders
    found = glob.glob(os.path.join(glob.escape(folder), "*", f"*{_LABEL_SUFFIX}"))
    if len(found) != len(labels):  # the script exits at a label without a prediction
        raise ConfigError(
            f"TEST.EVALUATOR cityscapes requires a dataset of all {len(found)} labels in '{folder}', got {len(labels)} of "
            f"{dataset_name}. Set TEST.EVALUATOR streaming."
        )
    return folder
