"""The best class of every pixel, whatever the scores are kept in."""

import numpy as np
import pytest
import torch

from famix.evaluation.counting.confusion import argmax_classes


@pytest.mark.parametrize("count", [1, 2, 19, 256, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_it_is_the_maximum(count: int, dtype: torch.dtype) -> None:
    order = torch.stack([torch.randperm(count, generator=torch.Generator().manual_seed(seed)) for seed in range(35)])
    scores = (order.to(dtype) - 150 if count <= 256 else order.float()).T.reshape(count, 5, 7)
    labels = argmax_classes(scores)
    assert labels.dtype == (torch.uint8 if count <= 256 else torch.int64)
    assert torch.equal(labels.long(), scores.argmax(0))


def test_of_equal_scores_it_is_the_first_and_the_scores_stay() -> None:
    scores = torch.tensor([[[-1.0, 2.0, -np.inf]], [[-1.0, 3.0, -np.inf]], [[-2.0, 3.0, -5.0]]])
    before = scores.clone()
    assert argmax_classes(scores).tolist() == [[0, 1, 2]]
    assert torch.equal(scores, before)


def test_scores_of_inference_mode_and_parts_of_a_tensor_will_do() -> None:
    with torch.inference_mode():
        scores = torch.rand(6, 9, 10)[1:5, ::2, 1:]
        assert torch.equal(argmax_classes(scores).long(), scores.argmax(0))
