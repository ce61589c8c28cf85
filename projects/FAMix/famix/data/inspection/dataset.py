"""The check of a whole dataset: every problem is collected, none stops it."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from tqdm import tqdm

from famix.data.images import MAX_PIXELS
from famix.data.inspection.pairs import PairStatistics, inspect_headers, inspect_pixels
from famix.data.inspection.report import IGNORED, ClassShare, DatasetReport
from famix.data.registration import get_label_readers
from famix.data.split_files import SplitFiles, SplitSurvey
from famix.utils.errors import DatasetError
from famix.utils.messages import first_few

__all__ = ["check_dataset", "evenly_spaced"]

Records = list[dict[str, Any]]

_SHOWN = 5  # files that a note names
_HEADERS_AT_ONCE, _LABELS_AT_ONCE = 128, 8  # pairs that a process gets at once


def check_dataset(
    name: str, samples: int = 1000, workers: int = 0, show_progress: bool = False, max_pixels: int = MAX_PIXELS
) -> tuple[DatasetReport, Records]:
    """Check a dataset: headers of all its files, pixels of a sample.

    Args:
        name: a registered dataset.
        samples: evenly spaced pairs whose pixels are read; 0 reads all.
        workers: processes that work beside this one; 0 works in this one.
        show_progress: draw a progress bar with the time left where there is a terminal.
        max_pixels: of a file, see INPUT.MAX_PIXELS.

    Returns:
        The report, and Detectron2's standard dicts of the pairs without a problem.

    Raises:
        DatasetError: the name is unknown, or other code registered it without a label reader.
    """
    start = time.perf_counter()
    (reader,) = get_label_readers([name], max_pixels).values()
    report = DatasetReport(name, getattr(MetadataCatalog.get(name).get("definition"), "source", ""))
    records = _list_pairs(name, report)
    found = PairStatistics()
    with ExitStack() as stack:
        pool = stack.enter_context(ProcessPoolExecutor(workers, initializer=_start_worker)) if workers else None
        run = partial(_run, pool=pool, name=name, show_progress=show_progress)
        run(found, "headers", partial(inspect_headers, reader=reader), records, _HEADERS_AT_ONCE)
        sound = [record for record in records if record["file_name"] not in found.bad]
        chosen = evenly_spaced(sound, samples or len(sound))
        run(found, "pixels", partial(inspect_pixels, reader=reader), chosen, _LABELS_AT_ONCE)
    report.num_pairs, report.num_decoded, report.sizes = len(records), found.decoded, found.sizes
    report.problems.merge(found.problems)
    _add_classes(report, found, name)
    if len(chosen) < len(sound):
        report.notes.append(f"the pixels of {len(sound) - len(chosen)} pairs were not read; --sample 0 reads all")
    report.seconds = time.perf_counter() - start
    return report, [record for record in sound if record["file_name"] not in found.bad]


def evenly_spaced(records: Sequence[dict[str, Any]], count: int) -> Records:
    """Up to `count` records at equal distances, the first and the last among them."""
    places = np.linspace(0, len(records) - 1, num=min(count, len(records))).round().astype(int)
    return [records[place] for place in places]


def _list_pairs(name: str, report: DatasetReport) -> Records:
    files = DatasetCatalog[name]
    try:
        if type(files) is not SplitFiles:  # minitown, which makes its files, or other code's
            return list(files())
        report.folder = files.definition.root_folder()
        survey = files.survey()
    except DatasetError as error:
        report.problems.add("listing", str(error))
        return []
    _add_survey(report, survey, files.definition.skips_unpaired)
    return list(survey.records)


def _add_survey(report: DatasetReport, survey: SplitSurvey, skips_unpaired: bool) -> None:
    report.layout = ", ".join(filter(None, (survey.images, survey.labels, survey.list_file)))
    report.problems.add("list", *survey.absent)
    report.problems.add("format", *survey.other_format)
    if skips_unpaired and survey.without_label:
        shown = first_few(survey.without_label, _SHOWN)
        report.notes.append(f"{len(survey.without_label)} images without a label are left out: {shown}")
    else:
        report.problems.add("missing label", *survey.without_label)
    if survey.without_image:
        shown = first_few(survey.without_image, _SHOWN)
        report.notes.append(f"{len(survey.without_image)} labels have no image, which does not matter: {shown}")
    if not (survey.records or survey.without_label):
        report.problems.add("empty", f"expected files like {survey.images} and {survey.labels}")


def _run(
    found: PairStatistics,
    what: str,
    inspect: Callable[[Records], PairStatistics],
    records: Records,
    at_once: int,
    *,
    pool: ProcessPoolExecutor | None,
    name: str,
    show_progress: bool,
) -> None:
    """Inspect records in parts and merge what is found, in their order."""
    parts = [records[first : first + at_once] for first in range(0, len(records), at_once)]
    results: Iterator[PairStatistics] = pool.map(inspect, parts) if pool else map(inspect, parts)
    # None: only on a terminal
    with tqdm(total=len(records), desc=f"{name}: {what}", unit="pair", disable=None if show_progress else True) as bar:
        for part, result in zip(parts, results, strict=True):
            found.merge(result)
            bar.update(len(part))


def _add_classes(report: DatasetReport, found: PairStatistics, name: str) -> None:
    metadata = MetadataCatalog.get(name)
    if not found.decoded:
        return
    total = int(found.pixels.sum())
    titles = {**dict(enumerate(metadata.stuff_classes)), metadata.ignore_label: IGNORED}
    report.classes = [
        ClassShare(title, 100 * int(found.pixels[place]) / total, 100 * int(found.images[place]) / found.decoded)
        for place, title in titles.items()
    ]
    if found.pixels[metadata.ignore_label] == total:
        report.problems.add("no class", f"every pixel of all {found.decoded} labels that were read is ignored")
        return
    absent = [title for place, title in titles.items() if place != metadata.ignore_label and not found.pixels[place]]
    if absent:
        report.notes.append(f"classes that occur in no label that was read: {', '.join(absent)}")


def _start_worker() -> None:
    # The workers already share the cores; OpenCV would start a thread for every core in each of them.
    cv2.setNumThreads(0)
