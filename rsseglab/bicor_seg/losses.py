r"""Losses: of the map, of each layer's heatmaps, and of how embeddings lie among each other.

.. math::
    L = L_{main} + \lambda_1 L_{HM} + \lambda_2 L_{FD}, \qquad \lambda_1 = \lambda_2 = 0.1 \qquad (12)

with :math:`L_{main} = L_{CE}(P, Y) + L_{Dice}(P, Y)` (13), the heatmap loss (11) and the Fisher loss (14 to 19) of the
classes below.

==================  =================================  ==============================================================
preset              ``paper``                          ``code``
==================  =================================  ==============================================================
cross-entropy       plain                              labels smoothed by 0.05
Dice                plain                              0.05 px are added to both sides of the ratio
S_b                 Eq. 15                             mean square distance of two centres, 2 N / (N - 1) times that,
                                                       and 0.0001 at least
beside the main     nothing                            0.4 times the cross-entropy of an auxiliary head, which the
loss                                                   paper does not mention
==================  =================================  ==============================================================

All means are over the pixels that count (in the public code the smoothed cross-entropy divides by the ignored ones
too), and Dice over the classes that occur in the batch. Where all pixels are ignored the losses of maps are 0.

Source:
    Shi, Song, arXiv 2512.20255, section 3.3, equations 11 to 19; ``code``: facts read from the authors' public code, of
    which none is used here.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from math import inf
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from rsseglab.bicor_seg.heatmap import check_preset
from rsseglab.errors import UserError
from rsseglab.scenes.scene import IGNORE_INDEX
from rsseglab.training.losses import cross_entropy, dice

EPSILON = 1e-6
LEAST_DISTANCE = 1e-4  # S_b in the code, at least
SMOOTHING = {"paper": 0.0, "code": 0.05}
AUXILIARY = 0.4


class Refined(NamedTuple):
    """What a network gives, and what its losses are of.

    Attributes:
        logits: (B, N, H, W), a plain or a cut map.
        heatmaps: logits of each layer's heatmaps, (B, N, H / 4, W / 4).
        embeddings: of each layer, refined: (B, N, C).
        auxiliary: logits of the head that is there in training alone, (B, N, H, W); None where there is none.
    """

    logits: Tensor
    heatmaps: tuple[Tensor, ...]
    embeddings: tuple[Tensor, ...]
    auxiliary: Tensor | None


class MapLoss(nn.Module):
    """Cross-entropy and Dice (Eq. 13).

    Args:
        preset: "paper" or "code".
        ignore_index: label of the pixels that do not count.
    """

    def __init__(self, preset: str = "code", ignore_index: int = IGNORE_INDEX) -> None:
        super().__init__()
        check_preset(preset)
        self.smoothing, self.ignore_index = SMOOTHING[preset], ignore_index

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Of logits (B, N, H, W) and labels (B, H, W)."""
        both = self.cross_entropy(logits, label) + dice(logits, label, self.ignore_index, self.smoothing)
        return both

    def cross_entropy(self, logits: Tensor, label: Tensor) -> Tensor:
        """Without Dice."""
        return cross_entropy(logits, label, self.ignore_index, self.smoothing)


class HeatmapLoss(nn.Module):
    r"""Each layer's heatmaps as a coarse map of the classes.

    .. math:: L_{HM} = \sum_l L_{CE}(\mathrm{Up}(H_l), Y) + L_{Dice}(\mathrm{Up}(H_l), Y) \qquad (11)

    Args:
        preset: "paper" or "code".
        ignore_index: label of the pixels that do not count.
    """

    def __init__(self, preset: str = "code", ignore_index: int = IGNORE_INDEX) -> None:
        super().__init__()
        self.of = MapLoss(preset, ignore_index)

    def forward(self, heatmaps: Sequence[Tensor], label: Tensor) -> Tensor:
        """Of the layers' heatmap logits (B, N, h, w) and labels (B, H, W); 0 of no layer."""
        size = (int(label.shape[1]), int(label.shape[2]))
        losses = [self.of(F.interpolate(h, size=size, mode="bilinear", align_corners=False), label) for h in heatmaps]
        return torch.stack(losses).sum() if losses else torch.zeros(())


