r"""Where SPIM looks: the attention weights of some tokens, head by head, laid out on the map again.

.. math:: a^{(h)}_{ij} = \mathrm{softmax}_j\!\left(q^{(h)}_i \cdot k^{(h)}_j / \sqrt{C / H}\right)

To look at, not to compute with: SPIM itself never holds these weights. It costs memory for each pair of a query and a
token, and a cut map is put together first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from rsseglab.errors import UserError
from rsseglab.rest.spim import SPIM
from rsseglab.spatial import SceneTensor, join


def attention_of(spim: SPIM, x: Tensor, rows: Sequence[int], cols: Sequence[int]) -> Tensor:
    """What tokens of a map look at in a SPIM, each head for itself.

    Args:
        spim: the layer; it has as many heads as on ``x``, see `SPIM.heads_on`.
        x: the map that it is called on, (B, C, H, W), a plain tensor or a `SceneTensor`.
        rows: rows of the Q queries, in pixels of the map.
        cols: their columns.

    Returns:
        Shape (B, heads, Q, H, W), a plain tensor; each map sums to 1. Where SPIM pools its keys, H and W are those of
        the pooled map.

    Raises:
        UserError: a query lies outside the map, or there are not as many rows as columns.
    """
    heads, whole = spim.heads_on(x), join(x) if isinstance(x, SceneTensor) else x
    height, width = whole.shape[2:]
    if len(rows) != len(cols) or not all(0 <= r < height and 0 <= c < width for r, c in zip(rows, cols, strict=False)):
        raise UserError(
            f"there is not a query for each of {len(rows)} rows and {len(cols)} columns on a map of {height} x {width} "
            "px; give as many rows as columns, inside the map."
        )
    h = spim.norm1(whole.permute(0, 2, 3, 1))  # (B, H, W, C)
    keys = h if spim.pool == 1 else F.avg_pool2d(h.movedim(3, 1), spim.pool, ceil_mode=True).movedim(1, 3)
    w_q, w_k, _ = spim.qkv.weight.chunk(3)
    b_q, b_k, _ = spim.qkv.bias.chunk(3)
    q = F.linear(h[:, list(rows), list(cols)], w_q, b_q).unflatten(-1, (heads, -1))  # (B, Q, heads, d)
    k = F.linear(keys, w_k, b_k).flatten(1, 2).unflatten(-1, (heads, -1))  # (B, N, heads, d)
    scores = q.transpose(1, 2) @ k.permute(0, 2, 3, 1) * (spim.dim / heads) ** -0.5  # (B, heads, Q, N)
    return scores.softmax(dim=-1).unflatten(-1, keys.shape[1:3])
