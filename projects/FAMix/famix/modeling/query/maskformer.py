"""FAMix for masks predicted by queries: semantic, panoptic and instance segmentation from one network."""

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import ImageList
from torch import Tensor, nn
from torch.nn import functional as F

from famix.data.classes import panoptic_classes
from famix.data.meta_architecture import predicts
from famix.data.sampling.class_weights import read_class_weights
from famix.data.vocabulary import vocabulary_of
from famix.modeling.query.criterion import MaskCriterion, Segments
from famix.modeling.query.decoder import STRIDES, MaskDecoder
from famix.modeling.query.inference import instances, panoptic_segments, semantic_scores
from famix.modeling.query.queries import (
    ClassEmbeddings,
    LinearClassifier,
    TextClassifier,
    TextQueries,
    embed_classes,
)
from famix.modeling.query.regions import UnclaimedRegions
from famix.modeling.style_mixin import PatchStyleMixin
from famix.style.restyler import PatchRestyler
from famix.utils.errors import ConfigError

LEARNED, TEXT = "learned", "text"


class MaskFormer(nn.Module):
    """Mask2Former on the feature maps of any backbone.

    Args:
        backbone: backbone with feature maps at strides 4, 8, 16 and 32.
        decoder: decoder that predicts queries and their masks.
        classifier: module that maps queries (B, Q, C) to class logits (B, Q, K + 1).
        criterion: training loss.
        pixel_mean, pixel_std: statistics of each channel, for pixel values 0-255.
        things: ids of thing classes in predictions. If empty, only semantic predictions are made.
        object_threshold: minimum class probability of a panoptic segment, in [0, 1].
        overlap_threshold: fraction of a mask that must remain visible in a panoptic segment, in [0, 1].
        most_instances: maximum number of instances per image.
        regions: callable that adds queries in inference (see `UnclaimedRegions`).

    Raises:
        ConfigError: a value is out of range, or the backbone lacks a feature map.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        decoder: MaskDecoder,
        classifier: nn.Module,
        criterion: MaskCriterion,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        things: Collection[int] = (),
        object_threshold: float = 0.8,
        overlap_threshold: float = 0.8,
        most_instances: int = 100,
        regions: UnclaimedRegions | None = None,
    ) -> None:
        super().__init__()
        for key, value in (("OBJECT_THRESHOLD", object_threshold), ("OVERLAP_THRESHOLD", overlap_threshold)):
            if not 0 <= value <= 1:
                raise ConfigError(f"MODEL.MASK_FORMER.{key} must be in [0, 1], got {value}. The default is 0.8.")
        self.in_features = features_by_stride(backbone.output_shape())
        self.backbone = backbone
        self.decoder = decoder
        self.classifier = classifier
        self.criterion = criterion
        self.things = frozenset(things)
        self.object_threshold = object_threshold
        self.overlap_threshold = overlap_threshold
        self.most_instances = most_instances
        self.regions = regions
        self.size_divisibility = math.lcm(STRIDES[-1], max(1, backbone.size_divisibility))
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read MODEL.MASK_FORMER, the classes of the training datasets, and TEST.CLASSES."""
        options, num_classes = cfg.MODEL.MASK_FORMER, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        is_panoptic = "panoptic_seg" in predicts(cfg)
        _check_queries(cfg, is_panoptic)
        backbone = build_backbone(cfg)
        shapes, hidden_dim = backbone.output_shape(), options.HIDDEN_DIM
        channels = [shapes[name].channels or 0 for name in features_by_stride(shapes)]
        sizes = {name.lower(): options[name] for name in ("HIDDEN_DIM", "ENCODER_LAYERS", "DECODER_LAYERS")}
        vocabulary, text = vocabulary_of(cfg), ClassEmbeddings(torch.zeros(0))
        if TEXT in (options.QUERIES, options.CLASSIFIER):
            text = embed_classes(cfg)
        things: Collection[int] = ()
        if is_panoptic:
            things = vocabulary.table.things if vocabulary else panoptic_classes(cfg.DATASETS.TRAIN[0]).things
        by_text = options.QUERIES == TEXT
        queries = TextQueries(text.trained, hidden_dim) if by_text else None
        decoder = MaskDecoder(channels, num_classes if by_text else options.NUM_QUERIES, queries=queries, **sizes)
        regions = None
        if options.CLIP_REGIONS and text.clip is not None and text.tested is not None:
            regions = UnclaimedRegions.from_clip(text.clip, text.tested)
        return {
            "backbone": backbone,
            "decoder": decoder,
            "classifier": TextClassifier(text.trained, hidden_dim, text.tested)
            if options.CLASSIFIER == TEXT
            else LinearClassifier(hidden_dim, num_classes),
            "criterion": MaskCriterion(
                num_classes,
                class_weight=options.CLASS_WEIGHT,
                mask_weight=options.MASK_WEIGHT,
                dice_weight=options.DICE_WEIGHT,
                no_object_weight=options.NO_OBJECT_WEIGHT,
                num_points=options.NUM_POINTS,
                class_weights=read_class_weights(cfg),
                query_per_class=by_text,
            ),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "things": things,
            "object_threshold": options.OBJECT_THRESHOLD,
            "overlap_threshold": options.OVERLAP_THRESHOLD,
            "most_instances": cfg.TEST.DETECTIONS_PER_IMAGE,
            "regions": regions,
        }

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Compute losses in training and predictions otherwise.

        Args:
            batched_inputs: dicts with "image" (3, H, W) in pixel values 0-255. In training, they also contain "segments"
                (see `famix.data.mapper.make_segments`) and "point_seed", which selects the points of the losses. In
                inference, "height" and "width" may give the output size.

        Returns:
            In training, {"loss_class", "loss_mask", "loss_dice"}. In inference, one dict per image with "sem_seg" (K, height,
            width), the sum of all masks weighted with the class probabilities of their queries. With thing classes, it also
            contains "panoptic_seg" and "instances" in Detectron2's formats, with train ids as classes. If the classifier
            predicts other classes than those of training, their number replaces K, and their places are the ids.

        Raises:
            ConfigError: the targets are missing, or an image has more segments than there are queries.
        """
        images = [(x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs]
        constraints = self.backbone.padding_constraints
        batch = ImageList.from_tensors(images, self.size_divisibility, padding_constraints=constraints)
        features = self.backbone(batch.tensor)
        output = self.decoder([features[name] for name in self.in_features])
        if self.training:
            segments = self._segments(batched_inputs, batch)
            return self.criterion([self.classifier(queries) for queries in output.queries], output.masks, segments)
        classes, masks = self.classifier(output.queries[-1]).float(), output.masks[-1].float()
        results = []
        for image, logits, scores, inputs in zip(images, masks, classes, batched_inputs, strict=True):
            # Image by image, because full-size masks are by far the largest tensors.
            logits = F.interpolate(logits[None], batch.tensor.shape[-2:], mode="bilinear", align_corners=False)[0]
            size = image.shape[1], image.shape[2]
            wanted = inputs.get("height", size[0]), inputs.get("width", size[1])
            if size == wanted:
                logits = logits[:, : size[0], : size[1]]
            else:
                logits = sem_seg_postprocess(logits, size, *wanted)
            probabilities = logits.sigmoid()
            if self.regions is not None:
                scores, probabilities = self.regions(scores, probabilities, image)
            results.append(self._predict(scores, probabilities))
        return results

    def _segments(self, batched_inputs: Sequence[dict[str, Any]], batch: ImageList) -> Segments:
        """Return the targets of a batch. Raises ConfigError if they are missing or too many."""
        if any("segments" not in x or "point_seed" not in x for x in batched_inputs):
            raise ConfigError(
                "Training inputs lack 'segments' or 'point_seed', which MODEL.META_ARCHITECTURE requires. Use the mapper in "
                "famix.data, or set MODEL.META_ARCHITECTURE to FAMixSemanticSegmentor."
            )
        num_queries = self.decoder.transformer.queries_embedder.num_embeddings
        for x in batched_inputs:
            if len(x["segments"]) > num_queries:
                raise ConfigError(
                    f"MODEL.MASK_FORMER.NUM_QUERIES must be at least the number of segments of every image, got {num_queries} for "
                    f"'{x.get('file_name', 'an unnamed image')}' with {len(x['segments'])} segments. Increase "
                    "MODEL.MASK_FORMER.NUM_QUERIES."
                )
        targets, seeds = [x["segments"] for x in batched_inputs], [x["point_seed"] for x in batched_inputs]
        height, width = batch.tensor.shape[-2:]
        return Segments.collate(targets, (height, width), seeds, self.device)

    def _predict(self, classes: Tensor, masks: Tensor) -> dict[str, Any]:
        result: dict[str, Any] = {"sem_seg": semantic_scores(classes, masks)}
        if self.things:
            result["panoptic_seg"] = panoptic_segments(
                classes,
                masks,
                self.things,
                object_threshold=self.object_threshold,
                overlap_threshold=self.overlap_threshold,
            )
            result["instances"] = instances(classes, masks, self.things, most=self.most_instances)
        return result


@META_ARCH_REGISTRY.register()
class FAMixMaskFormer(PatchStyleMixin, MaskFormer):
    """MaskFormer with restyled patches in training.

    The network predicts things if all its training datasets are panoptic, and only semantic classes otherwise.

    Args:
        restyler: style randomizer (see PatchStyleMixin).
        **kwargs: arguments of MaskFormer.
    """

    TRAINS_ON = frozenset({"sem_seg", "segments"})
    PREDICTS = frozenset({"sem_seg", "panoptic_seg", "instances"})
    SCORES = "probabilities"

    @configurable
    def __init__(self, *, restyler: PatchRestyler | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.use_restyler(restyler)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read the config."""
        return {**super().from_config(cfg), "restyler": PatchRestyler(cfg)}


