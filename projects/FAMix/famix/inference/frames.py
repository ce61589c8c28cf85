"""Videos that lie as a folder of images, one a frame, as CamVid's do."""

import re
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from famix.data.images import MAX_PIXELS
from famix.inference.images import RGBImage, load_rgb
from famix.inference.inputs import IMAGE_SUFFIXES, is_picture
from famix.inference.video import USUAL_RATE
from famix.utils.errors import DatasetError

__all__ = ["FrameFolder"]


class FrameFolder:
    """Iterates over the images of a folder, those below it aside, as the frames of a video.

    They go by their names, numbers by their value: frame9.png comes before frame10.png.

    Args:
        folder: with the images.
        rate: frames per second.

    Attributes:
        rate: frames per second.
        frames: how many there are.
        max_pixels: of a frame, see INPUT.MAX_PIXELS.

    Raises:
        DatasetError: the folder holds no image.
    """

    def __init__(self, folder: Path, rate: float = USUAL_RATE) -> None:
        self._files = sorted((file for file in folder.iterdir() if _is_frame(file)), key=_place)
        if not self._files:
            raise DatasetError(f"folder {folder} holds no frame; expected images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        self.rate = rate
        self.max_pixels = MAX_PIXELS
        self.frames = len(self._files)

    def __enter__(self) -> "FrameFolder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is open: files are read one by one."""

    def __iter__(self) -> Iterator[RGBImage]:
        """The frames.

        Raises:
            DatasetError: one cannot be read, or has another size than the first.
        """
        size = None
        for file in self._files:
            frame = load_rgb(file, self.max_pixels)
            size = size or frame.shape
            if frame.shape != size:
                raise DatasetError(
                    f"frame {file} has {frame.shape[0]} x {frame.shape[1]} pixels, the first one {size[0]} x {size[1]}; "
                    "the frames of a video have one size: use --input for others"
                )
            yield frame


def _is_frame(file: Path) -> bool:
    return is_picture(file.name) and not file.is_dir()


def _place(file: Path) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", file.name)
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts]
