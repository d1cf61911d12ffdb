r"""SPIM: a transformer layer whose attention spans all tiles of a scene.

One pre-norm layer over the tokens of a feature map, every pixel of the map a token, wherever its tile lives:

.. math::
    q, k, v &= \mathrm{LN}(x) W_{qkv} + b, \qquad o = \mathrm{softmax}\!\left(q k^\top / \sqrt{C / H}\right) v
        \quad \text{in each of } H \text{ heads} \\
    y &= x + o W_o + b_o, \qquad z = y + \mathrm{FFN}(\mathrm{LN}(y)), \qquad
    \mathrm{SPIM}(x) = \begin{cases} x + z & \text{published} \\ z & \text{plain} \end{cases}

Norms, projections and FFN work token by token, so tiles need not meet there. For the attention they do: a tile sends
each worker the queries, keys and values of that worker's heads and receives those of all tokens for its own heads, in
one all-to-all; a second one brings the tokens home (Ulysses). There is no positional encoding, so that the order in
which tiles' tokens are put together does not matter.

The number of heads H is the module's own. In the published code it is the number of workers, so that the same weights
are another function on another number of GPUs; ``heads="world"`` does that, to show it.

Source:
    Chen, Bruzzone, Dang, Gao, Deng, Yu, Yuan, Li, "REST", TPAMI 48:1, 2026, doi:10.1109/TPAMI.2025.3609767; the layer
    and its residual form as in the authors' public code, of which none is used here. Exchange: Jacobs et al.,
    "DeepSpeed Ulysses", arXiv:2309.14509, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from rsseglab.errors import UserError
from rsseglab.spatial import SceneTensor
from rsseglab.spatial.cut import local_shape
from rsseglab.spatial.exchange import all_to_all
from rsseglab.spatial.layout import bounds

RESIDUALS = ("published", "plain")
EXCHANGES = ("all_to_all", "ring")


class SPIM(nn.Module):
    """Global attention over the tokens of all tiles of a feature map; see the module's equation.

    Args:
        dim: channels C of the map.
        heads: number of heads H, a divisor of C; ``"world"`` for as many as the scene has tiles (published), which
            makes the answer depend on their number.
        mlp_ratio: hidden width of the FFN, in C.
        residual: "published" (x + z, twice the identity where both branches are 0) or "plain" (z).
        pool: keys and values are of the normalised map averaged over so many px a side; 1 for all of them. Stride 4 has
            87 % of the four levels' attention (`rsseglab.rest.cost`); without exchange there, mIoU was 0.07 lower
            (communication ablation, third party).
        exchange: "all_to_all" (heads against tokens), or "ring" (queries stay, keys and values pass from rank to rank,
            where they are many; else they are gathered).
        drop_path: probability of dropping a sample's FFN in training; 0.3 in the published ConvNeXt.

    Shapes:
        input (B, C, H, W), a plain tensor or a `SceneTensor`; output the same, and the same kind.

    Raises:
        UserError: heads do not divide the channels; an unknown residual or exchange; weights that were trained with
            another number of heads.
    """

    def __init__(
        self,
        dim: int,
        heads: int | str = 8,
        mlp_ratio: float = 4.0,
        *,
        residual: str = "published",
        pool: int = 1,
        exchange: str = "all_to_all",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if residual not in RESIDUALS or exchange not in EXCHANGES:
            raise UserError(
                f"SPIM knows the residuals {', '.join(RESIDUALS)} and the exchanges {', '.join(EXCHANGES)}, "
                f"not '{residual}' and '{exchange}'; choose among them."
            )
        if heads != "world" and not isinstance(heads, int):
            raise UserError(f"heads is '{heads}'; give a number, or \"world\" for as many as there are tiles.")
        if pool < 1:
            raise UserError(f"SPIM cannot pool over {pool} px; give 1 for no pooling, or more.")
        self.dim, self.residual, self.pool, self.exchange = dim, residual, pool, exchange
        self.heads = heads if heads == "world" else int(heads)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        hidden = round(mlp_ratio * dim)
        self.ffn = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.drop_path = DropPath(drop_path)
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)
        self._trained_heads = 0 if heads == "world" else self._checked(int(self.heads))

    def _checked(self, heads: int) -> int:
        if heads < 1 or self.dim % heads:
            raise UserError(
                f"{heads} heads do not divide the {self.dim} channels of a map; give a divisor of {self.dim}"
                + (", that is another number of tiles." if self.heads == "world" else ".")
            )
        return heads

    def forward(self, x: Tensor) -> Tensor:
        """The layer on a map (B, C, H, W)."""
        tokens = _tokens(x)
        y = tokens + self.attention(self.norm1(tokens), x)
        z = y + self.drop_path(self.ffn(self.norm2(y)))
        out = tokens + z if self.residual == "published" else z
        return out.transpose(1, 2).reshape(x.shape)

    def attention(self, h: Tensor, x: Tensor) -> Tensor:
        """Attention of the normalised tokens h (B, N, C) of the map x among themselves, projected: (B, N, C)."""
        heads = self.heads_on(x)
        if self.training:
            self._trained_heads = heads
        if self.pool == 1:
            q, kv = self.qkv(h).split([self.dim, 2 * self.dim], dim=-1)
        else:
            pooled = F.avg_pool2d(h.transpose(1, 2).reshape(x.shape), self.pool, ceil_mode=True)
            w, b = self.qkv.weight, self.qkv.bias
            q, kv = F.linear(h, w[: self.dim], b[: self.dim]), F.linear(_tokens(pooled), w[self.dim :], b[self.dim :])
        if isinstance(q, SceneTensor) and self.exchange == "all_to_all":
            return self.out(_attend_over_tiles(q, kv, heads))
        k, v = kv.split(self.dim, dim=-1)
        q_, k_, v_ = (_split_heads(t, heads) for t in (q, k, v))
        o = F.scaled_dot_product_attention(q_, k_, v_)
        return self.out(o.transpose(1, 2).reshape(q.shape))

    def heads_on(self, x: Tensor) -> int:
        """The number of heads on a map: the module's own, or under ``heads="world"`` the number of its tiles.

        Raises:
            UserError: the channels can't be shared out among so many heads; or the weights were trained with others.
        """
        if self.heads != "world":
            return int(self.heads)
        heads = self._checked(x.layout.parts if isinstance(x, SceneTensor) else 1)
        if self._trained_heads not in (0, heads):
            raise UserError(
                f'this SPIM was trained on {self._trained_heads} tiles with heads="world", and on {heads} it is '
                f"another function; cut the scene in {self._trained_heads}, or set heads={self._trained_heads}."
            )
        return heads

    def get_extra_state(self) -> dict[str, Any]:
        """What makes of the same weights another function goes with them, as their shapes do not tell."""
        return {"heads": self._trained_heads, "residual": self.residual, "pool": self.pool}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take the number of heads of weights that are loaded.

        Raises:
            UserError: it, the residual or the pooling is another one than this module has.
        """
        for name in ("residual", "pool"):
            ours = getattr(self, name)
            if state.get(name, ours) != ours:
                raise UserError(
                    f"these weights were trained with {name}={state[name]!r}, and with {ours!r} they are another "
                    "function; build SPIM as it was."
                )
        trained = state["heads"]
        if self.heads != "world" and trained not in (0, self.heads):
            raise UserError(
                f"these weights were trained with {trained} heads, and with {self.heads} they are another function; "
                f"build SPIM with heads={trained}."
            )
        self._trained_heads = trained

    def extra_repr(self) -> str:
        """What the printed module says."""
        return f"{self.dim}, heads={self.heads}, residual={self.residual}, pool={self.pool}, {self.exchange}"


