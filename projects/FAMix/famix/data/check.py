"""Dataset checks: a quick one before training, and a complete one with a report."""

import logging
import os
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from numpy.typing import NDArray
from tabulate import tabulate
from tqdm import tqdm

from famix.data.images import MAX_PIXELS, image_size, open_image, read_image, require_same_size
from famix.data.labels import LabelReader, UnknownIdsError, WrongEncodingError, count_train_ids
from famix.data.layout.split_files import SplitFiles, label_file_of
from famix.data.registration import get_dataset_dicts, get_label_readers
from famix.utils.errors import DatasetError
from famix.utils.messages import first_few, table_cell

logger = logging.getLogger(__name__)

IGNORED = "(ignored)"
"""Row title for pixels without a class."""

KINDS = {
    "listing": "files that cannot be listed",
    "list": "entries in the split list without an image",
    "empty": "no image/label pair",
    "format": "images in a format other than the one in the definition",
    "missing label": "images without a label (set 'unpaired: skip' in the definition to leave them out)",
    "unreadable image": "images that cannot be read",
    "unreadable label": "labels that cannot be read",
    "size": "labels that differ in size from their image",
    "encoding": "labels in the wrong encoding",
    "unknown id": "labels with ids that the definition does not map",
    "no class": "labels without any class",
}
"""Problem kinds and their descriptions, in report order."""

Records = Sequence[dict[str, Any]]

_SHOWN = 5  # files per note and messages per problem kind, which bounds memory use
_NUM_THREADS = 8  # the quick check mostly waits for the disk
_TAIL = 4096  # bytes at the end of a file that must contain its end marker
_END_MARKS = {b"\x89PNG": b"IEND", b"\xff\xd8\xff": b"\xff\xd9"}  # first bytes -> end marker, for PNG and JPEG


@dataclass
class Findings:
    """Check results for a set of image/label pairs."""

    counts: Counter[str] = field(default_factory=Counter)  # number of problems by kind
    first: dict[str, list[str]] = field(default_factory=dict)  # first messages of each kind
    bad: dict[str, str] = field(default_factory=dict)  # image file of each pair with a problem -> its last kind
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # (height, width) -> number of images
    pixels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, np.int64))  # pixels with each train id
    images: NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, np.int64))  # images with each train id
    decoded: int = 0  # number of labels whose pixels were counted

    def add(self, kind: str, texts: Sequence[object], image: str = "", count: int = 0) -> None:
        """Add `count` problems of a kind (default: one per text), and record the image file of the affected pair."""
        self.counts[kind] += count or len(texts)
        kept = self.first.setdefault(kind, [])
        kept += map(str, texts[: _SHOWN - len(kept)])
        self.bad |= {image: kind} if image else {}

    def merge(self, other: "Findings") -> None:
        """Add the results for a later set of pairs."""
        for kind, texts in other.first.items():
            self.add(kind, texts, count=other.counts[kind])
        self.bad |= other.bad
        self.sizes += other.sizes
        self.pixels += other.pixels
        self.images += other.images
        self.decoded += other.decoded


