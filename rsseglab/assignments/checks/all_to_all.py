"""SPIM's exchange over four tiles, held against `rsseglab.rest.SPIM` on a cut map."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rsseglab.assignments.checking import Assignment, Case, Check, Function, Mistake
from rsseglab.rest.spim import SPIM
from rsseglab.spatial import Layout, SceneTensor, cut
from rsseglab.spatial.exchange import Traffic
from rsseglab.spatial.layout import bounds

TILES = 4


class Exchange:
    """All workers send each worker a block; counts the numbers that leave their worker.

    Attributes:
        sent: numbers, in all exchanges.
        largest: of the blocks that each worker has sent another, the largest one's numbers.
    """

    def __init__(self) -> None:
        self.sent, self.largest = 0, [0] * TILES

    def __call__(self, blocks: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
        """``blocks[source][worker]`` to ``received[worker][source]``."""
        if len(blocks) != TILES or any(len(its) != TILES for its in blocks):
            raise ValueError(f"exchange takes {TILES} lists, one a source, of {TILES} blocks, one a worker")
        for source, its in enumerate(blocks):
            sizes = [block.numel() for worker, block in enumerate(its) if worker != source]
            self.sent += sum(sizes)
            self.largest[source] = max(self.largest[source], *sizes)
        return [[blocks[source][worker] for source in range(TILES)] for worker in range(TILES)]


def _reference(tiles: Sequence[Tensor], weight: Tensor, bias: Tensor, heads: int, exchange: Exchange) -> list[Tensor]:
    C = weight.shape[1]
    spim = SPIM(C, heads)
    with torch.no_grad():
        spim.qkv.weight.copy_(weight)
        spim.qkv.bias.copy_(bias)
        spim.out.weight.copy_(torch.eye(C))
        scene = cut(torch.cat(list(tiles)).mT[None, :, :, None], Layout(TILES))  # a map one column wide
        Traffic.reset()
        found = spim.attention(scene.flatten(2).transpose(1, 2), scene)
    exchange.sent += sum(size for (what, _), size in Traffic.sent.items() if what == "SPIM") // weight.element_size()
    assert isinstance(found, SceneTensor)
    return [tile[0] for tile in found.tiles]


def _answers(function: Function, *case: Any) -> Any:
    return function(*case, Exchange())


def _traffic(function: Function, *case: Any) -> Any:
    """How many numbers are sent, and how many blocks hold all channels of their tile's tokens.

    With four workers, sending all tokens everywhere is as many numbers as the two exchanges are; but then each worker
    computes the projections of all.
    """
    exchange = Exchange()
    function(*case, exchange)
    whole = sum(size >= tile.numel() for size, tile in zip(exchange.largest, case[0], strict=True))
    return {"numbers sent": exchange.sent, "tiles sent whole": whole}


def _case(rng: np.random.Generator, tokens: int, heads: int, width: int) -> Case:
    C = heads * width

    def normal(*shape: int) -> Tensor:
        return torch.from_numpy(rng.normal(size=shape)).float()

    ends = bounds(tokens, TILES)
    tiles = list(normal(tokens, C).split([b - a for a, b in pairwise(ends)]))
    return tiles, normal(3 * C, C) / C**0.5, 0.1 * normal(3 * C), heads


def _a_head_a_worker(rng: np.random.Generator) -> list[Case]:
    return [_case(rng, 4 * int(rng.integers(3, 6)), 4, 3)]


def _two_heads_a_worker(rng: np.random.Generator) -> list[Case]:
    return [_case(rng, 4 * int(rng.integers(3, 6)), 8, 2)]


def _unequal(rng: np.random.Generator) -> list[Case]:
    return [_case(rng, 4 * int(rng.integers(3, 6)) + 2, 4, 3)]


def _of_all_sizes(rng: np.random.Generator) -> list[Case]:
    return [*_a_head_a_worker(rng), *_unequal(rng)]


def _attention(
    tiles: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    heads: int,
    *,
    scale: float | None = None,
    inner: bool = False,
) -> Tensor:
    """Of all tokens at once, (N, C)."""
    x = torch.cat(list(tiles))
    N, C = x.shape
    q, k, v = (x @ weight.mT + bias).chunk(3, dim=1)
    if inner:  # a head is every H-th channel
        q, k, v = (t.reshape(N, C // heads, heads).permute(2, 0, 1) for t in (q, k, v))
    else:
        q, k, v = (t.reshape(N, heads, C // heads).transpose(0, 1) for t in (q, k, v))
    o = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)
    return o.permute(1, 2, 0).reshape(N, C) if inner else o.transpose(0, 1).reshape(N, C)


def _home(x: Tensor, tiles: Sequence[Tensor]) -> list[Tensor]:
    return list(x.split([len(tile) for tile in tiles]))


def _alone(tiles: Sequence[Tensor], weight: Tensor, bias: Tensor, heads: int, exchange: Exchange) -> list[Tensor]:
    return [_attention([tile], weight, bias, heads) for tile in tiles]


def _by_root_c(tiles: Sequence[Tensor], weight: Tensor, bias: Tensor, heads: int, exchange: Exchange) -> list[Tensor]:
    return _home(_attention(tiles, weight, bias, heads, scale=weight.shape[1] ** -0.5), tiles)


def _unscaled(tiles: Sequence[Tensor], weight: Tensor, bias: Tensor, heads: int, exchange: Exchange) -> list[Tensor]:
    return _home(_attention(tiles, weight, bias, heads, scale=1.0), tiles)


def _interleaved(tiles: Sequence[Tensor], weight: Tensor, bias: Tensor, heads: int, exchange: Exchange) -> list[Tensor]:
    return _home(_attention(tiles, weight, bias, heads, inner=True), tiles)


def _one_head(tiles: Sequence[Tensor], weight: Tensor, bias: Tensor, heads: int, exchange: Exchange) -> list[Tensor]:
    return _home(_attention(tiles, weight, bias, 1), tiles)


def _workers_heads(
    tiles: Sequence[Tensor], weight: Tensor, bias: Tensor, heads: int, exchange: Exchange
) -> list[Tensor]:
    return _home(_attention(tiles, weight, bias, TILES), tiles)


def _unbiased(tiles: Sequence[Tensor], weight: Tensor, bias: Tensor, heads: int, exchange: Exchange) -> list[Tensor]:
    return _home(_attention(tiles, weight, torch.zeros_like(bias), heads), tiles)


def _gathered(tiles: Sequence[Tensor], weight: Tensor, bias: Tensor, heads: int, exchange: Exchange) -> list[Tensor]:
    exchange([[tile @ weight.mT + bias] * TILES for tile in tiles])
    return _home(_attention(tiles, weight, bias, heads), tiles)


def _keys_gathered(
    tiles: Sequence[Tensor], weight: Tensor, bias: Tensor, heads: int, exchange: Exchange
) -> list[Tensor]:
    C = weight.shape[1]
    exchange([[(tile @ weight.mT + bias)[:, C:]] * TILES for tile in tiles])
    return _home(_attention(tiles, weight, bias, heads), tiles)


def _tokens_gathered(
    tiles: Sequence[Tensor], weight: Tensor, bias: Tensor, heads: int, exchange: Exchange
) -> list[Tensor]:
    exchange([[tile] * TILES for tile in tiles])
    return _home(_attention(tiles, weight, bias, heads), tiles)


def _not_sent(tiles: Sequence[Tensor], weight: Tensor, bias: Tensor, heads: int, exchange: Exchange) -> list[Tensor]:
    return _home(_attention(tiles, weight, bias, heads), tiles)


def _equal_tiles(tiles: Sequence[Tensor], weight: Tensor, bias: Tensor, heads: int, exchange: Exchange) -> list[Tensor]:
    return list(_attention(tiles, weight, bias, heads).tensor_split(TILES))


ASSIGNMENT = Assignment(
    name="all_to_all",
    function="attend",
    component="rsseglab.rest.SPIM",
    reference=_reference,
    checks=(
        Check("a head for each worker", 3, _a_head_a_worker, _answers),
        Check("two heads for each worker", 3, _two_heads_a_worker, _answers),
        Check("tiles of unequal size", 2, _unequal, _answers),
        Check("no more is sent than has to be", 2, _of_all_sizes, _traffic),
    ),
    mistakes=(
        Mistake(
            "the answer is computed without the exchange; on real workers no tile sees another's tokens but through it",
            _not_sent,
        ),
        Mistake("each tile attends to itself alone, as when a scene is cropped; its queries have to meet all keys",
                _alone),
        Mistake("the products are divided by the root of C; a head has C / H channels, so it is √(C / H)", _by_root_c),
        Mistake("the products are not divided by √(C / H), the root of a head's channels", _unscaled),
        Mistake(
            "a head takes every H-th channel; it is a run of C / H neighbouring channels: reshape to (n, H, C / H)",
            _interleaved,
        ),
        Mistake("all channels are one head; each of the H heads has its own softmax", _one_head),
        Mistake(
            "a worker takes all of its channels as one head; with H = 8 on four workers each has two, with a softmax "
            "of their own",
            _workers_heads,
        ),
        Mistake("the bias is missing", _unbiased),
        Mistake(
            "tiles are taken as equally large on the way home; split by the number of tokens that each one had",
            _equal_tiles,
        ),
        Mistake(
            "every worker is sent all of q, k and v: an all-gather, and more than an all-to-all of the heads that each "
            "worker computes. Send worker w its own heads only",
            _gathered,
        ),
        Mistake(
            "every worker is sent all keys and values, and computes all heads for its own queries: right, and more "
            "traffic than an all-to-all. Send worker w its own heads only",
            _keys_gathered,
        ),
        Mistake(
            "every worker is sent all tokens and computes their q, k and v anew; here tokens are projected where they "
            "live, and worker w is sent its own heads of q, k and v",
            _tokens_gathered,
        ),
    ),
)  # fmt: skip
