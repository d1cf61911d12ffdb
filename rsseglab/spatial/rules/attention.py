"""Attention over the tokens of a scene: scaled_dot_product_attention and nn.MultiheadAttention.

    y_n = sum_m softmax_m(q_n . k_m / sqrt(d)) v_m

Queries stay on their tile. Where windows or batches are cut, keys and values are there already. Where a network has
reduced them (SegFormer), they are few and are gathered. Where they are as many as the tokens of a large scene, they
pass from rank to rank in a ring.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rsseglab.spatial.rules.contraction import contract
from rsseglab.spatial.rules.ring import ring_attention, takes
from rsseglab.spatial.tensor import is_cut, join, named, refusal, rule


@rule(*named("scaled_dot_product_attention"))
def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Fused attention; queries stay where they are, keys and values are gathered, windows are their own."""
    if enable_gqa:
        raise refusal("scaled_dot_product_attention(enable_gqa=True)", (query, key, value))
    if is_causal:
        if attn_mask is not None:
            raise refusal("scaled_dot_product_attention", (query,), why="takes attn_mask or is_causal, not both")
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    if dropout_p > 0:
        return _with_dropout(query, key, value, attn_mask, dropout_p, scale)
    if not is_cut(query) and not is_cut(attn_mask):
        return F.scaled_dot_product_attention(query, join(key), join(value), attn_mask, scale=scale)
    batch = query.dim() - 2
    n, m, d, e = batch, batch + 1, batch + 2, batch + 3
    lead = [*range(batch)]
    labels = [[*lead, n, d], [*lead, m, d], [*lead, m, e]]
    operands = [query, key, value]
    if attn_mask is not None:
        missing = batch + 2 - attn_mask.dim()
        operands.append(attn_mask)
        labels.append([*lead[missing:], n, m])
    if not is_cut(query) or any(a.dim > batch for a in query.axes):
        raise refusal(
            "scaled_dot_product_attention",
            (query, key, value),
            why="needs its queries cut along tokens or batch",
        )

    if takes(query, key, value, attn_mask):
        return ring_attention(query, key, value, scale)

    def kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        if not q.numel():
            return q @ k.transpose(-1, -2) @ v
        return F.scaled_dot_product_attention(q, k, v, mask, scale=scale)

    return _by_query(kernel, operands, labels, [*lead, n, e])


def _with_dropout(query: Any, key: Any, value: Any, mask: Any, p: float, scale: float | None) -> Any:
    """The same by hand, (N, M) scores and all: the coins follow the scores' place in the scene, as everywhere."""
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return F.dropout(scores.softmax(-1), p) @ value


def _by_query(kernel: Any, operands: list[Any], labels: list[list[int]], result: list[int]) -> Any:
    """The queries lead, whatever is larger."""
    query, *others = operands
    cut_labels = {labels[0][a.dim] for a in query.axes}
    others = [
        join(o) if is_cut(o) and not {its[a.dim] for a in o.axes} & cut_labels else o
        for o, its in zip(others, labels[1:], strict=True)
    ]
    return contract(kernel, [query, *others], labels, result, "scaled_dot_product_attention")


@rule(F.multi_head_attention_forward)
def multi_head_attention(
    query: Any,
    key: Any,
    value: Any,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Any = None,
    static_v: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Any, Any]:
    """What ``nn.MultiheadAttention`` calls, on tokens (N, B, E): projections, attention, projection.

    Returns:
        The output (N, B, E), and where ``need_weights`` the attention (B, N, M), or (B, heads, N, M).
    """
    dropout_p = dropout_p if training else 0.0
    extras = (key_padding_mask, attn_mask, bias_k, bias_v, static_k, static_v)
    if query.dim() != 3 or is_causal or add_zero_attn or any(extra is not None for extra in extras):
        raise refusal(
            "multi_head_attention_forward",
            (query, key, value),
            why="knows tokens (N, B, E) without masks, bias_k, bias_v and add_zero_attn",
        )
    if use_separate_proj_weight:
        weights: tuple[Any, ...] = (q_proj_weight, k_proj_weight, v_proj_weight)
    else:
        assert in_proj_weight is not None
        weights = in_proj_weight.chunk(3)
    biases: tuple[Any, ...] = (None, None, None) if in_proj_bias is None else in_proj_bias.chunk(3)

    def heads(x: Any, weight: Any, bias: Any) -> Any:
        """(N, B, E) to (B, heads, N, E / heads)."""
        x = F.linear(x, weight, bias)
        return x.reshape(*x.shape[:2], num_heads, -1).permute(1, 2, 0, 3)

    q, k, v = (heads(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
    attention_map = None
    if need_weights:
        attention_map = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        attention_map = F.dropout(attention_map, dropout_p) if dropout_p else attention_map
        y = attention_map @ v
        attention_map = attention_map.mean(1) if average_attn_weights else attention_map
    else:
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p)
    y = y.permute(2, 0, 1, 3).reshape(query.shape)
    return F.linear(y, out_proj_weight, out_proj_bias), attention_map
