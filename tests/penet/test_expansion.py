"""Expansion of anchors against plain loops, and its rules."""

import math

import pytest
import torch

from rsseglab.errors import UserError
from rsseglab.penet.expansion import (
    SimilarityExpansion,
    grow_regions,
    mean_directions,
    similar_labels,
    soft_labels,
)
from rsseglab.scenes import IGNORE_INDEX


def case(batch=2, dim=5, height=9, width=11, classes=4, seed=0, absent=(3,)):
    torch.manual_seed(seed)
    features = torch.randn(batch, dim, height, width, dtype=torch.float64)
    anchors = torch.randint(0, classes, (batch, height, width))
    anchors[torch.rand(anchors.shape) < 0.8] = IGNORE_INDEX
    for k in absent:
        anchors[anchors == k] = IGNORE_INDEX
    return features, anchors


def slow_prototypes(features, anchors, classes):
    out = []
    for k in range(classes):
        of = [features[b, :, i, j] for b, i, j in (anchors == k).nonzero().tolist()]
        out.append(sum(f / f.norm() for f in of) / len(of) if of else torch.zeros(features.shape[1]).to(features))
    return torch.stack(out)


def slow_labels(features, anchors, prototypes, known, threshold, margin):
    """Pixel by pixel, class by class."""
    label = anchors.clone()
    batch, _, height, width = features.shape
    for b in range(batch):
        for i in range(height):
            for j in range(width):
                if anchors[b, i, j] != IGNORE_INDEX:
                    continue
                f = features[b, :, i, j]
                found = [(float(f @ p / f.norm() / p.norm()), k) for k, p in enumerate(prototypes) if known[k]]
                (best, k), second = max(found), sorted(found)[-2][0] if len(found) > 1 else -2
                if best >= threshold and best - second >= margin:
                    label[b, i, j] = k
    return label


@pytest.mark.parametrize("seed", range(4))
def test_similar_labels_equal_the_loops(seed):
    features, anchors = case(seed=seed)
    prototypes, known = mean_directions(features, anchors, 4)
    assert (prototypes - slow_prototypes(features, anchors, 4)).abs().max() < 1e-12
    assert known.tolist() == [True, True, True, False]
    for threshold, margin in [(-1, 0), (0.3, 0), (0.3, 0.2), (2, 0)]:
        ours = similar_labels(features, anchors, prototypes, known, threshold, margin)
        assert torch.equal(ours, slow_labels(features, anchors, prototypes, known, threshold, margin))
        assert torch.equal(ours[anchors != IGNORE_INDEX], anchors[anchors != IGNORE_INDEX])


def test_what_is_far_from_all_classes_or_between_two_gets_no_label():
    features = torch.tensor([[[[1.0, 0.0, 1.0, -1.0, 0.9]], [[0.0, 1.0, 1.0, -1.0, 0.1]]]])
    anchors = torch.tensor([[[0, 1, IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX]]])
    prototypes, known = mean_directions(features, anchors, 2)
    found = similar_labels(features, anchors, prototypes, known, 0.5, 0.1)
    assert found.tolist() == [[[0, 1, IGNORE_INDEX, IGNORE_INDEX, 0]]]


def test_one_class_alone_needs_no_lead():
    features, anchors = case(absent=(1, 2, 3))
    prototypes, known = mean_directions(features, anchors, 4)
    ours = similar_labels(features, anchors, prototypes, known, 0.2, 0.5)
    assert torch.equal(ours, slow_labels(features, anchors, prototypes, known, 0.2, 0.5)) and (ours == 0).any()


def test_nothing_is_expanded_before_the_warm_up_then_more_and_more():
    features, anchors = case()
    expansion = SimilarityExpansion(4, 5, start=0.9, end=0.2, margin=0.0, warmup=0.25).double()
    counts = [int((expansion(features, anchors, t) != IGNORE_INDEX).sum()) for t in (0.0, 0.24, 0.25, 0.6, 1.0)]
    assert counts[0] == counts[1] == int((anchors != IGNORE_INDEX).sum()) <= counts[2] < counts[3] < counts[4]
    prototypes, known = mean_directions(features, anchors, 4)
    last = similar_labels(features, anchors, prototypes, known, 0.2, 0.0)
    assert torch.equal(expansion(features, anchors, 1.0), last)


def test_prototypes_are_remembered():
    features, anchors = case()
    expansion = SimilarityExpansion(4, 5, memory=0.75).double()
    expansion(features, anchors, 0)
    first, _ = mean_directions(features, anchors, 4)
    assert (expansion.prototypes - first).abs().max() < 1e-12 and not expansion.known[3]
    other, more = case(seed=5, absent=(0,))
    expansion(other, more, 0)
    second, _ = mean_directions(other, more, 4)
    assert torch.equal(expansion.prototypes[0], first[0])  # has no anchor in the second
    assert (expansion.prototypes[1] - (0.75 * first[1] + 0.25 * second[1])).abs().max() < 1e-12
    assert (expansion.prototypes[3] - second[3]).abs().max() < 1e-12 and expansion.known.all()


def test_no_gradient_passes():
    features, anchors = case()
    features.requires_grad_()
    assert not SimilarityExpansion(4, 5).double()(features, anchors, 1.0).requires_grad


def slow_regions(logits, anchors, t):
    p = logits.softmax(1)
    label = anchors.clone()
    for _ in range(math.floor(10 * t**0.9)):
        before = label.clone()
        for b, i, j in (before == IGNORE_INDEX).nonzero().tolist():
            k = int(p[b, :, i, j].argmax())
            near = before[b, max(0, i - 1) : i + 2, max(0, j - 1) : j + 2]
            if p[b, k, i, j] > 0.95 and (near == k).any():
                label[b, i, j] = k
    return label


@pytest.mark.parametrize("t", [0.0, 0.2, 0.5, 1.0])
def test_region_growing_equals_the_loops(t):
    _, anchors = case(height=14, width=17)
    anchors[:, 3:11, 4:13] = IGNORE_INDEX
    torch.manual_seed(1)
    smooth = torch.nn.functional.interpolate(torch.randn(2, 4, 4, 4, dtype=torch.float64), (14, 17), mode="bilinear")
    logits = 12 * smooth
    ours = grow_regions(logits, anchors, t)
    assert torch.equal(ours, slow_regions(logits, anchors, t))
    assert torch.equal(ours[anchors != IGNORE_INDEX], anchors[anchors != IGNORE_INDEX])
    assert ((ours != anchors).any() and t > 0.1) or t <= 0.1


def test_soft_labels_equal_the_loops():
    features, anchors = case(absent=())
    anchors[1][anchors[1] == 2] = IGNORE_INDEX  # in one image of the two
    features.requires_grad_()
    soft, centres, there = soft_labels(features, anchors, 4)
    for b in range(2):
        for k in range(4):
            of = [features[b, :, i, j] for i, j in (anchors[b] == k).nonzero().tolist()]
            assert there[b, k] == bool(of)
            mean = sum(of) / len(of) if of else None
            for i in range(9):
                for j in range(11):
                    d = (features[b, :, i, j] - mean).abs().mean() if of else torch.tensor(torch.inf)
                    assert abs(soft[b, k, i, j] - torch.exp(-(d**2))) < 1e-12
            if of:
                assert (centres[b, k] - mean).abs().max() < 1e-12
    soft.sum().backward()
    assert features.grad.isfinite().all() and features.grad.abs().sum() > 0


def test_numbers_out_of_range_are_refused():
    with pytest.raises(UserError, match="cosines fall"):
        SimilarityExpansion(4, 5, start=0.5, end=0.8)
