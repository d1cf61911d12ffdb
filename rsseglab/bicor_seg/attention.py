r"""Cross attention in the place of HBIS: the baseline of the paper's Table 4.

Embeddings look at all pixels, then pixels look at the embeddings, each with a residual, a norm and a feed-forward part:

.. math::
    CE' &= \mathrm{FFN}(\mathrm{LN}(CE + \mathrm{Attention}(CE, F, F))) \\
    F' &= \mathrm{FFN}(\mathrm{LN}(F + \mathrm{Attention}(F, CE', CE')))

The paper says "a standard cross-attention layer" and gives 93.5 M parameters for the network. With feed-forward parts
of 2048 channels, the usual width (Carion et al., "DETR", 2020), ConvNeXt-B and two layers, it is 93.59 M here.

Source:
    Shi, Song, arXiv 2512.20255, section 4.4 and table 4; Vaswani et al., "Attention is all you need", 2017.
"""

from __future__ import annotations

from torch import Tensor, nn


class CrossAttention(nn.Module):
    """A round of attention, both ways; see the module.

    Args:
        dim: channels C of features and embeddings.
        heads: of the attention.
        hidden: channels of the feed-forward parts.

    Shapes:
        features (B, C, H, W), embeddings (B, N, C); output the same, and None in the place of a heatmap.
    """

    def __init__(self, dim: int, heads: int = 8, hidden: int = 2048) -> None:
        super().__init__()
        self.to_embeddings, self.to_features = _Look(dim, heads, hidden), _Look(dim, heads, hidden)

    def forward(self, features: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor, None]:
        """Refined features and embeddings."""
        pixels = features.flatten(2).mT
        embeddings = self.to_embeddings(embeddings, pixels)
        pixels = self.to_features(pixels, embeddings)
        return pixels.mT.reshape(features.shape), embeddings, None


class _Look(nn.Module):
    """One way: who looks (B, Q, C), at what (B, K, C)."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.norm, self.last_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.feed_forward = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor, at: Tensor) -> Tensor:
        x = self.norm(x + self.attention(x, at, at, need_weights=False)[0])
        y: Tensor = self.last_norm(x + self.feed_forward(x))
        return y