class FisherDiscriminativeLoss(nn.Module):
    r"""Embeddings of a class lie close together in all images of a batch, those of two classes far apart.

    .. math::
        S_w = \frac{1}{B N} \sum_{n, b} \| CE_n^{(b)} - \mu_n \|^2, \quad
        S_b = \frac{1}{N} \sum_n \| \mu_n - \mu \|^2, \quad
        L_{FD} = \sum_l \frac{S_w^{(l)}}{S_b^{(l)} + \varepsilon} \qquad (14 \text{ to } 19)

    with the centres :math:`\mu_n` over the batch and :math:`\mu` over the classes. Where ranks share a batch, it is the
    batch of all of them. A batch of one image has no scatter: its loss is 0, and in training a warning says so.

    Args:
        preset: "paper" or "code".
    """

    def __init__(self, preset: str = "code") -> None:
        super().__init__()
        check_preset(preset)
        self.preset = preset

    def forward(self, embeddings: Sequence[Tensor]) -> Tensor:
        """Of the layers' embeddings (B, N, C); 0 of no layer.

        Raises:
            UserError: there are fewer than two classes.
        """
        losses = [self._of_layer(_of_all_ranks(e)) for e in embeddings]
        if self.training and embeddings and len(embeddings[0]) == 1:
            every = _of_all_ranks(embeddings[0].detach())  # P times the one, where ranks share it
            if bool((every == every[0]).all()):
                warnings.warn("the Fisher loss of a batch of one image is 0; take larger batches.", stacklevel=2)
        return torch.stack(losses).sum() if losses else torch.zeros(())

    def _of_layer(self, embeddings: Tensor) -> Tensor:
        classes = embeddings.shape[1]
        if classes < 2:
            raise UserError(f"the Fisher loss tells classes apart, and there is {classes}; give it a weight of 0.")
        centres = embeddings.mean(0)  # (N, C)
        within = (embeddings - centres).square().sum(2).mean()
        between = (centres - centres.mean(0)).square().sum(1).mean()
        if self.preset == "code":
            between = (2 * classes / (classes - 1) * between).clamp(min=LEAST_DISTANCE)
        return within / (between + EPSILON)


def _of_all_ranks(embeddings: Tensor) -> Tensor:
    """The whole batch's; each rank has the gradient of its own. Ranks that share an image have it twice, or P times."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return embeddings
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(embeddings.contiguous()))


class BiCoRLoss(nn.Module):
    """All of them, weighed (Eq. 12).

    Args:
        preset: "paper" or "code".
        heatmap: weight of `HeatmapLoss`.
        fisher: weight of `FisherDiscriminativeLoss`.
        ignore_index: label of the pixels that do not count.

    Raises:
        UserError: an unknown preset, or a weight that is none.
    """

    def __init__(
        self, preset: str = "code", heatmap: float = 0.1, fisher: float = 0.1, ignore_index: int = IGNORE_INDEX
    ) -> None:
        super().__init__()
        if not (0 <= heatmap < inf and 0 <= fisher < inf):
            raise UserError(f"losses are weighed by {heatmap} and {fisher}; give numbers of 0 or more, such as 0.1.")
        self.main, self.heatmaps = MapLoss(preset, ignore_index), HeatmapLoss(preset, ignore_index)
        self.fisher = FisherDiscriminativeLoss(preset)
        self.heatmap_weight, self.fisher_weight = heatmap, fisher

    def forward(self, refined: Refined, label: Tensor) -> Tensor:
        """Of what a network gives and labels (B, H, W); computed in float32 under AMP."""
        loss = self.main(_wide(refined.logits), label)
        if refined.auxiliary is not None:
            loss = loss + AUXILIARY * self.main.cross_entropy(_wide(refined.auxiliary), label)
        if self.heatmap_weight and refined.heatmaps:
            loss = loss + self.heatmap_weight * self.heatmaps([_wide(h) for h in refined.heatmaps], label)
        if self.fisher_weight and refined.embeddings:
            loss = loss + self.fisher_weight * self.fisher([_wide(e) for e in refined.embeddings])
        return loss


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
