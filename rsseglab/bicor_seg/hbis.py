r"""Heatmap-driven bidirectional information synergy: embeddings and features refine each other.

.. math::
    s = \mathrm{heatmap}(F, CE), \qquad CE' = \mathrm{F2CE}(F, CE, s), \qquad
    F' = \mathrm{CE2F}(F, CE', \mathrm{softmax}_n(\mathrm{logits}(s)))

In ``code`` heatmap, pooling and gate see layer-normalised features and embeddings, and what is kept of both, and what
is modulated, are the ones that are not. ``paper`` names no norm in the text (a caption of its figure 2 names a batch
norm; none was found in the public code).

Source:
    Shi, Song, arXiv 2512.20255, section 3.2 and figure 2; ``code``: facts read from the authors' public code, of which
    none is used here.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from rsseglab.bicor_seg.ce2f import EmbeddingToFeature
from rsseglab.bicor_seg.f2ce import FeatureToEmbedding
from rsseglab.bicor_seg.heatmap import ClassHeatmap
from rsseglab.errors import UserError


class HBIS(nn.Module):
    """One round of refinement; see the module.

    Args:
        dim: channels C of features and embeddings.
        preset: "paper" or "code".
        top_k: share of the pixels that make a class's region, see `rsseglab.bicor_seg.f2ce`.

    Shapes:
        features (B, C, H, W), a plain or a cut map; embeddings (B, N, C).

    Raises:
        UserError: an unknown preset, no share, or inputs of other shapes.
    """

    def __init__(self, dim: int, preset: str = "code", top_k: float = 0.02) -> None:
        super().__init__()
        self.dim = dim
        self.heatmap = ClassHeatmap(dim, preset)
        self.f2ce, self.ce2f = FeatureToEmbedding(dim, preset, top_k), EmbeddingToFeature(dim, preset)
        code = preset == "code"
        self.norm_features: nn.Module = ChannelNorm(dim) if code else nn.Identity()
        self.norm_embeddings: nn.Module = nn.LayerNorm(dim) if code else nn.Identity()

    def forward(self, features: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Refined features (B, C, H, W) and embeddings (B, N, C), and the heatmap's logits (B, N, H, W)."""
        if features.shape[:2] != (len(embeddings), self.dim) or embeddings.shape[2:] != (self.dim,):
            raise UserError(
                f"features {list(features.shape)} and embeddings {list(embeddings.shape)} do not go together; give "
                f"(B, {self.dim}, H, W) and (B, N, {self.dim})."
            )
        seen, queries = self.norm_features(features), self.norm_embeddings(embeddings)
        score = self.heatmap(seen, queries)
        logits = self.heatmap.logits(score)
        embeddings = self.f2ce(seen, embeddings, score, queries)
        return self.ce2f(features, embeddings, logits.softmax(1)), embeddings, logits


class ChannelNorm(nn.LayerNorm):
    """Layer norm of each pixel's channels.

    Shapes:
        (B, C, H, W); output the same.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        its = (self.normalized_shape, self.weight, self.bias, self.eps)
        return F.layer_norm(x.permute(0, 2, 3, 1), *its).permute(0, 3, 1, 2)