def _tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, H W, C)."""
    return x.flatten(2).transpose(1, 2)


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, C) to (B, H, N, C / H)."""
    return x.reshape(*x.shape[:2], heads, x.shape[2] // heads).transpose(1, 2)


def _attend_over_tiles(q: SceneTensor, kv: SceneTensor, heads: int) -> SceneTensor:
    """Attention of queries (B, N, C) to keys and values (B, M, 2 C) of all tiles; H heads spread over the tiles.

    Over P ranks each holds n of N tokens before and after, and between the two exchanges all N of H / P heads.
    """
    layout, batch, width = q.layout, q.shape[0], q.shape[2] // heads
    shares = bounds(heads, layout.parts)  # worker p attends in heads shares[p] to shares[p + 1]
    own = [b - a for a, b in pairwise(shares)]
    n = [local_shape(q.shape, q.axes, tile)[1] for tile in range(layout.parts)]
    m = [local_shape(kv.shape, kv.axes, tile)[1] for tile in range(layout.parts)]

    # To each worker the queries, keys and values of its heads, in one block.
    blocks = []
    for its_q, its_kv in zip(q.tiles, kv.tiles, strict=True):
        by_head = [_split_heads(its_q, heads)] + [_split_heads(t, heads) for t in its_kv.chunk(2, dim=-1)]
        parts = [t.split(own, dim=1) for t in by_head]  # q, k, v of each worker: (B, H_p, n or m, d)
        blocks.append([torch.cat([t.reshape(-1) for t in block]) for block in zip(*parts, strict=True)])
    sizes = tuple(tuple(batch * h * width * (n_t + 2 * m_t) for h in own) for n_t, m_t in zip(n, m, strict=True))
    received = all_to_all(layout, blocks, sizes, "SPIM")

    # All tokens of my heads.
    answers = []
    for worker, flats in zip(layout.held, received, strict=True):
        shapes = [
            [(batch, own[worker], rows, width) for rows in (n_t, m_t, m_t)] for n_t, m_t in zip(n, m, strict=True)
        ]
        pieces = [_unpacked(flat, its) for flat, its in zip(flats, shapes, strict=True)]
        all_q, all_k, all_v = (torch.cat(tokens, dim=2) for tokens in zip(*pieces, strict=True))
        o = F.scaled_dot_product_attention(all_q, all_k, all_v) if own[worker] else all_q
        answers.append(list(o.split(n, dim=2)))

    # Home again: the tokens of my tile, of all heads.
    sizes = tuple(tuple(batch * h * width * n_t for n_t in n) for h in own)
    returned = all_to_all(layout, answers, sizes, "SPIM")
    tiles = []
    for tile, flats in zip(layout.held, returned, strict=True):
        parts = [flat.reshape(batch, h, n[tile], width) for flat, h in zip(flats, own, strict=True)]
        tiles.append(torch.cat(parts, dim=1).transpose(1, 2).reshape(batch, n[tile], q.shape[2]))
    return q.like(tiles)


def _unpacked(flat: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """A block's tensors."""
    parts: Any = flat.split([prod(shape) for shape in shapes])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
