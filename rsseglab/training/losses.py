"""Losses for label maps in which some pixels do not count."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsseglab.scenes.scene import IGNORE_INDEX


def cross_entropy(logits: Tensor, label: Tensor, ignore_index: int = IGNORE_INDEX, smoothing: float = 0.0) -> Tensor:
    r"""Cross-entropy, averaged over the pixels that count.

    .. math:: L = \frac{1}{|V|} \sum_{i \in V} \Big(-(1 - s) \log p_{i, y_i}
              - \frac{s}{K} \sum_k \log p_{ik}\Big), \qquad V = \{i : y_i \ne \mathrm{ignore}\}

    A batch in which no pixel counts has loss and gradient 0 (torch gives NaN).

    Args:
        logits: shape (B, K, H, W).
        label: shape (B, H, W), class indices.
        ignore_index: label of the pixels that do not count.
        smoothing: share s of a label that is spread over all classes (label smoothing).

    Returns:
        A scalar.
    """
    total = F.cross_entropy(logits, label, ignore_index=ignore_index, reduction="sum", label_smoothing=smoothing)
    return total / (label != ignore_index).sum().clamp(min=1)


def dice(logits: Tensor, label: Tensor, ignore_index: int = IGNORE_INDEX, smooth: float = 0.0) -> Tensor:
    r"""Soft Dice loss over the pixels that count, averaged over the classes that occur in the batch.

    .. math:: L = 1 - \frac{1}{|C|} \sum_{k \in C}
              \frac{2 \sum_{i \in V} p_{ik} t_{ik} + s}{\sum_{i \in V} p_{ik} + \sum_{i \in V} t_{ik} + s}

    with :math:`p` the softmax of the logits, :math:`t` the one-hot label and :math:`C` the classes with
    :math:`\sum_i t_{ik} > 0`; 0 when no pixel counts.

    Args:
        logits: shape (B, K, H, W).
        label: shape (B, H, W), class indices.
        ignore_index: label of the pixels that do not count.
        smooth: px s that are added to both sides of the ratio.

    Returns:
        A scalar.

    Source:
        Milletari, Navab, Ahmadi, "V-Net", 3DV 2016, section 3, with the sums of p and t not squared.
    """
    counts = (label != ignore_index).unsqueeze(1)  # (B, 1, H, W)
    p = logits.softmax(dim=1) * counts
    t = F.one_hot(label.where(counts.squeeze(1), 0), logits.shape[1]).movedim(-1, 1) * counts
    overlap, size = (p * t).sum((0, 2, 3)), (p + t).sum((0, 2, 3))  # (K)
    occurs = t.sum((0, 2, 3)) > 0
    return ((1 - (2 * overlap + smooth) / (size + smooth).clamp(min=1e-12)) * occurs).sum() / occurs.sum().clamp(min=1)


def focal(logits: Tensor, label: Tensor, ignore_index: int = IGNORE_INDEX, gamma: float = 3.0) -> Tensor:
    r"""Focal loss on the softmax, averaged over the pixels that count: the surer a pixel is right, the less it weighs.

    .. math:: L = \frac{1}{|V|} \sum_{i \in V} -(1 - p_{i, y_i})^\gamma \log p_{i, y_i},
              \qquad V = \{i : y_i \ne \mathrm{ignore}\}

    Both factors follow from the cross-entropy :math:`c = -\log p` of a pixel, :math:`1 - p = 1 - e^{-c}`, so that loss
    and gradient stay finite as p goes to 0 and to 1, and no p has to be clamped. A batch in which no pixel counts has
    loss and gradient 0.

    Args:
        logits: shape (B, K, H, W).
        label: shape (B, H, W), class indices.
        ignore_index: label of the pixels that do not count.
        gamma: 1 or more, or 0 for the cross-entropy; FCtL trains with 3.

    Returns:
        A scalar.

    Source:
        Lin, Goyal, Girshick, He, Dollar, "Focal Loss for Dense Object Detection", ICCV 2017, equation 4, without the
        weights alpha of the classes.
    """
    c = F.cross_entropy(logits, label, ignore_index=ignore_index, reduction="none")  # (B, H, W); 0 where ignored
    return ((-torch.expm1(-c)) ** gamma * c).sum() / (label != ignore_index).sum().clamp(min=1)


class SegmentationLoss(nn.Module):
    """Sum of named losses, as ``"ce"``, ``"dice"``, ``"ce+dice"`` or ``"focal"``.

    Args:
        name: names of `cross_entropy` ("ce"), `dice` and `focal`, joined by "+".
        ignore_index: label of the pixels that do not count.
    """

    def __init__(self, name: str = "ce+dice", ignore_index: int = IGNORE_INDEX) -> None:
        super().__init__()
        self.names, self.ignore_index = name.split("+"), ignore_index

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Loss of logits (B, K, H, W) against labels (B, H, W); computed in float32 under AMP."""
        logits = logits if logits.dtype == torch.float64 else logits.float()
        loss = logits.new_zeros(())
        if "ce" in self.names:
            loss = loss + cross_entropy(logits, label, self.ignore_index)
        if "dice" in self.names:
            loss = loss + dice(logits, label, self.ignore_index)
        if "focal" in self.names:
            loss = loss + focal(logits, label, self.ignore_index)
        return loss


LOSSES = ("ce", "dice", "ce+dice", "focal")
