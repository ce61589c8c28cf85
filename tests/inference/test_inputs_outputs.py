"""The images that a command line names, and the files of their views."""

import os
import unicodedata
from pathlib import Path

import pytest

from error_matching import expect_error
from famix.inference.images import find_images
from famix.inference.views import ALL_VIEWS, VIEWS, image_files, video_files
from famix.utils.errors import ConfigError


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for name in ("b.jpg", "a.PNG", "deep/c.webp", "notes.txt", "[1].txt", ".hidden.png", ".cache/d.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def names(files, folder):
    return [str(file.relative_to(folder)) for file in files]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["."], ["a.PNG", "b.jpg", "deep/c.webp"]),
        (["*.jpg"], ["b.jpg"]),
        (["*.JPG"], ["b.jpg"]),
        (["**/c.*"], ["deep/c.webp"]),
        (["notes.txt"], ["notes.txt"]),  # a named file may have any suffix
        (["[1].txt"], ["[1].txt"]),  # and a name that is also a pattern
        (["b.jpg", ".", "deep/../b.jpg"], ["b.jpg", "a.PNG", "deep/c.webp"]),  # each file once, in the first place
    ],
    ids=str,
)
def test_files_folders_and_patterns(photos, words, expected):
    assert names(find_images([os.path.join(photos, word) for word in words]), photos) == expected


def test_words_without_images_are_refused(photos, tmp_path):
    (tmp_path / "empty").mkdir()
    with expect_error(ConfigError, key="--input", value=f"{tmp_path}/empty, nothing*.png", remedy="quoted"):
        find_images([str(photos), str(tmp_path / "empty"), "nothing*.png"])


def test_images_of_any_format_are_found(tmp_path):
    expected = ["a.Jpg", "b.GIF", "c.heic", "d.pGm", "e.JPEG", "f.webP", "g.JPG"]
    for name in (*expected, "g.txt", "h.json", "noext"):
        (tmp_path / name).touch()
    assert names(find_images([str(tmp_path)]), tmp_path) == expected
    assert names(find_images([f"{tmp_path}/**/*.Jpg"]), tmp_path) == ["a.Jpg", "g.JPG"]


def test_links_are_followed(photos, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/e.png").touch()
    for name in ("x", "y"):
        (photos / name).symlink_to(tmp_path / "disk")
    (photos / "deep/above").symlink_to(photos)
    (photos / "again.jpg").symlink_to(photos / "b.jpg")
    (photos / "broken.jpg").symlink_to(photos / "nowhere")
    expected = ["a.PNG", "again.jpg", "b.jpg", "broken.jpg", "deep/c.webp", "x/e.png", "y/e.png"]
    assert names(find_images([str(photos)]), photos) == expected
    assert names(find_images([f"{photos}/*.jpg"]), photos) == ["again.jpg", "b.jpg", "broken.jpg"]


def test_endless_links_are_refused(tmp_path):
    for level in range(30):
        (tmp_path / f"{level}").mkdir()
        for name in ("x", "y"):
            (tmp_path / f"{level}" / name).symlink_to(tmp_path / f"{level + 1}")
    with expect_error(ConfigError, key="--input", value=64, remedy="Remove"):
        find_images([str(tmp_path / "0")])


def test_folder_that_cannot_be_listed_is_refused(photos, monkeypatch):
    scan = os.scandir

    def scan_all_but_one(folder):  # root, who may run the tests, can list every folder
        if Path(folder) == photos / "deep":
            raise PermissionError(13, "Permission denied", folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", scan_all_but_one)
    with expect_error(ConfigError, key="--input", value=photos / "deep", remedy="permissions"):
        find_images([str(photos)])


def test_name_in_another_unicode_form_is_found(tmp_path):
    (tmp_path / unicodedata.normalize("NFD", "Zürich.png")).touch()
    assert len(find_images([str(tmp_path / unicodedata.normalize("NFC", "Zürich.png"))])) == 1


def test_outputs_keep_the_tree_and_never_collide(tmp_path):
    def stems(*inputs):
        files = image_files([tmp_path / name for name in inputs], tmp_path / "out", ["labels"])
        return [str(paths["labels"].relative_to(tmp_path / "out")).removesuffix("_labels.png") for paths in files]

    assert stems("x/a.png", "y/a.png", "y/deep/a.jpg") == ["x/a", "y/a", "y/deep/a"]
    assert stems("x/a.png") == ["a"]
    found = stems("a.png", "a.jpg", "A.bmp", "a_jpg.png", "a.jpg.png")
    assert found[:2] == ["a", "a_jpg"]
    assert len({name.casefold() for name in found}) == 5


@pytest.mark.parametrize(
    ("view", "name"),
    [
        *((view, f"a{VIEWS[view]}") for view in ALL_VIEWS),
        *(("labels", name) for name in ("a_segments.png", "a_segments.json")),
    ],
)
@pytest.mark.parametrize(("folder", "output"), [("real", "real"), ("linked", "real"), ("real", "linked")])
def test_outputs_replace_no_input(tmp_path, view, name, folder, output):
    (tmp_path / "real").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    inputs = [tmp_path / folder / "a.png", tmp_path / folder / name]
    files = [paths[view] for paths in image_files(inputs, tmp_path / output, [view])]
    assert files[0] == tmp_path / output / f"a_png{VIEWS[view]}" != files[1]
    assert not {file.resolve() for file in files} & {path.resolve() for path in inputs}


def test_output_files(tmp_path):
    assert image_files([tmp_path / "a.png"], tmp_path / "b.jpg", ["overlay"]) == [{"overlay": tmp_path / "b.jpg"}]
    source = tmp_path / "drive.avi"
    assert video_files(source, tmp_path / "seen.MP4", ["overlay"]) == {"overlay": tmp_path / "seen.MP4"}
    assert video_files(source, tmp_path / "out", ALL_VIEWS) == {
        "overlay": tmp_path / "out/drive_overlay.mp4",
        "side-by-side": tmp_path / "out/drive_side-by-side.mp4",
        "labels": tmp_path / "out/drive_labels",
        "color": tmp_path / "out/drive_color.mp4",
    }


@pytest.mark.parametrize(
    ("inputs", "output", "views", "remedy"),
    [
        (("a.png", "b.png"), "seen.png", ("color",), "folder"),
        (("a.png",), "seen.png", ALL_VIEWS, "folder"),
        (("a.png",), "a.png", ("color",), "another file"),
        (("a.png",), "seen.jpg", ("labels",), ".png"),
        (("a.png",), "seen.mp4", ("color",), "--video-input"),
        (("drive.avi",), "seen.gif", ("color",), ".avi"),
        (("drive.avi",), "seen.mp4", ("color", "overlay"), "folder"),
        (("drive.avi",), "seen.mp4", ("labels",), "folder"),
        (("drive.avi",), "drive.avi", ("color",), "another file"),
    ],
)
def test_unsuitable_output_files_are_refused(tmp_path, inputs, output, views, remedy):
    paths = [tmp_path / name for name in inputs]
    with expect_error(ConfigError, key="--output", value=tmp_path / output, remedy=remedy):
        if inputs[0] == "drive.avi":
            video_files(paths[0], tmp_path / output, views)
        else:
            image_files(paths, tmp_path / output, views)
