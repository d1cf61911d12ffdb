"""Stock networks, unmodified, train and eval: outputs, gradients and buffers against the plain call."""

import pytest
import torch
import torch.nn.functional as F
from equality import same
from networks import LAYOUTS, NETWORKS, QUICK, build, scene, tolerance

from rsseglab.spatial import Layout, cut


@pytest.mark.parametrize(("decoder", "encoder", "size"), QUICK)
def test_network_equals_the_plain_call(decoder, encoder, size):
    model = build(decoder, encoder)
    for layout in (Layout(3), Layout(2, 2)):
        same(model, scene(size), layout, tolerance(encoder))


def test_tiles_that_become_empty_deep_in_a_network():
    """Eleven bands of 96 rows: at 1/32 there are three rows, and eight empty tiles."""
    model = build("Unet", "resnet18")
    same(model, scene((96, 64)), Layout(11))
    same(model.eval(), scene((96, 64), batch=1), Layout(11))


@pytest.mark.slow
@pytest.mark.parametrize(("decoder", "encoder", "size"), NETWORKS)
def test_network_on_every_layout(decoder, encoder, size):
    model = build(decoder, encoder)
    for layout in LAYOUTS:
        same(model.train(), scene(size), layout, tolerance(encoder))
        same(model.eval(), scene(size, batch=1), layout, tolerance(encoder))


def train(layout, steps, size):
    model = build("Unet", "resnet18")
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    x, losses = scene(size), []
    target = (x.sum(1) > 0).long() + (x[:, 0] > 1).long()
    for _ in range(steps):
        y = model(x if layout is None else cut(x, layout))
        loss = F.cross_entropy(y, target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return torch.tensor(losses)


def test_twenty_steps_of_training_agree():
    plain, ours = train(None, 20, (64, 64)), train(Layout(4), 20, (64, 64))
    assert plain[-1] < 0.7 * plain[0]
    assert (plain - ours).abs().max() < 1e-6


def test_float32_errors_are_those_of_the_plain_call():
    """Against float64: ours at most 1.5 x the plain call's, labels equal where the margin is clear."""
    model, x = build("Unet", "resnet18"), scene((160, 128))
    exact = model(x).detach()
    model = model.float()
    plain = model(x.float()).detach().double()
    ours = torch.cat(model(cut(x.float(), Layout(4))).tiles, 2).detach().double()
    floor = (plain - exact).norm()
    assert (ours - exact).norm() <= 1.5 * floor
    margin = exact.topk(2, 1).values.diff(dim=1)[:, 0].abs()
    clear = margin > 2 * (plain - exact).abs().max()
    assert torch.equal(ours.argmax(1)[clear], plain.argmax(1)[clear]) and clear.double().mean() > 0.9
