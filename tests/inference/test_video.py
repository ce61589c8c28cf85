"""Video files keep frames, rate and size; windows; errors."""

from contextlib import suppress

import cv2
import numpy as np
import pytest

from error_matching import expect_error
from famix.data.classes import ClassTable
from famix.inference import Prediction
from famix.inference.video import DEFAULT_RATE, VideoReader, show_image, video_writer, view_writer
from famix.inference.views import ViewOptions
from famix.utils.errors import ConfigError, DatasetError

CLASSES = ClassTable(("road", "car"), ((128, 0, 0), (0, 0, 255)))
RED = np.full((36, 64, 3), (200, 30, 30), np.uint8)
PREDICTION = Prediction(np.repeat(np.array([[1], [0]], np.uint8), 18, axis=0).repeat(64, axis=1), CLASSES)


def save(path, size=(36, 64)):
    with video_writer(path, 12.5, size) as write:
        for number in range(5):
            write(np.full((*size, 3), (200, 30 + 20 * number, 30), np.uint8))
    return path


def read(path):
    with VideoReader(path) as reader:
        return list(reader)


@pytest.mark.parametrize("name", ["a.avi", "a.mp4", "a.AVI"])
def test_frames_and_rate_are_kept(tmp_path, name):
    with VideoReader(save(tmp_path / name)) as reader:
        frames = list(reader)
    assert (reader.rate, reader.frames, len(frames)) == (12.5, 5, 5)
    for number, frame in enumerate(frames):
        assert frame.shape == (36, 64, 3)
        np.testing.assert_allclose(frame.mean((0, 1)), (200, 30 + 20 * number, 30), atol=8)  # codecs are lossy
    frame = read(save(tmp_path / name, size=(35, 63)))[0]  # an odd side loses no pixel
    assert frame.shape == (36, 64, 3)
    np.testing.assert_allclose(frame[:34, :62].mean((0, 1)), (200, 30, 30), atol=10)


def test_video_without_a_rate_gets_the_default(tmp_path, monkeypatch):
    capture = cv2.VideoCapture

    class Silent:  # OpenCV crashes on subclasses
        def __init__(self, source):
            self._capture = capture(source)

        def __getattr__(self, name):
            return getattr(self._capture, name)

        def get(self, key):
            return 0.0 if key == cv2.CAP_PROP_FPS else self._capture.get(key)

    path = save(tmp_path / "a.avi")
    monkeypatch.setattr(cv2, "VideoCapture", Silent)
    with VideoReader(path) as reader:
        assert reader.rate == DEFAULT_RATE


def test_unreadable_videos_are_refused(tmp_path):
    (tmp_path / "text.mp4").write_text("no video at all")
    for name, key in (("gone.mp4", "Video not found: "), ("text.mp4", "Video ")):
        with expect_error(DatasetError, key=f"{key}'{tmp_path / name}'", remedy=".avi"):
            VideoReader(tmp_path / name)
    reader = VideoReader(save(tmp_path / "a.avi"))
    list(reader)
    with expect_error(DatasetError, key=f"Video '{tmp_path / 'a.avi'}'", remedy="ffmpeg"):
        list(reader)  # at the end, as in a file without frames


def test_unsupported_files_and_codecs_are_refused(tmp_path, monkeypatch):
    with expect_error(ConfigError, key="video", value=tmp_path / "a.gif", remedy="Rename"):
        save(tmp_path / "a.gif")
    monkeypatch.setattr("famix.inference.video.CODECS", {".mp4": "nope", ".avi": "MJPG"})
    with expect_error(ConfigError, key=str(tmp_path / "a.mp4"), value="nope", remedy=".avi"):
        save(tmp_path / "a.mp4")


def test_view_writer_writes_videos_and_labels(tmp_path):
    files = {"overlay": tmp_path / "o.avi", "side-by-side": tmp_path / "s.avi", "labels": tmp_path / "labels"}
    with view_writer(files, 10, ViewOptions(alpha=1.0)) as write:
        for _ in range(3):
            write(RED, PREDICTION)
    frames = read(tmp_path / "o.avi")
    assert len(frames) == 3
    np.testing.assert_allclose(frames[0][4:14].mean((0, 1)), (0, 0, 255), atol=10)
    assert read(tmp_path / "s.avi")[0].shape == (36, 64 + 4 + 64, 3)
    for number in range(3):
        labels = cv2.imread(str(tmp_path / f"labels/{number:06d}_labels.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(labels, PREDICTION.labels)


def test_legend_of_a_video_has_one_height(tmp_path):
    with view_writer({"color": tmp_path / "c.avi"}, 10, ViewOptions(legend=True)) as write:
        write(RED, PREDICTION)
        write(RED, Prediction(np.zeros((36, 64), np.uint8), CLASSES))
    frames = read(tmp_path / "c.avi")
    assert len(frames) == 2 and frames[0].shape[0] > 36


def test_unfinished_video_keeps_the_old_file(tmp_path):
    path = save(tmp_path / "a.avi")
    before = path.read_bytes()
    with suppress(RuntimeError), view_writer({"color": path}, 10, ViewOptions()) as write:
        write(RED, PREDICTION)
        raise RuntimeError("stopped")
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.avi"]


def test_window(monkeypatch):
    shown, keys = [], iter([-1, ord("q")])
    monkeypatch.setattr(cv2, "imshow", lambda _, image: shown.append(image))
    monkeypatch.setattr(cv2, "waitKey", lambda _: next(keys))
    assert [show_image(RED, wait=False) for _ in range(2)] == [True, False]
    assert shown[0][0, 0].tolist() == [30, 30, 200]  # OpenCV expects BGR

    def fail(title, image):
        raise cv2.error("not implemented")

    monkeypatch.setattr(cv2, "imshow", fail)
    with expect_error(ConfigError, key="A window", remedy="--output"):
        show_image(RED, wait=True)
