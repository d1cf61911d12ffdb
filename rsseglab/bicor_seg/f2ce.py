r"""Features to class embeddings: an embedding takes in what its class looks like in this image.

Of each class the K pixels with the highest heatmap are its region; their mean feature, weighed by the heatmap, is what
the image says of the class, and a gate says how much of it the embedding believes:

.. math::
    \tilde H_n(x) &= \frac{H_n(x)}{\sum_{u \in \Omega_n} H_n(u) + \varepsilon} \;\text{ in } \Omega_n,
        \text{ 0 elsewhere} &&(2) \\
    C_n &= \sum_{x \in \Omega_n} \tilde H_n(x)\, W F(x) &&(3) \\
    G &= \sigma(\mathrm{gate}([CE \,\|\, C])) &&(4) \\
    CE'_n &= (1 - G_n)\, CE_n + G_n\, \mathrm{candidate}(C_n) &&(5)

==============  ====================================  ==========================================================
preset          ``paper``                             ``code``
==============  ====================================  ==========================================================
W               linear                                without a bias, of normalised features
gate            linear, a number a class              two layers with GELU, a number a class and channel; of
                                                      normalised embeddings
candidate       C itself                              two layers with GELU
K               r H W                                 max(64, r H W)
no response     C is about 0                          where the region's heatmaps sum to less than epsilon, all
                                                      pixels are the region
==============  ====================================  ==========================================================

Gradients pass the pooling through the features alone (section 4.2): neither which pixels are taken nor how they are
weighed is learned here. W is linear, so it is applied after the pooling, to N vectors instead of H W.

A region is all pixels whose score reaches the K-th highest; scores that are equal to the last bit are taken or left
together, so the region does not depend on the order of pixels, nor on how a scene is cut. It is told by the score and
not by its sigmoid, which in float32 is 1 for all that is greater than 17. On a cut map K counts the whole scene.

Source:
    Shi, Song, arXiv 2512.20255, section 3.2, equations 2 to 5, and 4.2; ``code``: facts read from the authors' public
    code, of which none is used here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rsseglab.bicor_seg.heatmap import check_preset
from rsseglab.errors import UserError

EPSILON = 1e-6
LEAST_PX = {"paper": 1, "code": 64}  # of a region


class FeatureToEmbedding(nn.Module):
    """Embeddings, refined by features; see the module.

    Args:
        dim: channels C of features and embeddings.
        preset: "paper" or "code".
        top_k: share r of the pixels that make a class's region, up to 1 for all.

    Shapes:
        features (B, C, H, W) and score (B, N, H, W), plain or cut maps; embeddings (B, N, C); output as embeddings.

    Raises:
        UserError: an unknown preset, or no share.
    """

    def __init__(self, dim: int, preset: str = "code", top_k: float = 0.02) -> None:
        super().__init__()
        check_preset(preset)
        if not 0 < top_k <= 1:
            raise UserError(f"top_k {top_k} is no share of the pixels; give more than 0 and at most 1.")
        self.preset, self.top_k = preset, top_k
        self.value = nn.Linear(dim, dim, bias=preset == "paper")
        self.gate: nn.Module = nn.Linear(2 * dim, 1) if preset == "paper" else _two_layers(2 * dim, dim)
        self.candidate: nn.Module = nn.Identity() if preset == "paper" else _two_layers(dim, dim)

    def forward(self, features: Tensor, embeddings: Tensor, score: Tensor, normed: Tensor | None = None) -> Tensor:
        """Refined embeddings.

        Args:
            features: F.
            embeddings: CE.
            score: of the heatmap, see `rsseglab.bicor_seg.heatmap`.
            normed: the embeddings as the gate sees them; as they are if not given.
        """
        weights = self.weights(score)
        pooled = torch.einsum("bnhw,bchw->bnc", weights, features)
        context = pooled @ self.value.weight.mT
        if self.value.bias is not None:
            context = context + self.value.bias * weights.sum((2, 3))[..., None]
        gate = self.gate(torch.cat([embeddings if normed is None else normed, context], -1)).sigmoid()
        return (1 - gate) * embeddings + gate * self.candidate(context)

    @torch.no_grad()
    def weights(self, score: Tensor) -> Tensor:
        """The normalised heatmap (B, N, H, W) of each class's region, 0 elsewhere (Eq. 2)."""
        heatmap = score.sigmoid()
        region = heatmap * self.region(score)
        total = region.sum((2, 3), keepdim=True)
        if self.preset == "code":
            nothing = (total <= EPSILON).to(heatmap.dtype)
            region = region + nothing * (heatmap - region)
            total = region.sum((2, 3), keepdim=True)
        return region / (total + EPSILON)

    @torch.no_grad()
    def region(self, score: Tensor) -> Tensor:
        """Which pixels are of a class's region: 1 or 0 in (B, N, H, W)."""
        pixels = score.shape[2] * score.shape[3]
        count = min(pixels, max(LEAST_PX[self.preset], round(self.top_k * pixels)))
        if count == pixels:
            return torch.ones_like(score)
        lowest = score.flatten(2).topk(count).values.amin(-1)
        return (score >= lowest[..., None, None]).to(score.dtype)


def _two_layers(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.GELU(), nn.Linear(outputs, outputs))
