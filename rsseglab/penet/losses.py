r"""The loss of point labels: clicks, what masks have grown from them, what is expanded from both, and what is absent.

.. math::
    L = \mathrm{CE}(C) + a\, \mathrm{CE}(G \setminus C) + b\, \mathrm{CE}(E \setminus (G \cup C)) + c\, L_0, \qquad
    L_0 = \frac{1}{|\bar K| |X|} \sum_{k \in \bar K} \sum_{x \in X} -\log(1 - p_k(x))

with C the clicked pixels, G the pixels that masks label (`rsseglab.penet.growing`), E the expanded ones
(`rsseglab.penet.expansion`), on the grid of the features, and :math:`\bar K` the classes that have no anchor in the
image. The last term takes them for absent, which holds where each object of each crop is clicked, as DBFNet does; where
a click stands for an object larger than a crop it is wrong more often than right, so c is 0 if nobody says otherwise.
With AGMM's soft labels s in the place of E, the third term is

.. math::
    b \big( \mathrm{BCE}(p, s)_{k \in K} + \mathrm{BCE}(s, y)_{C \cup G}
    + \mathrm{mean}_{i < j} \exp(-(\mathrm{mean}_c |\mu_i - \mu_j|)^2) \big)

The weights a, b, c are ours: PENet's are not known. CRGNet's own loss (Lovasz, a second classifier) is not taken over;
its region growing is, so that the three ways of expansion differ in nothing else.

Source:
    Our reading of the abstract of Chan et al., Sci. Rep. 15, 27347, 2025; the absence penalty: Wu et al., DBFNet, TIP
    2022; soft labels: Wu et al., AGMM, CVPR 2023.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsseglab.errors import UserError
from rsseglab.penet.expansion import SimilarityExpansion, grow_regions, soft_labels
from rsseglab.scenes.scene import IGNORE_INDEX
from rsseglab.training.losses import cross_entropy

NEAR = 1e-6
EXPANSIONS = ("none", "similarity", "regions", "soft")


class Mapped(NamedTuple):
    """What `rsseglab.penet.model.PENet` makes of images.

    Attributes:
        logits: shape (B, K, H, W).
        features: shape (B, C, h, w), what labels are expanded by.
    """

    logits: Tensor
    features: Tensor


class PointLoss(nn.Module):
    """The module's loss.

    Args:
        classes: number of classes K.
        dim: channels C of the features.
        steps: of the training, by which the expansion's schedule goes.
        expansion: "none", "similarity", "regions" (CRGNet's) or "soft" (AGMM's).
        masks: a.
        expanded: b.
        absence: c.

    Raises:
        UserError: an option is unknown or out of range.
    """

    reads = ("grown",)  # of a batch, beside image and label
    step: Tensor

    def __init__(
        self,
        classes: int,
        dim: int,
        steps: int = 1000,
        expansion: str = "similarity",
        masks: float = 1.0,
        expanded: float = 0.5,
        absence: float = 0.0,
    ) -> None:
        super().__init__()
        if expansion not in EXPANSIONS:
            raise UserError(f"there is no expansion '{expansion}'; choose one of {', '.join(EXPANSIONS)}.")
        if min(masks, expanded, absence) < 0:
            raise UserError("a part of the loss has a negative weight; give 0 to leave it out.")
        self.classes, self.steps, self.expansion = classes, steps, expansion
        self.masks, self.expanded, self.absence = masks, expanded, absence
        self.similarity = SimilarityExpansion(classes, dim) if expansion == "similarity" else None
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def forward(self, mapped: Mapped, clicks: Tensor, grown: Tensor | None = None) -> Tensor:
        """The loss; in eval mode the cross-entropy of the label given.

        Args:
            mapped: of the network.
            clicks: shape (B, H, W): class indices, `IGNORE_INDEX` where there is no click.
            grown: likewise, of masks; none if not given.
        """
        logits = mapped.logits if mapped.logits.dtype == torch.float64 else mapped.logits.float()
        loss = cross_entropy(logits, clicks)
        if not self.training:
            return loss
        grown = torch.full_like(clicks, IGNORE_INDEX) if grown is None else grown
        clicked = clicks != IGNORE_INDEX
        loss = loss + self.masks * cross_entropy(logits, grown.masked_fill(clicked, IGNORE_INDEX))
        anchors = torch.where(clicked, clicks, grown)
        if self.absence:
            loss = loss + self.absence * absence_loss(logits, anchors)
        if self.expansion != "none":
            loss = loss + self.expanded * self._expanded(mapped._replace(logits=logits), clicks, grown, anchors)
        self.step += 1
        return loss

    def _expanded(self, mapped: Mapped, clicks: Tensor, grown: Tensor, anchors: Tensor) -> Tensor:
        size = mapped.features.shape[2:]
        features = mapped.features if mapped.features.dtype == torch.float64 else mapped.features.float()
        coarse = cells(clicks, grown, size, self.classes)
        if self.expansion == "soft":
            logits = F.interpolate(mapped.logits, size=size, mode="bilinear", align_corners=False)
            return soft_loss(logits, features, coarse)
        labels = self.expand(mapped._replace(features=features), coarse)
        labels = labels.where(coarse == IGNORE_INDEX, IGNORE_INDEX)  # a click's cell is no expansion of it
        full = F.interpolate(labels[:, None].double(), size=anchors.shape[1:], mode="nearest")[:, 0].long()
        return cross_entropy(mapped.logits, full.where(anchors == IGNORE_INDEX, IGNORE_INDEX))

    def restart(self) -> None:
        """Forget how far a training was, and what its prototypes were: another begins."""
        self.step.zero_()
        if self.similarity is not None:
            self.similarity.prototypes.zero_()
            self.similarity.known.zero_()

    def expand(self, mapped: Mapped, anchors: Tensor) -> Tensor:
        """Expanded labels (B, h, w) at this step, of anchors (B, h, w) on the features' grid."""
        t = min(1.0, float(self.step) / max(1, self.steps))
        if self.similarity is not None:
            expanded: Tensor = self.similarity(mapped.features, anchors, t)
            return expanded
        size = mapped.features.shape[2:]
        logits = F.interpolate(mapped.logits, size=size, mode="bilinear", align_corners=False)
        return grow_regions(logits, anchors, t)


