"""Video files keep frames, rate and size; windows; errors."""

from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest

from error_matching import expect_error
from famix.data.class_table import ClassTable
from famix.inference import Prediction
from famix.inference.video import DEFAULT_RATE, VideoReader, WindowClosed, show_image, video_writer, view_writer
from famix.inference.views import ViewOptions
from famix.utils.errors import ConfigError, DatasetError

CLASSES = ClassTable(("road", "car"), ((128, 0, 0), (0, 0, 255)))
RED = np.full((36, 64, 3), (200, 30, 30), np.uint8)


def prediction(shape: tuple[int, int] = (36, 64)) -> Prediction:
    labels = np.zeros(shape, np.uint8)
    labels[: shape[0] // 2] = 1
    return Prediction(labels, CLASSES)


def save(path: Path, frames: int = 5, rate: float = 12.5, size: tuple[int, int] = (36, 64)) -> Path:
    with video_writer(path, rate, size) as write:
        for number in range(frames):
            write(np.full((*size, 3), (200, 30 + 20 * number, 30), np.uint8))
    return path


@pytest.mark.parametrize("name", ["a.avi", "a.mp4", "a.AVI"])
def test_frames_rate_and_colours_come_back(tmp_path: Path, name: str) -> None:
    with VideoReader(save(tmp_path / name)) as reader:
        frames = list(reader)
    assert (reader.rate, reader.frames, len(frames)) == (12.5, 5, 5)
    for number, frame in enumerate(frames):
        assert frame.shape == (36, 64, 3)
        np.testing.assert_allclose(frame.mean((0, 1)), (200, 30 + 20 * number, 30), atol=8)  # codecs are lossy


@pytest.mark.parametrize("name", ["a.avi", "a.mp4"])
def test_odd_frames_lose_no_pixel(tmp_path: Path, name: str) -> None:
    with VideoReader(save(tmp_path / name, size=(35, 63))) as reader:
        frame = next(iter(reader))
    assert frame.shape == (36, 64, 3)
    np.testing.assert_allclose(frame[:34, :62].mean((0, 1)), (200, 30, 30), atol=10)


def test_video_without_a_rate_gets_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    capture = cv2.VideoCapture

    class Silent:  # OpenCV crashes on subclasses
        def __init__(self, source: str) -> None:
            self._capture = capture(source)

        def __getattr__(self, name: str) -> object:
            return getattr(self._capture, name)

        def get(self, key: int) -> float:
            return 0.0 if key == cv2.CAP_PROP_FPS else self._capture.get(key)

    path = save(tmp_path / "a.avi")
    monkeypatch.setattr(cv2, "VideoCapture", Silent)
    with VideoReader(path) as reader:
        assert reader.rate == DEFAULT_RATE


def test_missing_and_damaged_files_are_told_apart(tmp_path: Path) -> None:
    with expect_error(DatasetError, key=f"video not found: {tmp_path / 'gone.mp4'}", remedy=".avi"):
        VideoReader(tmp_path / "gone.mp4")
    (tmp_path / "text.mp4").write_text("no video at all")
    with expect_error(DatasetError, key=f"video {tmp_path / 'text.mp4'} cannot be read", remedy=".avi"):
        VideoReader(tmp_path / "text.mp4")


def test_video_without_frames_is_an_error(tmp_path: Path) -> None:
    path = save(tmp_path / "a.avi")
    reader = VideoReader(path)
    list(reader)
    with expect_error(DatasetError, key=f"video {path}", remedy="ffmpeg"):
        list(reader)  # at the end, as in a file without frames


def test_other_kind_of_file_is_an_error(tmp_path: Path) -> None:
    with expect_error(ConfigError, key="video", value=tmp_path / "a.gif", remedy="Rename"):
        save(tmp_path / "a.gif")


def test_missing_codec_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codecs = {".mp4": "nope"}
    monkeypatch.setattr("famix.inference.video.CODECS", {**codecs, ".avi": "MJPG"})
    with expect_error(ConfigError, key=str(tmp_path / "a.mp4"), value="nope", remedy=".avi"):
        save(tmp_path / "a.mp4")


def test_view_writer_writes_videos_and_labels(tmp_path: Path) -> None:
    files = {"overlay": tmp_path / "o.avi", "side-by-side": tmp_path / "s.avi", "labels": tmp_path / "labels"}
    with view_writer(files, 10, ViewOptions(alpha=1.0)) as write:
        for _ in range(3):
            write(RED, prediction())
    with VideoReader(tmp_path / "o.avi") as reader:
        frames = list(reader)
    assert len(frames) == 3
    np.testing.assert_allclose(frames[0][4:14].mean((0, 1)), (0, 0, 255), atol=10)
    with VideoReader(tmp_path / "s.avi") as reader:
        assert next(iter(reader)).shape == (36, 64 + 4 + 64, 3)
    for number in range(3):
        read = cv2.imread(str(tmp_path / f"labels/{number:06d}_labels.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(read, prediction().labels)


def test_legend_of_a_video_has_one_height_whatever_is_seen(tmp_path: Path) -> None:
    with view_writer({"color": tmp_path / "c.avi"}, 10, ViewOptions(legend=True)) as write:
        write(RED, prediction())
        write(RED, Prediction(np.zeros((36, 64), np.uint8), CLASSES))
    with VideoReader(tmp_path / "c.avi") as reader:
        frames = list(reader)
    assert len(frames) == 2
    assert frames[0].shape[0] > 36


def test_video_that_was_not_finished_leaves_the_one_before(tmp_path: Path) -> None:
    path = save(tmp_path / "a.avi")
    before = path.read_bytes()
    with suppress(RuntimeError), view_writer({"color": path}, 10, ViewOptions()) as write:
        write(RED, prediction())
        raise RuntimeError("stopped")
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.avi"]


def test_window_shows_bgr_and_closes_on_q(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[np.ndarray] = []
    keys = iter([-1, ord("q")])
    monkeypatch.setattr(cv2, "imshow", lambda _, picture: shown.append(picture))
    monkeypatch.setattr(cv2, "waitKey", lambda _: next(keys))
    show_image(RED, wait=False)
    assert shown[0][0, 0].tolist() == [30, 30, 200]
    with pytest.raises(WindowClosed):
        show_image(RED, wait=False)


def test_opencv_without_windows_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def imshow(title: str, picture: np.ndarray) -> None:
        raise cv2.error("not implemented")

    monkeypatch.setattr(cv2, "imshow", imshow)
    with expect_error(ConfigError, key="a window", remedy="--output"):
        show_image(RED, wait=True)