@dataclass
class DatasetReport:
    """Result of a complete dataset check."""

    name: str
    source: str = ""  # definition file
    folder: str = ""
    layout: str = ""  # path templates of images and labels; "" for datasets registered by other code
    found: Findings = field(default_factory=Findings)
    notes: list[str] = field(default_factory=list)  # observations that do not make the dataset unusable
    num_pairs: int = 0
    unsound: list[dict[str, Any]] = field(default_factory=list)  # Detectron2 dataset dicts of the pairs with a problem
    classes: dict[str, tuple[float, float]] = field(default_factory=dict)  # name -> % of pixels and % of images
    seconds: float = 0.0

    @property
    def problems(self) -> list[str]:
        """Kinds of problems that were found, in report order."""
        return [kind for kind in KINDS if self.found.counts[kind]]

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON-serializable data."""
        found = self.found
        return {
            "name": self.name,
            "usable": not self.problems,
            "definition": self.source,
            "folder": self.folder,
            "layout": self.layout,
            "pairs": self.num_pairs,
            "decoded": found.decoded,
            "problems": {kind: {"count": found.counts[kind], "first": found.first[kind]} for kind in self.problems},
            "notes": self.notes,
            "sizes": [{"height": h, "width": w, "images": count} for (h, w), count in found.sizes.most_common()],
            "classes": [
                {"name": name, "pixel_percent": pixels, "image_percent": images}
                for name, (pixels, images) in self.classes.items()
            ],
            "seconds": round(self.seconds, 1),
        }


def verify_datasets(names: Sequence[str], samples: int = 32, max_pixels: int = MAX_PIXELS) -> None:
    """Raise a DatasetError if dataset files are missing, damaged or inconsistent.

    The headers of all images and labels are read, and evenly spaced pairs of each dataset are decoded.

    Args:
        names: registered dataset names; duplicates are checked once.
        samples: number of pairs to decode per dataset.
        max_pixels: pixel limit, as in INPUT.MAX_PIXELS.
    """
    start, num_pairs = time.perf_counter(), 0
    readers = get_label_readers(list(dict.fromkeys(names)), max_pixels)
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        for name, reader in readers.items():
            records = get_dataset_dicts([name])
            num_pairs += len(records)
            for inspect, chosen in ((inspect_headers, records), (inspect_pixels, evenly_spaced(records, samples))):
                for found in pool.map(partial(inspect, reader=reader), _parts(chosen, 1 + len(chosen) // 1000)):
                    for texts in found.first.values():
                        raise DatasetError(texts[0])
    logger.info(f"Checked {num_pairs} image/label pairs ({', '.join(readers)}) in {time.perf_counter() - start:.1f} s.")


def check_dataset(
    name: str, samples: int = 1000, workers: int = 0, show_progress: bool = False, max_pixels: int = MAX_PIXELS
) -> tuple[DatasetReport, list[dict[str, Any]]]:
    """Check the headers of all files and the pixels of a sample, and collect all problems.

    Args:
        name: name of a registered dataset.
        samples: number of evenly spaced pairs to decode; 0 decodes all.
        workers: number of worker processes; 0 uses the current process.
        show_progress: whether to draw a progress bar on a terminal.
        max_pixels: pixel limit, as in INPUT.MAX_PIXELS.

    Returns:
        The report, and Detectron2's standard dataset dicts for the pairs without a problem.

    Raises:
        DatasetError: the name is unknown, or other code registered the dataset without a label reader.
    """
    start = time.perf_counter()
    (reader,) = get_label_readers([name], max_pixels).values()
    report = DatasetReport(name, getattr(MetadataCatalog.get(name).get("definition"), "source", ""))
    found, sound = report.found, _list_pairs(report)
    report.num_pairs = len(sound)
    # The workers share the CPU cores, but OpenCV would start one thread per core in each of them.
    pool = ProcessPoolExecutor(workers, initializer=cv2.setNumThreads, initargs=(0,)) if workers else None
    with pool or nullcontext():
        for kind, inspect, size in (("headers", inspect_headers, 128), ("pixels", inspect_pixels, 8)):
            chosen = evenly_spaced(sound, samples or len(sound)) if kind == "pixels" else sound
            parts = _parts(chosen, size)
            results = (pool.map if pool else map)(partial(inspect, reader=reader), parts)
            # With None, tqdm hides the bar unless the output is a terminal.
            hidden = None if show_progress else True
            with tqdm(total=len(chosen), desc=f"{name}: {kind}", unit="pair", disable=hidden) as progress:
                for part, result in zip(parts, results, strict=True):
                    found.merge(result)
                    progress.update(len(part))
            unread = len(sound) - len(chosen)
            report.unsound += [record for record in sound if record["file_name"] in found.bad]
            sound = [record for record in sound if record["file_name"] not in found.bad]
    _add_classes(report)
    if unread:
        report.notes.append(f"the pixels of {unread} pairs were not read; use --sample 0 to read all")
    report.seconds = time.perf_counter() - start
    return report, list(sound)


def evenly_spaced(records: Records, count: int) -> list[dict[str, Any]]:
    """Return up to `count` evenly spaced records, including the first and the last."""
    places = np.linspace(0, len(records) - 1, num=min(count, len(records))).round().astype(int)
    return [records[place] for place in places]


def _parts(records: Records, size: int) -> list[Records]:
    return [records[first : first + size] for first in range(0, len(records), size)]


def _list_pairs(report: DatasetReport) -> Records:
    """List the pairs, and report missing files."""
    files, found = DatasetCatalog[report.name], report.found
    try:
        if type(files) is not SplitFiles:  # generated on demand, panoptic, or registered by other code
            return list(files())
        report.folder = files.root
        survey = files.survey()
    except DatasetError as error:
        found.add("listing", [error])
        return []
    report.layout = ", ".join(filter(None, (survey.images, survey.labels, survey.list_file)))
    found.add("list", survey.absent)
    found.add("format", survey.other_format)
    skipped = survey.without_label if files.definition.skips_unpaired else []
    if not skipped:
        found.add("missing label", survey.without_label)
    for listed, state in (
        (skipped, "images without a label are left out"),
        (survey.without_image, "labels without an image are ignored"),
    ):
        if listed:
            report.notes.append(f"{len(listed)} {state}: {first_few(listed, _SHOWN)}")
    if not (survey.records or survey.without_label):
        found.add("empty", [f"expected files like '{survey.images}' and '{survey.labels}'"])
    return survey.records


def inspect_headers(records: Records, reader: LabelReader) -> Findings:
    """Compare image and label sizes from the file headers, and find truncated files."""
    found = Findings()
    for record in records:
        sizes = []
        image, label = record["file_name"], label_file_of(record)
        for kind, file, size_of in (
            ("unreadable image", image, partial(image_size, max_pixels=reader.max_pixels)),
            ("unreadable label", label, reader.size_of),
        ):
            try:
                sizes.append(size_of(file))
                _require_end(file, reader.max_pixels)
            except DatasetError as error:
                found.add(kind, [error], image)
        if image not in found.bad:
            found.sizes[sizes[0]] += 1
            try:
                require_same_size(image, sizes[0], label, sizes[1])
            except DatasetError as error:
                found.add("size", [error], image)
    return found


def inspect_pixels(records: Records, reader: LabelReader) -> Findings:
    """Decode images and labels, and count the train ids in the labels."""
    found = Findings()
    for record in records:
        try:
            read_image(record["file_name"], max_pixels=reader.max_pixels)
        except DatasetError as error:
            found.add("unreadable image", [error], record["file_name"])
        try:
            labels = reader.read(label_file_of(record))
        except DatasetError as error:
            kind = "encoding" if isinstance(error, WrongEncodingError) else "unreadable label"
            kind = "unknown id" if isinstance(error, UnknownIdsError) else kind
            found.add(kind, [error], record["file_name"])
            continue
        pixels = count_train_ids(labels)
        found.pixels += pixels
        found.images += pixels > 0
        found.decoded += 1
    return found


def _require_end(path: str, max_pixels: int) -> None:
    """Raise a DatasetError if a file is truncated. Only a PNG or JPEG without its end marker is decoded."""
    try:
        with open(path, "rb") as stream:
            start = stream.read(4)
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - _TAIL))
            end = stream.read()
    except OSError as error:
        raise DatasetError(f"Cannot read '{path}': {error.strerror}.") from error
    if any(start.startswith(first) and mark not in end for first, mark in _END_MARKS.items()):
        with open_image(path, whole=True, max_pixels=max_pixels) as image:
            image.load()


def _add_classes(report: DatasetReport) -> None:
    metadata, found = MetadataCatalog.get(report.name), report.found
    if not found.decoded:
        return
    total, ignored = int(found.pixels.sum()), metadata.ignore_label
    titles = {**dict(enumerate(metadata.stuff_classes)), ignored: IGNORED}
    report.classes = {
        title: (100 * int(found.pixels[place]) / total, 100 * int(found.images[place]) / found.decoded)
        for place, title in titles.items()
    }
    absent = [title for place, title in titles.items() if place != ignored and not found.pixels[place]]
    if found.pixels[ignored] == total:
        found.add("no class", [f"all pixels in the {found.decoded} decoded labels are ignored"])
    elif absent:
        report.notes.append(f"classes that do not occur in the decoded labels: {', '.join(absent)}")


def format_report(report: DatasetReport) -> str:
    """Format a report for a terminal. The last line states whether the dataset is usable."""
    found = report.found
    sizes = [f"{count} of {height} x {width}" for (height, width), count in found.sizes.most_common(3)]
    sizes += [f"and {len(found.sizes) - 3} other sizes"] if len(found.sizes) > 3 else []
    lines = [f"== {report.name}"]
    for title, text in (
        ("definition", report.source),
        ("folder", report.folder),
        ("layout", report.layout),
        ("pairs", f"{report.num_pairs}, of which {found.decoded} were decoded ({report.seconds:.1f} s)"),
        ("sizes", f"{', '.join(sizes)} (height x width)" if sizes else ""),
    ):
        lines += [f"{title:<12}{text}"] if text else []
    if report.classes:
        rows = [
            (table_cell(name), f"{pixels:.3f}", f"{images:.1f}") for name, (pixels, images) in report.classes.items()
        ]
        head, align = ["class", "% of pixels", "% of images"], ("left", "right", "right")
        lines += ["", tabulate(rows, head, tablefmt="github", disable_numparse=True, colalign=align)]
    lines += ["", *(f"note: {note}" for note in report.notes)]
    for kind in report.problems:
        count, first = found.counts[kind], found.first[kind]
        lines += [f"PROBLEM: {KINDS[kind]}: {count}", *(f"    {text}" for text in first)]
        lines += [f"    and {count - len(first)} more"] if count > len(first) else []
    verdict = f"NOT usable, {found.counts.total()} problem(s)" if report.problems else "usable"
    return "\n".join([*lines, f"{report.name}: {verdict}"])
