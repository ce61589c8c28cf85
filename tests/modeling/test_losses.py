import pytest
import torch
import torch.nn.functional as F

from famix.modeling.losses import segmentation_loss


@pytest.fixture
def logits():
    return torch.randn(2, 5, 6, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)


@pytest.fixture
def targets():
    targets = torch.randint(5, (2, 6, 7), generator=torch.Generator().manual_seed(1))
    targets[:, :2, :3] = 255
    return targets


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_is_the_mean_cross_entropy_of_the_labelled_pixels(logits, targets, smoothing):
    loss = segmentation_loss(logits, targets, 255, smoothing)
    expected = F.cross_entropy(logits, targets, ignore_index=255, label_smoothing=smoothing)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, logits)[0] for value in (loss, expected)))


def test_smoothing_by_hand():
    """Two classes, logits (0, log 3): probabilities 1/4 and 3/4; 0.1 of the target is spread over both classes."""
    logits = torch.tensor([0.0, 3.0]).log().clamp(min=0).view(1, 2, 1, 1)
    loss = segmentation_loss(logits, torch.ones(1, 1, 1, dtype=torch.int64), 255, 0.1)
    torch.testing.assert_close(loss, -(0.95 * torch.tensor(0.75).log() + 0.05 * torch.tensor(0.25).log()))


def test_small_logits_are_enlarged_to_the_labels():
    logits = torch.randn(1, 3, 4, 5)
    targets = torch.randint(3, (1, 18, 19))
    enlarged = F.interpolate(logits, (18, 19), mode="bilinear", align_corners=False)
    torch.testing.assert_close(
        segmentation_loss(logits, targets, 255, 0.1), F.cross_entropy(enlarged, targets, label_smoothing=0.1)
    )


def test_other_ignore_values(logits, targets):
    targets[targets == 255] = 3
    expected = F.cross_entropy(logits, targets, ignore_index=3)
    torch.testing.assert_close(segmentation_loss(logits, targets, 3, 0.0), expected)


def test_a_batch_without_labels_costs_nothing(logits):
    loss = segmentation_loss(logits, torch.full((2, 6, 7), 255), 255, 0.1)
    assert loss.item() == 0
    gradient = torch.autograd.grad(loss, logits)[0]
    assert not gradient.any()  # which NaN would not satisfy


def test_half_precision_logits_give_a_float32_loss(logits, targets):
    loss = segmentation_loss(logits.detach().bfloat16(), targets, 255, 0.1)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, segmentation_loss(logits.detach().bfloat16().float(), targets, 255, 0.1))
