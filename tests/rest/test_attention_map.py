"""The attention of chosen tokens against torch's own multi-head attention, which can give all weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rsseglab.errors import UserError
from rsseglab.rest import SPIM
from rsseglab.rest.attention_map import attention_of
from rsseglab.spatial import Layout, cut

ROWS, COLS = [0, 6, 3], [4, 0, 2]


def spim(**options):
    torch.manual_seed(0)
    module = SPIM(12, **{"heads": 3, **options}).double().eval()
    for parameter in module.parameters():  # no zero biases: they would hide a wrong one
        nn.init.normal_(parameter, std=0.5)
    return module


def feature_map():
    return torch.randn(2, 12, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("pool", [1, 2])
def test_equals_the_weights_of_torchs_attention(pool):
    module, x = spim(pool=pool), feature_map()
    mha = nn.MultiheadAttention(12, 3, batch_first=True).double()
    with torch.no_grad():
        mha.in_proj_weight.copy_(module.qkv.weight)
        mha.in_proj_bias.copy_(module.qkv.bias)
        tokens = module.norm1(x.flatten(2).transpose(1, 2))
        pooled = F.avg_pool2d(tokens.transpose(1, 2).reshape(x.shape), pool, ceil_mode=True)
        keys = pooled.flatten(2).transpose(1, 2)
        weights = mha(tokens, keys, keys, average_attn_weights=False)[1]  # (B, heads, N, M)
        ours = attention_of(module, x, ROWS, COLS)
    queries = [row * 5 + col for row, col in zip(ROWS, COLS, strict=True)]
    assert ours.shape == (2, 3, 3, *pooled.shape[2:])
    assert (ours.flatten(3) - weights[:, :, queries]).abs().max() < 1e-12


def test_a_cut_map_is_looked_at_with_its_own_number_of_heads():
    x = feature_map()
    with torch.no_grad():
        whole = attention_of(spim(), x, ROWS, COLS)
        assert torch.equal(attention_of(spim(), cut(x, Layout(2, 2)), ROWS, COLS), whole)
        world = attention_of(spim(heads="world"), cut(x, Layout(3)), ROWS, COLS)
        assert torch.equal(world, whole)
        assert attention_of(spim(heads="world"), cut(x, Layout(2, 2)), ROWS, COLS).shape[1] == 4


@pytest.mark.parametrize(("rows", "cols"), [([7], [0]), ([0], [-1]), ([0, 1], [0])])
def test_queries_that_are_not_on_the_map_are_refused(rows, cols):
    with pytest.raises(UserError, match="as many rows as columns, inside the map"):
        attention_of(spim(), feature_map(), rows, cols)