def features_by_stride(shapes: dict[str, ShapeSpec]) -> list[str]:
    """Return the names of the feature maps at strides 4, 8, 16 and 32. Raises ConfigError if one is missing."""
    names = {shape.stride: name for name, shape in shapes.items()}
    if not names.keys() >= set(STRIDES):
        found = ", ".join(f"{name}: {shape.stride}" for name, shape in shapes.items())
        raise ConfigError(
            f"MODEL.BACKBONE.NAME must build feature maps at strides {', '.join(map(str, STRIDES))} for FAMixMaskFormer, got {found}. "
            "Set MODEL.CLIP.OUTPUT_STRIDE to 32, or to 16 for a ViT."
        )
    return [names[stride] for stride in STRIDES]


def _check_queries(cfg: CfgNode, is_panoptic: bool) -> None:
    """Raise ConfigError if QUERIES, CLASSIFIER or NUM_QUERIES does not suit the datasets."""
    options, num_classes = cfg.MODEL.MASK_FORMER, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    for key in ("QUERIES", "CLASSIFIER"):
        if options[key] not in (LEARNED, TEXT):
            raise ConfigError(
                f"MODEL.MASK_FORMER.{key} must be {LEARNED} or {TEXT}, got {options[key]!r}. The default is {LEARNED}."
            )
    if options.QUERIES == TEXT and is_panoptic:
        raise ConfigError(
            f"MODEL.MASK_FORMER.QUERIES must be {LEARNED} for panoptic datasets, got {TEXT}, which predicts one mask per class. Set "
            f"it to {LEARNED}, or train on a semantic dataset."
        )
    if options.QUERIES == LEARNED and not is_panoptic and num_classes > options.NUM_QUERIES:
        raise ConfigError(
            f"MODEL.MASK_FORMER.NUM_QUERIES must be at least {num_classes}, because an image can show all classes, got "
            f"{options.NUM_QUERIES}. Increase it to {num_classes} or more."
        )
