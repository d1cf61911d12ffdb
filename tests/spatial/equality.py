"""The comparison that every test of the engine makes: one call on the whole scene, one on its tiles."""

import copy

import torch

from rsseglab.spatial import cut, join, sync_gradients

TOLERANCE = 1e-10


def relative(ours, plain, floor=1e-12):
    """Relative error in the 2-norm; ``floor`` stands in where the exact value is zero."""
    ours, plain = ours.detach().double(), plain.detach().double()
    return ((ours - plain).norm() / plain.norm().clamp_min(floor)).item()


def compare(model, x, layout, seed=0):
    """Errors of output, input gradient, worst parameter gradient and worst buffer, cut against whole.

    A parameter whose exact gradient is zero (a bias ahead of a norm) is held to 1e-4 of the whole gradient's
    norm: what is computed for it is rounding alone, and has nothing to be relative to.
    """
    plain, ours = copy.deepcopy(model), copy.deepcopy(model)
    x_plain, x_ours = x.clone().requires_grad_(), x.clone().requires_grad_()
    torch.manual_seed(seed)
    y_plain = plain(x_plain)
    torch.manual_seed(seed)
    y_ours = join(ours(cut(x_ours, layout)))
    assert y_ours.shape == y_plain.shape and y_ours.dtype == y_plain.dtype
    away = torch.randn(y_plain.shape, generator=torch.Generator().manual_seed(1)).to(y_plain)
    (y_plain * away).sum().backward()
    (y_ours * away).sum().backward()
    sync_gradients(ours, layout)
    errors = {
        "output": relative(y_ours, y_plain),
        "input gradient": relative(x_ours.grad, x_plain.grad),
        "parameters": 0.0,
        "buffers": 0.0,
    }
    norms = [p.grad.norm() for p in plain.parameters() if p.grad is not None]
    floor = 1e-4 * float(torch.stack(norms).norm()) if norms else 1.0
    for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
        if q.grad is not None:
            errors["parameters"] = max(errors["parameters"], relative(p.grad, q.grad, floor))
    for p, q in zip(ours.buffers(), plain.buffers(), strict=True):
        errors["buffers"] = max(errors["buffers"], relative(p, q, 1e-5))
    return errors


def same(model, x, layout, tolerance=TOLERANCE, seed=0):
    errors = compare(model, x, layout, seed)
    assert max(errors.values()) <= tolerance, errors
