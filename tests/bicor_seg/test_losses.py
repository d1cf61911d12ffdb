"""Losses against their equations, written out; what is not there, and batches that ranks share."""

import warnings
from itertools import combinations

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from rsseglab.bicor_seg import BiCoRLoss, FisherDiscriminativeLoss, HeatmapLoss, Refined
from rsseglab.errors import UserError
from rsseglab.launch import launch
from rsseglab.scenes.scene import IGNORE_INDEX

PRESETS = ["paper", "code"]
SMOOTHING = {"paper": 0.0, "code": 0.05}


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def label(height=8, width=12, classes=3, batch=2):
    its = torch.randint(0, classes, (batch, height, width), generator=torch.Generator().manual_seed(1))
    its[:, :2] = IGNORE_INDEX
    return its


def map_twin(logits, label, smoothing, dice=True):
    """Pixel by pixel, over those that count; Dice over the classes that occur."""
    classes, terms = logits.shape[1], []
    overlap, size, occurs = [0.0] * classes, [0.0] * classes, [0] * classes
    for b, y, x in (label != IGNORE_INDEX).nonzero().tolist():
        p = logits[b, :, y, x].exp() / logits[b, :, y, x].exp().sum()
        true = int(label[b, y, x])
        terms.append(-(1 - smoothing) * p[true].log() - smoothing / classes * p.log().sum())
        occurs[true] += 1
        for k in range(classes):
            overlap[k] = overlap[k] + (p[k] if k == true else 0)
            size[k] = size[k] + p[k] + (k == true)
    ratios = [1 - (2 * o + smoothing) / (s + smoothing) for o, s, n in zip(overlap, size, occurs, strict=True) if n]
    return sum(terms) / len(terms) + (sum(ratios) / len(ratios) if dice else 0)


def fisher_twin(embeddings, preset):
    batch, classes, _ = embeddings.shape
    centres = [sum(embeddings[b, n] for b in range(batch)) / batch for n in range(classes)]
    within = sum(((embeddings[b, n] - centres[n]) ** 2).sum() for b in range(batch) for n in range(classes))
    within = within / (batch * classes)
    if preset == "paper":
        mean = sum(centres) / classes
        between = sum(((c - mean) ** 2).sum() for c in centres) / classes
    else:
        pairs = [((a - b) ** 2).sum() for a, b in combinations(centres, 2)]
        between = sum(pairs) / len(pairs)
        between = between if between > 1e-4 else torch.tensor(1e-4, dtype=torch.float64)
    return within / (between + 1e-6)


def same(ours, theirs, *leaves):
    assert abs(float(ours.detach() - theirs.detach())) < 1e-12 * max(1, abs(float(theirs.detach())))
    pair = [torch.autograd.grad(loss, leaves, retain_graph=True) for loss in (ours, theirs)]
    for a, b in zip(*pair, strict=True):
        assert (a - b).abs().max() < 1e-12 * max(1, float(b.abs().max()))


@pytest.mark.parametrize("preset", PRESETS)
def test_heatmaps(preset):
    heatmaps, its = [randn(2, 3, 4, 6, seed=k) for k in range(2)], label()
    large = [F.interpolate(h, size=(8, 12), mode="bilinear", align_corners=False) for h in heatmaps]
    same(HeatmapLoss(preset)(heatmaps, its), sum(map_twin(h, its, SMOOTHING[preset]) for h in large), *heatmaps)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_fisher(preset, scale):
    layers = [randn(4, 3, 5, seed=k) for k in range(2)]
    given = [scale * e for e in layers]
    same(FisherDiscriminativeLoss(preset)(given), sum(fisher_twin(e, preset) for e in given), *layers)


@pytest.mark.parametrize("preset", PRESETS)
def test_all_of_them(preset):
    logits, auxiliary, heatmap = randn(2, 3, 8, 12), randn(2, 3, 8, 12, seed=1), randn(2, 3, 2, 3, seed=2)
    embeddings, its = randn(2, 3, 5, seed=3), label()
    large = F.interpolate(heatmap, size=(8, 12), mode="bilinear", align_corners=False)
    s = SMOOTHING[preset]
    theirs = map_twin(logits, its, s) + 0.4 * map_twin(auxiliary, its, s, dice=False)
    theirs = theirs + 0.1 * map_twin(large, its, s) + 0.1 * fisher_twin(embeddings, preset)
    refined = Refined(logits, (heatmap,), (embeddings,), auxiliary)
    same(BiCoRLoss(preset)(refined, its), theirs, logits, auxiliary, heatmap, embeddings)
    bare = BiCoRLoss(preset, heatmap=0, fisher=0)(refined._replace(auxiliary=None), its)
    same(bare, map_twin(logits, its, s), logits)


@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_not_there_is_no_nan(preset):
    refined = Refined(randn(2, 3, 8, 12), (randn(2, 3, 2, 3),), (randn(2, 3, 5),), None)
    absent = torch.zeros(2, 8, 12, dtype=torch.long)  # of one class alone
    ignored = torch.full((2, 8, 12), IGNORE_INDEX)
    for its in (absent, ignored):
        loss = BiCoRLoss(preset)(refined, its)
        gradients = torch.autograd.grad(loss, (refined.logits, refined.heatmaps[0], refined.embeddings[0]))
        assert loss.isfinite() and all(g.isfinite().all() for g in gradients)
    alone = BiCoRLoss(preset, fisher=0)(refined, ignored)
    assert alone == 0
    same_embeddings = torch.ones(2, 3, 5, dtype=torch.float64).requires_grad_()
    loss = FisherDiscriminativeLoss(preset)([same_embeddings])
    assert loss == 0 and torch.autograd.grad(loss, same_embeddings)[0].isfinite().all()


def test_a_batch_of_one_and_a_single_class():
    fisher, embeddings = FisherDiscriminativeLoss(), randn(1, 3, 5)
    with pytest.warns(UserWarning, match="take larger batches"):
        loss = fisher([embeddings])
    assert loss == 0 and (torch.autograd.grad(loss, embeddings)[0] == 0).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert FisherDiscriminativeLoss()([]) == 0
    with pytest.raises(UserError, match="tells classes apart"):
        fisher([randn(2, 1, 5)])


def on_ranks(rank_count):
    """The loss on each rank, and the gradient of a parameter as data-parallel training averages it."""
    rank = dist.get_rank()
    weight = torch.ones((), dtype=torch.float64).requires_grad_()
    share = randn(4, 3, 5).detach()[rank * 4 // rank_count : (rank + 1) * 4 // rank_count]
    loss = FisherDiscriminativeLoss("paper")([share * weight + share**2])
    loss.backward()
    dist.all_reduce(weight.grad)
    return float(loss.detach()), float(weight.grad) / rank_count


def test_ranks_share_one_batch():
    weight = torch.ones((), dtype=torch.float64).requires_grad_()
    whole = randn(4, 3, 5).detach()
    loss = FisherDiscriminativeLoss("paper")([whole * weight + whole**2])
    loss.backward()
    ours = launch(2, "cpu", on_ranks, 2)
    assert ours == pytest.approx((float(loss.detach()), float(weight.grad)), abs=1e-12)
