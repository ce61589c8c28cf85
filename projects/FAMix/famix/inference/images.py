"""Images for prediction: which files a command line names, and reading them from paths, PIL images and arrays."""

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

_MAX_VISITS = 64  # of one folder, through links


def load_rgb(image: ImageSource, max_pixels: int = MAX_PIXELS) -> RGBImage:
    """Read an image and rotate it upright by its metadata.

    Args:
        image: path, PIL image (its current frame), or array (H, W, 3) uint8 in RGB order. Arrays of OpenCV are BGR:
            reverse them with `image[..., ::-1]`.
        max_pixels: size limit of files and PIL images, see INPUT.MAX_PIXELS.

    Returns:
        (H, W, 3) uint8, RGB; an array is returned without a copy.

    Raises:
        DatasetError: the file is missing, damaged or not an image, the image is too large or not representable in 8-bit RGB
            (see `famix.data.read_image`), or the array has another shape or dtype.
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
            raise DatasetError(f"{name} cannot be decoded: {error}. Replace the damaged file.") from error
    if not isinstance(image, np.ndarray):
        raise DatasetError(f"image must be a path, a PIL image or a NumPy array, got {type(image).__name__}.")
    if image.ndim != 3 or image.shape[2] != 3 or not image.size or image.dtype != np.uint8:
        raise DatasetError(
            f"image must be an RGB array of shape (height, width, 3) and dtype uint8, got {image.shape} and {image.dtype}. "
            "Move channels last and scale values to 0-255."
        )
    return image


def find_images(words: Sequence[str]) -> list[Path]:
    """Find the images that the words of a command line name, each once, in the order of the words.

    A word is a file of any suffix, a folder, or a pattern with * ? [] and **. Files of a folder, with all below it, and of
    a pattern are sorted by path. Links to folders are followed, hidden files are skipped, and images in unsupported formats
    are included.

    Raises:
        ConfigError: a word matches nothing, or a folder cannot be listed.
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
            if suffix.lower() in PICTURE_SUFFIXES:  # *.jpg also matches *.JPG, as in folders
                suffix = "".join(f"[{c.lower()}{c.upper()}]" if c.isalpha() else c for c in suffix)
            files = sorted(
                Path(name) for name in glob.glob(pattern + suffix, recursive=True) if not os.path.isdir(name)
            )
        empty += [] if files else [word]
        for file in files:
            # Without "..", but with links: two links to one file are two inputs.
            place = Path(os.path.realpath(file.parent), file.name) if ".." in file.parts else file.absolute()
            once.setdefault(place, file)
    if empty:
        raise ConfigError(
            f"--input must match at least one image, got {first_few(empty)}. Name images, folders of images, or quoted "
            "patterns such as 'frames/*.png'."
        )
    return list(once.values())


def is_picture(name: str) -> bool:
    """Return whether a file name is not hidden and has the suffix of an image, in a supported format or not."""
    return os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES and not name.startswith(".")


def _images_below(root: Path) -> Iterator[Path]:
    """Yield the images in and below a folder; links to a folder that contains them are skipped."""

    def fail(error: OSError) -> None:
        raise ConfigError(
            f"--input must be folders that can be listed, got {error.filename} ({error.strerror}). Change its permissions, "
            "or name other inputs."
        ) from error

    visits: Counter[str] = Counter()
    ancestors: dict[str, frozenset[str]] = {str(root): frozenset()}  # folder -> real paths of the folders above it
    for folder, subfolders, names in os.walk(root, onerror=fail, followlinks=True):
        place = os.path.realpath(folder)
        visits[place] += 1
        if visits[place] > _MAX_VISITS:
            raise ConfigError(
                f"--input must reach a folder at most {_MAX_VISITS} times, got more for {place}. Remove links."
            )
        above = ancestors.pop(folder) | {place}
        visible = {name: os.path.join(folder, name) for name in subfolders if not name.startswith(".")}
        subfolders[:] = [name for name, path in visible.items() if os.path.realpath(path) not in above]
        ancestors |= {visible[name]: above for name in subfolders}
        yield from (Path(folder, name) for name in names if is_picture(name))
