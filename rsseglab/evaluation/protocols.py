r"""What papers call mean IoU, beside ours: protocols by name, each a function of what was counted.

Ours, "honest", is the mean over all classes of :math:`\text{IoU} = TP / (TP + FN + FP)`, and pixels without a label do
not exist (`rsseglab.evaluation.confusion`). A published number stands beside it only under its own definition.

**fctl**: the mean over the classes [1:] of the label, as FCtL, and after it ISDNet and others, report it. With
:math:`I_c` the pixels without a label that were predicted as c,

.. math:: \text{IoU}_c = \frac{TP_c}{TP_c + FN_c + FP_c + I_c}, \qquad
          \text{mIoU} = \frac{1}{K - 1} \sum_{c = 1}^{K - 1} \text{IoU}_c

*Two classes, background first* (Inria): the "mean" is the IoU of the other class alone. ISDNet's notes give building
74.39 and background 97.58, of which the mean is 85.99, and report about the first as its mIoU on Inria.

*Otherwise* (DeepGlobe): class 0 of the authors' label is 'unknown', which here is no class but what is ignored. The
mean is so over all of our classes, as ours is; but a pixel of 'unknown' that gets a class is a false positive of it.
The authors' networks learn 'unknown' and may predict it there; ours cannot, and so can only lose by it.

Source:
    Li, Yang, Liu, Yu, He, "From Contexts to Locality", ICCV 2021: the metric of the authors' public code (MIT), of
    which none is used here. How it computes F1 and accuracy is not published, so the protocol has neither. The IoUs of
    the two classes of Inria: the notes of ISDNet's public code (CVPR 2022).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rsseglab.errors import UserError
from rsseglab.evaluation.confusion import Confusion, mean_over

BACKGROUND = "background"  # how the data sets' manifests, and `single_class`, name what is none of the things sought


@dataclass(frozen=True)
class Scores:
    """What a protocol makes of the counts.

    Attributes:
        metrics: plain types for a run record: ``mean_over`` (names of classes), ``mean_iou`` and ``iou`` (a class).
        explanation: one line: what differs from the honest scores, on these counts.
    """

    metrics: dict[str, Any]
    explanation: str


def fctl(confusion: Confusion) -> Scores:
    """FCtL's mean IoU; see the module.

    Raises:
        UserError: predictions on pixels without a label were not counted.
    """
    names, found = confusion.classes, confusion.true_positives
    ignored = _ignored(confusion)[:-1]
    union = confusion.label_counts + confusion.predicted_counts + ignored - found
    iou = np.where(union > 0, found / np.maximum(union, 1), np.nan)
    binary = len(names) == 2 and names[0] == BACKGROUND
    over = list(names[1:] if binary else names)
    metrics = {
        "mean_over": over,
        "mean_iou": mean_over(iou, names, over),
        "iou": dict(zip(names, iou.tolist(), strict=True)),
    }
    mean = f"is the IoU of {over[0]} alone, without {names[0]}" if binary else f"is over {len(over)} classes"
    return Scores(
        metrics,
        f"fctl: the published mean {mean}; each pixel without a label that got a class ({ignored.sum():,} here) is a "
        "false positive of that class, while honest leaves those pixels out.",
    )


def _ignored(confusion: Confusion) -> Any:
    if confusion.ignored is None:
        raise UserError(
            "these counts leave out what was predicted where no label is, which the protocol needs; "
            "evaluate the prediction anew."
        )
    return confusion.ignored


#: By name: what ``rsseglab evaluate --protocol`` takes.
PROTOCOLS: dict[str, Callable[[Confusion], Scores]] = {"fctl": fctl}


def score(confusion: Confusion, protocol: str) -> Scores:
    """Scores under a protocol.

    Args:
        confusion: of a scene, or of several, pooled.
        protocol: one of `PROTOCOLS`.

    Raises:
        UserError: there is no such protocol, or the confusion lacks what it needs.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"there is no protocol '{protocol}'; choose from {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[protocol](confusion)
