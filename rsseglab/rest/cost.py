"""What SPIM and the exact engine cost a worker, and what that says of 1 to 64 workers.

Symbols, for a scene of H x W px and a level of stride s and C channels, on P workers:

    N = ceil(H / s) ceil(W / s)    tokens of the level, of which worker t holds n_t (about N / P)
    M                              keys: N, or N / pool^2 where keys and values are pooled; m_t of them on worker t
    A                              heads, of d = C / A channels; worker t computes a_t of them (about A / P)
    r                              hidden channels of the feed-forward part, divided by C
    e                              bytes of a number

Everything is counted from the definition of the layer (``SPIM``), not measured: floating point operations of matrix
products (2 for a multiplication and an addition, as ``torch.utils.flop_counter`` counts), exponentials, bytes sent and
messages. Norms, GELU and sums are left out: they are N C work with no product in it. What is counted is whole and
exact, for uneven tiles and heads too; ``tests/rest/test_cost.py`` holds it to torch's counter and to ``Traffic``.

Seconds are another matter. They follow from ``Rates`` under a plain model, in which nothing overlaps:

    t = FLOPs / (FLOP/s) + exponentials / (exponentials/s) + messages latency + bytes / (bytes/s)

and every row that says so carries ``PREDICTED``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import astuple, dataclass
from itertools import pairwise
from math import isqrt
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from rsseglab.errors import UserError
from rsseglab.spatial import Layout
from rsseglab.spatial.layout import bounds
from rsseglab.spatial.scale import reckon

Row = dict[str, Any]
PREDICTED = "predicted, unvalidated"
WORKERS = (1, 2, 4, 8, 16, 32, 64)
PARTS = ("linear", "attention", "softmax", "exchange")  # of a SPIM's seconds
EXACT_PARTS = ("compute", "halo", "latency", "bytes")  # of the exact engine's; halo is computing, too


# ------------------------------------------------------------------------------------------- SPIM, one level


@dataclass(frozen=True)
class Work:
    """What one worker does in one pass, forward or backward, through one SPIM.

    Attributes:
        linear_flops: of the projections and the feed-forward part.
        attention_flops: of query times key and of weight times value.
        exponentials: of the softmax, one for each query, key and head.
        sent_bytes: what it sends to others.
        messages: to how many others, summed over exchanges.
    """

    linear_flops: int
    attention_flops: int
    exponentials: int
    sent_bytes: int
    messages: int

    def __add__(self, other: Work) -> Work:
        """Both, one after the other."""
        return Work(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class LevelCost:
    """One SPIM on one scene: the work of every worker, forward and backward.

    Attributes:
        stride: of the level.
        tokens: N, of the whole level.
        keys: M.
        heads: A.
        head_channels: d = C / A.
        forward: what each worker does.
        backward: what each worker does for the gradients of all inputs and weights.
    """

    stride: int
    tokens: int
    keys: int
    heads: int
    head_channels: int
    forward: tuple[Work, ...]
    backward: tuple[Work, ...]

    def total(self, name: str, backward: bool = False) -> int:
        """The sum over workers of one of ``Work``'s attributes."""
        return sum(getattr(work, name) for work in (self.backward if backward else self.forward))

    def busiest(self, name: str, backward: bool = False) -> int:
        """One of ``Work``'s attributes, of the worker that has most of it."""
        return max(getattr(work, name) for work in (self.backward if backward else self.forward))


