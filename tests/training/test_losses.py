import pytest
import torch
import torch.nn.functional as F

from rsseglab.scenes import IGNORE_INDEX
from rsseglab.spatial import Layout, cut, join
from rsseglab.training.losses import LOSSES, SegmentationLoss, cross_entropy, dice, focal


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


@pytest.mark.parametrize("gamma", [0, 1, 2, 3])
def test_focal_equals_a_loop_over_pixels(case, gamma):
    logits, label = case
    total, pixels = 0.0, (label != IGNORE_INDEX).nonzero().tolist()
    for b, y, x in pixels:
        scores = logits[b, :, y, x].exp()
        p = scores[label[b, y, x]] / scores.sum()
        total = total - (1 - p) ** gamma * p.log()
    assert torch.allclose(focal(logits, label, gamma=gamma), total / len(pixels), atol=1e-12)
    if gamma == 0:
        assert torch.allclose(focal(logits, label, gamma=0), cross_entropy(logits, label), atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("margin", [0.0, 1e-6, 20.0, 200.0, 1e4, 1e30])
def test_focal_is_finite_at_the_extremes(dtype, margin):
    label = torch.tensor([[[0, 1]]])  # the first pixel as sure as its margin, the second as wrong
    logits = torch.zeros(1, 2, 1, 2, dtype=dtype)
    logits[:, 0] = margin
    loss = focal(logits.requires_grad_(), label)
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()
    if margin >= 20:  # p = 1 costs nothing and pulls at nothing; p = 0 pulls as the cross-entropy does, never less
        assert loss.item() == pytest.approx(margin / 2, rel=1e-6)
        assert logits.grad[0, :, 0, 0].abs().max() < 1e-12
        assert logits.grad[0, :, 0, 1].tolist() == pytest.approx([0.5, -0.5], rel=1e-5)


def test_focal_has_the_gradient_of_its_values(case):
    logits, label = case
    assert torch.autograd.gradcheck(lambda x: focal(x, label), logits)


@pytest.mark.parametrize("name", LOSSES)
def test_on_a_cut_scene_value_and_gradient_stay(name):
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 12, 8, dtype=torch.float64, requires_grad=True)
    label = torch.randint(0, 4, (2, 12, 8))
    label[:, 3:7] = IGNORE_INDEX
    loss, layout = SegmentationLoss(name), Layout(2)
    value = loss(cut(logits, layout), cut(label, layout))
    value = join(value) if type(value) is not torch.Tensor else value
    (gradient,) = torch.autograd.grad(value, logits)
    plain = loss(logits, label)
    assert abs(value - plain) < 1e-12
    assert (gradient - torch.autograd.grad(plain, logits)[0]).abs().max() < 1e-12


@pytest.mark.parametrize("name", LOSSES)
def test_ignored_pixels_change_nothing(case, name):
    logits, label = case
    loss = SegmentationLoss(name)
    changed = torch.where((label == IGNORE_INDEX)[:, None], logits + 100 * torch.randn_like(logits), logits)
    assert torch.allclose(loss(logits, label), loss(changed, label), atol=1e-12)
    loss(logits, label).backward()
    assert (logits.grad.movedim(1, -1)[label == IGNORE_INDEX] == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_without_labels_has_loss_and_gradient_zero(case, name):
    logits, label = case
    value = SegmentationLoss(name)(logits, torch.full_like(label, IGNORE_INDEX))
    value.backward()
    assert value == 0 and (logits.grad == 0).all()


def test_a_perfect_answer_costs_nothing():
    label = torch.randint(0, 3, (1, 8, 8))
    logits = F.one_hot(label, 3).movedim(-1, 1) * 200.0
    assert SegmentationLoss()(logits, label) < 1e-6
