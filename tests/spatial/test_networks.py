"""Stock networks, unmodified, train and eval: outputs, gradients and buffers against the plain call."""

import pytest
import torch
import torch.nn.functional as F
from equality import TOLERANCE, errors, relative, results, rounding, same, within
from networks import LAYOUTS, NETWORKS, QUICK, build, scene
from torch import nn

from rsseglab.spatial import Layout, cut, join


@pytest.mark.parametrize(("decoder", "encoder", "size"), QUICK)
def test_network_equals_the_plain_call(decoder, encoder, size):
    model = build(decoder, encoder)
    for layout in (Layout(3), Layout(2, 2)):
        same(model, scene(size), layout)


def test_windows_on_a_grid():
    """Swin rolls, pads and parts its maps in windows with channels last; on a grid all of that is cut twice."""
    model = build("UPerNet", "tu-swin_tiny_patch4_window7_224").eval()
    x = scene((224, 224), 1)
    with torch.no_grad():
        assert relative(join(model(cut(x, Layout(2, 2)))), model(x)) < 1e-10


def test_tiles_that_become_empty_deep_in_a_network():
    """Eleven bands of 96 rows: at 1/32 there are three rows, and eight empty tiles."""
    model = build("Unet", "resnet18")
    same(model, scene((96, 64)), Layout(11))
    same(model.eval(), scene((96, 64), batch=1), Layout(11))


@pytest.mark.slow
@pytest.mark.parametrize(("decoder", "encoder", "size"), NETWORKS)
def test_network_on_every_layout(decoder, encoder, size):
    model = build(decoder, encoder)
    for x in (scene(size), scene(size, batch=1)):
        plain = results(model.train(x.shape[0] > 1), x)
        own = rounding(model, x, plain)
        for layout in LAYOUTS:
            found = errors(results(model, x, layout), plain)
            assert max(found[:2]) <= TOLERANCE, (layout, found[:2])
            assert within(found, own, TOLERANCE), (layout, max(found), max(own))


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


def smooth(model):
    """ReLU and maximum replaced: in float32 a unit near zero may fall on either side, which no bound can foresee."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.ReLU):
                setattr(parent, name, nn.Softplus())
            elif isinstance(child, nn.MaxPool2d):
                setattr(parent, name, nn.AvgPool2d(child.kernel_size, child.stride, child.padding))
    return model


def errors32(model, x, layout=None):
    """float32 errors against the plain float64 call: of the output, the input's gradient and all parameters'."""

    def flat(found):
        output, dx, parameters, _ = found
        return output.double(), dx.double(), torch.cat([g.flatten() for g in parameters]).double()

    exact, ours = flat(results(model.double(), x)), flat(results(model.float(), x.float(), layout))
    return torch.tensor([relative(a, b) for a, b in zip(ours, exact, strict=True)])


@pytest.mark.parametrize("layout", [Layout(2), Layout(7), Layout(2, 2)])
def test_float32_errors_are_at_most_one_and_a_half_of_the_plain_call(layout):
    model = smooth(build("Unet", "resnet18"))
    for training in (True, False):
        model.train(training)
        plain = errors32(model, scene((96, 96)))
        assert (errors32(model, scene((96, 96)), layout) <= 1.5 * plain).all()


@pytest.mark.slow
def test_float32_errors_of_a_stock_network_over_many_scenes():
    """With ReLU and max pooling single scenes differ, by which units fall on which side; their mean square does not."""
    model, squares = build("Unet", "resnet18"), torch.zeros(2, 3)
    for seed in range(24):
        x = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        squares += torch.stack([errors32(model, x, Layout(4)), errors32(model, x)]).square()
    ours, plain = squares.sqrt()
    assert (ours <= 1.5 * plain).all()


def test_float32_labels_are_those_of_the_plain_call_where_the_margin_is_clear():
    model, x = build("Unet", "resnet18"), scene((160, 128))
    exact = model(x).detach()
    model = model.float()
    plain = model(x.float()).detach().double()
    ours = join(model(cut(x.float(), Layout(4)))).detach().double()
    margin = exact.topk(2, 1).values.diff(dim=1)[:, 0].abs()
    clear = margin > 2 * (plain - exact).abs().max()
    assert torch.equal(ours.argmax(1)[clear], plain.argmax(1)[clear]) and clear.double().mean() > 0.9
