"""Locality-aware correlation against loops, and by hand."""

import pytest
import torch

from rsseglab.errors import UserError
from rsseglab.fctl import LocalityAwareCorrelation

OPTIONS = [{"value": v, "whiten": w, "scaled": s} for v in ("context", "local") for w in (0, 1) for s in (0, 1)]


def module(dim=6, **options):
    torch.manual_seed(0)
    its = LocalityAwareCorrelation(dim, **options).double()
    for parameter in its.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return its


def maps(*sizes, dim=6):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, dim, *size, dtype=torch.float64, generator=generator) for size in sizes]


def twin(its, local, context):
    """The equation, place by place."""
    weights = [w.weight[:, :, 0, 0] for w in (its.query, its.key, its.value)]
    out = torch.zeros_like(local)
    source = context if its.value_of == "context" else local
    for b in range(len(local)):
        q = torch.einsum("oc,chw->ohw", weights[0], local[b])
        k = torch.einsum("oc,chw->ohw", weights[1], context[b])
        v = torch.einsum("oc,chw->ohw", weights[2], source[b])
        if its.whiten:
            q, k = q - q.mean((1, 2), keepdim=True), k - k.mean((1, 2), keepdim=True)
        for y in range(local.shape[2]):
            for x in range(local.shape[3]):
                scores = torch.einsum("c,chw->hw", q[:, y, x], k) * its.scale
                share = (scores - scores.max()).exp()
                out[b, :, y, x] = its.gamma * torch.einsum("hw,chw->c", share / share.sum(), v)
    return out


@pytest.mark.parametrize("options", OPTIONS)
def test_it_is_the_equation(options):
    its, (local, context) = module(**options), maps((4, 5), (4, 5))
    assert (its(local, context) - twin(its, local, context)).abs().max() < 1e-12
    relevance = its.relevance(local, context)
    assert relevance.shape == (2, 20, 20) and torch.allclose(relevance.sum(-1), torch.ones(()).double())


def test_a_context_of_another_size():
    its, (local, context) = module(), maps((4, 5), (3, 7))
    ours = its(local, context)
    assert ours.shape == local.shape and (ours - twin(its, local, context)).abs().max() < 1e-12
    with pytest.raises(UserError, match="their sizes must agree"):
        module(value="local")(local, context)


@pytest.mark.parametrize("value", ["context", "local"])
def test_two_by_two_by_hand(value):
    """One channel, ln 1, ln 2, ln 3, ln 4 as scores where the query is 1: shares of 1/10, 2/10, 3/10, 4/10."""
    its = LocalityAwareCorrelation(1, value=value).double()
    for projection in (its.query, its.key, its.value):
        torch.nn.init.ones_(projection.weight)
    torch.nn.init.constant_(its.gamma, 10.0)
    local = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64).view(1, 1, 2, 2)
    context = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64).log().view(1, 1, 2, 2)
    ours = its(local, context).flatten()
    if value == "local":  # 1/10 + 3/10 where the query is 1, a mean of (1, 0, 1, 0) where it is 0; times 10
        assert torch.allclose(ours, torch.tensor([4.0, 5.0, 4.0, 5.0], dtype=torch.float64))
    else:
        logs = context.flatten()
        first = (logs * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum()
        assert torch.allclose(ours, torch.stack([first, 2.5 * logs.sum(), first, 2.5 * logs.sum()]))


def test_it_begins_as_nothing():
    local, context = (x.float() for x in maps((4, 5), (4, 5)))
    its = LocalityAwareCorrelation(6)
    assert its.gamma == 0 and its(local, context).abs().max() == 0
    assert sum(p.numel() for p in LocalityAwareCorrelation(512).parameters()) == 3 * 512**2 + 1


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 5, 4, 4), (2, 6, 4, 4)), "the local map is"),
        (((2, 6, 4, 4), (2, 6, 16)), "the context map is"),
        (((2, 6, 4, 4), (3, 6, 4, 4)), "2 patches have 3 contexts"),
    ],
)
def test_maps_that_do_not_go_together(shapes, message):
    with pytest.raises(UserError, match=message):
        LocalityAwareCorrelation(6)(*map(torch.zeros, shapes))
    with pytest.raises(UserError, match="choose one of them"):
        LocalityAwareCorrelation(6, value="magic")
