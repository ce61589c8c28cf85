import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from famix.modeling import losses
from famix.modeling.losses import segmentation_loss


@pytest.fixture
def logits():
    return torch.randn(2, 5, 6, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)


@pytest.fixture
def targets():
    targets = torch.randint(5, (2, 6, 7), generator=torch.Generator().manual_seed(1))
    targets[:, :2, :3] = 255
    return targets


def test_smoothing_by_hand():
    """Two classes, logits (0, log 3): probabilities 1/4 and 3/4; 0.1 of the target is spread over both classes."""
    logits = torch.tensor([0.0, 3.0]).log().clamp(min=0).view(1, 2, 1, 1)
    loss = segmentation_loss(logits, torch.ones(1, 1, 1, dtype=torch.int64), 255, 0.1)
    torch.testing.assert_close(loss, -(0.95 * torch.tensor(0.75).log() + 0.05 * torch.tensor(0.25).log()))


@pytest.mark.parametrize("stripe", [1, 400, 2**20], ids=["row by row", "stripes", "at once"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("large", [(48, 96), (37, 61), (12, 13), (7, 5)], ids=str)
def test_stripes_equal_whole_enlarged_logits(monkeypatch, stripe, smoothing, large):
    """Loss and gradient, for sizes enlarged four times, by other factors, not at all and made smaller."""
    monkeypatch.setattr(losses, "_STRIPE", stripe)
    generator = torch.Generator().manual_seed(2)
    logits = 5 * torch.randn(2, 7, 12, 13, generator=generator)
    targets = torch.randint(7, (2, *large), generator=generator)
    targets[0, : large[0] // 3] = 255
    small = logits.clone().requires_grad_()
    loss = segmentation_loss(small, targets, 255, smoothing)
    whole = logits.double().requires_grad_()
    enlarged = F.interpolate(whole, large, mode="bilinear", align_corners=False)
    expected = F.cross_entropy(enlarged, targets, ignore_index=255, label_smoothing=smoothing)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    gradients = [
        torch.autograd.grad(3 * value, logits)[0].double() for value, logits in ((loss, small), (expected, whole))
    ]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6 * gradients[1].abs().max().item())


class LargestResult(TorchDispatchMode):
    """Notes the largest tensor that any operation returns."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numel = max(self.numel, result.numel())
        return result


def test_enlarged_logits_never_exist_whole(monkeypatch):
    monkeypatch.setattr(losses, "_STRIPE", 19 * 256 * 4)
    logits, targets = torch.rand(1, 19, 16, 64, requires_grad=True), torch.zeros(1, 64, 256, dtype=torch.int64)
    with LargestResult() as largest:
        segmentation_loss(logits, targets, 255, 0.1).backward()
    assert largest.numel <= 19 * 256 * 16  # logits enlarged to the right alone; all of them have four times as many


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
    half = logits.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(segmentation_loss(half, targets, 255, 0.1), loss, rtol=0, atol=0)
    segmentation_loss(half, targets, 255, 0.1).backward()
    assert half.grad is not None and half.grad.dtype == torch.bfloat16
    torch.testing.assert_close(loss, segmentation_loss(logits.detach().bfloat16().float(), targets, 255, 0.1))
