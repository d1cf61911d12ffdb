r"""Class embeddings to features: each pixel's feature is moved the way of the classes it looks like.

Of each class an affine map of the channels is made, and a pixel gets the mean of those, weighed by the softmax of its
heatmap:

.. math::
    \gamma_n &= 1 + \tanh(\mathrm{Linear}(CE_n)), \qquad \beta_n = \mathrm{Linear}(CE_n) &&(6, 7) \\
    \tilde F_n(x) &= \gamma_n \odot F(x) + \beta_n &&(8) \\
    F'(x) &= \alpha F(x) + (1 - \alpha) \sum_n H^{soft}_n(x)\, \tilde F_n(x) &&(10)

No map of (B, N, C, H, W) is needed: as every class's map starts from the same F,

.. math::
    \sum_n H^{soft}_n \tilde F_n = \Big(\sum_n H^{soft}_n \gamma_n\Big) \odot F + \sum_n H^{soft}_n \beta_n.

Alpha is learned in ``paper``, from 1/2 on; in ``code`` it is 1/2.

Source:
    Shi, Song, arXiv 2512.20255, section 3.2, equations 6 to 10; ``code``: a fact read from the authors' public code, of
    which none is used here. The form with two sums: ours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rsseglab.bicor_seg.heatmap import check_preset


class EmbeddingToFeature(nn.Module):
    """Features, refined by embeddings; see the module.

    Args:
        dim: channels C of features and embeddings.
        preset: "paper" or "code".

    Shapes:
        features (B, C, H, W) and soft (B, N, H, W), plain or cut maps; embeddings (B, N, C); output as features.

    Raises:
        UserError: an unknown preset.
    """

    alpha: Tensor

    def __init__(self, dim: int, preset: str = "code") -> None:
        super().__init__()
        check_preset(preset)
        self.scale, self.shift = nn.Linear(dim, dim), nn.Linear(dim, dim)
        half = torch.tensor(0.5)
        if preset == "paper":
            self.alpha = nn.Parameter(half)
        else:
            self.register_buffer("alpha", half, persistent=False)

    def forward(self, features: Tensor, embeddings: Tensor, soft: Tensor) -> Tensor:
        """Refined features.

        Args:
            features: F.
            embeddings: CE, refined.
            soft: shares of the classes in each pixel, which sum to 1.
        """
        gamma, beta = 1 + self.scale(embeddings).tanh(), self.shift(embeddings)
        return self.alpha * features + (1 - self.alpha) * modulated(features, gamma, beta, soft)


def modulated(features: Tensor, gamma: Tensor, beta: Tensor, soft: Tensor) -> Tensor:
    """Sum over classes of soft (gamma F + beta): (B, C, H, W), of gamma and beta (B, N, C)."""
    scale = torch.einsum("bnhw,bnc->bchw", soft, gamma)
    return scale * features + torch.einsum("bnhw,bnc->bchw", soft, beta)
