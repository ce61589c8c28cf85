"""All kinds of files that the package reads: how to write a small valid one, and how the package reads it."""

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from scipy.io import savemat

from data_factory import TINY_LABEL_IDS, make_dataset, write_definition, write_image, write_panoptic_label
from data_factory import write_synthia_label as write_16_bit_label
from famix.data import LabelReader, image_size, load_definition, read_image
from famix.data.layout.label_reader import listed_segments, read_id_names
from famix.data.layout.split_files import SplitFiles
from famix.data.panoptic.segments import SegmentLabelReader
from famix.data.registration import files_of
from famix.engine import load_config
from famix.evaluation.counting.calibration import NUM_BINS, Calibration, read_calibration, write_calibration
from famix.evaluation.counting.confusion import read_confusion
from famix.reports import read_report
from famix.reports.comparison import compare_reports, format_comparisons
from famix.reports.run_page import describe_confusion, render_runs
from famix.reports.runs import read_runs
from famix_minitown.runs.experiment import Experiment, read_record, same_settings, write_record
from panoptic_factory import make_panoptic, write_recipe
from report_factory import make_run_folder
from robustness.mutations import Format, in_json, in_last_line, in_lines, in_png, in_yaml
from robustness.tensor_formats import TENSOR_FORMATS

_PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
_IDS = np.random.default_rng(0).choice(np.array([0, 1, 2, 9], dtype=np.uint8), (20, 30))


