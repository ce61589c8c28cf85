"""Panoptic quality by COCO's panopticapi and mask AP by pycocotools, in train ids."""

import contextlib
import importlib
import io
import itertools
import math
import tempfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils import comm
from PIL import Image
from pycocotools import mask as masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from famix.data.classes import panoptic_classes
from famix.data.panoptic.segments import encode_ids
from famix.evaluation.panoptic.truth import PanopticSegments, TruthReader, predicted_segments
from famix.utils.errors import ConfigError

__all__ = ["InstanceAPEvaluator", "PanopticQualityEvaluator", "require_panopticapi"]

_FAST = 1  # compression of PNGs that are read once
_NUM_THREADS = 4  # sorting pixels and decoding PNGs release Python's lock
_AP_SCORES = ("AP", "AP50", "AP75")  # the first three numbers of pycocotools' summary


def require_panopticapi() -> Any:
    """Import panopticapi.evaluation.

    Raises:
        ConfigError: panopticapi is not installed.
    """
    try:
        return importlib.import_module("panopticapi.evaluation")
    except ImportError as error:
        raise ConfigError(
            f"panoptic models require the package panopticapi, got: {error}. Run make setup, or pip install --no-deps "
            "panopticapi-lite."
        ) from error


class PanopticQualityEvaluator(DatasetEvaluator):
    """COCO's panoptic quality.

    Several categories of a dataset may be one class, or none. panopticapi therefore gets train ids in place of category
    ids, and pixels without a class are void. Every process scores its own images in threads: panopticapi's own function
    forks a process per core, which is not safe in a process with threads.

    Args:
        dataset_name: a registered panoptic dataset.
        truths: shared by the evaluators of a dataset.

    Raises:
        ConfigError: panopticapi is not installed, or the dataset is not panoptic.
    """

    def __init__(self, dataset_name: str, truths: TruthReader | None = None) -> None:
        self._panopticapi = require_panopticapi()
        things, metadata = panoptic_classes(dataset_name).things, MetadataCatalog.get(dataset_name)
        self._label_divisor: int = metadata.label_divisor
        self._truths = truths or TruthReader(things)
        self._categories = {
            train_id: {"id": train_id, "name": name, "isthing": int(train_id in things)}
            for train_id, name in enumerate(metadata.stuff_classes)
        }
        self.reset()

    def reset(self) -> None:
        """Discard all images."""
        self._images: list[tuple[bytes, list[dict[str, Any]], bytes, list[dict[str, Any]]]] = []

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Store the predictions of some images and their ground truth as PNGs.

        Args:
            inputs: dicts with "pan_seg_file_name", "segments_info" and optionally "void_segments".
            outputs: dicts with "panoptic_seg" at the size of the labels, see `predicted_segments`.

        Raises:
            DatasetError: a label cannot be read.
        """
        for image, output in zip(inputs, outputs, strict=True):
            truth = self._truths.read(image)
            panoptic, segments = output["panoptic_seg"]
            predicted = predicted_segments(panoptic, segments, self._label_divisor)
            self._images.append((_png(truth), truth.described(), _png(predicted), predicted.described()))

    def evaluate(self) -> "OrderedDict[str, dict[str, float]] | None":
        """Compute the scores of all images.

        Returns:
            {"panoptic_seg": {"PQ", "SQ", "RQ", and the same with "_th" for things and "_st" for stuff}} in percent on
            the main process, None on others. NaN for a kind without a labeled or predicted class.
        """
        gathered = comm.gather(self._count())
        if not comm.is_main_process():
            return None
        total, *others = gathered
        for counts in others:
            total += counts
        scores: dict[str, float] = {}
        for suffix, of_things in {"": None, "_th": True, "_st": False}.items():
            try:
                average = total.pq_average(self._categories, isthing=of_things)[0]
            except ZeroDivisionError:  # a mean over no class
                average = dict.fromkeys(("pq", "sq", "rq"), math.nan)
            scores |= {name.upper() + suffix: 100 * float(average[name]) for name in ("pq", "sq", "rq")}
        return OrderedDict(panoptic_seg=scores)

    def _count(self) -> Any:
        """The panopticapi.evaluation.PQStat of this process's images."""
        with (
            tempfile.TemporaryDirectory(prefix="famix_panoptic_") as folder,
            contextlib.redirect_stdout(io.StringIO()),  # panopticapi prints two lines per image
            ThreadPoolExecutor(_NUM_THREADS) as pool,
        ):
            folders = Path(folder, "truth"), Path(folder, "predicted")
            for root in folders:
                root.mkdir()

            def count_image(number: int, image: tuple[bytes, list[Any], bytes, list[Any]]) -> Any:
                pair = []
                for root, png, segments in zip(folders, image[::2], image[1::2], strict=True):
                    (root / f"{number}.png").write_bytes(png)
                    pair.append({"image_id": number, "file_name": f"{number}.png", "segments_info": segments})
                return self._panopticapi.pq_compute_single_core(0, [pair], *folders, self._categories)

            total = self._panopticapi.PQStat()
            for counts in pool.map(count_image, itertools.count(), self._images):
                total += counts
        return total


