"""Where the pictures of images and videos go: no two to one place, and none over an input."""

import os
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

from famix.inference.inputs import IMAGE_SUFFIXES
from famix.inference.video import CODECS
from famix.utils.errors import ConfigError
from famix.visualization.views import ID_VIEWS, LABELS, VIEWS, Files, segment_files

__all__ = ["image_files", "require_writable", "video_files"]


def image_files(inputs: Sequence[Path], output: Path, views: Sequence[str]) -> list[Files]:
    """Choose the files of every view of images.

    In a folder, files lie and are called as their input does below the inputs' common folder, with "_overlay" and the
    like behind. Where two inputs would get one name, or an input would be overwritten, the later one keeps the suffix in
    its name, or gets a number.

    Args:
        inputs: the images.
        output: a folder; or a file that ends as an image does, for a single view of a single image.
        views: of `VIEWS`.

    Returns:
        For every input: view -> file.

    Raises:
        ConfigError: one file is given for more than one picture, is an input or a video, or cannot hold the view.
    """
    if output.suffix.lower() in CODECS and not output.is_dir():
        raise ConfigError(
            f"--output {output} is a video, --input are images; give their folder as --video-input instead"
        )
    if output.suffix.lower() not in IMAGE_SUFFIXES or output.is_dir():
        return [_named(stem, views) for stem in _stems(inputs, output, views)]
    if len(inputs) > 1 or len(views) > 1:
        raise ConfigError(
            f"--output {output} is one file, but there are {len(inputs)} image(s) and {len(views)} view(s); name a folder"
        )
    if output.resolve() == inputs[0].resolve():
        raise ConfigError(f"--output {output} is the input, which would be lost; name another file")
    if views[0] in ID_VIEWS and output.suffix.lower() != ".png":
        raise ConfigError(f"--output {output} cannot hold exact labels; name a file that ends with .png")
    return [{views[0]: output}]


def video_files(source: Path, output: Path, views: Sequence[str]) -> Files:
    """Choose the file of every view of a video.

    Args:
        source: the video; of a camera, what its files are to be called.
        output: a file that ends as a video does, for a single view; or a folder.
        views: of `VIEWS`.

    Returns:
        View -> video file; of ids, which a video would blur, a folder of PNGs, one a frame.

    Raises:
        ConfigError: one file is given for several views or for labels, is no video, or is the input.
    """
    if not output.suffix or output.is_dir():
        names = {view: f"{source.stem}_{view}" for view in views}
        return {view: output / (name if view in ID_VIEWS else f"{name}.mp4") for view, name in names.items()}
    if output.suffix.lower() not in CODECS:
        raise ConfigError(
            f"--output {output} is no video; expected a file that ends with {' or '.join(CODECS)}, or a folder"
        )
    if len(views) > 1 or views[0] in ID_VIEWS:
        raise ConfigError(
            f"--output {output} is one video, which cannot hold {', '.join(views)}; name a folder, in which the views "
            "become videos, and labels PNGs"
        )
    if output.resolve() == source.resolve():
        raise ConfigError(f"--output {output} is the input, which would be lost; name another file")
    return {views[0]: output}


def require_writable(folder: Path) -> None:
    """Make a folder, and try it out, before any work is done.

    Raises:
        ConfigError: it cannot be written to.
    """
    trial = folder / f".trial.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise ConfigError(f"output folder {folder} cannot be written to ({error.strerror}); choose another") from error


def _stems(inputs: Sequence[Path], folder: Path, views: Sequence[str]) -> list[Path]:
    """For every input, the path of its files up to the ending of a view."""
    absolute = [Path(os.path.abspath(path)) for path in inputs]
    root = os.path.commonpath([path.parent for path in absolute])
    originals = {path.resolve() for path in inputs}
    taken: set[str] = set()
    stems = []
    for path in absolute:
        for stem in _candidates(folder / path.relative_to(root)):
            key = str(stem).casefold()  # some file systems do not tell a.PNG from A.png
            if key not in taken and not any(file.resolve() in originals for file in _all_files(_named(stem, views))):
                break
        taken.add(key)
        stems.append(stem)
    return stems


def _named(stem: Path, views: Sequence[str]) -> Files:
    return {view: Path(f"{stem}{VIEWS[view]}") for view in views}


def _all_files(files: Files) -> list[Path]:
    return [*files.values(), *(segment_files(files[LABELS]) if LABELS in files else ())]


def _candidates(path: Path) -> Iterator[Path]:
    yield path.with_suffix("")
    with_suffix = path.with_name(path.name.replace(".", "_"))
    yield with_suffix
    for number in count(2):
        yield with_suffix.with_name(f"{with_suffix.name}_{number}")
