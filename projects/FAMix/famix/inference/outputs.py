"""Output files of images and videos: distinct, and never an input."""

import os
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from famix.inference.video import CODECS
from famix.inference.views import ID_VIEWS, LABELS, VIEWS, Files, segment_files
from famix.utils.errors import ConfigError

__all__ = ["image_files", "video_files"]

_IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def image_files(inputs: Sequence[Path], output: Path, views: Sequence[str]) -> list[Files]:
    """Choose the output files of images.

    In a folder, the outputs keep the tree and the names of the inputs below their common folder, with "_overlay" etc.
    appended. Where two outputs would collide, or an output would replace an input, the later one keeps the suffix of its
    input in its name, or gets a number.

    Args:
        inputs: the images.
        output: a folder, or an image file for a single view of a single image.
        views: keys of `VIEWS`.

    Returns:
        The files of each input.

    Raises:
        ConfigError: `output` is a file for several images or views, an input, a video, or cannot hold the view.
    """
    suffix = output.suffix.lower()
    if suffix in CODECS and not output.is_dir():
        raise ConfigError(
            f"--output must be a folder or an image for --input, got {output}. Use --video-input for videos."
        )
    if suffix not in _IMAGE_SUFFIXES or output.is_dir():
        return _files_in(output, inputs, views)
    if len(inputs) > 1 or len(views) > 1:
        raise ConfigError(
            f"--output must be a folder for {len(inputs)} image(s) and {len(views)} view(s), got {output}. Name a folder."
        )
    _require_other(output, inputs[0])
    if views[0] in ID_VIEWS and suffix != ".png":
        raise ConfigError(f"--output must end in .png for --view {views[0]}, got {output}. Choose a .png file.")
    return [{views[0]: output}]


def video_files(source: Path, output: Path, views: Sequence[str]) -> Files:
    """Choose the output files of a video.

    Args:
        source: the video; its stem names the outputs in a folder.
        output: a folder, or a video file for a single view.
        views: keys of `VIEWS`.

    Returns:
        The video of each view; for ids, a folder with one PNG per frame.

    Raises:
        ConfigError: `output` is a file for several views or for ids, has another suffix, or is the input.
    """
    if not output.suffix or output.is_dir():
        names = {view: f"{source.stem}_{view}" for view in views}
        return {view: output / (name if view in ID_VIEWS else f"{name}.mp4") for view, name in names.items()}
    if output.suffix.lower() not in CODECS:
        raise ConfigError(f"--output must be a folder or end in {' or '.join(CODECS)}, got {output}. Rename it.")
    if len(views) > 1 or views[0] in ID_VIEWS:
        raise ConfigError(f"--output must be a folder for --view {', '.join(views)}, got {output}. Name a folder.")
    _require_other(output, source)
    return {views[0]: output}


def _require_other(output: Path, source: Path) -> None:
    if output.resolve() == source.resolve():
        raise ConfigError(f"--output must differ from the input, got {output} for both. Choose another file.")


def _files_in(folder: Path, inputs: Sequence[Path], views: Sequence[str]) -> list[Files]:
    absolute = [Path(os.path.abspath(path)) for path in inputs]
    root = os.path.commonpath([path.parent for path in absolute])
    originals = {path.resolve() for path in inputs}
    taken: set[str] = set()
    chosen = []
    for path in (folder / path.relative_to(root) for path in absolute):
        full = path.with_name(path.name.replace(".", "_"))
        stems = (full.with_name(f"{full.name}_{n}") if n > 1 else (path.with_suffix(""), full)[n] for n in count())
        for stem in stems:
            files = {view: Path(f"{stem}{VIEWS[view]}") for view in views}
            written = [*files.values(), *(segment_files(files[LABELS]) if LABELS in files else ())]
            key = str(stem).casefold()  # file systems that ignore case
            if key not in taken and not any(file.resolve() in originals for file in written):
                break
        taken.add(key)
        chosen.append(files)
    return chosen
