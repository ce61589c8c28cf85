"""The quick check before training, and datasets/check.py on sound datasets and on every kind of problem."""

import json
import logging
import re
import runpy
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from data_factory import make_dataset, registered, write_image, write_label
from error_matching import expect_error, explains
from famix.data import verify_datasets
from famix.data.check import DatasetReport, format_report
from famix.utils.errors import DatasetError
from famix_cli.check import main
from famix_cli.programs import check as program
from panoptic_factory import make_panoptic

TOOL = Path(__file__).parents[2] / "datasets/check.py"
SIZE = (24, 32)
IGNORED, UNKNOWN = np.full(SIZE, 9, np.uint8), np.full(SIZE, 77, np.uint8)
PHOTO = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
TOP_SKY = np.zeros(SIZE, np.uint8)
TOP_SKY[:12] = 1


@pytest.fixture
def check(tmp_path, capsys):
    """Run the command on a dataset `tiny`; returns its status, its output and its JSON report."""

    def run(definition, *options, names=("tiny_train",), workers=0):
        report = tmp_path / "out" / "report.json"
        arguments = [*names, "--definition", str(definition), "--workers", str(workers), "--json", str(report)]
        with registered():
            status = main([*arguments, *map(str, options)])
        return status, capsys.readouterr().out, json.loads(report.read_text())

    return run


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "tiny"


@pytest.fixture
def sound(folder):
    with registered(make_dataset(folder)):
        yield folder


def test_verify_logs_one_line(sound, caplog):
    with caplog.at_level(logging.INFO, logger="famix"):
        verify_datasets(["tiny_train", "tiny_val", "tiny_train"])
    (record,) = [record for record in caplog.records if record.name == "famix.data.check"]
    assert record.message.startswith("Checked 12 image/label pairs (tiny_train, tiny_val) in ")


def test_verify_reads_every_header(sound):
    write_label(sound / "labels/val/a/4.png", np.zeros((32, 24), dtype=np.uint8))
    with expect_error(DatasetError, str(sound / "labels/val/a/4.png"), "32 x 24", "skip"):
        verify_datasets(["tiny_train", "tiny_val"], samples=0)
    (sound / "images/train/a/1.png").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"Cannot read .*images/train/a/1\.png"):
        verify_datasets(["tiny_train"], samples=0)


@pytest.mark.parametrize("index", [0, 5])
def test_verify_decodes_first_and_last_pair(sound, index):
    write_label(sound / f"labels/val/a/{index}.png", np.full((24, 32), 77, dtype=np.uint8))
    verify_datasets(["tiny_val"], samples=0)
    with expect_error(DatasetError, str(sound / f"labels/val/a/{index}.png"), 77):
        verify_datasets(["tiny_train", "tiny_val"], samples=2)


def damage(path):
    path.write_bytes(path.read_bytes()[:-300])


def test_sound_dataset(check, folder):
    file = make_dataset(folder, count=4)
    for index in range(4):
        write_label(folder / f"labels/train/a/{index}.png", TOP_SKY if index < 3 else IGNORED)
    write_image(folder / "images/train/a/3.png", PHOTO)
    status, text, (report,) = check(file)
    assert status == 0
    assert text.endswith("tiny_train: usable\n\n")
    assert "images/train/{key}.png, labels/train/{key}.png" in text
    assert (report["usable"], report["pairs"], report["decoded"], report["problems"]) == (True, 4, 4, {})
    assert report["sizes"] == [{"height": 24, "width": 32, "images": 4}]
    shares = {entry["name"]: (entry["pixel_percent"], entry["image_percent"]) for entry in report["classes"]}
    assert shares["road"] == shares["sky"] == (37.5, 75.0)
    assert (shares["(ignored)"], shares["car"]) == ((25.0, 25.0), (0, 0))
    assert "| road          |        37.500 |          75.0 |" in text
    (note,) = report["notes"]
    assert note.startswith("classes that do not occur in the decoded labels: sidewalk, building,")


