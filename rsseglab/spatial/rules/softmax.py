"""Softmax over channels, tile by tile, or over cut dimensions, with the scene's maximum and sum.

softmax(x) = exp(x - max x) / sum exp(x - max x)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from rsseglab.spatial.rules.pointwise import elementwise
from rsseglab.spatial.rules.reductions import amax, logsumexp, sum_
from rsseglab.spatial.tensor import SceneTensor, is_cut, named, rule, wrap


@rule(*named("softmax"))
def softmax(x: SceneTensor, dim: int | None = None, _stacklevel: Any = 3, dtype: torch.dtype | None = None) -> Any:
    """Softmax along ``dim``; ``torch.softmax`` has the dtype third, ``F.softmax`` fourth."""
    dtype = _stacklevel if isinstance(_stacklevel, torch.dtype) else dtype
    dim = (0 if x.dim() in (0, 1, 3) else 1) if dim is None else dim  # torch's own, deprecated, guess
    if all(a.dim != wrap(dim, x.dim()) for a in x.axes):
        return x.map(lambda t: F.softmax(t, dim, dtype=dtype))
    x = x if dtype is None else x.map(lambda t: t.to(dtype))
    top = amax(x, dim, True)
    top = top.map(torch.Tensor.detach) if is_cut(top) else top.detach()
    raised = elementwise(torch.exp)(elementwise(torch.sub)(x, top))
    return elementwise(torch.div)(raised, sum_(raised, dim, True))


@rule(*named("log_softmax"))
def log_softmax(x: SceneTensor, dim: int | None = None, _stacklevel: Any = 3, dtype: torch.dtype | None = None) -> Any:
    """Log-softmax along ``dim``."""
    dtype = _stacklevel if isinstance(_stacklevel, torch.dtype) else dtype
    dim = (0 if x.dim() in (0, 1, 3) else 1) if dim is None else dim  # torch's own, deprecated, guess
    if all(a.dim != wrap(dim, x.dim()) for a in x.axes):
        return x.map(lambda t: F.log_softmax(t, dim, dtype=dtype))
    x = x if dtype is None else x.map(lambda t: t.to(dtype))
    return elementwise(torch.sub)(x, logsumexp(x, dim, True))
