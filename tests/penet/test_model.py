"""PENet and its loss, against plain sums."""

import pytest
import torch

from rsseglab.errors import UserError
from rsseglab.penet import PENet, PointLoss
from rsseglab.penet.losses import Mapped, absence_loss, cells, soft_loss
from rsseglab.scenes import IGNORE_INDEX
from rsseglab.spatial import Layout, cut, join, stream


def case(batch=2, classes=3, side=16, dim=8, seed=0):
    torch.manual_seed(seed)
    logits = torch.randn(batch, classes, side, side, dtype=torch.float64)
    features = torch.randn(batch, dim, side // 4, side // 4, dtype=torch.float64)
    clicks = torch.full((batch, side, side), IGNORE_INDEX)
    grown = clicks.clone()
    clicks[0, 3, 3], clicks[0, 9, 12], clicks[1, 5, 5] = 0, 1, 2
    grown[0, 2:6, 2:7], grown[0, 8:11, 10:15], grown[1, 0:2, 0:2] = 0, 1, 1
    return Mapped(logits, features), clicks, grown


def slow_ce(logits, label):
    terms = [-logits[b].log_softmax(0)[label[b, i, j], i, j] for b, i, j in (label != IGNORE_INDEX).nonzero().tolist()]
    return sum(terms) / max(1, len(terms)) if terms else torch.zeros(())


def test_the_loss_is_the_sum_of_its_parts():
    mapped, clicks, grown = case()
    loss = PointLoss(3, 8, expansion="none", masks=0.7, absence=0.3).double()
    only_grown = grown.clone()
    only_grown[clicks != IGNORE_INDEX] = IGNORE_INDEX
    p = mapped.logits.softmax(1)
    absent = [-torch.log(1 - p[0, 2]).mean(), -torch.log(1 - p[1, 0]).mean()]
    wanted = slow_ce(mapped.logits, clicks) + 0.7 * slow_ce(mapped.logits, only_grown) + 0.3 * sum(absent) / 2
    assert abs(loss(mapped, clicks, grown) - wanted) < 1e-12
    assert abs(loss.eval()(mapped, clicks) - slow_ce(mapped.logits, clicks)) < 1e-12


@pytest.mark.parametrize("expansion", ["similarity", "regions"])
def test_expanded_pixels_are_those_without_an_anchor(expansion):
    mapped, clicks, grown = case()
    mapped = Mapped(mapped.logits * 8, mapped.features)
    loss = PointLoss(3, 8, steps=2, expansion=expansion, masks=0.0, absence=0.0, expanded=0.5).double()
    if expansion == "similarity":
        loss.similarity.start = loss.similarity.end = 0.1
        loss.similarity.margin = 0.0
    loss.step += 2
    expanded = loss.expand(mapped, cells(clicks, grown, (4, 4), 3))
    expanded[cells(clicks, grown, (4, 4), 3) != IGNORE_INDEX] = IGNORE_INDEX  # a click's cell is no expansion of it
    full = expanded.repeat_interleave(4, 1).repeat_interleave(4, 2)
    full[(clicks != IGNORE_INDEX) | (grown != IGNORE_INDEX)] = IGNORE_INDEX
    assert (full != IGNORE_INDEX).any()
    wanted = slow_ce(mapped.logits, clicks) + 0.5 * slow_ce(mapped.logits, full)
    found = loss(mapped, clicks, grown)
    if expansion == "regions":
        assert abs(found - wanted) < 1e-12
    else:  # its memory has moved on by the same anchors: the prototypes are the same
        assert abs(found - wanted) < 1e-9


def test_cells_take_clicks_before_masks_and_majorities():
    clicks = torch.full((1, 4, 8), IGNORE_INDEX)
    grown = clicks.clone()
    grown[0, :, :2], grown[0, :3, 2], grown[0, 0, 4] = 0, 1, 2
    clicks[0, 0, 0] = 1
    assert cells(clicks, grown, (1, 2), 3).tolist() == [[[1, 2]]]
    clicks[0, 0, 0] = IGNORE_INDEX
    assert cells(clicks, grown, (1, 2), 3).tolist() == [[[0, 2]]]
    assert cells(clicks, clicks, (2, 2), 3).tolist() == [[[255, 255], [255, 255]]]


def test_absence_of_nothing_is_zero_and_large_logits_are_finite():
    mapped, clicks, _ = case()
    clicks[0, 0, 0] = 2
    assert absence_loss(mapped.logits[:1], clicks[:1]) == 0
    assert absence_loss(mapped.logits, torch.full_like(clicks, IGNORE_INDEX)) == 0
    large = (mapped.logits * 1e4).requires_grad_()
    value = absence_loss(large, case()[1])
    value.backward()
    assert value.isfinite() and large.grad.isfinite().all()


def test_soft_loss_equals_the_sums():
    mapped, clicks, grown = case()
    anchors = cells(clicks, grown, (4, 4), 3)
    logits = mapped.logits[:, :, :4, :4]
    p, terms, on, means = logits.softmax(1), [], [], {}
    for b in range(2):
        for k in range(3):
            of = [mapped.features[b, :, i, j] for i, j in (anchors[b] == k).nonzero().tolist()]
            if not of:
                continue
            mu = sum(of) / len(of)
            means.setdefault(k, []).append(mu)
            for i in range(4):
                for j in range(4):
                    s = torch.exp(-((mapped.features[b, :, i, j] - mu).abs().mean() ** 2)).clamp(1e-6, 1 - 1e-6)
                    terms.append(-s * p[b, k, i, j].log() - (1 - s) * (1 - p[b, k, i, j]).log())
                    if anchors[b, i, j] != IGNORE_INDEX:
                        y = float(anchors[b, i, j] == k)
                        on.append(-y * s.log() - (1 - y) * (1 - s).log())
    centres = [sum(m) / len(m) for m in means.values()]
    pairs = [torch.exp(-((a - b).abs().mean() ** 2)) for i, a in enumerate(centres) for b in centres[i + 1 :]]
    wanted = sum(terms) / len(terms) + sum(on) / len(on) + sum(pairs) / len(pairs)
    assert abs(soft_loss(logits, mapped.features, anchors) - wanted) < 1e-12


@pytest.mark.parametrize("expansion", ["none", "similarity", "regions", "soft"])
@pytest.mark.parametrize("attention", ["ema", "none"])
def test_it_learns_from_a_few_clicks(expansion, attention):
    torch.manual_seed(0)
    net = PENet("test_resnet", 3, attention, steps=30, expansion=expansion)
    truth = torch.zeros(2, 64, 64, dtype=torch.long)
    truth[:, :, 24:], truth[:, 40:, 24:] = 1, 2
    image = torch.nn.functional.one_hot(truth, 3).movedim(-1, 1).float() + 0.3 * torch.randn(2, 3, 64, 64)
    clicks = torch.full_like(truth, IGNORE_INDEX)
    for row, col in [(20, 10), (50, 12), (10, 50), (30, 30), (50, 50), (60, 40)]:
        clicks[:, row, col] = truth[:, row, col]
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        loss = net.criterion(net.refine(image), clicks)
        loss.backward()
        optimizer.step()
        assert loss.isfinite()
    assert (net.eval()(image).argmax(1) == truth).float().mean() > 0.85
    assert int(net.criterion.step) == 30


@pytest.mark.parametrize("expansion", ["similarity", "regions"])
def test_nothing_is_expanded_at_the_start(expansion):
    mapped, clicks, grown = case()
    with_it = PointLoss(3, 8, steps=100, expansion=expansion).double()(mapped, clicks, grown)
    assert with_it == PointLoss(3, 8, steps=100, expansion="none").double()(mapped, clicks, grown)


def test_a_run_that_starts_from_another_forgets_its_progress():
    mapped, clicks, grown = case()
    loss = PointLoss(3, 8).double()
    loss(mapped, clicks, grown)
    assert loss.step == 1 and loss.similarity.known.any()
    loss.restart()
    assert loss.step == 0 and not loss.similarity.known.any() and not loss.similarity.prototypes.any()


def test_a_crop_without_a_click_has_a_finite_loss_and_gradient():
    mapped, clicks, _ = case()
    nothing = torch.full_like(clicks, IGNORE_INDEX)
    for expansion in ("none", "similarity", "regions", "soft"):
        logits, features = mapped.logits.clone().requires_grad_(), mapped.features.clone().requires_grad_()
        value = PointLoss(3, 8, expansion=expansion).double()(Mapped(logits, features), nothing)
        value.backward()
        assert value == 0 and logits.grad.abs().sum() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "mean teacher"}, "no attention 'mean teacher'"),
        ({"expansion": "magic"}, "no expansion 'magic'"),
        ({"masks": -1.0}, "negative weight"),
        ({"groups": 7}, "can't be put in 7 groups"),
        ({"decoder": "fcn"}, "and fcn has none; try fpn"),
    ],
)
def test_options_that_are_none_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        PENet("test_resnet", 3, **options)


def test_tiles_are_one_scene_and_it_is_streamed():
    torch.manual_seed(0)
    network = PENet("test_resnet", 3, decoder="fpn").double().eval()
    scene = torch.randn(1, 3, 96, 64, dtype=torch.float64)
    with torch.no_grad():
        whole = network(scene)
        for layout in (Layout(2), Layout(3), Layout(2, 2)):
            assert (join(network(cut(scene, layout))) - whole).abs().max() < 1e-10
    plan = stream.plan(network, 96, 64, 3, rows=32)
    assert plan.passes > 1  # EMA's means are of the whole scene
    bands = [band for _, _, band in plan.run(lambda a, b: scene[:, :, a:b])]
    assert (torch.cat(bands, 2) - whole).abs().max() < 1e-10
