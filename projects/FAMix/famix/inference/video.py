"""Video files, cameras and windows through OpenCV. Frames are (H, W, 3) uint8, RGB."""

import math
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from famix.inference.images import RGBImage
from famix.io.atomic import whole_file
from famix.utils.errors import ConfigError, DatasetError, FAMixError, OutputError

__all__ = ["CODECS", "USUAL_RATE", "VideoReader", "VideoWriter", "Window"]

CODECS = {".mp4": "mp4v", ".avi": "MJPG"}
"""Suffix of a video file -> code of what it is written with."""

USUAL_RATE = 25.0
"""Frames per second of what does not say its own, as many cameras."""

_HIGHEST_RATE = 1000.0
_COUNTED = (".avi", ".m4v", ".mov", ".mp4")  # containers that count their frames
_BLOCK = 4096  # bytes


class VideoReader:
    """Iterates over the frames of a video, once; a context that closes it.

    Args:
        source: path of a file, or the number of a camera.

    Attributes:
        rate: frames per second.
        frames: that there are, by the header; None where nobody knows.
        size: (width, height) of a frame in pixels, by the header.

    Raises:
        ConfigError: there is no such camera.
        DatasetError: there is no such file, or it cannot be read.
    """

    def __init__(self, source: Path | int) -> None:
        self._source = source
        is_camera = isinstance(source, int)
        self._capture = cv2.VideoCapture(source if is_camera else str(source))
        if not self._capture.isOpened():
            raise _cannot_open(source)
        rate, frames = (self._capture.get(key) for key in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT))
        self.rate = rate if math.isfinite(rate) and 0 < rate <= _HIGHEST_RATE else USUAL_RATE
        self.frames = int(frames) if frames > 0 and not is_camera else None
        width, height = (self._capture.get(key) for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        self.size = int(width), int(height)

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._capture.release()

    def __iter__(self) -> Iterator[RGBImage]:
        """The frames.

        Raises:
            DatasetError: there is not a single one.
        """
        is_empty = True
        while True:
            more, frame = self._capture.read()
            if not more:
                break
            is_empty = False
            yield np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8)
        if is_empty:
            raise DatasetError(
                f"video {self._source} has no frame that can be read; it is damaged or of an unknown codec"
            )

    def require_whole(self, frames: int) -> None:
        """Raise where a video ended before its header says.

        Args:
            frames: that were read.

        Raises:
            DatasetError: names both numbers.
        """
        if self.frames is None or not isinstance(self._source, Path):
            return
        # Headers of other containers tell the duration, from which OpenCV estimates the number of frames.
        tolerated = 0 if self._source.suffix.lower() in _COUNTED else max(2, self.frames // 50)
        if frames < self.frames - tolerated:
            raise DatasetError(
                f"video {self._source} must have {self.frames} frames as its header says, got {frames}: the file is damaged or "
                "incomplete, and so is the output. Copy it anew, or repair it with ffmpeg."
            )


def _cannot_open(source: Path | int) -> FAMixError:
    if isinstance(source, int):
        return ConfigError(f"camera {source} cannot be opened; is it plugged in, and free? Others are 1, 2, ...")
    problem = (
        "cannot be read: it is damaged, no video, or of an unknown codec" if source.is_file() else "does not exist"
    )
    return DatasetError(f"video {source} {problem}; expected a file that OpenCV reads, e.g. .mp4 or .avi")


class VideoWriter:
    """Writes frames of one size; a context that completes the file, which appears whole or not at all.

    OpenCV does not report errors of the disk: the complete video is read once before it replaces an old one.

    Args:
        path: of the file, whose suffix says the codec.
        rate: frames per second.
        size: (height, width) of the frames; codecs want even sides, so an odd one gets a black line.

    Raises:
        ConfigError: the suffix is none of `CODECS`, or this OpenCV cannot write such a file.
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, rate: float, size: tuple[int, int]) -> None:
        code = CODECS.get(path.suffix.lower())
        if code is None:
            raise ConfigError(f"got {path} for a video, expected a file that ends with {' or '.join(CODECS)}")
        self._padding = (size[0] % 2, size[1] % 2)
        height, width = size[0] + self._padding[0], size[1] + self._padding[1]
        self._path, self._frames = path, 0
        with ExitStack() as files:
            self._part = files.enter_context(whole_file(path))
            self._writer = cv2.VideoWriter(str(self._part), cv2.VideoWriter.fourcc(*code), rate, (width, height))
            if not self._writer.isOpened():
                self._part.write_bytes(bytes(_BLOCK))  # or the disk is what is wrong
                others = " or ".join(suffix for suffix in CODECS if suffix != path.suffix.lower())
                raise ConfigError(
                    f"OpenCV cannot write {path}: its codec {code} is missing here, or refuses {width} x {height} pixels; "
                    f"try {others}, or a folder, which gets pictures"
                )
            files.push(self._complete)
            self._files = files.pop_all()

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Complete the video.

        Raises:
            OutputError: not all frames can be read back; an old file stays as it was.
            OSError: the file cannot be written.
        """
        self._files.__exit__(kind, error, trace)

    def _complete(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.release()
        if kind is not None:
            return
        readable = _count_frames(self._part)
        if readable != self._frames:
            raise OutputError(
                f"video {self._path} must have {self._frames} frames, got {readable} that can be read back. Make room on the "
                "disk, or choose another --output. A file that was there is kept."
            )

    def write(self, frame: RGBImage) -> None:
        """Add a frame."""
        below, right = self._padding
        if below or right:
            frame = np.pad(frame, ((0, below), (0, right), (0, 0)))
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        self._frames += 1


def _count_frames(path: Path) -> int:
    """Decode a video, and count its frames; 0 for anything else."""
    capture = cv2.VideoCapture(str(path))
    count = 0
    while capture.grab():
        count += 1
    capture.release()
    return count


class Window:
    """A window on the screen.

    Args:
        title: of it.
    """

    def __init__(self, title: str) -> None:
        self._title = title

    def show(self, picture: RGBImage, wait: bool = False) -> bool:
        """Show a picture.

        Args:
            picture: RGB.
            wait: for a key.

        Returns:
            False once the user has pressed q or Escape.

        Raises:
            ConfigError: this OpenCV has no windows, or there is no screen.
        """
        try:
            cv2.imshow(self._title, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
            key = cv2.waitKey(0 if wait else 1)
        except cv2.error as error:
            raise ConfigError(
                "there are no windows: OpenCV was built without them (opencv-python-headless), or there is no screen; give "
                "--output"
            ) from error
        return key not in (ord("q"), 27)
