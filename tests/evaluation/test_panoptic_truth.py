"""The one form that the predictions of both panoptic networks are brought into."""

import torch

from famix.evaluation.panoptic.truth import predicted_segments

ROAD, CAR = 0, 1


def test_predictions_of_both_networks_have_one_form() -> None:
    labels = torch.tensor([[0, 0, -1], [1001, 1002, -1]])
    of_deeplab = predicted_segments(labels, None, 1000)
    numbered = [{"id": 7, "category_id": ROAD, "isthing": False}, *({"id": i, "category_id": CAR} for i in (4, 9))]
    of_fpn = predicted_segments(torch.tensor([[7, 7, 0], [4, 9, 0]], dtype=torch.int32), numbered, 1000)
    for got in (of_deeplab, of_fpn):
        assert got.numbers.tolist() == [[1, 1, 0], [2, 3, 0]]
        assert [(segment["id"], segment["category_id"]) for segment in got.segments] == [(1, ROAD), (2, CAR), (3, CAR)]
        assert not any(segment["iscrowd"] for segment in got.segments)
