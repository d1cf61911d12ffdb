import pytest
import torch
import torch.nn.functional as F

from rsseglab.scenes import IGNORE_INDEX
from rsseglab.training.losses import SegmentationLoss, cross_entropy, dice


@pytest.fixture
def case():
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    label = torch.randint(0, 3, (2, 5, 6))  # class 3 never occurs
    label[0, :2] = IGNORE_INDEX
    return logits, label


def test_cross_entropy_equals_a_loop_over_pixels(case):
    logits, label = case
    pixels = (label != IGNORE_INDEX).nonzero().tolist()
    total = sum(-F.log_softmax(logits[b, :, y, x], 0)[label[b, y, x]] for b, y, x in pixels)
    assert torch.allclose(cross_entropy(logits, label), total / len(pixels), atol=1e-12)


def test_dice_equals_a_loop_over_classes(case):
    logits, label = case
    p = logits.softmax(1)
    terms = []
    for k in range(4):
        chosen = label != IGNORE_INDEX
        share, truth = p[:, k][chosen], (label[chosen] == k).double()
        if truth.sum():
            terms.append(1 - 2 * (share * truth).sum() / (share.sum() + truth.sum()))
    assert len(terms) == 3
    assert torch.allclose(dice(logits, label), torch.stack(terms).mean(), atol=1e-12)


@pytest.mark.parametrize("name", ["ce", "dice", "ce+dice"])
def test_ignored_pixels_change_nothing(case, name):
    logits, label = case
    loss = SegmentationLoss(name)
    changed = torch.where((label == IGNORE_INDEX)[:, None], logits + 100 * torch.randn_like(logits), logits)
    assert torch.allclose(loss(logits, label), loss(changed, label), atol=1e-12)
    loss(logits, label).backward()
    assert (logits.grad.movedim(1, -1)[label == IGNORE_INDEX] == 0).all()


@pytest.mark.parametrize("name", ["ce", "dice", "ce+dice"])
def test_a_batch_without_labels_has_loss_and_gradient_zero(case, name):
    logits, label = case
    value = SegmentationLoss(name)(logits, torch.full_like(label, IGNORE_INDEX))
    value.backward()
    assert value == 0 and (logits.grad == 0).all()


def test_a_perfect_answer_costs_nothing():
    label = torch.randint(0, 3, (1, 8, 8))
    logits = F.one_hot(label, 3).movedim(-1, 1) * 200.0
    assert SegmentationLoss()(logits, label) < 1e-6
