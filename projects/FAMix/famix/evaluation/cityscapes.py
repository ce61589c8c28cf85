"""The score of Cityscapes' own script, through Detectron2's CityscapesSemSegEvaluator."""

import glob
import importlib
import os
from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

from detectron2.data import DatasetCatalog
from detectron2.evaluation import CityscapesSemSegEvaluator

from famix.data.records import label_file_of
from famix.errors import ConfigError

__all__ = ["CityscapesScriptEvaluator", "require_cityscapes_files"]

_SCRIPT = "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling"
_LABEL_SUFFIX = "_gtFine_labelIds.png"
_NAMES = {"IoU": "mIoU", "IoU_sup": "mIoU-categories"}  # of the script's scores, and ours


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
            {"sem_seg": {"mIoU": over classes, "mIoU-categories": over Cityscapes' categories}} in percent on the main
            process, None on others.
        """
        self._script.args.evalInstLevelScore = False
        self._script.args.quiet = True
        results = super().evaluate()
        if results is None:
            return None
        scores = results["sem_seg"]
        return OrderedDict(sem_seg={ours: float(scores[theirs]) for theirs, ours in _NAMES.items()})


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