class InstanceAPEvaluator(DatasetEvaluator):
    """COCO's average precision of masks, for models that predict "instances" with train ids as classes.

    Args:
        dataset_name: a registered panoptic dataset.
        truths: shared by the evaluators of a dataset.

    Raises:
        ConfigError: the dataset is not panoptic.
    """

    def __init__(self, dataset_name: str, truths: TruthReader | None = None) -> None:
        names = MetadataCatalog.get(dataset_name).stuff_classes
        self._things = panoptic_classes(dataset_name).things
        self._truths = truths or TruthReader(self._things)
        self._categories = [{"id": train_id, "name": names[train_id]} for train_id in self._things]
        self.reset()

    def reset(self) -> None:
        """Discard all images."""
        self._images: list[tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]] = []

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Store the predicted and true instances of some images.

        Args:
            inputs: dicts with "pan_seg_file_name", "segments_info" and optionally "void_segments".
            outputs: dicts with "instances", Detectron2's Instances with `pred_classes`, `scores`, `pred_boxes` and
                `pred_masks` (N, H, W); an output without the entry has no instances.

        Raises:
            DatasetError: a label cannot be read.
        """
        for image, output in zip(inputs, outputs, strict=True):
            truth = self._truths.read(image)
            height, width = truth.numbers.shape
            found = instances_to_coco_json(output["instances"].to("cpu"), 0) if "instances" in output else []
            instances = []
            for segment in truth.described():
                if segment["category_id"] in self._things:
                    mask = masks.encode(np.asfortranarray(truth.numbers == segment["id"], dtype=np.uint8))
                    instances.append({**segment, "segmentation": mask, "bbox": masks.toBbox(mask).tolist()})
            self._images.append(({"height": height, "width": width}, instances, found))

    def evaluate(self) -> "OrderedDict[str, dict[str, float]] | None":
        """Compute the scores of all images.

        Returns:
            {"segm": {"AP", "AP50", "AP75"}} in percent on the main process, NaN without labeled instances; None on
            other processes.
        """
        images = list(itertools.chain(*comm.gather(self._images)))
        if not comm.is_main_process():
            return None
        truth, found = _numbered([entry[1] for entry in images]), _numbered([entry[2] for entry in images])
        if not any(not instance["iscrowd"] for instance in truth):
            return OrderedDict(segm=dict.fromkeys(_AP_SCORES, float("nan")))
        if not found:
            return OrderedDict(segm=dict.fromkeys(_AP_SCORES, 0.0))
        data = {
            "images": [{**entry[0], "id": number} for number, entry in enumerate(images, 1)],
            "categories": self._categories,
            "annotations": truth,
        }
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            coco = COCO()
            coco.dataset = data
            coco.createIndex()
            evaluation = COCOeval(coco, coco.loadRes(found), "segm")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return OrderedDict(segm=dict(zip(_AP_SCORES, (100 * evaluation.stats[:3]).tolist(), strict=True)))


def _png(segments: PanopticSegments) -> bytes:
    with io.BytesIO() as stream:
        Image.fromarray(encode_ids(segments.numbers)).save(stream, format="PNG", compress_level=_FAST)
        return stream.getvalue()


def _numbered(by_image: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Instances of all images, with the ids that pycocotools requires."""
    found = [{**entry, "image_id": number} for number, entries in enumerate(by_image, 1) for entry in entries]
    return [{**entry, "id": number} for number, entry in enumerate(found, 1)]