def cells(clicks: Tensor, grown: Tensor, size: torch.Size, classes: int) -> Tensor:
    """Anchors on a coarser grid: of a cell's clicks, else of its masks, the class with most pixels.

    Args:
        clicks: shape (B, H, W).
        grown: likewise.
        size: h and w, which divide H and W.
        classes: K.

    Returns:
        Shape (B, h, w): class indices, `IGNORE_INDEX` where a cell has neither.
    """
    out = torch.full((len(clicks), *size), IGNORE_INDEX, dtype=clicks.dtype, device=clicks.device)
    rows, cols = clicks.shape[1] // size[0], clicks.shape[2] // size[1]
    for label in (grown, clicks):
        one_hot = F.one_hot(label.where(label != IGNORE_INDEX, classes), classes + 1)[..., :-1]
        blocks = one_hot.view(len(label), size[0], rows, size[1], cols, classes).sum((2, 4))  # (B, h, w, K)
        most, index = blocks.max(-1)
        out = torch.where(most > 0, index, out)
    return out


def absence_loss(logits: Tensor, anchors: Tensor) -> Tensor:
    """The penalty :math:`L_0` of classes without an anchor in an image; 0 where each has one.

    Args:
        logits: shape (B, K, H, W).
        anchors: shape (B, H, W). An image without any anchor says nothing of its classes, and counts for nothing.
    """
    classes = logits.shape[1]
    one_hot = F.one_hot(anchors.where(anchors != IGNORE_INDEX, classes), classes + 1)[..., :-1]
    there = one_hot.flatten(1, 2).amax(1) > 0  # (B, K)
    absent = ~there & there.any(1, keepdim=True)
    # log(1 - p_k) = log of the sum of all others' exponentials, less that of all: finite for any logits.
    total = logits.logsumexp(1, keepdim=True)
    others = torch.stack([logits.index_fill(1, _index(k, logits), -torch.inf).logsumexp(1) for k in range(classes)], 1)
    each = (total - others).flatten(2).mean(2)  # (B, K)
    return (each * absent).sum() / absent.sum().clamp(min=1)


def _index(k: int, like: Tensor) -> Tensor:
    return torch.tensor([k], device=like.device)


def soft_loss(logits: Tensor, features: Tensor, anchors: Tensor) -> Tensor:
    """AGMM's loss of its soft labels; see the module.

    Args:
        logits: shape (B, K, h, w).
        features: shape (B, C, h, w).
        anchors: shape (B, h, w).
    """
    classes = logits.shape[1]
    soft, centres, there = soft_labels(features, anchors, classes)
    p, of = logits.softmax(1), there[..., None, None].expand_as(soft)
    if not there.any():
        return logits.sum() * 0
    # At 0 and 1 the slopes, of a soft label too, would have no bound.
    p, soft = p.clamp(NEAR, 1 - NEAR), soft.clamp(NEAR, 1 - NEAR)
    against = F.binary_cross_entropy(p[of], soft[of])
    anchored = (anchors != IGNORE_INDEX)[:, None] & of
    truth = F.one_hot(anchors.where(anchors != IGNORE_INDEX, classes), classes + 1)[..., :-1].movedim(-1, 1)
    on_anchors = F.binary_cross_entropy(soft[anchored], truth[anchored].to(soft.dtype))
    mean = (centres * there[..., None]).sum(0) / there.sum(0).clamp(min=1)[:, None]  # (K, C), over the batch
    mean = mean[there.any(0)]
    apart = (mean[:, None] - mean[None]).abs().mean(-1)
    pairs = torch.triu_indices(len(mean), len(mean), 1)
    repulsion = torch.exp(-apart[pairs[0], pairs[1]].square())
    return against + on_anchors + (repulsion.mean() if repulsion.numel() else 0)
