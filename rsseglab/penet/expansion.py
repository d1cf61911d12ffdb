r"""Anchors expanded to labels, by what the network itself has learnt; three ways.

**Similarity**, our reading of PENet's abstract ("dynamic label expansion guided by high-dimensional semantic feature
similarity", anchored in clicks and in labels from Segment Anything). A class's prototype is the mean direction of its
anchors A; a pixel takes the class that it points along, if it does so clearly:

.. math::
    \mu_k = \frac{1}{|A_k|} \sum_{x \in A_k} \frac{f(x)}{|f(x)|}, \qquad
    s_k(x) = \cos(f(x), \mu_k), \qquad
    \hat y(x) = \arg\max_k s_k(x) \quad \text{if} \; s_{(1)} \ge \tau_t \; \text{and} \; s_{(1)} - s_{(2)} \ge m

Prototypes are averaged over steps, so that a crop without an anchor of a class knows it still. Nothing is expanded
before a share w of the training, :math:`t \in [0, 1]`; then the threshold falls from :math:`\tau_0` to
:math:`\tau_1`:

.. math:: \tau_t = \tau_0 - (\tau_0 - \tau_1) \frac{t - w}{1 - w}

**Region growing** (CRGNet). In each of :math:`\lfloor 10\, t^{0.9} \rfloor` rounds an unlabelled pixel takes the label
of one of its 8 neighbours, if the network predicts the same with a probability above 0.95. CRGNet grows at every 20th
step on a map of stride 8; here labels are made anew at each step, on the map of the decoder (stride 4 for FPN, where as
many rounds reach half as far).

**Soft labels** (AGMM). Each pixel is as much of a class as its features are near the class's anchors in this image:

.. math:: s_k(x) = \exp(-d_k(x)^2), \qquad d_k(x) = \frac{1}{C} \sum_c |f_c(x) - \mu_{k c}|

In all three, anchors are never overwritten, labels are made anew at each step, and the first two pass no gradient.

Source:
    Abstract of Chan et al., Sci. Rep. 15, 27347, 2025 (the rest of the paper could not be had: formula, threshold,
    margin and schedule of the first are ours); Xu, Ghamisi, "Consistency-Regularized Region-Growing Network", TIP 2022,
    arXiv 2202.03740; Wu et al., "Sparsely Annotated Semantic Segmentation with Adaptive Gaussian Mixtures", CVPR 2023.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsseglab.errors import UserError
from rsseglab.scenes.scene import IGNORE_INDEX

CERTAIN, ROUNDS, POWER = 0.95, 10, 0.9  # of region growing, as published


class SimilarityExpansion(nn.Module):
    r"""Labels of pixels whose features are like the anchors of one class; see the module.

    Args:
        classes: number of classes K.
        dim: channels C of the features.
        start: threshold :math:`\tau_0`, a cosine.
        end: threshold :math:`\tau_1`.
        margin: m, by which the best class has to lead.
        warmup: share w of the training without expansion.
        memory: share of a prototype that stays from step to step.

    Raises:
        UserError: a number is out of range.
    """

    prototypes: Tensor
    known: Tensor

    def __init__(
        self,
        classes: int,
        dim: int,
        start: float = 0.95,
        end: float = 0.8,
        margin: float = 0.1,
        warmup: float = 0.2,
        memory: float = 0.9,
    ) -> None:
        super().__init__()
        if not (-1 <= end <= start <= 1 and margin >= 0 and 0 <= warmup < 1 and 0 <= memory < 1):
            raise UserError(
                f"expansion from {start} to {end} by a margin of {margin} after {warmup}: cosines fall, the margin is "
                "not negative, and shares are below 1."
            )
        self.start, self.end, self.margin, self.warmup, self.memory = start, end, margin, warmup, memory
        self.register_buffer("prototypes", torch.zeros(classes, dim))
        self.register_buffer("known", torch.zeros(classes, dtype=torch.bool))

    @torch.no_grad()
    def forward(self, features: Tensor, anchors: Tensor, t: float) -> Tensor:
        """Expanded labels.

        Args:
            features: shape (B, C, H, W).
            anchors: shape (B, H, W): class indices, `IGNORE_INDEX` where there is none.
            t: how far the training is, 0 to 1.

        Returns:
            Shape (B, H, W), the anchors as they are.
        """
        self._remember(features, anchors)
        if t < self.warmup:
            return anchors
        threshold = self.start - (self.start - self.end) * (t - self.warmup) / (1 - self.warmup)
        return similar_labels(features, anchors, self.prototypes, self.known, threshold, self.margin)

    def _remember(self, features: Tensor, anchors: Tensor) -> None:
        means, seen = mean_directions(features, anchors, len(self.known))
        kept = torch.where(self.known[:, None], self.memory, 0.0) * self.prototypes
        new = torch.where(self.known[:, None], 1 - self.memory, 1.0) * means
        self.prototypes.copy_(torch.where(seen[:, None], kept + new, self.prototypes))
        self.known |= seen


def mean_directions(features: Tensor, anchors: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Prototypes of the classes that have an anchor.

    Args:
        features: shape (B, C, H, W).
        anchors: shape (B, H, W).
        classes: K.

    Returns:
        Shape (K, C), 0 for the others; and which have one, (K).
    """
    anchored = anchors != IGNORE_INDEX
    label = anchors[anchored]  # (n)
    directions = F.normalize(features.movedim(1, -1)[anchored], dim=1)  # (n, C)
    sums = directions.new_zeros(classes, features.shape[1]).index_add_(0, label, directions)
    count = torch.bincount(label, minlength=classes)
    return sums / count.clamp(min=1)[:, None], count > 0


