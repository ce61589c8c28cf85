"""Every kind of file that the package reads: how to write a small sound one, and how the package reads it."""

import os
from collections.abc import Callable, Mapping
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
from famix.data.layout_reader import listed_segments, read_id_names
from famix.data.panoptic.segments import SegmentLabelReader
from famix.data.registration import files_of
from famix.data.split_files import SplitFiles
from famix.engine import load_config
from famix.evaluation.counting.confusion import read_confusion
from famix.reports import read_report
from famix.reports.comparison import compare_reports, format_comparisons
from famix.reports.run_page import describe_confusion, render_runs
from famix.reports.runs import read_runs
from famix_minitown.experiment import Experiment, read_record, same_settings, write_record
from panoptic_factory import make_panoptic, write_recipe
from report_factory import make_run_folder
from robustness.mutations import Format, in_json, in_png, in_text_lines, mutate_tree
from robustness.tensor_formats import TENSOR_FORMATS

__all__ = ["FORMATS", "inside"]


def inside(folder: Path, files: Mapping[str, Any]) -> Mapping[str, Any]:
    """A record, after a look at whether all files that it names lie in a folder."""
    for key, file in files.items():
        if key.endswith("file_name"):
            assert Path(os.path.abspath(file)).is_relative_to(folder), f"{key} {file} is outside of {folder}"
    return files


# Definitions and configs


def _in_yaml(content: bytes, rng: np.random.Generator) -> bytes:
    tree = mutate_tree(yaml.safe_load(content), rng)
    return yaml.safe_dump(tree).encode("utf-8", "surrogatepass")


def _in_last_line(content: bytes, rng: np.random.Generator) -> bytes:
    """A change to one object among lines of JSON."""
    *before, last = content.splitlines(keepends=True)
    return b"".join(before) + in_json(last, rng)


def _make_definition(folder: Path) -> Path:
    make_dataset(folder, count=2, size=(4, 6), folders=("train",))
    return write_definition(
        folder,
        images=None,
        labels=None,
        label_ids=None,
        layouts=[
            {"images": "images/{split}/{key}.png", "labels": "labels/{split}/{key}.png", "label_ids": TINY_LABEL_IDS},
            {"images": "rgb/{key}.png", "labels": "ids/{key}.png", "keys": "{split}.txt", "label_ids": "cityscapes"},
        ],
        splits={"train": {"skip": ["a/7"]}},
    )


def _load_definition(path: Path) -> Any:
    definition = load_definition(path)
    if definition.root == str(path.parent):  # elsewhere there may be anything
        return definition, [
            inside(path.parent, record) for s in definition.splits for record in SplitFiles(definition, s)()
        ]
    return definition


def _make_recipe(folder: Path) -> Path:
    make_panoptic(folder, {"train": 2})
    return write_recipe(folder, splits=["train"], other_categories="ignore", categories={7: "road", "car": "car"})


def _load_recipe(path: Path) -> Any:
    definition = load_definition(path)
    if definition.root == str(path.parent):
        return [inside(path.parent, record) for files in files_of(definition) for record in files()]
    return definition


def _make_config(folder: Path) -> Path:
    (folder / "base.yaml").write_text("SOLVER: {MAX_ITER: 30}\n")
    entries = {
        "_BASE_": "base.yaml",
        "SEED": 3,
        "SOLVER": {"BASE_LR": 0.01, "STEPS": [10, 20], "AMP": {"ENABLED": True}},
        "DATASETS": {"TRAIN": ["tiny_train"], "TEST": ["tiny_val"]},
        "MODEL": {"STYLE": {"GRID": [2, 3], "BANK": "bank.safetensors"}, "PIXEL_MEAN": [1.0, 2.0, 3.0]},
        "VERSION": 2,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(entries))
    return folder / "config.yaml"


# Images


_PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
_IDS = np.random.default_rng(0).choice(np.array([0, 1, 2, 9], dtype=np.uint8), (20, 30))


