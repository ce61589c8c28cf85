import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from famix.modeling import losses
from famix.modeling.losses import segmentation_loss


def draw(size, large, seed=0):
    """Logits of 5 classes, and labels with an unlabeled part of the first image."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(5, (2, *large), generator=generator)
    targets[0, : large[0] // 3] = 255
    return 5 * torch.randn(2, 5, *size, generator=generator), targets


def test_smoothing_by_hand():
    """Two classes, logits (0, log 3): probabilities 1/4 and 3/4; 0.1 of the target is spread over both classes."""
    logits = torch.tensor([0.0, 3.0]).log().clamp(min=0).view(1, 2, 1, 1)
    loss = segmentation_loss(logits, torch.ones(1, 1, 1, dtype=torch.int64), 255, 0.1)
    torch.testing.assert_close(loss, -(0.95 * torch.tensor(0.75).log() + 0.05 * torch.tensor(0.25).log()))


def test_weights_by_hand():
    """Class 0 has the probability 1/4 in both pixels; the pixel of class 1 has three times the weight of the other."""
    logits = torch.tensor([0.0, 3.0]).log().clamp(min=0).view(1, 2, 1, 1).expand(1, 2, 1, 2)
    loss = segmentation_loss(logits, torch.tensor([[[0, 1]]]), 255, 0.0, torch.tensor([0.5, 1.5]))
    torch.testing.assert_close(loss, -(0.5 * torch.tensor(0.25).log() + 1.5 * torch.tensor(0.75).log()) / 2)


@pytest.mark.parametrize("classes", [[0], [255]], ids=["weight 0", "ignored"])
def test_pixels_without_weight_give_no_loss(classes):
    logits = torch.randn(1, 2, 2, 2, requires_grad=True)
    targets = torch.tensor(classes).expand(1, 2, 2)
    loss = segmentation_loss(logits, targets, 255, 0.0, torch.tensor([0.0, 1.0]))
    loss.backward()
    assert loss == 0 and not logits.grad.any()


@pytest.mark.parametrize("stripe", [1, 400, 2**20], ids=["row by row", "stripes", "at once"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("ignore", [255, 3])
@pytest.mark.parametrize("weights", [None, [0.2, 1.0, 3.0, 0.0, 0.7]], ids=["equal", "weighted"])
@pytest.mark.parametrize("large", [(48, 96), (37, 61), (12, 13), (7, 5)], ids=str)
def test_equals_cross_entropy_of_upsampled_logits(monkeypatch, stripe, smoothing, ignore, weights, large):
    monkeypatch.setattr(losses, "_STRIPE", stripe)
    logits, targets = draw((12, 13), large)
    targets = targets.where(targets != 255, ignore)
    small, whole = logits.clone().requires_grad_(), logits.double().requires_grad_()
    weights = None if weights is None else torch.tensor(weights)
    loss = segmentation_loss(small, targets, ignore, smoothing, weights)
    upsampled = F.interpolate(whole, large, mode="bilinear", align_corners=False)
    options = {"ignore_index": ignore, "label_smoothing": smoothing}
    expected = F.cross_entropy(upsampled, targets, None if weights is None else weights.double(), **options)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    got, wanted = torch.autograd.grad(3 * loss, small)[0].double(), torch.autograd.grad(3 * expected, whole)[0]
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6 * wanted.abs().max().item())


class LargestResult(TorchDispatchMode):
    """Records the size of the largest tensor returned by any operation."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numel = max(self.numel, result.numel())
        return result


def test_upsampled_logits_never_exist_whole(monkeypatch):
    monkeypatch.setattr(losses, "_STRIPE", 19 * 256 * 4)
    logits, targets = torch.rand(1, 19, 16, 64, requires_grad=True), torch.zeros(1, 64, 256, dtype=torch.int64)
    with LargestResult() as largest:
        segmentation_loss(logits, targets, 255, 0.1).backward()
    assert largest.numel <= 19 * 256 * 16  # logits upsampled along the width alone


def test_half_precision_logits_give_a_float32_loss():
    logits, targets = draw((6, 7), (6, 7))
    half = logits.bfloat16().requires_grad_()
    loss = segmentation_loss(half, targets, 255, 0.1)
    assert loss.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(segmentation_loss(half, targets, 255, 0.1), loss)
    loss.backward()
    assert half.grad is not None and half.grad.dtype == torch.bfloat16
    torch.testing.assert_close(loss, segmentation_loss(logits.bfloat16().float(), targets, 255, 0.1))
