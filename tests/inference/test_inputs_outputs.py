"""The images that a command line names, and the files of their results."""

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pytest

from error_matching import expect_error
from famix.inference.images import find_images
from famix.inference.views import image_files, video_files
from famix.io.atomic import require_writable
from famix.utils.errors import ConfigError

ALL = ("overlay", "side-by-side", "labels", "color")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for name in ("b.jpg", "a.PNG", "deep/c.webp", "notes.txt", "[1].txt", ".hidden.png", ".cache/d.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def names(files: Sequence[Path], folder: Path) -> list[str]:
    return [str(file.relative_to(folder)) for file in files]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["."], ["a.PNG", "b.jpg", "deep/c.webp"]),
        (["*.jpg"], ["b.jpg"]),
        (["**/c.*"], ["deep/c.webp"]),
        (["notes.txt"], ["notes.txt"]),  # a named file may have any suffix
        (["[1].txt"], ["[1].txt"]),  # and a name that reads as a pattern
        (["b.jpg", ".", "deep/../b.jpg"], ["b.jpg", "a.PNG", "deep/c.webp"]),  # each file once, in the first place
    ],
    ids=str,
)
def test_files_folders_and_patterns(photos: Path, words: Sequence[str], expected: Sequence[str]) -> None:
    assert names(find_images([os.path.join(photos, word) for word in words]), photos) == expected