def similar_labels(
    features: Tensor, anchors: Tensor, prototypes: Tensor, known: Tensor, threshold: float, margin: float
) -> Tensor:
    """Labels by similarity; see the module.

    Args:
        features: shape (B, C, H, W).
        anchors: shape (B, H, W).
        prototypes: shape (K, C).
        known: shape (K), which prototypes there are.
        threshold: a cosine.
        margin: by which the best has to lead; where one class alone is known, it always does.

    Returns:
        Shape (B, H, W).
    """
    length = features.square().sum(1).sqrt().clamp(min=1e-12)  # (B, H, W)
    cosine = torch.einsum("bchw,kc->bkhw", features, F.normalize(prototypes, dim=1)) / length[:, None]
    cosine = cosine.masked_fill(~known[:, None, None], -2.0)  # below all cosines
    best, label = cosine.max(1)
    second = cosine.scatter(1, label[:, None], -2.0).amax(1) if len(known) > 1 else best - 2
    clear = (best >= threshold) & (best - second >= margin) & (anchors == IGNORE_INDEX)
    return torch.where(clear, label, anchors)


@torch.no_grad()
def grow_regions(logits: Tensor, anchors: Tensor, t: float) -> Tensor:
    """CRGNet's region growing; see the module.

    Args:
        logits: shape (B, K, H, W).
        anchors: shape (B, H, W).
        t: how far the training is, 0 to 1.

    Returns:
        Shape (B, H, W), the anchors as they are.
    """
    probability, predicted = logits.softmax(1).max(1)
    certain, label = probability > CERTAIN, anchors
    for _ in range(int(ROUNDS * t**POWER)):
        has = F.one_hot(label.where(label != IGNORE_INDEX, logits.shape[1]), logits.shape[1] + 1)[..., :-1]
        near = F.max_pool2d(has.movedim(-1, 1).to(logits.dtype), 3, stride=1, padding=1)  # (B, K, H, W)
        wanted = near.gather(1, predicted[:, None])[:, 0] > 0
        grown = torch.where(wanted & certain & (label == IGNORE_INDEX), predicted, label)
        if torch.equal(grown, label):
            break
        label = grown
    return label


def soft_labels(features: Tensor, anchors: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """AGMM's soft labels of each image, from its own anchors; gradients pass, as in the public code.

    Args:
        features: shape (B, C, H, W).
        anchors: shape (B, H, W).
        classes: K.

    Returns:
        Soft labels (B, K, H, W), 0 for classes without an anchor in the image; the centres (B, K, C); which there are,
        (B, K).
    """
    one_hot = F.one_hot(anchors.where(anchors != IGNORE_INDEX, classes), classes + 1)[..., :-1].to(features.dtype)
    count = one_hot.sum((1, 2))  # (B, K)
    centres = torch.einsum("bhwk,bchw->bkc", one_hot, features) / count.clamp(min=1)[..., None]
    # A class at a time: all at once would be B x K x C x H x W numbers.
    distance = [(features - centres[:, k, :, None, None]).abs().mean(1) for k in range(classes)]
    there = count > 0
    return torch.exp(-torch.stack(distance, 1).square()) * there[..., None, None], centres, there
