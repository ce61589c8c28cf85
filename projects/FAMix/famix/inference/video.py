"""Videos, cameras, folders of frames and windows, through OpenCV. Frames are (H, W, 3) uint8, RGB."""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

import cv2
import numpy as np

from famix.data.images import MAX_PIXELS, require_pixels
from famix.inference.images import RGBImage, is_picture, load_rgb
from famix.inference.prediction import Prediction
from famix.inference.views import CODECS, ID_VIEWS, VIEWS, Files, ViewOptions, draw_view, write_views
from famix.io.atomic import whole_file
from famix.utils.errors import ConfigError, DatasetError, OutputError

DEFAULT_RATE = 25.0
"""Frames per second of folders, and of sources that do not state a rate, such as many cameras."""

_MAX_RATE = 1000.0
_COUNTING_CONTAINERS = (".avi", ".m4v", ".mov", ".mp4")
_BLOCK_SIZE = 4096  # bytes


class VideoReader:
    """Frames of a video file or a camera, which can be iterated once; a context manager.

    Args:
        source: path of a file, or number of a camera.

    Attributes:
        rate: frames per second.
        frames: number of frames in the header; None if unknown.
        max_pixels: size limit of frames, see INPUT.MAX_PIXELS.

    Raises:
        ConfigError: the camera does not exist.
        DatasetError: the file does not exist or cannot be read.
    """

    def __init__(self, source: Path | int) -> None:
        self._source = source
        self._capture = cv2.VideoCapture(source if isinstance(source, int) else str(source))
        if not self._capture.isOpened():
            if isinstance(source, int):
                raise ConfigError(
                    f"camera {source} cannot be opened. Plug it in, close other programs, or try 1, 2, ..."
                )
            if not source.is_file():
                raise DatasetError(f"video not found: {source}. Name a file that OpenCV reads, such as .mp4 or .avi.")
            raise DatasetError(
                f"video {source} cannot be read: it is damaged or has an unknown codec. Name a file that OpenCV reads, such "
                "as .mp4 or .avi."
            )
        rate, frames = self._capture.get(cv2.CAP_PROP_FPS), self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.rate = rate if math.isfinite(rate) and 0 < rate <= _MAX_RATE else DEFAULT_RATE
        self.frames = int(frames) if frames > 0 and isinstance(source, Path) else None
        self.max_pixels = MAX_PIXELS

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *error: object) -> None:
        self._capture.release()

    def __iter__(self) -> Iterator[RGBImage]:
        """Yield the frames. Raises DatasetError if they are too large, or if there are none."""
        width, height = self._capture.get(cv2.CAP_PROP_FRAME_WIDTH), self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
        require_pixels((int(width), int(height)), f"video {self._source}", self.max_pixels)
        is_empty = True
        while (read := self._capture.read())[0]:
            is_empty = False
            yield np.asarray(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB), np.uint8)
        if is_empty:
            raise DatasetError(f"video {self._source} contains no frames. Repair it with ffmpeg.")

    def require_whole(self, frames: int) -> None:
        """Raise DatasetError if a video file ended before the number of frames in its header, after `frames` frames."""
        if self.frames is None or not isinstance(self._source, Path):
            return
        # Other containers state the duration, from which OpenCV estimates the number of frames.
        tolerated = 0 if self._source.suffix.lower() in _COUNTING_CONTAINERS else max(2, self.frames // 50)
        if frames < self.frames - tolerated:
            raise DatasetError(
                f"video {self._source} must have {self.frames} frames as its header says, got {frames}. Copy it again, or "
                "repair it with ffmpeg; the output is incomplete, too."
            )


class FrameFolder(VideoReader):
    """Images of a folder, without subfolders, as frames of a video; frame9.png precedes frame10.png.

    Raises:
        DatasetError: the folder contains no image.
    """

    def __init__(self, folder: Path, rate: float = DEFAULT_RATE) -> None:
        def order(file: Path) -> list[tuple[int, str]]:
            parts = re.split(r"(\d+)", file.name)
            return [(int(part), "") if part.isdecimal() else (0, part) for part in parts]

        self._files = sorted((f for f in folder.iterdir() if is_picture(f.name) and not f.is_dir()), key=order)
        if not self._files:
            raise DatasetError(f"folder {folder} contains no images. Name a folder of frames.")
        self._source, self._capture = folder, cv2.VideoCapture()
        self.rate, self.frames, self.max_pixels = rate, len(self._files), MAX_PIXELS

    def __iter__(self) -> Iterator[RGBImage]:
        """Yield the frames. Raises DatasetError if one is unreadable, too large, or differs in size from the first."""
        size = None
        for file in self._files:
            frame = load_rgb(file, self.max_pixels)
            size = size or frame.shape
            if frame.shape != size:
                raise DatasetError(
                    f"frame {file} must have {size[0]} x {size[1]} pixels like the first one, got {frame.shape[0]} x "
                    f"{frame.shape[1]}. Use --input for images of several sizes."
                )
            yield frame


@contextmanager
def video_writer(path: Path, rate: float, size: tuple[int, int]) -> Iterator[Callable[[RGBImage], None]]:
    """Write frames of one size to a file, which is completed atomically at the end of the context.

    OpenCV reports no disk errors, so the finished video is read once before it replaces an old one.

    Args:
        path: the file; its suffix selects the codec.
        rate: frames per second.
        size: (height, width) of the frames; an odd side gets a black line, since codecs require even ones.

    Yields:
        A function that adds a frame.

    Raises:
        ConfigError: the suffix is not in `CODECS`, or this OpenCV cannot write such a file.
        OutputError: a frame cannot be read back; an old file is kept.
        OSError: the file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in CODECS:
        raise ConfigError(f"video must end in {' or '.join(CODECS)}, got {path}. Rename it.")
    below, right = size[0] % 2, size[1] % 2
    height, width, written = size[0] + below, size[1] + right, 0

    def write(frame: RGBImage) -> None:
        nonlocal written
        padded = np.pad(frame, ((0, below), (0, right), (0, 0))) if below or right else frame
        writer.write(cv2.cvtColor(padded, cv2.COLOR_RGB2BGR))
        written += 1

    with whole_file(path) as part:
        writer = cv2.VideoWriter(str(part), cv2.VideoWriter.fourcc(*CODECS[suffix]), rate, (width, height))
        if not writer.isOpened():
            part.write_bytes(bytes(_BLOCK_SIZE))  # raises OSError if the disk is the reason
            raise ConfigError(
                f"OpenCV cannot write {path}: its codec {CODECS[suffix]} is missing, or refuses {width} x {height} pixels. "
                f"Use {' or '.join(other for other in CODECS if other != suffix)}, or a folder for images."
            )
        try:
            yield write
        finally:
            writer.release()
        capture, readable = cv2.VideoCapture(str(part)), 0
        while capture.grab():
            readable += 1
        capture.release()
        if readable != written:
            raise OutputError(
                f"video {path} must have {written} frames, got {readable} that can be read back. Free disk space, or choose "
                "another --output; an existing file is kept."
            )


@contextmanager
def view_writer(files: Files, rate: float, options: ViewOptions) -> Iterator[Callable[[RGBImage, Prediction], None]]:
    """Write views of frames to `video_files`, which are completed at the end of the context.

    A legend shows all classes, so that all frames have one size.

    Yields:
        A function that adds a frame and its prediction.

    Raises:
        ConfigError, OutputError, OSError: see `video_writer`.
    """
    writers: dict[str, Callable[[RGBImage], None]] = {}
    numbers = count()

    def write(image: RGBImage, prediction: Prediction) -> None:
        number = next(numbers)
        for view, path in files.items():
            if view in ID_VIEWS:
                write_views({view: path / f"{number:06d}{VIEWS[view]}"}, image, prediction, options)
                continue
            drawn = draw_view(view, image, prediction, options, range(len(prediction.class_names)))
            if view not in writers:
                writers[view] = stack.enter_context(video_writer(path, rate, drawn.shape[:2]))
            writers[view](drawn)

    with ExitStack() as stack:
        yield write


def show_image(image: RGBImage, *, wait: bool) -> bool:
    """Show an image in a window, and optionally wait for a key.

    Returns:
        Whether the window stays open, i.e. the user has not pressed q or Escape.

    Raises:
        ConfigError: OpenCV cannot open windows.
    """
    try:
        cv2.imshow("FAMix", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        key = cv2.waitKey(0 if wait else 1)
    except cv2.error as error:
        raise ConfigError(
            "a window requires a screen and an OpenCV with windows (not opencv-python-headless). Set --output."
        ) from error
    return key not in (ord("q"), 27)
