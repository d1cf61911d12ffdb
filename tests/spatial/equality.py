"""The comparison that every test of the engine makes: one call on the whole scene, one on its tiles."""

import copy

import torch

from rsseglab.spatial import cut, join, sync_gradients

TOLERANCE = 1e-10


def relative(ours, plain, floor=1e-12):
    """Relative error in the 2-norm; ``floor`` stands in where the exact value is zero."""
    ours, plain = ours.detach().double(), plain.detach().double()
    return ((ours - plain).norm() / plain.norm().clamp_min(floor)).item()


def results(model, x, layout=None, seed=0):
    """One forward and backward of a copy of ``model``: what it puts out, and all gradients and buffers."""
    model, x = copy.deepcopy(model), x.clone().requires_grad_()
    torch.manual_seed(seed)
    y = model(x) if layout is None else join(model(cut(x, layout)))
    away = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    (y * away).sum().backward()
    if layout is not None:
        sync_gradients(model, layout)
    return y.detach(), x.grad, [p.grad for p in model.parameters()], list(model.buffers())


def errors(ours, plain):
    """Errors of output, input gradient, worst parameter gradient and worst buffer.

    A parameter whose exact gradient is zero (a bias ahead of a norm) is held to 1e-4 of the whole gradient's
    norm, a running mean that is zero to 1e-4: what is computed is rounding alone, and has nothing to be relative to.
    """
    assert ours[0].shape == plain[0].shape and ours[0].dtype == plain[0].dtype
    used = [grad for grad in plain[2] if grad is not None]
    floor = 1e-4 * float(torch.stack([grad.norm() for grad in used]).norm()) if used else 1.0
    pairs = [(a, b) for a, b in zip(ours[2], plain[2], strict=True) if b is not None]
    return {
        "output": relative(ours[0], plain[0]),
        "input gradient": relative(ours[1], plain[1]),
        "parameters": max((relative(a, b, floor) for a, b in pairs), default=0.0),
        "buffers": max((relative(a, b, 1e-4) for a, b in zip(ours[3], plain[3], strict=True)), default=0.0),
    }


def compare(model, x, layout, seed=0):
    """Errors of the cut call against the plain one."""
    return errors(results(model, x, layout, seed), results(model, x, None, seed))


def same(model, x, layout, tolerance=TOLERANCE, seed=0):
    found = compare(model, x, layout, seed)
    assert max(found.values()) <= tolerance, found