def _image_maker(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        image = Image.fromarray(_PIXELS)
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(folder / name, exif=exif)
        return folder / name

    return make


def _load_image(path: Path) -> Any:
    pixels, size = read_image(path), image_size(path)
    assert pixels.shape[:2] == size
    return pixels


def _load_label(path: Path) -> Any:
    return LabelReader({int(value): int(value) for value in np.unique(_IDS)}).read(path)


def _make_panoptic_png(folder: Path) -> Path:
    make_panoptic(folder, {"train": 1})
    return folder / "panoptic/train/0.png"


def _load_panoptic_png(path: Path) -> Any:
    definition = load_definition(path.parents[2] / "panoptic.yaml")
    return files_of(definition)[0].label_reader().read(path)


# JSON and lists


def _make_panoptic_json(folder: Path) -> Path:
    make_panoptic(folder, {"train": 2})
    return folder / "annotations/panoptic_train.json"


def _load_panoptic_json(path: Path) -> Any:
    root = path.parents[1]
    files = files_of(load_definition(root / "panoptic.yaml"))[0]
    records = [inside(root, record) for record in files()]
    return records, [files.label_reader().read(record["pan_seg_file_name"]) for record in records]


def _make_segments(folder: Path) -> Path:
    write_panoptic_label(
        folder / "label.png", np.array([[3, 7, 3], [7, 7, 7]]), folder / "names.json", {3: "a", 7: "b"}
    )
    return folder / "names.json"


def _load_segments(path: Path) -> Any:
    names = read_id_names(path)
    reader = SegmentLabelReader(
        {label_id: 0 for label_id in names}, segments_of=partial(listed_segments, segments_file=path)
    )
    return names, reader.read(path.with_name("label.png"))


def _run_maker(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        return make_run_folder(folder) / name

    return make


def _load_run(path: Path) -> Any:
    """As report.py and compare_runs.py read it, to the last word of what they write."""
    runs = read_runs([path.parent])
    page = render_runs(runs, {}).replace(str(path.parent), "RUN")
    report = read_report(path.with_name("results.json"))
    return page, format_comparisons(compare_reports({"run": report})), report.results, report.run


def _load_confusion(path: Path) -> Any:
    matrix = read_confusion(path)
    return matrix.counts, describe_confusion(matrix, "run")


def _make_record(folder: Path) -> Path:
    settings = {"config": {"SEED": 1, "SOLVER.BASE_LR": 0.1}, "clip_hash": "ab", "bank": "", "town": "1"}
    write_record(folder, {"settings": settings, "seconds": 12.5, "machine": "any", "finished": True})
    return folder / "experiment.json"


def _load_record(path: Path) -> Any:
    current = {"config": {"SEED": 1}, "clip_hash": "ab", "bank": "", "town": "1"}
    experiment = Experiment("famix", Path("config.yaml"), path.parent, (), 1)
    return same_settings(read_record(path.parent).get("settings"), current), experiment.seconds()


def _make_list(folder: Path) -> Path:
    make_dataset(folder, count=4, size=(4, 6), folders=("train",), splits={"train": {"keys": "list.txt"}})
    (folder / "list.txt").write_text("a/0\nimages/train/a/1.png\n3.png\n")
    return folder / "list.txt"


def _load_list(path: Path) -> Any:
    definition = load_definition(path.with_name("definition.yaml"))
    return [inside(path.parent, record) for record in SplitFiles(definition, definition.splits[0])()]


def _make_matlab(folder: Path) -> Path:
    write_definition(
        folder, images="images/{key}.png", labels="labels/{key}.png", splits={"train": {"keys": "split.mat"}}
    )
    for number in range(1, 9):
        write_image(folder / f"images/{number:05d}.png", _PIXELS)
        write_image(folder / f"labels/{number:05d}.png", _IDS)
    savemat(folder / "split.mat", {"trainIds": np.arange(1.0, 9), "valIds": np.arange(3.0)}, do_compression=True)
    return folder / "split.mat"


FORMATS: dict[str, Format] = {
    **TENSOR_FORMATS,
    "definition": Format(_make_definition, _load_definition, (_in_yaml,)),
    "panoptic definition": Format(_make_recipe, _load_recipe, (_in_yaml,)),
    "config": Format(_make_config, lambda path: load_config(str(path)), (_in_yaml,)),
    "image, PNG": Format(_image_maker("image.png"), _load_image, (in_png,), has_checksum=True),
    "image, JPEG": Format(_image_maker("image.jpg"), _load_image),
    "label, 8 bits": Format(
        lambda folder: write_image(folder / "label.png", _IDS), _load_label, (in_png,), has_checksum=True
    ),
    "label, 16 bits": Format(
        lambda folder: write_16_bit_label(folder / "label.png", _IDS, _IDS * 3),
        lambda path: LabelReader({0: 0, 1: 1, 2: 2, 9: 9}, channel=0, bits=16).read(path),
        (in_png,),
        has_checksum=True,
    ),
    "label, panoptic": Format(_make_panoptic_png, _load_panoptic_png, (in_png,), has_checksum=True),
    "panoptic JSON": Format(_make_panoptic_json, _load_panoptic_json, (in_json,)),
    "label names JSON": Format(_make_segments, _load_segments, (in_json,)),
    "results.json": Format(_run_maker("results.json"), _load_run, (in_json,)),
    "config.yaml of a run": Format(_run_maker("config.yaml"), _load_run, (_in_yaml,)),
    "metrics.json": Format(_run_maker("metrics.json"), _load_run, (in_text_lines, _in_last_line), refuses=False),
    "confusion.json": Format(_run_maker("inference/acdc_fog_val/confusion.json"), _load_confusion, (in_json,)),
    "experiment.json": Format(_make_record, _load_record, (in_json,), refuses=False),
    "split list": Format(_make_list, _load_list, (in_text_lines,)),
    "split.mat": Format(_make_matlab, _load_list),
}
