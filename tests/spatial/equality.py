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
    """Relative errors: of the output, of the input's gradient, of each parameter's gradient, of the worst buffer.

    A parameter whose exact gradient is zero (a bias ahead of a norm) is held to 1e-4 of the mean parameter's gradient,
    a buffer that is zero to 1e-5: what is computed there is rounding, and has nothing to be relative to.
    """
    assert ours[0].shape == plain[0].shape and ours[0].dtype == plain[0].dtype
    used = [grad.norm() for grad in plain[2] if grad is not None]
    floor = 1e-4 * float(torch.stack(used).mean()) if used else 1.0
    return [
        relative(ours[0], plain[0]),
        relative(ours[1], plain[1]),
        *(relative(a, b, floor) for a, b in zip(ours[2], plain[2], strict=True) if b is not None),
        max((relative(a, b, 1e-5) for a, b in zip(ours[3], plain[3], strict=True)), default=0.0),
    ]


def rounding(model, x, plain):
    """How far the plain call is from itself, when the same scene comes in the other memory format."""
    return errors(results(model, x.to(memory_format=torch.channels_last)), plain)


def within(found, own, bar):
    """Each error within the bar, or within four times torch's own rounding of that very tensor (or worst buffer)."""
    return all(error <= max(bar, 4 * its) for error, its in zip(found, own, strict=True))


def compare(model, x, layout, seed=0):
    """Errors of the cut call against the plain one."""
    return errors(results(model, x, layout, seed), results(model, x, None, seed))


def same(model, x, layout, tolerance=TOLERANCE, seed=0):
    found = compare(model, x, layout, seed)
    assert max(found) <= tolerance, max(found)
