"""Panoptic quality (COCO's panopticapi) and mask AP (pycocotools), computed on train ids."""

import contextlib
import importlib
import io
import itertools
import math
import tempfile
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils import comm
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from famix.data.classes import LABEL_DIVISOR, panoptic_classes
from famix.data.images import MAX_PIXELS
from famix.data.panoptic.segments import encode_ids, read_segments
from famix.evaluation.counting.scored_classes import ScoredClasses, classes_of_dataset
from famix.utils.errors import ConfigError

_NUM_THREADS = 4  # sorting pixels and decoding PNGs release the GIL
_AP_SCORES = ("AP", "AP50", "AP75")  # the first three numbers of pycocotools' summary


@dataclass(frozen=True)
class PanopticSegments:
    """Segments of an image, numbered from 1."""

    numbers: NDArray[np.int32]  # (H, W), the `id` of each pixel's segment; 0 is void
    segments: list[dict[str, Any]]  # {"id", "category_id": train id, "iscrowd", "area" in pixels}


def read_truth(inputs: Mapping[str, Any], classes: ScoredClasses, max_pixels: int = MAX_PIXELS) -> PanopticSegments:
    """Read the ground truth of a dataset dict, and merge the segments of each stuff class into one.

    Args:
        inputs: dataset dict with "pan_seg_file_name", "segments_info" and optionally "void_segments". Several of its
            categories may share a class.
        classes: classes of the predictions, which the segments are mapped to.
        max_pixels: limit on the image size, see INPUT.MAX_PIXELS.

    Raises:
        DatasetError: see `read_segments`.
    """
    segments = inputs["segments_info"]
    numbers = read_segments(inputs["pan_seg_file_name"], segments, inputs.get("void_segments", ()), max_pixels)
    merged: dict[tuple[int, int], dict[str, Any]] = {}
    number_of = [0]
    for segment in classes.segments(segments):
        class_id, crowd = segment["category_id"], segment["iscrowd"]
        is_instance = class_id in classes.things and not crowd
        key = (class_id, len(number_of) if is_instance else -crowd)
        entry = {"id": len(merged) + 1, "category_id": class_id, "iscrowd": crowd}
        number_of.append(merged.setdefault(key, entry)["id"])
    merged_numbers = np.array(number_of, dtype=np.int32)[numbers]
    areas = np.bincount(merged_numbers.ravel()).tolist()
    return PanopticSegments(merged_numbers, [{**entry, "area": areas[entry["id"]]} for entry in merged.values()])