def level_cost(
    height_px: int,
    width_px: int,
    stride: int,
    channels: int,
    layout: Layout,
    *,
    heads: int | Literal["world"] = 8,
    pool: int = 1,
    mlp_ratio: float = 4,
    element_bytes: int = 4,
    exchange: Literal["all_to_all", "ring"] = "all_to_all",
) -> LevelCost:
    """What one SPIM costs each worker; the batch is one scene.

    *Linear layers*, forward. Queries: C -> C on n_t tokens; keys and values: C -> 2 C on m_t; output: C -> C on n_t;
    feed-forward: C -> r C -> C on n_t. A product of (n, a) and (a, b) takes 2 n a b:

        2 n_t C^2 + 4 m_t C^2 + 2 n_t C^2 + 4 r n_t C^2        = 24 n C^2 for m = n, r = 4

    Backward twice that: the gradient of the input and that of the weight are a product of the same size each.

    *Attention*, forward. For each of its a_t heads a worker has all N queries and all M keys; q k^T and the weights
    times v take 2 N M d each:

        4 N M d a_t                                            = 4 N^2 C / P for M = N, even heads

    and a_t N M exponentials: A N M / P with a fixed number of heads, but N^2 *whatever P is* with one head a worker, as
    published (``heads="world"``). Backward five products in place of two, as the weights are not kept but computed
    again (FlashAttention; Dao et al. 2022, section 3.1), with their exponentials: 10 N M d a_t and a_t N M.

    *Exchange*, ``all_to_all``, forward. A worker keeps its own heads of its own tokens and sends the rest of q, k and
    v, then the rest of its heads' outputs:

        e d [(n_t + 2 m_t) (A - a_t) + (N - n_t) a_t]          = 4 e n C (P - 1) / P, even and M = N

    Backward the adjoint sends back what came: e d [n_t (A - a_t) + (N - n_t + 2 (M - m_t)) a_t], the same where all
    is even. Where P > A, workers without a head have no attention to do, and the busiest keeps 1 / A of it.

    ``ring``: queries stay, keys and values pass through all workers. Worker t attends with all heads, 4 n_t M C, and
    sends every block but that of the next worker, 2 e C (M - m_{t+1}); backward that again, and each block's gradients
    all the way home, 2 e C M. All P workers have work, whatever the number of heads.

    Source: REST (TPAMI 2026); the layer as in ``rsseglab.rest.spim``. The paper's own formula was not found in its
    public code or project page, so this one is derived.

    Args:
        height_px: rows of the scene.
        width_px: columns of the scene.
        stride: of the level.
        channels: C.
        layout: who holds what.
        heads: A, or ``"world"`` for one head a worker.
        pool: keys and values come from the map pooled by so much a side.
        mlp_ratio: r.
        element_bytes: e.
        exchange: how tokens meet.

    Raises:
        UserError: if the heads do not divide the channels.
    """
    heads = layout.parts if heads == "world" else heads
    if heads < 1 or channels % heads:
        raise UserError(f"{channels} channels can't be shared by {heads} heads; give heads that divide {channels}.")
    height, width, d, parts = -(-height_px // stride), -(-width_px // stride), channels // heads, layout.parts
    n = _held(layout, height, width)
    m = _held(layout, -(-height // pool), -(-width // pool))
    tokens, keys, hidden = sum(n), sum(m), round(mlp_ratio * channels)
    share = [b - a for a, b in pairwise(bounds(heads, parts))]
    forward, backward = [], []
    for t in range(parts):
        linear = 4 * n[t] * channels**2 + 4 * m[t] * channels**2 + 4 * n[t] * channels * hidden
        if exchange == "ring":
            scores = heads * n[t] * keys
            out = 2 * channels * (keys - m[(t + 1) % parts]) * element_bytes if parts > 1 else 0
            home = 2 * channels * keys * element_bytes if parts > 1 else 0
            sent, sent_back = out, out + home
            messages, messages_back = 2 * (parts - 1), (2 * (parts - 1) + 2 * parts) if parts > 1 else 0
        else:
            scores = share[t] * tokens * keys
            others, mine = heads - share[t], share[t]
            sent = d * ((n[t] + 2 * m[t]) * others + (tokens - n[t]) * mine) * element_bytes
            sent_back = d * (n[t] * others + (tokens - n[t] + 2 * (keys - m[t])) * mine) * element_bytes
            # A message where there is anything to send: my tokens to those with heads, my heads' to those with tokens.
            peers = [p for p in range(parts) if p != t]
            with_heads = sum(share[p] > 0 for p in peers) * (n[t] > 0)
            with_tokens = sum(n[p] > 0 for p in peers) * (mine > 0)
            messages = messages_back = with_heads + with_tokens
        forward.append(Work(linear, 4 * d * scores, scores, sent, messages))
        backward.append(Work(2 * linear, 10 * d * scores, scores, sent_back, messages_back))
    return LevelCost(stride, tokens, keys, heads, d, tuple(forward), tuple(backward))


def scene_cost(
    height_px: int,
    width_px: int,
    channels: Mapping[int, int],
    layout: Layout,
    *,
    pools: Mapping[int, int] | None = None,
    **options: Any,
) -> tuple[LevelCost, ...]:
    """What the SPIMs of all levels cost.

    Args:
        height_px: rows of the scene.
        width_px: columns of the scene.
        channels: of each level, by its stride; ``SWIN_LARGE`` is one. A level that is left out has no SPIM.
        layout: who holds what.
        pools: by stride, where keys and values are pooled.
        options: of ``level_cost``.
    """
    pools = pools or {}
    return tuple(
        level_cost(height_px, width_px, stride, width, layout, pool=pools.get(stride, 1), **options)
        for stride, width in channels.items()
    )


#: Channels by stride of Swin-L and ConvNeXt-L (Liu et al. 2021, table 7; Liu et al. 2022, section 3), as in REST.
SWIN_LARGE: dict[int, int] = {4: 192, 8: 384, 16: 768, 32: 1536}


def _held(layout: Layout, height: int, width: int) -> list[int]:
    """The positions of a map that each worker holds; none where there are more bands than rows."""
    windows = _windows(layout, height, width)
    return [(bottom - top) * (right - left) for top, bottom, left, right in windows]


def _windows(layout: Layout, height: int, width: int) -> list[tuple[int, int, int, int]]:
    ys, xs = pairwise(bounds(height, layout.rows)), list(pairwise(bounds(width, layout.cols)))
    return [(top, bottom, left, right) for top, bottom in ys for left, right in xs]


# ------------------------------------------------------------------------------------------- the exact engine


@dataclass(frozen=True)
class HaloCost:
    """What a stack of convolutions exchanges.

    Attributes:
        sent_bytes: of the tile that sends most.
        share: the halo that a tile fetches for one layer, of the positions that it holds; of the worst tile.
    """

    sent_bytes: int
    share: float


def halo_cost(
    height: int,
    width: int,
    layout: Layout,
    channels: int,
    *,
    kernel_px: int = 3,
    layers: int = 1,
    element_bytes: int = 4,
) -> HaloCost:
    """The halo of ``layers`` convolutions with stride 1, C channels and padding, on one map.

    An output tile of h x w needs its input tile widened by the radius k = (kernel - 1) / 2, as far as the map goes:

        (h + 2 k) (w + 2 k) - h w positions                    = 2 k W for a band of rows inside, whatever h is

    of C numbers, for each layer anew. So for bands the bytes a worker do not fall with P, while its work does: the
    halo's share 2 k / h of a tile grows as P, and is 1 where a band has as many rows as its halo. Tiles of a grid have
    it better: their halo falls as 1 / sqrt(P).

    Args:
        height: rows of the map.
        width: columns of the map.
        layout: who holds what.
        channels: C.
        kernel_px: rows and columns of the kernel; odd.
        layers: how many convolutions follow one another.
        element_bytes: bytes of a number.
    """
    reach, windows = kernel_px // 2, _windows(layout, height, width)
    sent, fetched = [0] * len(windows), [0] * len(windows)
    for dst, (top, bottom, left, right) in enumerate(windows):
        if top == bottom or left == right:
            continue
        for src, (first, last, west, east) in enumerate(windows):
            rows = min(last, bottom + reach) - max(first, top - reach)
            cols = min(east, right + reach) - max(west, left - reach)
            if src != dst and rows > 0 and cols > 0:
                sent[src] += rows * cols
                fetched[dst] += rows * cols
    share = max(f / h for f, h in zip(fetched, _held(layout, height, width), strict=True) if h)
    return HaloCost(max(sent) * channels * element_bytes * layers, share)


@dataclass(frozen=True)
class NetworkCost:
    """What a network on the exact engine costs: work of the largest tile, exchange of the tile that sends most.

    Attributes:
        flops: of convolutions and matrix products: those of one worker, times the largest tile's share of the scene.
        halo_flops: what the tiles' borders add to it: the engine runs a convolution on the tile, and again on the thin
            halo, whose output it adds to the border (``rsseglab.spatial.rules.convolution``).
        sent_bytes: as ``Traffic`` counts them.
        messages: likewise.
        sums: over all tiles, such as batch norm's in training.
    """

    flops: float
    halo_flops: float
    sent_bytes: int
    messages: int
    sums: int


def network_cost(
    network: nn.Module, height_px: int, width_px: int, layout: Layout, *, training: bool = False
) -> NetworkCost:
    """Reckon what a network on three bands costs, from shapes alone: it runs on ``meta`` tensors, in one process.

    Args:
        network: takes (1, 3, H, W).
        height_px: rows of the scene.
        width_px: columns of the scene.
        layout: who holds what.
        training: forward and backward, with the sum of all gradients at the end; else forward.
    """
    with flop_counter() as whole:
        reckon(network, Layout(1), height_px, width_px, training)
    with flop_counter() as cut:
        sent, messages, sums = reckon(network, layout, height_px, width_px, training)
    share = max(_held(layout, height_px, width_px)) / (height_px * width_px)
    flops, more = whole.get_total_flops(), cut.get_total_flops() - whole.get_total_flops()
    return NetworkCost(flops * share, more * share, sent, messages, sums)


def flop_counter() -> Any:
    """Torch's counter of FLOPs, for cut tensors and a CPU's attention too; it tells no modules apart."""
    aten = torch.ops.aten
    of_cpu = {  # torch counts these since 2.15 alone
        aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            lambda *shapes, **_: sdpa_backward_flop_count(*shapes[:4])
        ),
    }
    counter: Any = FlopCounterMode(display=False, custom_mapping=of_cpu)
    counter.mod_tracker = _NoModules()  # torch's own hangs hooks on tensors, which a cut one does not take
    return counter


class _NoModules(nullcontext[None]):
    parents = frozenset({"Global"})


# ------------------------------------------------------------------------------------------- seconds


@dataclass(frozen=True)
class Rates:
    """How fast one device works, and how fast devices talk.

    Attributes:
        name: of the device, and where its rates come from.
        matmul_flops_per_s: of large matrix products.
        exponentials_per_s: of a softmax inside an attention kernel, with what else it does for each score.
        link_bytes_per_s: what a worker sends, each way.
        latency_s: of a message.
        sum_latency_s: of a small sum over all workers.
        head_multiple: a head takes as long as one whose channels are the next multiple of this.
        node_workers: workers that share the link.
        network_bytes_per_s: what a worker sends where there are more of them.
    """

    name: str
    matmul_flops_per_s: float
    exponentials_per_s: float
    link_bytes_per_s: float
    latency_s: float
    sum_latency_s: float
    head_multiple: int = 1
    node_workers: int = 1_000_000
    network_bytes_per_s: float = 0.0

    def bytes_per_s(self, workers: int) -> float:
        """The link, or the network where the workers do not fit one node."""
        return self.link_bytes_per_s if workers <= self.node_workers else self.network_bytes_per_s


#: Peak rates of an A100-SXM4, half precision, in a DGX A100 of 8; nothing here is measured.
#:
#: - 312e12 FLOP/s of bf16/fp16 tensor cores without sparsity; NVLink 600 GB/s, that is 300 each way (NVIDIA A100
#:   Tensor Core GPU datasheet).
#: - 16 exponentials a clock and multiprocessor (CUDA C++ Programming Guide, "Throughput of Native Arithmetic
#:   Instructions", compute capability 8.0), 108 multiprocessors at 1.41 GHz: 2.4e12/s.
#: - 200 Gb/s of InfiniBand for each GPU (NVIDIA DGX A100 datasheet): 25 GB/s.
#: - Heads padded to a multiple of 32 (kernels of FlashAttention-2, arXiv:2307.08691, as in torch).
#: - Latencies: assumed, 10 microseconds a message and 20 a sum; from no datasheet.
#:
#: With them attention with 64 and 128 channels a head would reach 67 and 80 % of the peak. FlashAttention-2 reports 50
#: to 73 % (abstract), so seconds are a lower bound, by a factor of some 1.1 to 1.6. Heads above 256 channels, which
#: those kernels do not take, are slower than this says.
A100 = Rates(
    name="A100, nominal",
    matmul_flops_per_s=312e12,
    exponentials_per_s=108 * 16 * 1.41e9,
    link_bytes_per_s=300e9,
    latency_s=10e-6,
    sum_latency_s=20e-6,
    head_multiple=32,
    node_workers=8,
    network_bytes_per_s=25e9,
)


def measure_rates(
    device: torch.device | str = "cpu",
    *,
    link_bytes_per_s: float,
    latency_s: float,
    sum_latency_s: float,
    repeats: int = 7,
) -> Rates:
    """Measure this device's products and exponentials, in a second or two; those of the link are given.

    Products: of two matrices of 1024 x 1024 (4096 on an accelerator). Exponentials: an attention with few channels a
    head, less the seconds that its products take at the rate just found. Each the least of ``repeats``, in turn.

    Args:
        device: what to measure; with float32 on the CPU, with bfloat16 elsewhere.
        link_bytes_per_s: as ``rsseglab scale`` measures it (``bandwidth_bytes_per_s`` of its record).
        latency_s: likewise.
        sum_latency_s: likewise.
        repeats: how often each is timed.
    """
    device = torch.device(device)
    cpu = device.type == "cpu"
    side, tokens, d, heads = (1024, 2048, 16, 4) if cpu else (4096, 8192, 32, 16)
    dtype = torch.float32 if cpu else torch.bfloat16
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    q, k, v = torch.randn(3, 1, heads, tokens, d, device=device, dtype=dtype)
    matmul, attention = least_seconds([lambda: a @ b, lambda: F.scaled_dot_product_attention(q, k, v)], device, repeats)
    rate, scores = 2 * side**3 / matmul, heads * tokens**2
    left = attention - 4 * d * scores / rate
    return Rates(
        name=f"{'this CPU' if cpu else torch.cuda.get_device_name(device)}, measured",
        matmul_flops_per_s=rate,
        exponentials_per_s=scores / max(left, 0.05 * attention),  # noise may leave nothing
        link_bytes_per_s=link_bytes_per_s,
        latency_s=latency_s,
        sum_latency_s=sum_latency_s,
        head_multiple=16 if cpu else 32,  # a vector register of float32; as an A100's
    )


def least_seconds(tasks: Sequence[Callable[[], Any]], device: torch.device, repeats: int) -> list[float]:
    """The least seconds of each task, timed in turn after one warm-up."""
    taken: list[list[float]] = [[] for _ in tasks]
    for round_ in range(repeats + 1):
        for task, its in zip(tasks, taken, strict=True):
            begin = time.perf_counter()
            task()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if round_:
                its.append(time.perf_counter() - begin)
    return [min(its) for its in taken]


def level_seconds(level: LevelCost, rates: Rates, training: bool = False) -> dict[str, float]:
    """Seconds by part (``PARTS``) of the worker that takes longest; forward, or forward and backward.

    All workers wait for it, as they meet in the exchange.
    """
    padded = -(-level.head_channels // rates.head_multiple) * rates.head_multiple / level.head_channels
    link = rates.bytes_per_s(len(level.forward))

    def parts(work: Work) -> dict[str, float]:
        seconds = (
            work.linear_flops / rates.matmul_flops_per_s,
            work.attention_flops * padded / rates.matmul_flops_per_s,
            work.exponentials / rates.exponentials_per_s,
            work.messages * rates.latency_s + work.sent_bytes / link,
        )
        return dict(zip(PARTS, seconds, strict=True))

    works = [a + b for a, b in zip(level.forward, level.backward, strict=True)] if training else level.forward
    return max(map(parts, works), key=lambda its: sum(its.values()))


# ------------------------------------------------------------------------------------------- the curve


def predict_spim(
    height_px: int,
    width_px: int,
    channels: Mapping[int, int],
    rates: Rates,
    *,
    workers: Sequence[int] = WORKERS,
    training: bool = False,
    weak: bool = False,
    **options: Any,
) -> list[Row]:
    """Predict the seconds of a scene's SPIMs for each number of workers, by part and by stride; not validated.

    Args:
        height_px: rows of the scene; for one worker where ``weak``.
        width_px: columns of the scene.
        channels: of each level, by its stride.
        rates: of a device and its links.
        workers: numbers of workers P, ascending; each holds a band of rows.
        training: forward and backward, else forward.
        weak: the scene's rows grow with P.
        options: of ``scene_cost``.

    Returns:
        A row for each P: ``status`` (``PREDICTED``), workers, heads, seconds, those of each part and stride, and the
        efficiency.
    """
    rows = []
    for count in workers:
        levels = scene_cost(height_px * (count if weak else 1), width_px, channels, Layout(count), **options)
        taken = {level.stride: level_seconds(level, rates, training) for level in levels}
        parts = {f"{part}_seconds": sum(its[part] for its in taken.values()) for part in PARTS}
        strides = {f"stride_{stride}_seconds": sum(its.values()) for stride, its in taken.items()}
        rows.append(_row(rates, count, sum(parts.values())) | {"heads": levels[0].heads} | parts | strides)
    return _with_efficiency(rows, weak)


def predict_exact(
    network: nn.Module,
    height_px: int,
    width_px: int,
    rates: Rates,
    *,
    workers: Sequence[int] = WORKERS,
    training: bool = False,
    one_worker_seconds: float | None = None,
    layout_of: Callable[[int], Layout] = Layout,
) -> list[Row]:
    """Predict the seconds of a network on the exact engine for each number of workers; not validated.

    The model of ``rsseglab.spatial.scale``, the largest tile's share of one worker's seconds, latencies and bytes, and
    besides what the engine computes at the borders.

    Args:
        network: takes (1, 3, H, W).
        height_px: rows of the scene.
        width_px: columns of the scene.
        rates: of a device and its links.
        workers: numbers of workers P, ascending.
        training: forward and backward, with the sum of gradients, else forward.
        one_worker_seconds: measured for the whole scene on one device; without it FLOPs at the rate of matrix products,
            which convolutions do not reach, so that halos seem to weigh more than they do.
        layout_of: how P workers share the scene: ``Layout`` for bands, ``grid`` for tiles.

    Returns:
        A row for each P, as ``predict_spim``'s, with the parts ``EXACT_PARTS``.
    """
    rows = []
    flops = network_cost(network, height_px, width_px, Layout(1), training=training).flops
    rate = flops / one_worker_seconds if one_worker_seconds else rates.matmul_flops_per_s
    for count in workers:
        cost = network_cost(network, height_px, width_px, layout_of(count), training=training)
        seconds = (
            cost.flops / rate,
            cost.halo_flops / rate,
            cost.messages * rates.latency_s + cost.sums * rates.sum_latency_s,
            cost.sent_bytes / rates.bytes_per_s(count),
        )
        parts = {f"{part}_seconds": its for part, its in zip(EXACT_PARTS, seconds, strict=True)}
        rows.append(_row(rates, count, sum(seconds)) | {"sent_bytes": cost.sent_bytes} | parts)
    return _with_efficiency(rows, weak=False)


def grid(workers: int) -> Layout:
    """The grid of P tiles that is nearest to a square, with no more rows than columns."""
    rows = next(rows for rows in range(isqrt(workers), 0, -1) if workers % rows == 0)
    return Layout(rows, workers // rows)


def _row(rates: Rates, workers: int, seconds: float) -> Row:
    return {"status": PREDICTED, "rates": rates.name, "workers": workers, "seconds": seconds}


def _with_efficiency(rows: list[Row], weak: bool) -> list[Row]:
    """Strong: seconds of the first over P times seconds; weak: seconds of the first over seconds."""
    first = rows[0]
    for row in rows:
        more = 1 if weak else row["workers"] / first["workers"]
        row["efficiency"] = first["seconds"] / (more * row["seconds"])
    return rows


@dataclass(frozen=True)
class Bend:
    """Where a predicted curve leaves the straight line, and what lost it most seconds there.

    Attributes:
        workers: the least number with less than the wanted efficiency.
        part: of ``PARTS`` or ``EXACT_PARTS``.
        stride: of the SPIM; None for the exact engine.
    """

    workers: int
    part: str
    stride: int | None


def bend(rows: Sequence[Row], efficiency: float = 0.8) -> Bend | None:
    """Find where a predicted curve bends, and why; None if it stays straight.

    Seconds are lost that exceed the first row's, shared out as if all scaled.

    Args:
        rows: of ``predict_spim`` or ``predict_exact``.
        efficiency: below this the curve has left the straight line.
    """
    first = rows[0]
    for row in rows:
        if row["efficiency"] < efficiency:
            straight = row["efficiency"] * row["seconds"] / first["seconds"]
            lost = {name.removesuffix("_seconds"): row[name] - first[name] * straight for name in row if "_sec" in name}
            strides = [name for name in lost if name.startswith("stride_")]
            part = max(lost.keys() - strides, key=lost.__getitem__)
            stride = max(strides, key=lost.__getitem__, default=None)
            return Bend(row["workers"], part, None if stride is None else int(stride.removeprefix("stride_")))
    return None
