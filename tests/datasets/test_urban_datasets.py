"""Every urban dataset in a miniature of its published format: each id of its table becomes the train id it should.

The tables below are written from the datasets' documentation, not read from the definitions.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image
from scipy.io import savemat

from data_factory import (
    registered,
    write_image,
    write_label,
    write_palette_label,
    write_panoptic_label,
    write_synthia_label,
)  # fmt: skip
from famix.data import SplitFiles, get_dataset_dicts, get_label_readers, verify_datasets
from famix.data.check import check_dataset

Table = Mapping[int, int]
Write = Callable[[Path, np.ndarray], object]

TRAIN_IDS: Table = {**{index: index for index in range(19)}, 255: 255}
LABEL_IDS: Table = {label_id: 255 for label_id in range(34)} | {
    7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14, 28: 15,
    31: 16, 32: 17, 33: 18,
}  # fmt: skip
GTA5: Table = {**LABEL_IDS, 34: 255}
SYNTHIA: Table = {
    0: 255, 1: 10, 2: 2, 3: 0, 4: 1, 5: 4, 6: 8, 7: 5, 8: 13, 9: 7, 10: 11, 11: 18, 12: 17, 13: 255, 14: 255, 15: 6,
    16: 9, 17: 12, 18: 14, 19: 15, 20: 16, 21: 3, 22: 255,
}  # fmt: skip
MAP_A: Table = {label_id: 255 for label_id in range(66)} | {
    13: 0, 24: 0, 41: 0, 2: 1, 15: 1, 17: 2, 6: 3, 3: 4, 45: 5, 47: 5, 48: 6, 50: 7, 30: 8, 29: 9, 27: 10, 19: 11,
    20: 12, 21: 12, 22: 12, 55: 13, 61: 14, 54: 15, 58: 16, 57: 17, 52: 18,
}  # fmt: skip
MAP_B: Table = {**MAP_A, 7: 0, 8: 0, 10: 0, 14: 0, 23: 0, 9: 1, 11: 1, 44: 5, 46: 7, 49: 7, 41: 255}
IDD: Table = {label_id: 255 for label_id in range(40)} | {
    0: 0, 3: 1, 5: 9, 6: 11, 8: 12, 9: 17, 10: 18, 12: 13, 13: 14, 14: 15, 17: 16, 20: 3, 21: 4, 24: 7, 25: 6, 26: 5,
    29: 2, 32: 8, 33: 10,
}  # fmt: skip
CAMVID: Table = {0: 10, 1: 2, 2: 5, 3: 0, 4: 1, 5: 8, 6: 7, 7: 4, 8: 13, 9: 11, 10: 12, 11: 255}

# Mapillary 2.0: name -> train id in map A and map B; the order, and so the ids, are not those of any release.
V2_NAMES: dict[str, tuple[int, int]] = {
    "void--unlabeled": (255, 255), "object--vehicle--bicycle": (18, 18), "object--vehicle--bus": (15, 15),
    "object--vehicle--car": (13, 13), "object--vehicle--caravan": (255, 255), "object--vehicle--motorcycle": (17, 17),
    "object--vehicle--on-rails": (16, 16), "object--vehicle--truck": (14, 14), "human--person--individual": (11, 11),
    "human--person--person-group": (11, 11), "human--rider--bicyclist": (12, 12),
    "human--rider--motorcyclist": (12, 12), "human--rider--other-rider": (12, 12), "nature--mountain": (255, 255),
    "nature--sky": (10, 10), "nature--terrain": (9, 9), "nature--vegetation": (8, 8),
    "object--traffic-sign--back": (255, 7), "object--traffic-sign--direction-front": (7, 7),
    "object--traffic-sign--front": (7, 7), "object--traffic-light--general-single": (6, 6),
    "object--traffic-light--pedestrians": (6, 6), "object--support--pole": (5, 5),
    "object--support--pole-group": (5, 5), "object--support--utility-pole": (5, 5),
    "object--support--traffic-sign-frame": (255, 7), "object--street-light": (255, 5), "object--manhole": (0, 255),
    "construction--barrier--curb": (1, 1), "construction--barrier--fence": (4, 4),
    "construction--barrier--guard-rail": (255, 255), "construction--barrier--wall": (3, 3),
    "construction--flat--bike-lane": (255, 0), "construction--flat--crosswalk-plain": (255, 0),
    "construction--flat--curb-cut": (255, 1), "construction--flat--parking": (255, 0),
    "construction--flat--pedestrian-area": (255, 1), "construction--flat--road": (0, 0),
    "construction--flat--road-shoulder": (255, 255), "construction--flat--service-lane": (255, 0),
    "construction--flat--sidewalk": (1, 1), "construction--structure--building": (2, 2),
    "construction--structure--bridge": (255, 255), "marking--continuous--dashed": (0, 0),
    "marking--discrete--arrow--left": (0, 0), "marking--discrete--crosswalk-zebra": (255, 0),
    "marking-only--continuous--dashed": (0, 0), "marking-only--discrete--crosswalk-zebra": (255, 0),
    "marking-only--discrete--other-marking": (0, 0), "marking-only--discrete--text": (0, 0),
}  # fmt: skip
V2_A: Table = {place: train_ids[0] for place, train_ids in enumerate(V2_NAMES.values())}
V2_B: Table = {place: train_ids[1] for place, train_ids in enumerate(V2_NAMES.values())}

# WildDash 2: name -> train id; the last one is laid under the pixel without a segment.
WILDDASH_NAMES: dict[str, int] = {
    "unlabeled": 255, "road": 0, "sidewalk": 1, "building": 2, "wall": 3, "fence": 4, "pole": 5, "traffic light": 6,
    "traffic sign": 7, "vegetation": 8, "terrain": 9, "sky": 10, "person": 11, "rider": 12, "car": 13, "truck": 14,
    "bus": 15, "train": 16, "motorcycle": 17, "bicycle": 18, "pickup": 14, "van": 13, "Road Marking": 0, "manhole": 0,
    "pothole": 0, "bikelane": 0, "tramtrack": 0, "curb": 1, "bike-lane-sidewalk": 1, "trafficsignframe": 5,
    "utility-pole": 5, "motorcyclist": 12, "bicyclist": 12, "otherrider": 12, "autorickshaw": 17, "otherbarrier": 3,
    "billboard": 255, "streetlight": 255, "sign-back": 255, "bench": 255, "mountain": 255, "nothing": 255,
}  # fmt: skip
# The release that is current: one name changed, in its place, and new ones.
WILDDASH_CURRENT: dict[str, int] = {
    **{("onrails" if name == "train" else name): train_id for name, train_id in list(WILDDASH_NAMES.items())[:-1]},
    "catchbasin": 0, "crosswalkplain": 0, "crosswalkzebra": 0, "servicelane": 0, "pedestrianarea": 0, "curbcut": 1,
    "manholesidewalk": 1, "curbterrain": 9, "nothing": 255,
}  # fmt: skip


def synthia_label(path: Path, ids: np.ndarray) -> None:
    write_synthia_label(path, ids, np.full(ids.shape, 976))


def write_wilddash(names: Mapping[str, int], path: Path, ids: np.ndarray) -> None:
    write_panoptic_label(path, ids, path.parents[1] / "panoptic.json", dict(enumerate(names)))


def write_photo(path: Path, size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    write_image(path, pixels)
    if "synthia" in path.parts:  # whose images have four channels
        Image.fromarray(pixels).convert("RGBA").save(path)


Row = tuple[str, str, Write, Table]


def cases(splits: Sequence[tuple[str, str]], *rows: Row) -> list[tuple[str, str, str, Write, Table]]:
    """Rows of image, label, writer and table for each (dataset, value of {} in the paths)."""
    return [
        (name, image.format(folder), label.format(folder), write, table)
        for name, folder in splits
        for image, label, write, table in rows
    ]


def city(image: str, label: str) -> list[Row]:
    """Rows of labels in both encodings of Cityscapes."""
    tables = {"labelIds": LABEL_IDS, "labelTrainIds": TRAIN_IDS}
    return [(image, f"{label}_{kind}.png", write_label, table) for kind, table in tables.items()]


TRAIN_VAL = ("train", "val")
GTA5_FOLDERS = [*((f"gta5_official_{split}", split) for split in ("train", "val", "test")),
                *(("gta5_official_train", "train/f"), ("gta5_official_val", "valid/f"), ("gta5_official_test", "test/f"))]  # fmt: skip
MAPILLARY = [("train", "training"), ("val", "validation")]
FRAME = "{}/GP010476/GP010476_frame_000054"
CASES = [
    *cases([(f"cityscapes_{split}", split) for split in TRAIN_VAL],
           *city("cityscapes/leftImg8bit/{}/ulm/ulm_000000_000019_leftImg8bit.png",
                 "cityscapes/gtFine/{}/ulm/ulm_000000_000019_gtFine")),
    *cases([("gta5_all", ""), ("gta5_all", "train/"), *((name, f"{folder}/") for name, folder in GTA5_FOLDERS)],
           ("gta5/images/{}00001.png", "gta5/labels/{}00001.png", write_palette_label, GTA5)),
    ("gta5_all", "gta5/images/00001.png", "gta5/labels/00001_labelTrainIds.png", write_label, TRAIN_IDS),
    *cases([("synthia_all", ""), ("synthia_all", "val/"), ("synthia_train", "train/")],
           ("synthia/RGB/{}0000001.png", "synthia/GT/LABELS/{}0000001.png", synthia_label, SYNTHIA)),
    *cases([(f"bdd100k_{split}", split) for split in TRAIN_VAL],
           ("bdd100k/images/10k/{}/7d06.jpg", "bdd100k/labels/sem_seg/masks/{}/7d06.png", write_label, TRAIN_IDS),
           ("bdd100k/images/{}/7d06.jpg", "bdd100k/labels/{}/7d06.png", write_label, TRAIN_IDS),
           ("bdd100k/images/{}/7d06.jpg", "bdd100k/labels/{}/7d06_train_id.png", write_label, TRAIN_IDS)),
    *(case for name, labels, table in (
          ("mapillary", "labels", MAP_A), ("mapillary", "v1.2/labels", MAP_A), ("mapillary_mapb", "labels", MAP_B),
          ("mapillary_mapb", "v1.2/labels", MAP_B), ("mapillary_v2", "v2.0/labels", V2_A),
          ("mapillary_v2_mapb", "v2.0/labels", V2_B))
      for case in cases([(f"{name}_{split}", folder) for split, folder in MAPILLARY],
                        ("mapillary/{}/images/-0kz.jpg", f"mapillary/{{}}/{labels}/-0kz.png", write_palette_label, table))),
    *cases([(f"acdc_{kind}_{split}", f"{kind}/{split}") for kind in ("fog", "night", "rain", "snow") for split in TRAIN_VAL],
           *city(f"acdc/rgb_anon/{FRAME}_rgb_anon.png", f"acdc/gt/{FRAME}_gt")),
    *cases([("dark_zurich_val", "val/night")],
           *city(f"dark_zurich/rgb_anon/{FRAME}_rgb_anon.png", f"dark_zurich/gt/{FRAME}_gt")),
    *cases([("nighttime_driving_test", "test/night")],
           *city("nighttime_driving/leftImg8bit/{}/1_leftImg8bit.png",
                 "nighttime_driving/gtCoarse_daytime_trainvaltest/{}/1_gtCoarse")),
    *cases([(f"idd_{split}", split) for split in TRAIN_VAL],
           ("idd/leftImg8bit/{}/119/9_leftImg8bit.png", "idd/gtFine/{}/119/9_gtFine_labelcsTrainIds.png", write_label, TRAIN_IDS),
           ("idd/leftImg8bit/{}/119/9_leftImg8bit.png", "idd/gtFine/{}/119/9_gtFine_labelids.png", write_label, IDD)),
    *(("wilddash2_val", "wilddash2/images/aa0000.jpg", "wilddash2/panoptic/aa0000.png", partial(write_wilddash, names),
       dict(enumerate(names.values()))) for names in (WILDDASH_NAMES, WILDDASH_CURRENT)),
    *cases([(f"camvid_{split}", split) for split in ("train_day", "val_day", "val_dusk")],
           ("camvid/images/{}/x.jpg", "camvid/labels/{}/x.png", write_label, CAMVID)),
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def all_registered():
    with registered():
        yield


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


def ids_of(table: Table, shape: tuple[int, int], dtype: type = np.uint8) -> np.ndarray:
    """Every id of a table, and the last one over and over."""
    values = np.full(shape[0] * shape[1], max(table), dtype=dtype)
    values[: len(table)] = list(table)
    return values.reshape(shape)


def write_pair(root: Path, image: str, label: str, write: Write, table: Table) -> np.ndarray:
    """Write a pair that contains every id, and the names file of Mapillary; returns the ids."""
    size = (13, 8) if "mapillary" in image else (8, 13)  # portrait and landscape
    write_photo(root / image, size)
    ids = ids_of(table, size)
    (root / label).parent.mkdir(parents=True, exist_ok=True)
    write(root / label, ids)
    if "v2.0" in label:
        labels = [{"name": name, "readable": name.split("--")[-1].title()} for name in V2_NAMES]
        (root / "mapillary/config_v2.0.json").write_text(json.dumps({"labels": labels}))
    return ids


def image_ids(name: str) -> list[str]:
    return [record["image_id"] for record in get_dataset_dicts([name])]


@pytest.mark.parametrize(("name", "image", "label", "write", "table"), CASES, ids=[f"{c[0]}-{c[2]}" for c in CASES])
def test_every_id_becomes_its_train_id(root, name, image, label, write, table):
    ids = write_pair(root, image, label, write, table)
    (record,) = get_dataset_dicts([name])
    assert (record["file_name"], record["label_file_name"]) == (str(root / image), str(root / label))
    reader = get_label_readers([name])[name]
    expected = np.vectorize(table.get)(ids)
    found = reader.read(record["label_file_name"])
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)
    verify_datasets([name])
    report, (sound,) = check_dataset(name)
    assert (report.problems, report.num_pairs, report.found.decoded, sound) == ([], 1, 1, record)
    np.testing.assert_array_equal(report.found.pixels, np.bincount(expected.ravel(), minlength=256))


def test_every_registered_name_has_a_case():
    by_lists = {"gta5_train", "gta5_val", "synthia_val"}  # below
    ours = {name for name, files in DatasetCatalog.items() if type(files) is SplitFiles}
    assert {case[0] for case in CASES} | by_lists == ours


@pytest.mark.parametrize(
    ("name", "image", "stem", "raw"),
    [
        ("cityscapes_val", "cityscapes/leftImg8bit/val/u/1_leftImg8bit.png", "cityscapes/gtFine/val/u/1_gtFine", "_labelIds"),
        ("gta5_all", "gta5/images/00001.png", "gta5/labels/00001", ""),
    ],
)  # fmt: skip
def test_raw_labels_precede_converted_ones(root, name, image, stem, raw):
    write_pair(root, image, f"{stem}_labelTrainIds.png", write_label, TRAIN_IDS)
    write_pair(root, image, f"{stem}{raw}.png", write_label, LABEL_IDS)
    (record,) = get_dataset_dicts([name])
    assert record["label_file_name"] == str(root / f"{stem}{raw}.png")
    report, _ = check_dataset(name)
    assert not [note for note in report.notes if "without an image" in note], "the converted label has an image"


# Splits


@pytest.mark.parametrize("folder", ["", "train/", "train/folder/"])
@pytest.mark.parametrize("line", ["00002", "00002.png", "images/00002.png"])
def test_lists_fit_flat_and_nested_trees(root, folder, line):
    for key in ("00001", "00002"):
        write_pair(root, f"gta5/images/{folder}{key}.png", f"gta5/labels/{folder}{key}.png", write_label, GTA5)
    (root / "gta5/gtav_split_val.txt").write_text(f"{line}\n")
    assert image_ids("gta5_val") == [f"{folder}00002"]


@pytest.mark.parametrize("folder", ["", "valid/folder/"])
def test_bad_frames_are_skipped_in_all_trees(root, folder):
    for key in ("00001", "15188", "20801"):
        write_pair(root, f"gta5/images/{folder}{key}.png", f"gta5/labels/{folder}{key}.png", write_label, GTA5)
    assert image_ids("gta5_all") == [f"{folder}00001"]


@pytest.mark.parametrize("by", ["matlab", "text"])
def test_official_splits_of_a_flat_tree_come_from_a_list(root, by):
    numbers = {"train": [1, 15188], "val": [24966], "test": [700]}  # 15188 is a bad frame, which is skipped
    for key in ("00001", "24966", "00700"):
        write_pair(root, f"gta5/images/{key}.png", f"gta5/labels/{key}.png", write_palette_label, GTA5)
    if by == "matlab":
        savemat(
            root / "gta5/split.mat", {f"{split}Ids": np.array(values)[:, None] for split, values in numbers.items()}
        )
    else:
        for split, values in numbers.items():
            (root / f"gta5/split_{split}.txt").write_text("".join(f"{value:05d}.png\n" for value in values))
    assert {split: image_ids(f"gta5_official_{split}") for split in numbers} == {
        "train": ["00001"], "val": ["24966"], "test": ["00700"],
    }  # fmt: skip


def test_splits_of_a_flat_synthia_come_from_a_list(root):
    for key in ("0000001", "0000002"):
        write_pair(root, f"synthia/RGB/{key}.png", f"synthia/GT/LABELS/{key}.png", synthia_label, SYNTHIA)
    (root / "synthia/synthia_split_val.txt").write_text("0000002.png\n")
    assert image_ids("synthia_val") == ["0000002"]
    assert len(image_ids("synthia_all")) == 2


def test_older_bdd_has_unpaired_files(root, caplog):
    for index in range(4):
        write_pair(root, f"bdd100k/images/val/{index}.jpg", f"bdd100k/labels/val/{index}.png", write_label, TRAIN_IDS)
    (root / "bdd100k/labels/val/1.png").unlink()
    (root / "bdd100k/images/val/2.jpg").unlink()
    assert image_ids("bdd100k_val") == ["0", "3"]
    assert "1 images without a label and 1 labels without an image" in caplog.text and "2 pairs" in caplog.text
    report, _ = check_dataset("bdd100k_val")
    assert not report.problems
    assert [note.split(":")[0] for note in report.notes[:2]] == [
        "1 images without a label are left out",
        "1 labels without an image are ignored",
    ]


# Written down here a second time on purpose.
GTA5_BAD_FRAMES = [
    *("02501", "05001", "07501", "10001", "12501", "15001", "15188", "17501", "17705", "20001", "22501"),
    *(f"{number:05d}" for number in range(20801, 20861)),
]


@pytest.mark.parametrize("split", ["all", "official_train", "official_val", "official_test"])
def test_gta5_skips_every_bad_frame(split: str) -> None:
    files = DatasetCatalog[f"gta5_{split}"]
    assert isinstance(files, SplitFiles)
    assert sorted(files.split.skip) == sorted(GTA5_BAD_FRAMES)
