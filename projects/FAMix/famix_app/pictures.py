"""Pictures on the page: files of the user, and scenes of the miniature town."""

from dataclasses import dataclass
from pathlib import Path

from famix.inference.images import RGBImage, load_rgb
from famix.utils.errors import DatasetError

try:
    from famix_minitown.datasets import SPLITS
    from famix_minitown.rendering.conditions import CONDITIONS, apply_condition
    from famix_minitown.rendering.scene import render_scene
except ImportError:  # the town is a plugin
    TOWN: tuple[str, ...] = ()
else:
    TOWN = CONDITIONS
"""Conditions of the town's pictures, or () without the plugin."""

SCENES = 12
"""Number of scenes of the town, from the validation images, which no network was trained on."""


@dataclass(frozen=True, eq=False)
class Picture:
    """Picture that networks can predict."""

    name: str
    pixels: RGBImage


def read_picture(path: Path, max_pixels: int) -> Picture:
    """Read an uploaded file.

    Raises:
        DatasetError: the file is no picture, or damaged, or exceeds `max_pixels`. The message has its name without the
            folder, which the user does not know.
    """
    try:
        return Picture(path.name, load_rgb(path, max_pixels))
    except DatasetError as error:
        raise DatasetError(str(error).replace(str(path), path.name)) from error


def render_town(condition: str, scene: int) -> Picture:
    """Render a scene of the town, counted from 1, in a condition of `TOWN`."""
    seed = SPLITS[f"{TOWN[0]}_val"].first_seed + scene - 1
    return Picture(f"town {scene}, {condition}", apply_condition(render_scene(seed), condition))
