r"""Class heatmaps: how much each pixel looks like each class.

An embedding of a class is a query; its product with a pixel's feature is the pixel's score for the class:

.. math::
    s_n(x) = \langle F(x), \mathrm{Linear}(CE_n) \rangle, \qquad H_n(x) = \sigma(s_n(x))

=====================  ==================================  =====================================================
preset                 ``paper`` (Eq. 1)                   ``code``
=====================  ==================================  =====================================================
score                  as above                            of normalised F and CE, over the root of C, no bias
what pooling weighs    H                                   H
what softmax is of     H, so that no class can have more   s, so that a pixel can be all of one class
                       than e times another's share
                       (Eq. 9 as printed)
=====================  ==================================  =====================================================

What the softmax is of is what the heatmap loss is of too (Eq. 11): the heatmap's *logits*.

Source:
    Shi, Song, "BiCoR-Seg: Bidirectional Co-Refinement Framework for High-Resolution Remote Sensing Image Segmentation",
    arXiv 2512.20255, section 3.2, equations 1 and 9; ``code``: facts read from the authors' public code, of which none
    is used here (it has no licence).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rsseglab.errors import UserError

PRESETS = ("paper", "code")


def check_preset(preset: str) -> None:
    """Whether it is one of the two.

    Raises:
        UserError: it is not.
    """
    if preset not in PRESETS:
        raise UserError(f"there is no preset '{preset}'; choose {' or '.join(PRESETS)}.")


class ClassHeatmap(nn.Module):
    """Scores of pixels for classes; see the module.

    Args:
        dim: channels C of features and embeddings.
        preset: "paper" or "code".

    Shapes:
        features (B, C, H, W), a plain or a cut map; embeddings (B, N, C); output (B, N, H, W).

    Raises:
        UserError: an unknown preset.
    """

    def __init__(self, dim: int, preset: str = "code") -> None:
        super().__init__()
        check_preset(preset)
        self.preset = preset
        self.query = nn.Linear(dim, dim, bias=preset == "paper")
        self.scale = dim**-0.5 if preset == "code" else 1.0

    def forward(self, features: Tensor, embeddings: Tensor) -> Tensor:
        """Scores s."""
        return torch.einsum("bnc,bchw->bnhw", self.query(embeddings) * self.scale, features)

    def logits(self, score: Tensor) -> Tensor:
        """What the softmax over classes, and the heatmap loss, are of."""
        return score.sigmoid() if self.preset == "paper" else score
