"""Average precision of instance masks, by pycocotools, against the things of panoptic labels."""

import contextlib
import io
import itertools
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils import comm
from pycocotools import mask as masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from famix.data.panoptic.classes import panoptic_classes
from famix.evaluation.panoptic.truth import PanopticSegments, TruthReader

__all__ = ["InstanceAPEvaluator"]

_SCORES = ("AP", "AP50", "AP75")  # the first three numbers of pycocotools' summary


class InstanceAPEvaluator(DatasetEvaluator):
    """COCO's average precision of masks, for models that predict "instances" with train ids as classes.

    Args:
        dataset_name: a registered panoptic data set.
        truths: shared by the evaluators of a data set.

    Raises:
        ConfigError: the data set is not panoptic.
    """

    def __init__(self, dataset_name: str, truths: TruthReader | None = None) -> None:
        names = MetadataCatalog.get(dataset_name).stuff_classes
        self._things = panoptic_classes(dataset_name).things
        self._truths = truths or TruthReader(self._things)
        self._categories = [{"id": train_id, "name": names[train_id]} for train_id in self._things]
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._images: list[tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]] = []

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Take note of the predictions of some images and of their ground truth.

        Args:
            inputs: dicts with "pan_seg_file_name", "segments_info" and perhaps "void_segments".
            outputs: dicts with "instances", Detectron2's Instances with `pred_classes`, `scores`, `pred_boxes` and
                `pred_masks` (N, H, W); an image without the entry has no instance.

        Raises:
            DatasetError: a label cannot be read.
        """
        for image, output in zip(inputs, outputs, strict=True):
            truth = self._truths.read(image)
            height, width = truth.numbers.shape
            found = instances_to_coco_json(output["instances"].to("cpu"), 0) if "instances" in output else []
            self._images.append(({"height": height, "width": width}, self._instances(truth), found))

    def evaluate(self) -> "OrderedDict[str, dict[str, float]] | None":
        """Scores of all images.

        Returns:
            {"segm": {"AP", "AP50", "AP75"}} in percent on the main process, NaN where there are no instances; None on
            other processes.
        """
        images = list(itertools.chain(*comm.gather(self._images)))
        if not comm.is_main_process():
            return None
        truth, found = _numbered([entry[1] for entry in images]), _numbered([entry[2] for entry in images])
        if not any(not instance["iscrowd"] for instance in truth):
            return OrderedDict(segm=dict.fromkeys(_SCORES, float("nan")))
        if not found:
            return OrderedDict(segm=dict.fromkeys(_SCORES, 0.0))
        data = {
            "images": [{**entry[0], "id": number} for number, entry in enumerate(images, 1)],
            "categories": self._categories,
            "annotations": truth,
        }
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints all that it does
            coco = COCO()
            coco.dataset = data
            coco.createIndex()
            evaluation = COCOeval(coco, coco.loadRes(found), "segm")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return OrderedDict(segm=dict(zip(_SCORES, (100 * evaluation.stats[:3]).tolist(), strict=True)))

    def _instances(self, truth: PanopticSegments) -> list[dict[str, Any]]:
        instances = []
        for segment, area in zip(truth.segments, truth.areas(), strict=True):
            if segment["category_id"] in self._things:
                mask = masks.encode(np.asfortranarray(truth.numbers == segment["id"], dtype=np.uint8))
                crowd = int(segment["iscrowd"])
                entry = {"category_id": segment["category_id"], "segmentation": mask, "area": area, "iscrowd": crowd}
                instances.append({**entry, "bbox": masks.toBbox(mask).tolist()})
        return instances


def _numbered(by_image: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Instances of all images, with the numbers that pycocotools wants."""
    found = [{**entry, "image_id": number} for number, entries in enumerate(by_image, 1) for entry in entries]
    return [{**entry, "id": number} for number, entry in enumerate(found, 1)]