def predicted_segments(
    panoptic: Tensor, entries: Sequence[Mapping[str, Any]] | None, label_divisor: int = LABEL_DIVISOR
) -> PanopticSegments:
    """Convert the "panoptic_seg" output of either panoptic head. Segments without pixels are dropped.

    Args:
        panoptic: (H, W) ids. Without `entries`, an id is train id * `label_divisor` + instance, or -1 for void.
        entries: {"id", "category_id": train id, ...} for each segment. Other items are kept.
        label_divisor: divisor in the dataset's metadata.
    """
    found, places, areas = panoptic.unique(return_inverse=True, return_counts=True)
    if entries is None:
        entries = [{"id": key, "category_id": key // label_divisor} for key in found.tolist() if key >= 0]
    described = {int(entry["id"]): entry for entry in entries}
    numbers = np.zeros(len(found), dtype=np.int32)
    segments: list[dict[str, Any]] = []
    for place, (key, area) in enumerate(zip(found.tolist(), areas.tolist(), strict=True)):
        if key in described:
            numbers[place] = len(segments) + 1
            segments.append({**described[key], "id": len(segments) + 1, "iscrowd": 0, "area": area})
    return PanopticSegments(numbers[places.cpu().numpy()], segments)


def require_panopticapi() -> Any:
    """Import panopticapi.evaluation. Raises ConfigError if the package is missing."""
    try:
        return importlib.import_module("panopticapi.evaluation")
    except ImportError as error:
        raise ConfigError(
            f"Panoptic models require the package panopticapi, which cannot be imported: {error}. Run make setup, or pip "
            "install --no-deps panopticapi-lite."
        ) from error


class PanopticEvaluator(DatasetEvaluator):
    """Evaluator for COCO's panoptic quality (PQ) and, for models that predict instances, average precision (AP) of masks.

    A dataset's categories may share a class or have none. COCO's code therefore gets train ids instead of category ids,
    and pixels without a class are void. Every process counts its own images in threads, because panopticapi's own
    function forks one process per core, which is unsafe in a multithreaded process.

    Args:
        dataset_name: name of a registered panoptic dataset.
        predictions: output entries to score: "panoptic_seg" for PQ, "instances" for AP.
        max_pixels: limit on the image size, see INPUT.MAX_PIXELS.
        classes: classes of the predictions, which the ground truth is mapped to. None scores those of the dataset.

    Raises:
        ConfigError: panopticapi is required but not installed, or the dataset is not panoptic.
    """

    def __init__(
        self,
        dataset_name: str,
        predictions: Collection[str] = ("panoptic_seg", "instances"),
        max_pixels: int = MAX_PIXELS,
        classes: ScoredClasses | None = None,
    ) -> None:
        panoptic_classes(dataset_name)  # raises if the dataset is not panoptic
        metadata = MetadataCatalog.get(dataset_name)
        self._classes = classes or classes_of_dataset(dataset_name)
        self._things = self._classes.things
        self._label_divisor: int = metadata.label_divisor
        self._predictions = frozenset(predictions)
        self._max_pixels = max_pixels
        if "panoptic_seg" in predictions:
            require_panopticapi()
        self._categories = {
            class_id: {"id": class_id, "name": name, "isthing": int(class_id in self._things)}
            for class_id, name in enumerate(self._classes.names)
        }
        self.reset()

    def reset(self) -> None:
        """Discard all stored images."""
        self._pairs: list[list[tuple[bytes, list[dict[str, Any]]]]] = []
        self._instances: list[tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]] = []

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Store predictions and ground truth for a batch of images.

        Args:
            inputs: see `read_truth`.
            outputs: dicts with "panoptic_seg" at the size of the labels (see `predicted_segments`) and "instances" with
                train ids as `pred_classes`. An output may omit "instances".

        Raises:
            DatasetError: a label cannot be read.
        """
        for image, output in zip(inputs, outputs, strict=True):
            truth = read_truth(image, self._classes, self._max_pixels)
            if "panoptic_seg" in self._predictions:
                panoptic, entries = output["panoptic_seg"]
                predicted = predicted_segments(panoptic, entries, self._label_divisor)
                self._pairs.append([(_png(one.numbers), one.segments) for one in (truth, predicted)])
            if "instances" in self._predictions:
                height, width = truth.numbers.shape
                found = instances_to_coco_json(output["instances"].to("cpu"), 0) if "instances" in output else []
                instances = []
                for segment in truth.segments:
                    if segment["category_id"] in self._things:
                        mask = masks.encode(np.asfortranarray(truth.numbers == segment["id"], dtype=np.uint8))
                        instances.append({**segment, "segmentation": mask, "bbox": masks.toBbox(mask).tolist()})
                self._instances.append(({"height": height, "width": width}, instances, found))

    def evaluate(self) -> "OrderedDict[str, dict[str, float]] | None":
        """Compute the scores over all images. Returns None on all but the main process.

        Returns:
            {"panoptic_seg": {"PQ", "SQ", "RQ", and the same with "_th" for things and "_st" for stuff}, "segm": {"AP",
            "AP50", "AP75"}} in percent. If there are unseen classes, "PQ", "SQ" and "RQ" also exist with "_seen" and
            "_unseen". A score is NaN if no class of its kind is labeled or predicted.
        """
        results: OrderedDict[str, dict[str, float]] = OrderedDict()
        if "panoptic_seg" in self._predictions:
            counts = comm.gather(self._count())
            if counts:
                results["panoptic_seg"] = self._panoptic_quality(counts)
        if "instances" in self._predictions:
            images = list(itertools.chain(*comm.gather(self._instances)))
            if comm.is_main_process():
                results["segm"] = self._average_precision(images)
        return results if comm.is_main_process() else None

    def _count(self) -> Any:
        """Return the panopticapi.evaluation.PQStat for this process's images."""
        api = require_panopticapi()
        total = api.PQStat()
        with (
            tempfile.TemporaryDirectory(prefix="famix_panoptic_") as folder,
            contextlib.redirect_stdout(io.StringIO()),  # panopticapi prints two lines per image
            ThreadPoolExecutor(_NUM_THREADS) as pool,
        ):
            folders = Path(folder, "truth"), Path(folder, "predicted")
            for root in folders:
                root.mkdir()

            def count_image(number: int, image: list[tuple[bytes, list[dict[str, Any]]]]) -> Any:
                pair = []
                for root, (png, segments) in zip(folders, image, strict=True):
                    (root / f"{number}.png").write_bytes(png)
                    pair.append({"image_id": number, "file_name": f"{number}.png", "segments_info": segments})
                return api.pq_compute_single_core(0, [pair], *folders, self._categories)

            for counts in pool.map(count_image, itertools.count(), self._pairs):
                total += counts
        return total

    def _panoptic_quality(self, counts: Sequence[Any]) -> dict[str, float]:
        total, *others = counts
        for other in others:
            total += other
        things, unseen = set(self._things), set(self._classes.unseen)
        groups = {"": self._categories.keys(), "_th": things, "_st": self._categories.keys() - things}
        if unseen:
            groups |= {"_seen": self._categories.keys() - unseen, "_unseen": unseen}
        scores: dict[str, float] = {}
        for suffix, ids in groups.items():
            try:
                chosen = {class_id: self._categories[class_id] for class_id in sorted(ids)}
                average = total.pq_average(chosen, isthing=None)[0]
            except ZeroDivisionError:  # no class to average
                average = dict.fromkeys(("pq", "sq", "rq"), math.nan)
            scores |= {name.upper() + suffix: 100 * float(average[name]) for name in ("pq", "sq", "rq")}
        return scores

    def _average_precision(self, images: Sequence[tuple[Any, ...]]) -> dict[str, float]:
        truth, found = (
            [{**entry, "image_id": number} for number, image in enumerate(images, 1) for entry in image[place]]
            for place in (1, 2)
        )
        if all(instance["iscrowd"] for instance in truth):
            return dict.fromkeys(_AP_SCORES, math.nan)
        if not found:
            return dict.fromkeys(_AP_SCORES, 0.0)
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            coco = COCO()
            coco.dataset = {
                "images": [{**image[0], "id": number} for number, image in enumerate(images, 1)],
                "categories": [self._categories[train_id] for train_id in self._things],
                "annotations": [{**entry, "id": number} for number, entry in enumerate(truth, 1)],
            }
            coco.createIndex()
            evaluation = COCOeval(coco, coco.loadRes(found), "segm")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return dict(zip(_AP_SCORES, (100 * evaluation.stats[:3]).tolist(), strict=True))


def _png(numbers: NDArray[np.int32]) -> bytes:
    with io.BytesIO() as stream:
        Image.fromarray(encode_ids(numbers)).save(stream, format="PNG", compress_level=1)
        return stream.getvalue()
