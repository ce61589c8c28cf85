"""Which images are meant, and where their pictures go."""

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pytest

from error_matching import expect_error
from famix.inference.inputs import find_images
from famix.inference.outputs import image_files, require_writable, video_files
from famix.utils.errors import ConfigError

ALL = ("overlay", "side-by-side", "labels", "color")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for name in ("b.jpg", "a.PNG", "deep/c.webp", "notes.txt", ".hidden.png", ".cache/d.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def names(files: Sequence[Path], folder: Path) -> list[str]:
    return [str(file.relative_to(folder)) for file in files]


def test_folder_stands_for_the_images_below_it(photos: Path) -> None:
    assert names(find_images([str(photos)]), photos) == ["a.PNG", "b.jpg", "deep/c.webp"]


def test_pattern_stands_for_what_it_matches(photos: Path) -> None:
    assert names(find_images([f"{photos}/*.jpg"]), photos) == ["b.jpg"]
    assert names(find_images([f"{photos}/**/c.*"]), photos) == ["deep/c.webp"]


def test_named_file_may_have_any_suffix(photos: Path) -> None:
    assert names(find_images([str(photos / "notes.txt")]), photos) == ["notes.txt"]


def test_file_that_is_named_twice_is_taken_once_and_first(photos: Path) -> None:
    words = [str(photos / "b.jpg"), str(photos), f"{photos}/deep/../b.jpg"]
    assert names(find_images(words), photos) == ["b.jpg", "a.PNG", "deep/c.webp"]


def test_file_whose_name_looks_like_a_pattern_is_a_file(photos: Path) -> None:
    (photos / "[1].png").touch()
    assert names(find_images([str(photos / "[1].png")]), photos) == ["[1].png"]


def test_what_matches_nothing_is_named(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"no input matched .*empty, nothing\*\.png; expected images, folders"):
        find_images([str(photos), str(tmp_path / "empty"), "nothing*.png"])


def test_pictures_of_any_format_and_capitals_count(tmp_path: Path) -> None:
    expected = ["a.Jpg", "b.GIF", "c.heic", "d.pGm", "e.JPEG", "f.webP"]
    for name in (*expected, "g.txt", "h.json", "noext"):
        (tmp_path / name).touch()
    assert names(find_images([str(tmp_path)]), tmp_path) == expected


@pytest.mark.parametrize("pattern", ["*.jpg", "*.JPG", "**/*.Jpg"])
def test_patterns_of_images_match_any_capitals(tmp_path: Path, pattern: str) -> None:
    for name in ("a.jpg", "b.JPG", "c.Jpg", "d.png"):
        (tmp_path / name).touch()
    assert names(find_images([f"{tmp_path}/{pattern}"]), tmp_path) == ["a.jpg", "b.JPG", "c.Jpg"]


def test_folders_behind_links_are_part_of_a_folder(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/e.png").touch()
    for name in ("x", "y"):
        (photos / name).symlink_to(tmp_path / "disk")
    (photos / "deep/above").symlink_to(photos)
    assert names(find_images([str(photos)]), photos) == ["a.PNG", "b.jpg", "deep/c.webp", "x/e.png", "y/e.png"]


def test_two_links_to_one_picture_are_two_inputs(photos: Path) -> None:
    (photos / "again.jpg").symlink_to(photos / "b.jpg")
    (photos / "broken.jpg").symlink_to(photos / "nowhere")
    expected = ["a.PNG", "again.jpg", "b.jpg", "broken.jpg", "deep/c.webp"]
    assert names(find_images([str(photos)]), photos) == expected
    assert names(find_images([f"{photos}/*.jpg"]), photos) == ["again.jpg", "b.jpg", "broken.jpg"]


def test_links_made_to_last_for_ever_end(tmp_path: Path) -> None:
    folder = tmp_path
    for level in range(30):
        (tmp_path / f"{level}").mkdir()
        for name in ("x", "y"):
            (tmp_path / f"{level}" / name).symlink_to(tmp_path / f"{level + 1}")
    folder = tmp_path / "0"
    with expect_error(ConfigError, key="--input", value=64, remedy="Remove"):
        find_images([str(folder)])


def test_folder_that_cannot_be_listed_is_an_error(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = os.listdir

    def closed(folder: Path) -> list[str]:  # nothing is closed to root, as whom the tests may run
        if folder == photos / "deep":
            raise PermissionError(13, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(os, "listdir", closed)
    with expect_error(ConfigError, key="--input", value=photos / "deep", remedy="permissions"):
        find_images([str(photos)])


def test_name_in_another_unicode_form_is_found(tmp_path: Path) -> None:
    (tmp_path / unicodedata.normalize("NFD", "Zürich.png")).touch()
    assert len(find_images([str(tmp_path / unicodedata.normalize("NFC", "Zürich.png"))])) == 1


def stems(inputs: Sequence[Path], output: Path, views: Sequence[str] = ("labels",)) -> list[str]:
    files = [paths[views[0]] for paths in image_files(inputs, output, views)]
    return [str(file.relative_to(output)).removesuffix(f"_{views[0]}.png") for file in files]


def test_outputs_lie_as_their_inputs_do(tmp_path: Path) -> None:
    inputs = [tmp_path / name for name in ("x/a.png", "y/a.png", "y/deep/a.jpg")]
    assert stems(inputs, tmp_path / "out") == ["x/a", "y/a", "y/deep/a"]
    assert stems(inputs[:1], tmp_path / "out") == ["a"]


def test_outputs_never_collide(tmp_path: Path) -> None:
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


def test_one_image_can_have_a_file(tmp_path: Path) -> None:
    (files,) = image_files([tmp_path / "a.png"], tmp_path / "seen.jpg", ["overlay"])
    assert files == {"overlay": tmp_path / "seen.jpg"}


@pytest.mark.parametrize(
    ("inputs", "output", "views", "message"),
    [
        (("a.png", "b.png"), "seen.png", ("color",), r"seen\.png is one file, but there are 2 image"),
        (("a.png",), "seen.png", ALL, r"seen\.png is one file, but there are 1 image\(s\) and 4 view"),
        (("a.png",), "a.png", ("color",), r"a\.png is the input, which would be lost"),
        (("a.png",), "seen.jpg", ("labels",), r"seen\.jpg cannot hold exact labels; name a file that ends with \.png"),
    ],
)
def test_file_that_cannot_hold_the_pictures(
    tmp_path: Path, inputs: Sequence[str], output: str, views: Sequence[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        image_files([tmp_path / name for name in inputs], tmp_path / output, views)


def test_video_goes_to_a_file_or_to_a_file_for_every_view(tmp_path: Path) -> None:
    source = tmp_path / "drive.avi"
    assert video_files(source, tmp_path / "seen.MP4", ["overlay"]) == {"overlay": tmp_path / "seen.MP4"}
    assert video_files(source, tmp_path / "out", ALL) == {
        "overlay": tmp_path / "out/drive_overlay.mp4",
        "side-by-side": tmp_path / "out/drive_side-by-side.mp4",
        "labels": tmp_path / "out/drive_labels",
        "color": tmp_path / "out/drive_color.mp4",
    }


@pytest.mark.parametrize(
    ("output", "views", "message"),
    [
        ("seen.gif", ("color",), r"seen\.gif is no video; expected a file that ends with \.mp4 or \.avi"),
        ("seen.mp4", ("color", "overlay"), "one video, which cannot hold color, overlay; name a folder"),
        ("seen.mp4", ("labels",), "cannot hold labels"),
        ("drive.avi", ("color",), "is the input, which would be lost"),
    ],
)
def test_file_that_cannot_hold_the_video(tmp_path: Path, output: str, views: Sequence[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        video_files(tmp_path / "drive.avi", tmp_path / output, views)


def test_view_of_a_video_in_its_own_folder_does_not_overwrite_it(tmp_path: Path) -> None:
    assert video_files(tmp_path / "drive.mp4", tmp_path, ["color"])["color"] != tmp_path / "drive.mp4"


def test_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    require_writable(tmp_path / "new/folder")
    assert list((tmp_path / "new/folder").iterdir()) == []


def test_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"output folder .*file/out cannot be written to \(Not a directory\)"):
        require_writable(tmp_path / "file/out")
