"""The picture of panoptic predictions, and the one form that both heads' predictions are brought into."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from famix.evaluation.panoptic.truth import PanopticSegments, predicted_segments
from famix.visualization.panoptic_picture import PictureRow, draw_picture, overlay_segments

ROAD, CAR = 0, 1
COLORS = [(128, 64, 128), (0, 0, 142)]


def segments(*train_ids: int) -> list[dict[str, int]]:
    return [{"id": number, "category_id": train_id, "iscrowd": 0} for number, train_id in enumerate(train_ids, 1)]


def test_both_heads_predictions_have_one_form() -> None:
    labels = torch.tensor([[0, 0, -1], [1001, 1002, -1]])
    expected = np.array([[1, 1, 0], [2, 3, 0]])
    of_deeplab = predicted_segments(labels, None, 1000)
    numbered = [{"id": 7, "category_id": ROAD, "isthing": False}, *({"id": i, "category_id": CAR} for i in (4, 9))]
    of_fpn = predicted_segments(torch.tensor([[7, 7, 0], [4, 9, 0]], dtype=torch.int32), numbered, 1000)
    for got in (of_deeplab, of_fpn):
        assert got.numbers.tolist() == expected.tolist()
        assert got.segments == segments(ROAD, CAR, CAR)


def test_stuff_has_its_colour_things_a_shade_each_and_unlabelled_pixels_stay() -> None:
    numbers = np.repeat(np.repeat([[1, 2, 3, 0]], 4, axis=1), 6, axis=0)
    image = np.full((*numbers.shape, 3), 100, np.uint8)
    got = overlay_segments(image, PanopticSegments(numbers, segments(ROAD, CAR, CAR)), COLORS, [CAR])
    road, first, second, nothing = (tuple(got[2, column].tolist()) for column in (1, 5, 9, 14))
    assert road == tuple(round(100 * 0.38 + channel * 0.62) for channel in COLORS[ROAD])
    assert first != second
    for shade in (first, second):
        assert shade[2] == max(shade)  # both are a kind of blue, as cars are
    assert nothing == (100, 100, 100)
    edges = (got == 255).all(axis=2)
    assert edges[:, [3, 7, 11]].all() and edges.sum() == 3 * 6  # around the things, between them too


def test_every_tile_is_drawn_under_its_title(tmp_path: Path) -> None:
    tiles = tuple(np.full((20, 40, 3), value, np.uint8) for value in (10, 120, 230))
    draw_picture([PictureRow("night", tiles, ("", "", "PQ 1.0"))] * 2, ("a", "b", "c"), tmp_path / "new/picture.png")
    page = np.asarray(Image.open(tmp_path / "new/picture.png").convert("RGB"))
    for value in (10, 120, 230):
        assert (page == value).all(axis=2).sum() > 2 * 0.9 * 384 * 192 - 2 * 100 * 40
