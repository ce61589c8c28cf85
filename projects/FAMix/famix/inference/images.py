"""Find input images from command-line arguments, and read them from paths, PIL images and arrays."""

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from famix.data.images import DAMAGE, MAX_PIXELS, PICTURE_SUFFIXES, read_image, require_pixels, rgb_pixels
from famix.utils.errors import ConfigError, DatasetError
from famix.utils.messages import first_few
from famix.utils.paths import as_on_disk, expand_path

RGBImage = NDArray[np.uint8]  # (H, W, 3)
ImageSource = str | os.PathLike[str] | Image.Image | RGBImage

_MAX_VISITS = 64  # limit for visits to one folder through links


def load_rgb(image: ImageSource, max_pixels: int = MAX_PIXELS) -> RGBImage:
    """Read an image and rotate it upright according to its metadata.

    Args:
        image: path, PIL image (its current frame), or array (H, W, 3) uint8 in RGB order. OpenCV arrays are BGR; reverse
            their channels with `image[..., ::-1]`.
        max_pixels: size limit for files and PIL images (see INPUT.MAX_PIXELS).

    Returns:
        (H, W, 3) uint8 array in RGB order. An array input is returned without a copy.

    Raises:
        DatasetError: the file is missing, damaged or not an image, the image is too large or not representable in 8-bit RGB
            (see `famix.data.read_image`), or the array has the wrong shape or dtype.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(image, max_pixels=max_pixels)
    if isinstance(image, Image.Image):
        name = f"The PIL image {getattr(image, 'filename', '')}".rstrip()
        require_pixels(image.size, name, max_pixels)
        try:
            return rgb_pixels(image, name)
        except DatasetError:
            raise
        except DAMAGE as error:  # Pillow decodes lazily
            raise DatasetError(f"{name} cannot be decoded ({error}). Replace the damaged file.") from error
    if not isinstance(image, np.ndarray):
        raise DatasetError(f"image must be a path, a PIL image or a NumPy array, got {type(image).__name__}.")
    if image.ndim != 3 or image.shape[2] != 3 or not image.size or image.dtype != np.uint8:
        raise DatasetError(
            f"image must be an RGB array of shape (height, width, 3) and dtype uint8, got {image.shape} and {image.dtype}. "
            "Move the channels to the last axis and scale values to 0-255."
        )
    return image


def find_images(words: Sequence[str]) -> list[Path]:
    """Find the images selected by command-line arguments. Each image is listed once, in argument order.

    An argument is a file with any suffix, a folder, or a pattern with * ? [] and **. Files in a folder tree and matches of
    a pattern are sorted by path. Links to folders are followed, hidden files are skipped, and images in unsupported formats
    are included.

    Raises:
        ConfigError: an argument matches nothing, or a folder cannot be listed.
    """
    once: dict[Path, Path] = {}
    empty = []
    for word in words:
        path = Path(as_on_disk(expand_path(word, "the input")))
        if path.is_dir():
            files = sorted(_images_below(path))
        elif os.path.lexists(path):
            files = [path]
        else:
            pattern, suffix = os.path.splitext(path)
            if suffix.lower() in PICTURE_SUFFIXES:  # *.jpg also matches *.JPG, as for folders
                suffix = "".join(f"[{c.lower()}{c.upper()}]" if c.isalpha() else c for c in suffix)
            files = sorted(
                Path(name) for name in glob.glob(pattern + suffix, recursive=True) if not os.path.isdir(name)
            )
        empty += [] if files else [word]
        for file in files:
            # Resolve "..", but keep links, since two links to one file are two inputs.
            place = Path(os.path.realpath(file.parent), file.name) if ".." in file.parts else file.absolute()
            once.setdefault(place, file)
    if empty:
        raise ConfigError(
            f"--input matches no images: {first_few(empty)}. Pass images, folders of images, or quoted patterns such as "
            "'frames/*.png'."
        )
    return list(once.values())


def is_picture(name: str) -> bool:
    """Return whether a file name is not hidden and has an image suffix, including those of unsupported formats."""
    return os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES and not name.startswith(".")


def _images_below(root: Path) -> Iterator[Path]:
    """Yield the images in a folder tree. Links to an enclosing folder are skipped."""

    def fail(error: OSError) -> None:
        raise ConfigError(
            f"--input folder '{error.filename}' cannot be listed ({error.strerror}). Change its permissions, or pass other "
            "inputs."
        ) from error

    visits: Counter[str] = Counter()
    ancestors: dict[str, frozenset[str]] = {str(root): frozenset()}  # folder -> real paths of its parent folders
    for folder, subfolders, names in os.walk(root, onerror=fail, followlinks=True):
        place = os.path.realpath(folder)
        visits[place] += 1
        if visits[place] > _MAX_VISITS:
            raise ConfigError(
                f"--input reaches folder '{place}' more than {_MAX_VISITS} times through links. Remove some links."
            )
        above = ancestors.pop(folder) | {place}
        visible = {name: os.path.join(folder, name) for name in subfolders if not name.startswith(".")}
        subfolders[:] = [name for name, path in visible.items() if os.path.realpath(path) not in above]
        ancestors |= {visible[name]: above for name in subfolders}
        yield from (Path(folder, name) for name in names if is_picture(name))
