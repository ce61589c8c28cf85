"""Scenes as files, in the layout and with the ids of Cityscapes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from famix.io.atomic import whole_file
from famix_minitown.camera import FAR
from famix_minitown.conditions import apply_condition
from famix_minitown.scene import SIZE, Scene, render_scene

__all__ = ["BASELINE", "city_name", "write_tree"]

BASELINE = 0.22
"""Distance between the two cameras that a disparity tells of, in metres, as in Cityscapes."""

# Train id -> label id of Cityscapes, whose label files number also what is not learnt.
_LABEL_IDS = np.array((7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33), np.uint8)
_INSTANCES_PER_CLASS = 1000
_NUMBERS_PER_PART = 1_000_000  # file names hold a seed as two numbers of six digits
_COMPRESSION = 3  # half the time of the usual 6, for files 4 % larger


def city_name(condition: str) -> str:
    """Name of the city that stands for a condition: letters only, since "_" separates the parts of a file name."""
    return f"minitown{condition}"


def write_tree(
    folder: Path, split: str, conditions: Sequence[str], seeds: Sequence[int], size: tuple[int, int] = SIZE
) -> None:
    """Render scenes and write them below a folder, with a progress bar where there is a terminal.

    <city>/<city>_<6 digits>_<6 digits> stands in the place of Cityscapes' cities and frames; the digits are the seed.

        leftImg8bit/<split>/..._leftImg8bit.png         RGB
        gtFine/<split>/..._gtFine_labelIds.png          Cityscapes' label ids
        gtFine/<split>/..._gtFine_labelTrainIds.png     Cityscapes' train ids
        gtFine/<split>/..._gtFine_instanceIds.png       16 bits: label id * 1000 + number, or the label id alone
        disparity/<split>/..._disparity.png             16 bits: 256 * disparity in pixels + 1, or 0 in the sky

    Args:
        folder: made if needed; files of the same name are replaced.
        split: folder below `leftImg8bit` and the others.
        conditions: each gets all scenes, as a city of its own.
        seeds: of the scenes, 0 to 10**12 - 1.
        size: (height, width) of the images in pixels.

    Raises:
        OSError: a file cannot be written.
        ValueError: the size is too small.
    """
    for seed in tqdm(seeds, desc=f"minitown {split}: {', '.join(conditions)}", unit="scene", disable=None):
        scene = render_scene(seed, size)
        for condition in conditions:
            _write_scene(folder, split, condition, scene)


def _write_scene(folder: Path, split: str, condition: str, scene: Scene) -> None:
    city = city_name(condition)
    first, second = divmod(scene.seed, _NUMBERS_PER_PART)
    frame = f"{city}_{first:06d}_{second:06d}"
    pictures: dict[tuple[str, str], NDArray[np.uint8] | NDArray[np.uint16]] = {
        ("leftImg8bit", "leftImg8bit"): apply_condition(scene, condition),
        ("gtFine", "gtFine_labelIds"): _LABEL_IDS[scene.labels],
        ("gtFine", "gtFine_labelTrainIds"): scene.labels,
        ("gtFine", "gtFine_instanceIds"): _instance_ids(scene),
        ("disparity", "disparity"): _disparity(scene),
    }
    for (kind, suffix), pixels in pictures.items():
        path = folder / kind / split / city / f"{frame}_{suffix}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        _save(pixels, path)


def _save(pixels: NDArray[np.uint8] | NDArray[np.uint16], path: Path) -> None:
    with whole_file(path, durable=False) as part:
        Image.fromarray(pixels).save(part, format="PNG", compress_level=_COMPRESSION)


def _instance_ids(scene: Scene) -> NDArray[np.uint16]:
    """Cityscapes' instance ids: the numbers start at 0 in every class of an image."""
    ids = _LABEL_IDS[scene.labels].astype(np.uint16)
    given: dict[int, int] = {}
    for instance in np.unique(scene.instances[scene.instances > 0]):
        place = scene.instances == instance
        label_id = int(ids[place][0])
        number = given.get(label_id, 0)
        ids[place] = label_id * _INSTANCES_PER_CLASS + number
        given[label_id] = number + 1
    return ids


def _disparity(scene: Scene) -> NDArray[np.uint16]:
    """Cityscapes' encoding of the disparity; the sky has none, as nothing there can be matched."""
    pixels = BASELINE * scene.focal / scene.depth.astype(np.float64)
    coded = np.rint(256 * pixels + 1).clip(1, np.iinfo(np.uint16).max)
    return np.where(scene.depth < FAR, coded, 0).astype(np.uint16)
