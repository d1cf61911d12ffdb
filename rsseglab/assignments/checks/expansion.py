"""Label expansion, held against `rsseglab.penet.expansion`."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rsseglab.assignments.checking import Assignment, Case, Check, Function, Mistake
from rsseglab.penet.expansion import mean_directions, similar_labels
from rsseglab.scenes.scene import IGNORE_INDEX


def _reference(features: Tensor, anchors: Tensor, classes: int, threshold: float, margin: float) -> Tensor:
    prototypes, known = mean_directions(features, anchors, classes)
    return similar_labels(features, anchors, prototypes, known, threshold, margin)


def _case(
    rng: np.random.Generator, *, lengths: bool = False, wrong: bool = False, missing: bool = False,
    threshold: float = 0.7, margin: float = 0.0,
) -> Case:  # fmt: skip
    """Features about the directions of four classes, and a click in ten pixels."""
    B, C, K, height, width = 2, 8, 4, 12, 10
    directions = rng.normal(size=(K, C))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    true = rng.integers(0, K, (B, height, width))
    features = directions[true] + rng.normal(0, 0.25, (B, height, width, C))
    if lengths:
        features *= rng.lognormal(0, 1.2, (B, height, width, 1))
    anchors = np.where(rng.random(true.shape) < 0.1, true, IGNORE_INDEX)
    anchors[0, 0, :K] = range(K)  # one at least of each
    if wrong:
        anchors = np.where((anchors != IGNORE_INDEX) & (rng.random(true.shape) < 0.3), (anchors + 1) % K, anchors)
    if missing:
        anchors[anchors == 1] = IGNORE_INDEX
    tensors = torch.from_numpy(features).float().movedim(-1, 1).contiguous(), torch.from_numpy(anchors).long()
    return *tensors, K, threshold, margin


def _plain(rng: np.random.Generator) -> list[Case]:
    return [_case(rng)]


def _unlike(rng: np.random.Generator) -> list[Case]:
    return [_case(rng, lengths=True)]


def _misplaced(rng: np.random.Generator) -> list[Case]:
    return [_case(rng, wrong=True, threshold=0.2)]


def _doubtful(rng: np.random.Generator) -> list[Case]:
    return [_case(rng, threshold=0.3, margin=0.3)]


def _unclicked(rng: np.random.Generator) -> list[Case]:
    return [_case(rng, missing=True, threshold=-1.0)]


def _expanded(
    features: Tensor, anchors: Tensor, classes: int, threshold: float, margin: float, *,
    directions: bool = True, cosine: bool = True, kept: bool = True, known: bool = True, lead: bool = True,
    least: bool = True, centred: bool = True,
) -> Tensor:  # fmt: skip
    """The expansion with one thing or another wrong."""
    own = F.normalize(features, dim=1) if directions else features
    anchored = [(anchors == k) for k in range(classes)]
    means = [own.movedim(1, -1)[where].mean(0) if where.any() else own.new_zeros(own.shape[1]) for where in anchored]
    prototypes = torch.stack(means)
    if cosine:
        likeness = torch.einsum("bchw,kc->bkhw", F.normalize(features, dim=1), F.normalize(prototypes, dim=1))
    elif centred:
        likeness = torch.einsum("bchw,kc->bkhw", features, prototypes)
    else:
        likeness = torch.einsum("bchw,kc->bkhw", F.normalize(features, dim=1), prototypes)
    if known:
        there = torch.tensor([bool(where.any()) for where in anchored])
        likeness = likeness.masked_fill(~there[:, None, None], -2.0)
    best, second = likeness.topk(2, dim=1).values.unbind(1)
    clear = torch.ones_like(best, dtype=torch.bool)
    clear &= best >= threshold if least else clear
    clear &= best - second >= margin if lead else clear
    free = clear & (anchors == IGNORE_INDEX) if kept else clear
    return torch.where(free, likeness.argmax(1), anchors)


def _wrong(**how: bool) -> Function:
    def answer(features: Tensor, anchors: Tensor, classes: int, threshold: float, margin: float) -> Tensor:
        return _expanded(features, anchors, classes, threshold, margin, **how)

    return answer


ASSIGNMENT = Assignment(
    name="expansion",
    function="expand",
    component="rsseglab.penet.expansion.similar_labels",
    reference=_reference,
    checks=(
        Check("pixels take the label that they point along", 2, _plain),
        Check("bright and dark pixels", 2, _unlike),
        Check("clicks stay as they are", 2, _misplaced),
        Check("pixels between two classes", 2, _doubtful),
        Check("a class that nobody clicked", 2, _unclicked),
    ),
    mistakes=(
        Mistake(
            "prototypes are means of the features as they are, so that one bright pixel outweighs many; divide each "
            "feature by its length before you average",
            _wrong(directions=False),
        ),
        Mistake(
            "pixels and prototypes are compared by their product, which grows with their lengths; use the cosine",
            _wrong(cosine=False),
        ),
        Mistake(
            "prototypes are not brought to length 1: a mean of directions is shorter than 1, and the shorter the more "
            "they differ. Normalise it too for a cosine",
            _wrong(cosine=False, centred=False),
        ),
        Mistake("clicks are overwritten where features say otherwise; only pixels that hold 255 may get a label",
                _wrong(kept=False)),
        Mistake("the margin is missing: the best class has to lead the second by m, or the pixel stays without",
                _wrong(lead=False)),
        Mistake("the threshold is missing: pixels unlike all classes get a label too", _wrong(least=False)),
        Mistake(
            "a class without a click has a prototype of zeros, with a cosine of 0, and so wins where all others are "
            "below it; leave it out of the comparison",
            _wrong(known=False),
        ),
    ),
)  # fmt: skip
