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

**geoseg**: ISPRS's Vaihingen and Potsdam as GeoSeg, and after it BiCoR-Seg and others, score them: classes but clutter
enter the means (clutter is predicted, and counts in the overall accuracy), borders of classes are left out
(``no_boundary_px=3``), and scenes are padded at the right and at the bottom to a multiple of 1024 px. *By reading the
authors' public code, not by running it*: since a change of May 2023 the label of the padding decodes as impervious
surface, s, so that what the network says of black pixels is scored. With :math:`P_c` the pixels of padding that were
predicted as c, and :math:`P` all of them,

.. math:: TP_s' = TP_s + P_s, \qquad FN_s' = FN_s + P - P_s, \qquad FP_c' = FP_c + P_c \quad (c \ne s)

A scene of 2557 x 1887 px is padded to 3072 x 2048, of which 23 % are padding; Potsdam's of 6000 px to 6144, 4.6 %;
LoveDA's of 1024 px not at all, and the protocol then changes nothing. With 23 % of padding that is all called s, an F1
of s of 94.0 to 94.5 becomes 97.1 to 97.4, where s is somewhat more than a quarter of the labels. BiCoR-Seg reports
97.36 on Vaihingen, older papers 92 to 94. That the one explains the other is a hypothesis that fits, not a finding.

*What is exact.* Where the prediction covers the padded scene, :math:`P_c` is counted. Where it covers only the scene,
all of the padding is taken as called s: what a network learns that sees black so labelled, and the best case for the
score. Which of the two it is stands in the explanation. ``without_padding`` has the means of the same classes on the
scene alone: the rest of the difference to ours is which classes are in the mean.

*What is not reproduced.* Patches of 1024 px side by side, with the black beside the scene in view, are a matter of how
the prediction is made (pad the image, keep the scene's name, label it with ``--window 1024 --overlap 0``), and so is
test-time augmentation.

Source:
    GeoSeg's and BiCoR-Seg's public code, of which none is used here; shares and F1s are arithmetic on sizes and counts.
    Shi, Song, arXiv 2512.20255, Table 2, for the figures reported.

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
from rsseglab.evaluation.padding import Padding

PAVED, CLUTTER = "impervious surface", "clutter"  # as the manifests of Vaihingen and Potsdam name them
#: What a protocol pads the sides of scenes to a multiple of; see `rsseglab.evaluation.evaluate_scene`.
PAD_TO_PX = {"geoseg": 1024}
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


def geoseg(confusion: Confusion, padding: Padding | None) -> Scores:
    """GeoSeg's scores of ISPRS's data sets; see the module.

    Raises:
        UserError: the padding was not counted, or there is some and no class that it would be labelled as.
    """
    if padding is None:
        raise UserError(
            "these counts lack the scenes' padding, which the protocol scores; evaluate with pad_to_px=1024."
        )
    names = confusion.classes
    over = [name for name in names if name != CLUTTER]
    padded = Confusion(names, confusion.matrix)
    if padding.pixels and PAVED not in names:
        raise UserError(
            f"protocol geoseg labels {padding.pixels:,} px of padding as {PAVED}, which is none of the classes "
            f"{', '.join(names)}; use it for vaihingen and potsdam, or for scenes of {padding.multiple_px} px."
        )
    if padding.pixels:
        paved = names.index(PAVED)
        padded.matrix[paved] += padding.predicted
        padded.matrix[paved, paved] += padding.unseen
    metrics = {
        "mean_over": over,
        "mean_iou": padded.mean_iou(over),
        "mean_f1": padded.mean_f1(over),
        "overall_accuracy": padded.overall_accuracy(),
        "iou": dict(zip(names, padded.iou().tolist(), strict=True)),
        "f1": dict(zip(names, padded.f1().tolist(), strict=True)),
        "without_padding": {"mean_iou": confusion.mean_iou(over), "mean_f1": confusion.mean_f1(over)},
        "padding_px": padding.pixels,
        "padding_assumed_px": padding.unseen,
    }
    eroded = "; published scores leave out labels within 3 px of another class (--no-boundary 3)"
    sentence = f"geoseg: {_means(names, over)}; {_lift(confusion, padded, padding, over)}"
    return Scores(metrics, f"{sentence}{eroded if PAVED in names else ''}.")


def _means(names: tuple[str, ...], over: list[str]) -> str:
    left_out = f", {CLUTTER} left out of the means alone" if len(over) < len(names) else ""
    return f"the published means are over {len(over)} classes{left_out}"


def _lift(confusion: Confusion, padded: Confusion, padding: Padding, over: list[str]) -> str:
    if not padding.pixels:
        return f"the scenes' sides are multiples of {padding.multiple_px} px, so there is no padding"
    paved, share = confusion.classes.index(PAVED), padding.pixels / padded.pixels
    seen = "as predicted"
    if padding.unseen:
        part = "" if padding.unseen == padding.pixels else f"{padding.unseen:,} px of it "
        seen = f"{part}assumed to be called so, the best case, as the prediction ends with the scene"
    f1, iou = ([one.f1()[paved] for one in (confusion, padded)], [one.mean_iou(over) for one in (confusion, padded)])
    return (
        f"black padding ({padding.pixels:,} px, {share:.1%} of what is scored) counts as {PAVED} ({seen}), taking "
        f"its F1 from {f1[0]:.3f} to {f1[1]:.3f} and the mean IoU from {iou[0]:.3f} to {iou[1]:.3f}, while "
        "honest leaves it out"
    )


def _ignored(confusion: Confusion) -> Any:
    if confusion.ignored is None:
        raise UserError(
            "these counts leave out what was predicted where no label is, which the protocol needs; "
            "evaluate the prediction anew."
        )
    return confusion.ignored


#: By name: what ``rsseglab evaluate --protocol`` takes.
PROTOCOLS: dict[str, Callable[[Confusion, Padding | None], Scores]] = {
    "fctl": lambda confusion, padding: fctl(confusion),
    "geoseg": geoseg,
}


def score(confusion: Confusion, protocol: str, padding: Padding | None = None) -> Scores:
    """Scores under a protocol.

    Args:
        confusion: of a scene, or of several, pooled.
        protocol: one of `PROTOCOLS`.
        padding: of the same scenes, for a protocol of `PAD_TO_PX`.

    Raises:
        UserError: there is no such protocol, or the counts lack what it needs.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"there is no protocol '{protocol}'; choose from {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[protocol](confusion, padding)
