"""COCO's panoptic JSON files: the segments of each PNG and their categories."""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from famix.data.definition import PanopticDefinition
from famix.data.panoptic.segments import Segment
from famix.io import MAX_JSON_BYTES, parse_json, read_text
from famix.utils.errors import DatasetError
from famix.utils.messages import did_you_mean, first_few, shown
from famix.utils.paths import one_form

__all__ = ["Annotation", "PanopticContent", "plain_name", "read_json", "read_panoptic_json", "with_train_ids"]

_HIGHEST_ID = (1 << 24) - 1
_MOST_CATEGORIES = (1 << 16) - 1  # 65535 marks pixels without a segment
_MOST_SEGMENTS = (1 << 16) - 2  # per image: 16 bits number its segments


@dataclass(frozen=True)
class Annotation:
    """The entry of one PNG.

    Attributes:
        names: possible names of its image without folder and suffix, in order of precedence.
        label: path of the PNG, relative to its folder.
        segments: their `category_id` is a category of the file, or a train id after `with_train_ids`.
        void_segments: ids of segments without a class.
    """

    names: tuple[str, ...]
    label: str
    segments: tuple[Segment, ...]
    void_segments: tuple[int, ...] = ()


@dataclass(frozen=True)
class PanopticContent:
    """A panoptic JSON file.

    Attributes:
        file: its path.
        annotations: one per PNG, in the order of the file.
        categories: id -> name, and whether it has instances.
    """

    file: Path
    annotations: list[Annotation]
    categories: dict[int, tuple[str, bool]]


def read_json(file: Path) -> Any:
    """Content of a JSON file of a dataset.

    Raises:
        DatasetError: if the file is missing or invalid.
    """
    try:
        return parse_json(read_text(file, MAX_JSON_BYTES))
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"{file}, which defines the ids in the labels, cannot be read: {error}. Copy it there; it comes with the "
            "dataset."
        ) from error