def test_word_without_images_is_an_error(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with expect_error(ConfigError, key="--input", value=f"{tmp_path}/empty, nothing*.png", remedy="quoted"):
        find_images([str(photos), str(tmp_path / "empty"), "nothing*.png"])


def test_pictures_of_any_format_and_capitals_count(tmp_path: Path) -> None:
    expected = ["a.Jpg", "b.GIF", "c.heic", "d.pGm", "e.JPEG", "f.webP", "g.JPG"]
    for name in (*expected, "g.txt", "h.json", "noext"):
        (tmp_path / name).touch()
    assert names(find_images([str(tmp_path)]), tmp_path) == expected
    for pattern in ("*.jpg", "*.JPG", "**/*.Jpg"):
        assert names(find_images([f"{tmp_path}/{pattern}"]), tmp_path) == ["a.Jpg", "g.JPG"]


def test_links_to_folders_and_files_are_inputs(photos: Path, tmp_path: Path) -> None:
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


def test_endless_links_are_an_error(tmp_path: Path) -> None:
    for level in range(30):
        (tmp_path / f"{level}").mkdir()
        for name in ("x", "y"):
            (tmp_path / f"{level}" / name).symlink_to(tmp_path / f"{level + 1}")
    with expect_error(ConfigError, key="--input", value=64, remedy="Remove"):
        find_images([str(tmp_path / "0")])


def test_folder_that_cannot_be_listed_is_an_error(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = os.scandir

    def scan_all_but_one(folder: str) -> object:  # root, who may run the tests, can list every folder
        if Path(folder) == photos / "deep":
            raise PermissionError(13, "Permission denied", folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", scan_all_but_one)
    with expect_error(ConfigError, key="--input", value=photos / "deep", remedy="permissions"):
        find_images([str(photos)])


def test_name_in_another_unicode_form_is_found(tmp_path: Path) -> None:
    (tmp_path / unicodedata.normalize("NFD", "Zürich.png")).touch()
    assert len(find_images([str(tmp_path / unicodedata.normalize("NFC", "Zürich.png"))])) == 1


def stems(inputs: Sequence[Path], output: Path) -> list[str]:
    files = [paths["labels"] for paths in image_files(inputs, output, ["labels"])]
    return [str(file.relative_to(output)).removesuffix("_labels.png") for file in files]


def test_outputs_keep_the_tree_and_never_collide(tmp_path: Path) -> None:
    inputs = [tmp_path / name for name in ("x/a.png", "y/a.png", "y/deep/a.jpg")]
    assert stems(inputs, tmp_path / "out") == ["x/a", "y/a", "y/deep/a"]
    assert stems(inputs[:1], tmp_path / "out") == ["a"]
    inputs = [tmp_path / name for name in ("a.png", "a.jpg", "A.bmp", "a_jpg.png", "a.jpg.png")]
    found = stems(inputs, tmp_path / "out")
    assert found[:2] == ["a", "a_jpg"]
    assert len({name.casefold() for name in found}) == 5


@pytest.mark.parametrize("view", ALL)
def test_no_input_is_overwritten(tmp_path: Path, view: str) -> None:
    names = ["a.png", *(file.name for file in image_files([tmp_path / "a.png"], tmp_path, [view])[0].values())]
    inputs = [tmp_path / name for name in names]
    for path in inputs:
        path.touch()
    files = [file for paths in image_files(inputs, tmp_path, [view]) for file in paths.values()]
    assert not {file.resolve() for file in files} & {path.resolve() for path in inputs}
    assert len(set(files)) == 2


@pytest.mark.parametrize("name", ["a_segments.png", "a_segments.json"])
def test_files_of_segments_overwrite_no_input(tmp_path: Path, name: str) -> None:
    files = image_files([tmp_path / "a.png", tmp_path / name], tmp_path, ["labels"])
    assert files[0]["labels"] == tmp_path / "a_png_labels.png"


@pytest.mark.parametrize(("inputs", "output"), [("linked", "real"), ("real", "linked")])
def test_input_behind_a_link_is_not_overwritten(tmp_path: Path, inputs: str, output: str) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    files = [tmp_path / inputs / name for name in ("a.png", "a_color.png")]
    planned = image_files(files, tmp_path / output, ["color"])
    assert planned[0]["color"].resolve() != files[1].resolve()


def test_single_image_and_video_can_have_a_file(tmp_path: Path) -> None:
    assert image_files([tmp_path / "a.png"], tmp_path / "b.jpg", ["overlay"]) == [{"overlay": tmp_path / "b.jpg"}]
    source = tmp_path / "drive.avi"
    assert video_files(source, tmp_path / "seen.MP4", ["overlay"]) == {"overlay": tmp_path / "seen.MP4"}
    assert video_files(source, tmp_path / "out", ALL) == {
        "overlay": tmp_path / "out/drive_overlay.mp4",
        "side-by-side": tmp_path / "out/drive_side-by-side.mp4",
        "labels": tmp_path / "out/drive_labels",
        "color": tmp_path / "out/drive_color.mp4",
    }
    assert video_files(tmp_path / "drive.mp4", tmp_path, ["color"])["color"] != tmp_path / "drive.mp4"


@pytest.mark.parametrize(
    ("inputs", "output", "views", "remedy"),
    [
        (("a.png", "b.png"), "seen.png", ("color",), "folder"),
        (("a.png",), "seen.png", ALL, "folder"),
        (("a.png",), "a.png", ("color",), "another file"),
        (("a.png",), "seen.jpg", ("labels",), ".png"),
        (("a.png",), "seen.mp4", ("color",), "--video-input"),
        (("drive.avi",), "seen.gif", ("color",), ".avi"),
        (("drive.avi",), "seen.mp4", ("color", "overlay"), "folder"),
        (("drive.avi",), "seen.mp4", ("labels",), "folder"),
        (("drive.avi",), "drive.avi", ("color",), "another file"),
    ],
)
def test_file_that_cannot_hold_the_results(
    tmp_path: Path, inputs: Sequence[str], output: str, views: Sequence[str], remedy: str
) -> None:
    paths = [tmp_path / name for name in inputs]
    with expect_error(ConfigError, key="--output", value=tmp_path / output, remedy=remedy):
        if inputs[0] == "drive.avi":
            video_files(paths[0], tmp_path / output, views)
        else:
            image_files(paths, tmp_path / output, views)


def test_output_folder_is_created_and_left_empty_or_an_error(tmp_path: Path) -> None:
    require_writable(tmp_path / "new/folder")
    assert list((tmp_path / "new/folder").iterdir()) == []
    (tmp_path / "file").touch()
    with expect_error(ConfigError, key=f"output folder {tmp_path / 'file/out'}", remedy="another"):
        require_writable(tmp_path / "file/out")