@pytest.mark.parametrize("workers", [0, 2])
def test_every_kind_of_problem_is_collected(check, folder, workers):
    file = make_dataset(folder, count=30)
    images, labels = folder / "images/train/a", folder / "labels/train/a"
    for index in range(7):
        write_label(labels / f"{index}.png", np.zeros((32, 24), np.uint8))
    write_image(images / "7.jpg", PHOTO)
    damage(images / "8.png")
    (labels / "9.png").write_bytes(b"no image")
    write_label(labels / "10.png", UNKNOWN)
    write_image(labels / "11.png", PHOTO)
    (labels / "12.png").unlink()
    (images / "13.png").unlink()
    damage(labels / "14.png")
    data = bytearray((labels / "15.png").read_bytes())
    data[len(data) // 2] ^= 0xFF  # only a checksum of the pixels shows it
    (labels / "15.png").write_bytes(data)
    status, text, (report,) = check(file, workers=workers)
    assert status == 1
    counts = {kind: group["count"] for kind, group in report["problems"].items()}
    assert counts == {
        "missing label": 1, "unreadable image": 1, "unreadable label": 3, "size": 7, "encoding": 1, "unknown id": 1,
    }  # fmt: skip
    sizes = report["problems"]["size"]["first"]
    assert all(f"labels/train/a/{index}.png" in text and "32 x 24" in text for index, text in enumerate(sizes))
    assert len(sizes) == 5
    assert re.search(r"PROBLEM: labels that differ in size from their image: 7\n(    .*\n){5}    and 2 more\n", text)
    assert text.endswith("tiny_train: NOT usable, 14 problem(s)\n\n")
    assert "labels/train/a/15.png': it is damaged" in text
    explains(text, "labels/train/a/11.png", "RGB", "label_channel")
    explains(text, "labels/train/a/10.png", 77, "label_ids")
    assert any(note.startswith("1 labels without an image are ignored") for note in report["notes"])
    assert report["decoded"] == 28 - 10 - 3  # pairs, less those of bad headers, less those of bad pixels


def test_table_keeps_class_names():
    names = ["007", "1e3", "person|rider"]
    text = format_report(DatasetReport("tiny", classes=dict.fromkeys(names, (12.5, 100.0))))
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("|")][2:]
    assert [cell.strip() for row in cells for cell in row] == [
        text for name in names for text in (name.replace("|", "\\|"), "12.500", "100.0")
    ]


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_truncated_files_are_found_outside_of_the_sample(check, folder, suffix):
    file = make_dataset(folder, count=30, images=f"images/{{split}}/{{key}}.{suffix}")
    for index in range(30):
        write_image(folder / f"images/train/a/{index}.{suffix}", PHOTO)
    damage(folder / f"images/train/a/17.{suffix}")
    longer = folder / f"images/train/a/18.{suffix}"
    longer.write_bytes(longer.read_bytes() + bytes(1000 if suffix == "png" else 10_000))  # harmless
    status, text, (report,) = check(file, "--sample", 2)
    assert (status, report["decoded"], report["problems"]["unreadable image"]["count"]) == (1, 2, 1)
    assert f"17.{suffix}': it is damaged" in text


def test_sample_limits_decoding(check, folder):
    file = make_dataset(folder, count=10)
    write_label(folder / "labels/train/a/4.png", UNKNOWN)
    status, _, (report,) = check(file, "--sample", 2)  # the first and the last
    assert (status, report["decoded"]) == (0, 2)
    assert "the pixels of 8 pairs were not read; use --sample 0 to read all" in report["notes"]
    status, _, (report,) = check(file, "--sample", 0)
    assert (status, report["decoded"]) == (1, 9)


def test_missing_and_ignored_labels(check, folder):
    file = make_dataset(folder, count=1, folders=("train",), splits={"train": {}, "night": {}})
    status, text, (report,) = check(file, names=["tiny_night"])
    assert (status, list(report["problems"]), report["pairs"]) == (1, ["listing"], 0)
    assert "images/night' does not exist" in text
    for kind in ("images", "labels"):
        (folder / kind / "night").mkdir()
    write_label(folder / "labels/train/a/0.png", IGNORED)
    status, text, reports = check(file, names=["tiny_night", "tiny_train"])
    assert (status, [list(report["problems"]) for report in reports]) == (1, [["empty"], ["no class"]])
    assert "all pixels in the 1 decoded labels are ignored" in text


def test_list_entries_without_an_image(check, folder):
    file = make_dataset(folder, splits={"few": {"folder": "train", "keys": "few.txt"}})
    (folder / "few.txt").write_text("\n".join(["a/1", *(f"a/9{index}" for index in range(7))]))
    status, text, (report,) = check(file, names=["tiny_few"])
    assert (status, report["pairs"]) == (1, 1)
    assert report["problems"] == {"list": {"count": 7, "first": [f"a/9{index}" for index in range(5)]}}
    assert "labels/train/{key}.png, few.txt" in text
    assert not [note for note in report["notes"] if "without an image" in note]


def test_datasets_of_other_code(folder, capsys):
    with registered(make_dataset(folder, count=2)):
        records = DatasetCatalog.get("tiny_train")
        DatasetCatalog.remove("tiny_train")
        DatasetCatalog.register("tiny_train", lambda: records)
        assert main(["tiny_train", "--workers", "0"]) == 0
    assert "layout" not in capsys.readouterr().out


def test_panoptic_datasets(folder, capsys):
    with registered(make_panoptic(folder, {"val": 2})):
        assert main(["tiny_val_panoptic", "--workers", "0", "--sheet", str(folder / "look.png")]) == 0
        for label in folder.glob("panoptic/val/*.png"):
            damage(label)
        assert main(["tiny_val_panoptic", "--workers", "0"]) == 1
    assert "PROBLEM: labels that cannot be read: 2" in capsys.readouterr().out


# Contact sheet


