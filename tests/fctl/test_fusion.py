"""Fusion of contexts against the equation, and the ablation's baselines."""

import pytest
import torch

from rsseglab.errors import UserError
from rsseglab.fctl import ContextFusion, LocalityAwareCorrelation


def module(dim=8, streams=3, **options):
    torch.manual_seed(0)
    its = ContextFusion(dim, streams, **options).double()
    for parameter in its.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return its


def maps(streams=3, dim=8):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, dim, 4, 5, dtype=torch.float64, generator=generator) for _ in range(streams)]


def twin(its, xs):
    """The equation by einsum; the mixed map and its weights."""

    def conv(layer, x):
        return torch.einsum("oc,bchw->bohw", layer.weight[:, :, 0, 0], x) + layer.bias.view(1, -1, 1, 1)

    u = conv(its.blend, torch.cat([conv(layer, x) for layer, x in zip(its.before, xs, strict=True)], 1))
    u = u if isinstance(its.rebuild, torch.nn.Identity) else conv(its.rebuild, u)
    estimates = [conv(layer, u[:, its.dim * t : its.dim * (t + 1)]) for t, layer in enumerate(its.estimate)]
    if its.sigmoid:
        estimates = [1 / (1 + (-e).exp()) for e in estimates]
    total = sum(e.exp() for e in estimates)
    weights = [e.exp() / total for e in estimates]
    return sum(h * x for h, x in zip(weights, xs, strict=True)), torch.stack(weights)


@pytest.mark.parametrize("options", [{}, {"preset": "code"}, {"preset": "paper"}, {"weights": "position"}])
@pytest.mark.parametrize("streams", [1, 2, 3])
def test_it_is_the_equation(options, streams):
    its, xs = module(streams=streams, **options), maps(streams)
    mixed, weights = twin(its, xs)
    assert (its(xs) - mixed).abs().max() < 1e-12 and (its.weights(xs) - weights).abs().max() < 1e-12
    assert torch.allclose(its.weights(xs).sum(0), torch.ones((), dtype=torch.float64), atol=1e-12)


def test_presets():
    code, paper, stock = (ContextFusion(8, 3, preset=p) for p in ("code", "paper", None))
    assert (code.kind, code.sigmoid, code.blend.out_channels) == ("channel", True, 24)
    assert (paper.kind, paper.sigmoid, paper.blend.out_channels) == ("position", False, 6)
    assert stock.state_dict().keys() == code.state_dict().keys()
    assert code.weights(maps_of_float()).shape == (3, 2, 8, 4, 5) and paper.weights(maps_of_float()).shape[2] == 1


def maps_of_float():
    return [x.float() for x in maps()]


def test_no_stream_is_switched_off_by_the_code():
    """Sigmoid before softmax: 1 / (1 + 2 e) to e / (e + 2) for three streams."""
    its = module()
    torch.nn.init.constant_(its.estimate[0].bias, 1e4)
    torch.nn.init.constant_(its.estimate[1].bias, -1e4)
    torch.nn.init.constant_(its.estimate[2].bias, -1e4)
    first, second = its.weights(maps())[:2]
    e = torch.e
    assert torch.allclose(first, torch.tensor(e / (e + 2), dtype=torch.float64)) and e / (e + 2) < 0.577
    assert (second > 0.155).all()


def test_baselines():
    xs = maps()
    assert (module(weights="mean")(xs) - sum(xs) / 3).abs().max() < 1e-12
    its = module(weights="constant")
    shares = its.constants.exp() / its.constants.exp().sum()
    assert (its(xs) - sum(s * x for s, x in zip(shares, xs, strict=True))).abs().max() < 1e-12
    assert not list(module(weights="mean").parameters()) and its.constants.requires_grad


def test_as_many_parameters_as_published():
    """Fusion and three correlations at 512 channels: 6.30 million."""
    fusion = sum(p.numel() for p in ContextFusion(512, 3).parameters())
    correlations = 3 * sum(p.numel() for p in LocalityAwareCorrelation(512).parameters())
    assert fusion == 6 * 512**2 + (3 * 512) ** 2 + 3 * 3 * 512
    assert round((fusion + correlations) / 1e6, 2) == 6.30


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(2, 8, 4, 4)] * 2, "2 maps for 3 streams"),
        ([(2, 8, 4, 4), (2, 8, 4, 4), (2, 7, 4, 4)], "all of one size"),
        ([(2, 8, 4, 4), (2, 8, 4, 4), (2, 8, 4, 5)], "all of one size"),
    ],
)
def test_maps_that_do_not_go_together(shapes, message):
    with pytest.raises(UserError, match=message):
        ContextFusion(8, 3)([torch.zeros(shape) for shape in shapes])


@pytest.mark.parametrize("options", [{"preset": "magic"}, {"weights": "magic"}, {"squeeze": 7}])
def test_options_that_are_none(options):
    with pytest.raises(UserError, match=r"choose|divisor"):
        ContextFusion(8, 3, **options)
