"""Training over ranks: gradients of the one replicated loss, and the same scene on every rank of a group.

Each rank computes the same loss; its gradient of a weight is P times the share that its own tile
contributes (see the convention in ``exchange``), so that the mean over the spatial group is the gradient of
one process. DDP, which takes means, does the same over data x spatial.
"""

from __future__ import annotations

import torch
from torch import nn

from rsseglab.spatial.exchange import agree, all_reduce_
from rsseglab.spatial.layout import Layout


def sync_gradients(module: nn.Module, layout: Layout) -> None:
    """Make every parameter's gradient that of one process; call after ``backward``.

    The ranks' shares are summed in one collective a dtype. A parameter that only some ranks used (a tile was
    empty) counts as zero on the others; one that none used keeps ``grad is None``. In one process there is
    nothing to do.

    Args:
        module: the model, the same on every rank.
        layout: the layout of the scene that the loss was computed on.
    """
    if layout.mesh is None:
        return
    parameters = [p for p in module.parameters() if p.requires_grad]
    used = agree(layout, [int(p.grad is not None) for p in parameters], "sync_gradients")
    shared = [p for k, p in enumerate(parameters) if any(row[k] for row in used)]
    for dtype in sorted({p.dtype for p in shared}, key=str):
        group = [p for p in shared if p.dtype == dtype]
        for p in group:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        flat = torch.cat([p.grad.reshape(-1) for p in group if p.grad is not None])
        all_reduce_(flat, layout, "sync_gradients").div_(layout.parts)
        for p, grad in zip(group, flat.split([p.numel() for p in group]), strict=True):
            assert p.grad is not None
            p.grad.copy_(grad.view_as(p))
