"""Read videos, cameras and frame folders, write videos, and show images with OpenCV. Frames are (H, W, 3) RGB."""

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
"""Frame rate for folders and for sources that do not report one, such as many cameras."""

_MAX_RATE = 1000.0
_COUNTING_CONTAINERS = (".avi", ".m4v", ".mov", ".mp4")
_BLOCK_SIZE = 4096  # bytes


class VideoReader:
    """Context manager and single-use iterator over the frames of a video file or camera.

    Args:
        source: path to a video file, or camera number.

    Attributes:
        rate: frames per second.
        frames: number of frames according to the header, or None if unknown.
        max_pixels: size limit for frames (see INPUT.MAX_PIXELS).

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
                    f"Camera {source} cannot be opened. Connect it, close other programs, or try 1, 2, and so on."
                )
            if not source.is_file():
                raise DatasetError(f"Video not found: '{source}'. Pass a file that OpenCV can read, e.g. .mp4 or .avi.")
            raise DatasetError(
                f"Video '{source}' cannot be read: it is damaged or has an unknown codec. Pass a file that OpenCV can read, "
                "e.g. .mp4 or .avi."
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
        """Yield the frames. Raises DatasetError if they are too large or if there are none."""
        width, height = self._capture.get(cv2.CAP_PROP_FRAME_WIDTH), self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
        require_pixels((int(width), int(height)), f"video '{self._source}'", self.max_pixels)
        is_empty = True
        while (read := self._capture.read())[0]:
            is_empty = False
            yield np.asarray(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB), np.uint8)
        if is_empty:
            raise DatasetError(f"Video '{self._source}' contains no frames. Repair it with ffmpeg.")

    def require_whole(self, frames: int) -> None:
        """Raise DatasetError if a video file ended after `frames` frames although its header claims more."""
        if self.frames is None or not isinstance(self._source, Path):
            return
        # Other containers store the duration, from which OpenCV estimates the number of frames.
        tolerated = 0 if self._source.suffix.lower() in _COUNTING_CONTAINERS else max(2, self.frames // 50)
        if frames < self.frames - tolerated:
            raise DatasetError(
                f"Video '{self._source}' ends after {frames} of the {self.frames} frames in its header, so the output is "
                "incomplete. Copy the video again, or repair it with ffmpeg."
            )


class FrameFolder(VideoReader):
    """Images in a folder, without subfolders, as video frames in natural order: frame9.png precedes frame10.png.

    Raises:
        DatasetError: the folder contains no images.
    """

    def __init__(self, folder: Path, rate: float = DEFAULT_RATE) -> None:
        def order(file: Path) -> list[tuple[int, str]]:
            parts = re.split(r"(\d+)", file.name)
            return [(int(part), "") if part.isdecimal() else (0, part) for part in parts]

        self._files = sorted((f for f in folder.iterdir() if is_picture(f.name) and not f.is_dir()), key=order)
        if not self._files:
            raise DatasetError(f"Folder '{folder}' contains no images. Pass a folder of frames.")
        self._source, self._capture = folder, cv2.VideoCapture()
        self.rate, self.frames, self.max_pixels = rate, len(self._files), MAX_PIXELS

    def __iter__(self) -> Iterator[RGBImage]:
        """Yield the frames. Raises DatasetError if a frame is unreadable, too large, or differs in size from the first one."""
        size = None
        for file in self._files:
            frame = load_rgb(file, self.max_pixels)
            size = size or frame.shape
            if frame.shape != size:
                raise DatasetError(
                    f"Frame '{file}' must have {size[0]} x {size[1]} pixels like the first one, got {frame.shape[0]} x "
                    f"{frame.shape[1]}. Use --input for images of different sizes."
                )
            yield frame


@contextmanager
def video_writer(path: Path, rate: float, size: tuple[int, int]) -> Iterator[Callable[[RGBImage], None]]:
    """Write frames of the same size to a video, which replaces `path` atomically at the end of the context.

    OpenCV does not report disk errors, so the finished video is read back once before it replaces an existing file.

    Args:
        path: output file. Its suffix selects the codec.
        rate: frames per second.
        size: (height, width) of the frames. An odd side is padded with a black line because codecs require even sides.

    Yields:
        A function that adds a frame.

    Raises:
        ConfigError: the suffix is not in `CODECS`, or the installed OpenCV cannot write such a file.
        OutputError: a frame cannot be read back. An existing file is kept.
        OSError: the file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in CODECS:
        raise ConfigError(f"video must end in {' or '.join(CODECS)}, got '{path}'. Rename it.")
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
            part.write_bytes(bytes(_BLOCK_SIZE))  # raises OSError if the disk is the cause
            raise ConfigError(
                f"OpenCV cannot write '{path}': codec {CODECS[suffix]} is missing or does not support {width} x {height} "
                f"pixels. Use {' or '.join(other for other in CODECS if other != suffix)}, or a folder for images."
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
                f"Only {readable} of {written} frames of video '{path}' can be read back; an existing file is kept. Free "
                "disk space, or choose another --output."
            )


@contextmanager
def view_writer(files: Files, rate: float, options: ViewOptions) -> Iterator[Callable[[RGBImage, Prediction], None]]:
    """Write views of frames to the paths from `video_files`. Videos are completed at the end of the context.

    A legend shows all classes, so all frames have the same size.

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
        False if the user has pressed q or Escape, and True otherwise.

    Raises:
        ConfigError: OpenCV cannot open windows.
    """
    try:
        cv2.imshow("FAMix", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        key = cv2.waitKey(0 if wait else 1)
    except cv2.error as error:
        raise ConfigError(
            "A window requires a screen and OpenCV with GUI support (not opencv-python-headless). Use --output instead."
        ) from error
    return key not in (ord("q"), 27)