def test_contact_sheet_shows_images_labels_and_legend(check, folder):
    file = make_dataset(folder, count=14)
    for index in range(14):
        ids = np.zeros(SIZE, np.uint8)
        ids[:, 16:] = 9 if index else 2
        write_image(folder / f"images/train/a/{index}.png", np.full((*SIZE, 3), 200, np.uint8))
        write_label(folder / f"labels/train/a/{index}.png", ids)
    sheet = folder.parent / "sheets/tiny.png"
    status, text, _ = check(file, "--sheet", sheet)
    assert status == 0
    assert f"contact sheet written to {sheet}" in text
    pixels = Image.open(sheet).convert("RGB")
    found = {color: count for count, color in pixels.getcolors(pixels.width * pixels.height)}
    road, car, dark = (156, 118, 156), (80, 80, 165), (60, 60, 60)  # 0.6 of the color, 0.4 of 200; 0.3 of 200
    half = 304 * 228 // 2
    assert 0.98 * 12 * half < found[road] <= 12 * half, "twelve of fourteen images, half of each"
    assert 0.98 * half < found[car] <= half, "the first image is one of them"
    assert 0.98 * 11 * half < found[dark] <= 11 * half
    assert found[200, 200, 200] >= 12 * 304 * 228, "the images themselves"
    assert found[128, 64, 128] > 100, "the legend"


def test_contact_sheets_of_several_datasets(check, folder):
    file = make_dataset(folder, count=1, size=(320, 60))
    sheet = folder.parent / "look.png"
    status, _, _ = check(file, "--sheet", sheet, names=["tiny_train", "tiny_val", "tiny_train"])
    assert status == 0
    assert sorted(path.name for path in sheet.parent.glob("*.png")) == ["look-tiny_train.png", "look-tiny_val.png"]
    assert Image.open(sheet.parent / "look-tiny_val.png").height < 800
    for label in (folder / "labels/train/a").iterdir():
        label.unlink()
    status, text, _ = check(file, "--sheet", sheet)
    assert (status, sheet.exists()) == (1, False)
    assert "no contact sheet, because there are no pairs" in text


def test_contact_sheet_begins_with_problems(check, folder, monkeypatch):
    file, drawn = make_dataset(folder, count=30), []
    write_label(folder / "labels/train/a/20.png", UNKNOWN)
    write_label(folder / "labels/train/a/21.png", np.zeros((32, 24), np.uint8))
    damage(folder / "images/train/a/22.png")
    draw = program.draw_contact_sheet
    monkeypatch.setattr(program, "draw_contact_sheet", lambda *call: drawn.append(call) or draw(*call))
    status, _, _ = check(file, "--sheet", folder.parent / "look.png")
    ((report, records, _),) = drawn
    marks = {record["image_id"]: report.found.bad.get(record["file_name"]) for record in records}
    assert (status, len(records), [*marks][3]) == (1, 12, "a/0")
    assert sorted([*marks][:3]) == ["a/20", "a/21", "a/22"]
    assert [marks[f"a/{index}"] for index in (20, 21, 22)] == ["unknown id", "size", "unreadable image"]
    assert not any([*marks.values()][3:])


# Command line


def status_of(run, arguments):
    try:
        return run(arguments)
    except SystemExit as end:
        return end.code


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny_trian"], "'tiny_trian' is unknown. Did you mean 'tiny_train'"),
        (["tiny_train", "--sample", "-1"], "argument --sample: must be an integer of at least 0, got '-1'"),
        (["tiny_train", "--workers", "two"], "argument --workers: must be an integer"),
        (["tiny_train", "--sheet", "look.jpg"], "--sheet must end in .png, got look.jpg"),
        (["tiny.yaml"], "name its file in --definition"),
        (["tiny_train", "--json", "/proc/none/report.json"], "/proc/none"),
        (["tiny_train", "--sheet", "/proc/none/look.png"], "/proc/none"),
        (["tiny_train", "--definition", "none.yaml"], "none.yaml': "),
        ([], "the following arguments are required: NAME"),
    ],
)
def test_mistakes_end_before_the_check(folder, capsys, arguments, message):
    file = make_dataset(folder, count=1)
    with registered():
        status = status_of(main, [*arguments, "--definition", str(file), "--workers", "0"][: None if arguments else 0])
    out, err = capsys.readouterr()
    assert (status, out) == (2, "") and message in err and "DATASETS.FILES" not in err
    is_usage = not arguments or "argument --" in message or "--sheet must" in message
    assert err.startswith("usage: " if is_usage else "error: ") and (is_usage or err.count("\n") == 1)


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (BrokenProcessPool, 2, "error: A worker process was killed, probably because memory ran out"),
        (KeyboardInterrupt, 130, "stopped\n"),
    ],
)
def test_stopped_check_ends_with_one_line(folder, capsys, monkeypatch, error, status, message):
    def stop(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(program, "check_dataset", stop)
    arguments = ["tiny_train", "--definition", str(make_dataset(folder, count=1))]
    with registered():
        found = status_of(main, arguments)
    assert found == status and message in capsys.readouterr().err


def test_script_exits_with_the_status(folder, monkeypatch):
    file = make_dataset(folder, count=2)
    write_label(folder / "labels/val/a/1.png", UNKNOWN)
    monkeypatch.setattr(sys, "argv", [str(TOOL), "tiny_train", "tiny_val", "--definition", str(file), "--workers", "1"])
    with registered(), pytest.raises(SystemExit, match="1"):
        runpy.run_path(str(TOOL), run_name="__main__")
