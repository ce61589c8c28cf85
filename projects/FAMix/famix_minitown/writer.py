"""Writer for scenes in Cityscapes' file layout, with Cityscapes' ids."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from famix.io.atomic import whole_file
from famix_minitown.rendering.canvas import FAR
from famix_minitown.rendering.conditions import apply_condition
from famix_minitown.rendering.scene import SIZE, Scene, render_scene

INSTANCES_PER_CLASS = 1000  # an instance id is label id * 1000 + number, or just the label id for stuff
INSTANCES_SUFFIX = "gtFine_instanceIds"  # suffix of the names of instance id files
PNG_COMPRESSION = 3  # takes half the time of the usual 6, for 4 % larger files

# Label id of each train id; importing CITYSCAPES_LABEL_IDS would import Detectron2.
_LABEL_IDS = np.array((7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33), np.uint8)
_BASELINE = 0.22  # meters between the two cameras of a stereo pair, as in Cityscapes
_SEEDS_PER_PART = 1_000_000  # file names contain a seed as two six-digit numbers


def write_tree(
    folder: Path, split: str, conditions: Sequence[str], seeds: Sequence[int], size: tuple[int, int] = SIZE
) -> None:
    """Render scenes and write them to a folder, with a progress bar on a terminal.

    File names are <city>_<6 digits>_<6 digits>_<suffix>.png; the city names the condition, and the digits are the seed.

        leftImg8bit/<split>/<city>/..._leftImg8bit.png         RGB
        gtFine/<split>/<city>/..._gtFine_labelIds.png          Cityscapes' label ids
        gtFine/<split>/<city>/..._gtFine_labelTrainIds.png     Cityscapes' train ids
        gtFine/<split>/<city>/..._gtFine_instanceIds.png       16 bits: label id * 1000 + number, or the label id alone
        disparity/<split>/<city>/..._disparity.png             16 bits: 256 * disparity in pixels + 1, or 0 in the sky

    Args:
        folder: output folder, created if needed. Files with the same names are replaced.
        split: name of the split in the paths above.
        conditions: conditions to render; each contains all scenes as its own city.
        seeds: seeds of the scenes, 0 to 10**12 - 1.
        size: (height, width) of the images in pixels.

    Raises:
        OSError: a file cannot be written.
        ValueError: the size is too small.
    """
    for seed in tqdm(seeds, desc=f"minitown {split}: {', '.join(conditions)}", unit="scene", disable=None):
        scene = render_scene(seed, size)
        first, second = divmod(seed, _SEEDS_PER_PART)
        instances, disparity = _instance_ids(scene), _disparity(scene)
        for condition in conditions:
            city = f"minitown{condition}"  # letters only: "_" separates the parts of a file name
            pixels: dict[tuple[str, str], NDArray[np.uint8] | NDArray[np.uint16]] = {
                ("leftImg8bit", "leftImg8bit"): apply_condition(scene, condition),
                ("gtFine", "gtFine_labelIds"): _LABEL_IDS[scene.labels],
                ("gtFine", "gtFine_labelTrainIds"): scene.labels,
                ("gtFine", INSTANCES_SUFFIX): instances,
                ("disparity", "disparity"): disparity,
            }
            for (kind, suffix), content in pixels.items():
                path = folder / kind / split / city / f"{city}_{first:06d}_{second:06d}_{suffix}.png"
                with whole_file(path, durable=False) as part:
                    Image.fromarray(content).save(part, format="PNG", compress_level=PNG_COMPRESSION)


def _instance_ids(scene: Scene) -> NDArray[np.uint16]:
    """Return Cityscapes' instance ids (H, W). Numbers start at 0 for each class in an image."""
    ids = _LABEL_IDS[scene.labels].astype(np.uint16)
    given: dict[int, int] = {}
    for instance in np.unique(scene.instances[scene.instances > 0]):
        place = scene.instances == instance
        label_id = int(ids[place][0])
        number = given.get(label_id, 0)
        ids[place] = label_id * INSTANCES_PER_CLASS + number
        given[label_id] = number + 1
    return ids


def _disparity(scene: Scene) -> NDArray[np.uint16]:
    """Return the disparity (H, W) in Cityscapes' encoding, with 0 for the sky, where nothing can be matched."""
    pixels = _BASELINE * scene.focal / scene.depth.astype(np.float64)
    coded = np.rint(256 * pixels + 1).clip(1, np.iinfo(np.uint16).max)
    return np.where(scene.depth < FAR, coded, 0).astype(np.uint16)
