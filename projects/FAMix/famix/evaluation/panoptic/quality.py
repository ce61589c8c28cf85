"""Panoptic quality through COCO's panopticapi, by way of Detectron2's COCOPanopticEvaluator."""

import contextlib
import importlib
import io
import math
import tempfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOPanopticEvaluator
from detectron2.utils import comm
from PIL import Image

from famix.data.panoptic.classes import PanopticClasses, panoptic_classes
from famix.data.panoptic.segments import encode_ids
from famix.evaluation.panoptic.truth import PanopticSegments, TruthReader
from famix.utils.errors import ConfigError

__all__ = ["PanopticQualityEvaluator", "require_panopticapi"]

_FAST = 1  # compression of PNGs that are read once
_NUM_THREADS = 4  # sorting pixels and decoding PNGs are done without Python's lock
_SCORES = ("PQ", "SQ", "RQ")
_KINDS = {"": None, "_th": True, "_st": False}  # suffix -> of things, of stuff, or of both


class PanopticQualityEvaluator(COCOPanopticEvaluator):
    """COCOPanopticEvaluator in train ids, for data sets whose categories are not the classes one by one.

    Several categories of a data set may be one class, and some none; panopticapi compares category ids. So ground truth
    goes to it as it is trained with, and pixels without a class are void. Every process scores its own images, in
    threads: panopticapi's own way forks as many processes as the machine has cores, out of a process with threads.

    Args:
        dataset_name: a registered panoptic data set.
        truths: shared by the evaluators of a data set.

    Raises:
        ConfigError: panopticapi is not installed, or the data set is not panoptic.
    """

    def __init__(self, dataset_name: str, truths: TruthReader | None = None) -> None:
        require_panopticapi()
        classes, metadata = panoptic_classes(dataset_name), MetadataCatalog.get(dataset_name)
        super().__init__(dataset_name)
        things, stuff = ({train_id: train_id for train_id in kind} for kind in (classes.things, classes.stuff))
        # What the base class goes by: train ids in the place of category ids.
        self._thing_contiguous_id_to_dataset_id, self._stuff_contiguous_id_to_dataset_id = things, stuff
        self._metadata = SimpleNamespace(label_divisor=metadata.label_divisor, thing_dataset_id_to_contiguous_id=things)
        self._truths = truths or TruthReader(classes.things)
        self._categories = _categories(classes, metadata.stuff_classes)
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        super().reset()
        self._annotations: list[dict[str, Any]] = []

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Take note of the predictions of some images and of their ground truth.

        Args:
            inputs: dicts with "pan_seg_file_name", "segments_info" and perhaps "void_segments".
            outputs: dicts with "panoptic_seg", of the size of the labels: a pair of (H, W) ids and their segments, or
                of train id * label divisor + instance, -1 where nothing was found, and None.

        Raises:
            DatasetError: a label cannot be read.
        """
        for image, output in zip(inputs, outputs, strict=True):
            panoptic, segments = output["panoptic_seg"]
            # Files of one folder: images of different folders may have the same name.
            name = f"{comm.get_rank()}_{len(self._annotations)}.png"
            # Copies, because the base class adds 1 to the ids in place and renumbers the segments.
            copied = (panoptic.clone(), None if segments is None else [dict(segment) for segment in segments])
            super().process([{"file_name": name, "image_id": name}], [{"panoptic_seg": copied}])
            self._annotations.append(_annotation(name, self._truths.read(image)))

    def evaluate(self) -> "OrderedDict[str, dict[str, float]] | None":
        """Scores of all images.

        Returns:
            {"panoptic_seg": {"PQ", "SQ", "RQ", and the same with "_th" for things and "_st" for stuff}} in percent on
            the main process, None on others. NaN where no image shows or is predicted to show a class of the kind.
        """
        gathered = comm.gather(self._count())
        if not comm.is_main_process():
            return None
        total, *others = gathered
        for counts in others:
            total += counts
        return OrderedDict(panoptic_seg=_scores(total, self._categories))

    def _count(self) -> Any:
        """The panopticapi.evaluation.PQStat of this process's images."""
        panopticapi = importlib.import_module("panopticapi.evaluation")
        with (
            tempfile.TemporaryDirectory(prefix="famix_panoptic_") as folder,
            contextlib.redirect_stdout(io.StringIO()),  # panopticapi prints two lines an image
            ThreadPoolExecutor(_NUM_THREADS) as pool,
        ):
            truth, predicted = Path(folder, "truth"), Path(folder, "predicted")
            for root, annotations in ((truth, self._annotations), (predicted, self._predictions)):
                root.mkdir()
                for annotation in annotations:
                    (root / annotation["file_name"]).write_bytes(annotation.pop("png_string"))
            pairs = zip(self._annotations, self._predictions, strict=True)
            total = panopticapi.PQStat()
            arguments = truth, predicted, self._categories
            for counts in pool.map(lambda pair: panopticapi.pq_compute_single_core(0, [pair], *arguments), pairs):
                total += counts
        return total


def require_panopticapi() -> None:
    """Raise ConfigError unless panopticapi is installed."""
    try:
        importlib.import_module("panopticapi.evaluation")
    except ImportError as error:
        raise ConfigError(
            f"panoptic models need the package panopticapi, which cannot be imported ({error}); run make setup, or pip "
            "install --no-deps panopticapi-lite"
        ) from error


def _scores(counts: Any, categories: Mapping[int, Mapping[str, Any]]) -> dict[str, float]:
    scores: dict[str, float] = {}
    for suffix, of_things in _KINDS.items():
        try:
            average = counts.pq_average(categories, isthing=of_things)[0]
        except ZeroDivisionError:  # the mean over no class
            average = dict.fromkeys(map(str.lower, _SCORES), math.nan)
        scores |= {name + suffix: 100 * float(average[name.lower()]) for name in _SCORES}
    return scores


def _categories(classes: PanopticClasses, names: Sequence[str]) -> dict[int, dict[str, Any]]:
    return {
        train_id: {"id": train_id, "name": name, "isthing": int(train_id in classes.things)}
        for train_id, name in enumerate(names)
    }


def _annotation(name: str, truth: PanopticSegments) -> dict[str, Any]:
    with io.BytesIO() as stream:
        Image.fromarray(encode_ids(truth.numbers)).save(stream, format="PNG", compress_level=_FAST)
        png = stream.getvalue()
    segments = [{**segment, "area": area} for segment, area in zip(truth.segments, truth.areas(), strict=True)]
    return {"image_id": name, "file_name": name, "segments_info": segments, "png_string": png}