def _inside(folder: Path, record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a record after checking that all files that it names are in a folder."""
    for key, file in record.items():
        if key.endswith("file_name"):
            assert Path(os.path.abspath(file)).is_relative_to(folder), f"{key} {file} is outside of {folder}"
    return record


def _make_definition(folder: Path) -> Path:
    make_dataset(folder, count=2, size=(4, 6), folders=("train",))
    layouts = [
        {"images": "images/{split}/{key}.png", "labels": "labels/{split}/{key}.png", "label_ids": TINY_LABEL_IDS},
        {"images": "rgb/{key}.png", "labels": "ids/{key}.png", "keys": "{split}.txt", "label_ids": "cityscapes"},
    ]
    splits = {"train": {"skip": ["a/7"]}}
    return write_definition(folder, images=None, labels=None, label_ids=None, layouts=layouts, splits=splits)


def _make_recipe(folder: Path) -> Path:
    make_panoptic(folder, {"train": 2})
    return write_recipe(folder, splits=["train"], other_categories="ignore", categories={7: "road", "car": "car"})


def _load_definition(path: Path) -> Any:
    definition = load_definition(path)
    if definition.root == str(path.parent):  # elsewhere there may be anything
        return [_inside(path.parent, record) for files in files_of(definition) for record in files()]
    return definition


def _make_config(folder: Path) -> Path:
    (folder / "base.yaml").write_text("SOLVER: {MAX_ITER: 30}\n")
    entries = {
        "_BASE_": "base.yaml", "SEED": 3, "SOLVER": {"BASE_LR": 0.01, "STEPS": [10, 20], "AMP": {"ENABLED": True}},
        "DATASETS": {"TRAIN": ["tiny_train"], "TEST": ["tiny_val"]}, "VERSION": 2,
        "MODEL": {"STYLE": {"GRID": [2, 3], "BANK": "bank.safetensors"}, "PIXEL_MEAN": [1.0, 2.0, 3.0]},
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(entries))
    return folder / "config.yaml"


def _make_image(folder: Path, name: str) -> Path:
    image = Image.fromarray(_PIXELS)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(folder / name, exif=exif)
    return folder / name


def _load_image(path: Path) -> Any:
    pixels, size = read_image(path), image_size(path)
    assert pixels.shape[:2] == size
    return pixels


def _make_panoptic(folder: Path, name: str) -> Path:
    make_panoptic(folder, {"train": 2})
    return folder / name


def _load_panoptic_png(path: Path) -> Any:
    definition = load_definition(path.parents[2] / "panoptic.yaml")
    return files_of(definition)[0].label_reader().read(path)


def _load_panoptic_json(path: Path) -> Any:
    root = path.parents[1]
    files = files_of(load_definition(root / "panoptic.yaml"))[0]
    records = [_inside(root, record) for record in files()]
    return records, [files.label_reader().read(record["pan_seg_file_name"]) for record in records]


def _make_segments(folder: Path) -> Path:
    label = np.array([[3, 7, 3], [7, 7, 7]])
    write_panoptic_label(folder / "label.png", label, folder / "names.json", {3: "a", 7: "b"})
    return folder / "names.json"


def _load_segments(path: Path) -> Any:
    names = read_id_names(path)
    segments_of = partial(listed_segments, segments_file=path)
    return names, SegmentLabelReader(dict.fromkeys(names, 0), segments_of=segments_of).read(path.with_name("label.png"))


def _load_run(path: Path) -> Any:
    """Read a run as report.py and compare_runs.py do, and write their output."""
    page = render_runs(read_runs([path.parent]), {}).replace(str(path.parent), "RUN")
    report = read_report(path.with_name("results.json"))
    return page, format_comparisons(compare_reports({"run": report})), report.results, report.run


def _make_calibration(folder: Path) -> Path:
    pixels = np.full(NUM_BINS, 8)
    write_calibration(folder / "calibration.json", Calibration(pixels, 0.5 * pixels, pixels // 2))
    return folder / "calibration.json"


def _load_calibration(path: Path) -> Any:
    calibration = read_calibration(path)
    return calibration.error, calibration.curve()


def _load_confusion(path: Path) -> Any:
    matrix = read_confusion(path)
    return matrix.counts, describe_confusion(matrix, "run")


_SETTINGS = {"config": {"SEED": 1}, "clip_hash": "ab", "bank": "", "town": "1"}


def _make_record(folder: Path) -> Path:
    write_record(folder, {"settings": _SETTINGS, "seconds": 12.5, "machine": "any", "finished": True})
    return folder / "experiment.json"


def _load_record(path: Path) -> Any:
    experiment = Experiment("famix", Path("config.yaml"), path.parent, (), 1)
    return same_settings(read_record(path.parent).get("settings"), _SETTINGS), experiment.seconds()


def _make_list(folder: Path) -> Path:
    make_dataset(folder, count=4, size=(4, 6), folders=("train",), splits={"train": {"keys": "list.txt"}})
    (folder / "list.txt").write_text("a/0\nimages/train/a/1.png\n3.png\n")
    return folder / "list.txt"


def _make_matlab(folder: Path) -> Path:
    splits = {"train": {"keys": "split.mat"}}
    write_definition(folder, images="images/{key}.png", labels="labels/{key}.png", splits=splits)
    for number in range(1, 9):
        write_image(folder / f"images/{number:05d}.png", _PIXELS)
        write_image(folder / f"labels/{number:05d}.png", _IDS)
    savemat(folder / "split.mat", {"trainIds": np.arange(1.0, 9), "valIds": np.arange(3.0)}, do_compression=True)
    return folder / "split.mat"


def _load_list(path: Path) -> Any:
    definition = load_definition(path.with_name("definition.yaml"))
    return [_inside(path.parent, record) for record in SplitFiles(definition, definition.splits[0])()]


def _run_file(name: str, *mutations: Any, refuses: bool = True) -> Format:
    return Format(lambda folder: make_run_folder(folder) / name, _load_run, mutations, refuses=refuses)


def _png(make: Any, load: Any) -> Format:
    return Format(make, load, (in_png,), has_checksum=True)


FORMATS: dict[str, Format] = {
    **TENSOR_FORMATS,
    "definition": Format(_make_definition, _load_definition, (in_yaml,)),
    "panoptic definition": Format(_make_recipe, _load_definition, (in_yaml,)),
    "config": Format(_make_config, lambda path: load_config(str(path)), (in_yaml,)),
    "image, PNG": _png(partial(_make_image, name="image.png"), _load_image),
    "image, JPEG": Format(partial(_make_image, name="image.jpg"), _load_image),
    "label, 8 bits": _png(
        lambda folder: write_image(folder / "label.png", _IDS),
        lambda path: LabelReader({0: 0, 1: 1, 2: 2, 9: 9}).read(path),
    ),
    "label, 16 bits": _png(
        lambda folder: write_16_bit_label(folder / "label.png", _IDS, _IDS * 3),
        lambda path: LabelReader({0: 0, 1: 1, 2: 2, 9: 9}, channel=0, bits=16).read(path),
    ),
    "label, panoptic": _png(partial(_make_panoptic, name="panoptic/train/0.png"), _load_panoptic_png),
    "panoptic JSON": Format(
        partial(_make_panoptic, name="annotations/panoptic_train.json"), _load_panoptic_json, (in_json,)
    ),
    "label names JSON": Format(_make_segments, _load_segments, (in_json,)),
    "results.json": _run_file("results.json", in_json),
    "config.yaml of a run": _run_file("config.yaml", in_yaml),
    "metrics.json": _run_file("metrics.json", in_lines, in_last_line, refuses=False),
    "confusion.json": Format(
        lambda folder: make_run_folder(folder) / "inference/acdc_fog_val/confusion.json", _load_confusion, (in_json,)
    ),
    "calibration.json": Format(_make_calibration, _load_calibration, (in_json,)),
    "experiment.json": Format(_make_record, _load_record, (in_json,), refuses=False),
    "split list": Format(_make_list, _load_list, (in_lines,)),
    "split.mat": Format(_make_matlab, _load_list),
}
