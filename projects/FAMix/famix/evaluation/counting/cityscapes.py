"""The score of Cityscapes' own script, through Detectron2's CityscapesSemSegEvaluator."""

import glob
import importlib
import math
import os
from collections import OrderedDict
from collections.abc import Mapping
from statistics import fmean
from types import SimpleNamespace
from typing import Any

from detectron2.data import DatasetCatalog
from detectron2.evaluation import CityscapesSemSegEvaluator
from detectron2.utils import comm

from famix.data.classes import CITYSCAPES_CLASSES
from famix.data.records import label_file_of
from famix.evaluation.counting.confusion import MEAN_IOUS, SKIP, ZERO
from famix.utils.errors import ConfigError

__all__ = ["CityscapesScriptEvaluator", "require_cityscapes_files"]

_SCRIPT = "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling"
_LABEL_SUFFIX = "_gtFine_labelIds.png"


class CityscapesScriptEvaluator(CityscapesSemSegEvaluator):
    """CityscapesSemSegEvaluator for a data set of this project.

    Its instance-level scores (iIoU) are left out: the script's code for them calls what NumPy 2.4 no longer has, and
    they need further files.

    Args:
        dataset_name: a registered data set, see `require_cityscapes_files`.

    Raises:
        ConfigError: the script is not installed, or the files are not as it expects them.
    """

    def __init__(self, dataset_name: str) -> None:
        super().__init__(dataset_name)
        self._metadata = SimpleNamespace(gt_dir=require_cityscapes_files(dataset_name))
        self._script = _import_script()

    def evaluate(self) -> "OrderedDict[str, dict[str, float]] | None":
        """Scores of all images.

        Returns:
            {"sem_seg": {"mIoU": over classes as the script has it, "mIoU-categories": over Cityscapes' categories,
            "mIoU-skip": without classes that are nowhere labelled, "mIoU-zero": the script's, and IoU-<name> and
            ACC-<name> of every class}} in percent on the main process, None on others.
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
        return OrderedDict(sem_seg={name: 100 * value for name, value in _read_scores(scores).items()})


def _read_scores(scores: Mapping[str, Any]) -> dict[str, float]:
    """Shares from the dictionary of Cityscapes' script, whose confusion matrix has label ids for rows and columns."""
    iou = {name: float(value) for name, value in scores["classScores"].items() if not math.isnan(value)}
    counts = {name: scores["confMatrix"][scores["labels"][name]] for name in scores["classScores"]}
    labelled = {name: sum(row) for name, row in counts.items()}
    accuracy = {
        name: row[scores["labels"][name]] / labelled[name] if labelled[name] else math.nan
        for name, row in counts.items()
    }
    of_labelled = [value for name, value in iou.items() if labelled[name]]
    scored = [name for name in (entry.name for entry in CITYSCAPES_CLASSES) if name in counts]
    return {
        "mIoU": float(scores["averageScoreClasses"]),
        "mIoU-categories": float(scores["averageScoreCategories"]),
        **{f"IoU-{name}": iou.get(name, math.nan) for name in scored},
        **{f"ACC-{name}": accuracy[name] for name in scored},
        MEAN_IOUS[SKIP]: fmean(of_labelled) if of_labelled else math.nan,
        MEAN_IOUS[ZERO]: float(scores["averageScoreClasses"]),
    }


def require_cityscapes_files(dataset_name: str) -> str:
    """Find out whether Cityscapes' script can score a data set.

    Args:
        dataset_name: a registered data set.

    Returns:
        The folder of the labels, <folder>/<city>/<image>_gtFine_labelIds.png.

    Raises:
        ConfigError: the script is not installed, the labels are called otherwise, or they are not all of the folder's.
    """
    _import_script()
    labels = [label_file_of(record) for record in DatasetCatalog.get(dataset_name)]
    folders = {os.path.dirname(os.path.dirname(path)) for path in labels}
    if len(folders) != 1 or not all(path.endswith(_LABEL_SUFFIX) for path in labels):
        raise ConfigError(
            f"TEST.EVALUATOR cityscapes scores files FOLDER/CITY/*{_LABEL_SUFFIX} alone, but {dataset_name} has "
            f"{labels[0]}; set TEST.EVALUATOR streaming"
        )
    (folder,) = folders
    found = glob.glob(os.path.join(glob.escape(folder), "*", f"*{_LABEL_SUFFIX}"))
    if len(found) != len(labels):  # the script would end the program over a label without a prediction
        raise ConfigError(
            f"TEST.EVALUATOR cityscapes scores every label below {folder}, of which there are {len(found)}, but "
            f"{dataset_name} has {len(labels)}; set TEST.EVALUATOR streaming"
        )
    return folder


def _import_script() -> Any:
    try:
        return importlib.import_module(_SCRIPT)
    except ImportError as error:
        raise ConfigError(
            f"TEST.EVALUATOR cityscapes needs the package cityscapesscripts, which cannot be imported ({error}); pip "
            "install cityscapesscripts, or set TEST.EVALUATOR streaming"
        ) from error