def read_panoptic_json(file: Path) -> PanopticContent:
    """Read and check a panoptic JSON file.

    Args:
        file: with the lists `annotations` of {file_name, segments_info: [{id, category_id, iscrowd}]}, optionally with
            `image_id`, `categories` of {id, name, isthing}, and optionally `images` of {id, file_name}.

    Raises:
        DatasetError: if the file is missing or has another form, or an id is wrong or repeated.
    """
    content = read_json(file)
    try:
        images = {image["id"]: image["file_name"] for image in content.get("images", ())}
        entries = content.get("categories", ())
        return PanopticContent(
            file,
            [_annotation(entry, images, file) for entry in content["annotations"]],
            {int(entry["id"]): (str(entry["name"]), bool(entry.get("isthing", 1))) for entry in entries},
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(
            f"{file} must be a panoptic JSON file with 'annotations' of {{image_id, file_name, segments_info: [{{id, "
            f"category_id}}]}} and 'categories' of {{id, name, isthing}}, got {type(error).__name__}: {error}."
        ) from error


def _annotation(entry: Mapping[str, Any], images: Mapping[Any, str], file: Path) -> Annotation:
    label = str(entry["file_name"])
    if os.path.isabs(label) or ".." in label.split("/") or "\0" in label:
        raise DatasetError(f"{file}: file_name must be a path below the folder of the PNGs, got {shown(label)}.")
    segments = [
        {
            key: int(segment.get(key, 0) if key == "iscrowd" else segment[key])
            for key in ("id", "category_id", "iscrowd")
        }
        for segment in entry["segments_info"]
    ]
    for key, lowest, highest in (("id", 1, _HIGHEST_ID), ("category_id", 0, _MOST_CATEGORIES - 1)):
        outside = [segment[key] for segment in segments if not lowest <= segment[key] <= highest]
        if outside:
            raise DatasetError(
                f"{file}: {key} of a segment of {label} must be from {lowest} to {highest}, got {shown(outside[0])}."
            )
    if len(segments) > _MOST_SEGMENTS:
        raise DatasetError(f"{file}: {label} must have at most {_MOST_SEGMENTS} segments, got {len(segments)}.")
    counts = Counter(segment["id"] for segment in segments)
    repeated = sorted(segment_id for segment_id, count in counts.items() if count > 1)
    if repeated:
        raise DatasetError(f"{file}: {label} has the segment(s) {first_few(repeated)} more than once.")
    image_id, stem = entry.get("image_id"), Path(label).stem
    named = (Path(images[image_id]).stem,) if image_id in images else ()
    return Annotation((*named, stem if image_id is None else str(image_id), stem), label, tuple(segments))


def with_train_ids(content: PanopticContent, definition: PanopticDefinition) -> list[Annotation]:
    """Return the annotations with train ids, as the definition maps categories, in place of categories.

    Raises:
        DatasetError: if a category has no class or other instances than its class, or if the file has no segment of any
            thing or of any stuff.
    """
    file, train_ids = content.file, _match_categories(content, definition)
    converted = []
    for annotation in content.annotations:
        segments, void = [], []
        for segment in annotation.segments:
            category = segment["category_id"]
            train_id = train_ids.get(category)
            if train_id is None and not definition.other_categories_ignored:
                name, _ = content.categories.get(category, ("not in its 'categories'", True))
                raise DatasetError(
                    f"{file}: the category of each segment must have a class in {definition.source}, got {category} ({name}) "
                    f"in {annotation.label}. Add it to 'categories' there, or ignore it with 'other_categories: ignore'."
                )
            if train_id is None or train_id == definition.ignore_label:
                void.append(segment["id"])
            else:
                segments.append({**segment, "category_id": train_id})
        converted.append(replace(annotation, segments=tuple(segments), void_segments=tuple(void)))
    present = {segment["category_id"] for entry in converted for segment in entry.segments if not segment["iscrowd"]}
    for kind, classes in (("things", definition.things), ("stuff", definition.stuff)):
        if present.isdisjoint(classes):
            missing = first_few([definition.classes[train_id].name for train_id in classes], 8)
            raise DatasetError(
                f"{file} has no segment of any of the {kind} ({missing}), so their panoptic quality is undefined. Use "
                f"labels with {'instances' if kind == 'things' else 'stuff'}, or another part of the data."
            )
    return converted


def _match_categories(content: PanopticContent, definition: PanopticDefinition) -> dict[int, int]:
    """Map the categories of a JSON file to train ids."""
    file = content.file
    wanted = definition.categories or {entry.name: train_id for train_id, entry in enumerate(definition.classes)}
    by_key = {plain_name(key) if isinstance(key, str) else key: train_id for key, train_id in wanted.items()}
    found, train_ids = set(), {}
    for category, (name, has_instances) in content.categories.items():
        key = category if category in by_key else plain_name(name)
        if key not in by_key:
            continue
        found.add(key)
        train_ids[category] = by_key[key]
        if by_key[key] in definition.things and not has_instances:
            raise DatasetError(
                f"{file}: the category {category}, '{name}', must have instances ('isthing'), because its class "
                f"'{definition.classes[by_key[key]].name}' is a thing in {definition.source}. Make the class stuff, or use "
                "labels with instances."
            )
    # A mistyped name would silently drop its class.
    lost = [key for key in definition.categories if isinstance(key, str) and plain_name(key) not in found]
    if lost:
        names = [name for name, _ in content.categories.values()]
        raise DatasetError(
            f"{definition.source}: 'categories' must name categories of {file}, got {first_few(lost)}."
            f"{did_you_mean(lost[0], names)} Its categories are {first_few(names, 8)}."
        )
    return train_ids


def plain_name(name: str) -> str:
    """A name without case, spaces and punctuation: 'Traffic Sign (Front)' becomes 'trafficsignfront'."""
    return "".join(filter(str.isalnum, one_form(name))).lower()
