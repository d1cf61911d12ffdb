"""IoU of a scene, held against `rsseglab.evaluation.Confusion`."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rsseglab.assignments.checking import Assignment, Case, Check, Mistake
from rsseglab.evaluation.confusion import Confusion
from rsseglab.scenes.scene import IGNORE_INDEX

Scores = NDArray[np.float64]
Blocks = Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8]]]


def _reference(blocks: Blocks, classes: int) -> Scores:
    confusion = Confusion([str(k) for k in range(classes)])
    for prediction, label in blocks:
        confusion.update(prediction, label)
    return confusion.iou()


def _blocks(rng: np.random.Generator, classes: int) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Blocks of different sizes and mixtures, 70 % right."""
    blocks = []
    for height, width in ((12, 17), (30, 25), (8, 9)):
        shares = rng.dirichlet(np.full(classes, 0.8))
        label = rng.choice(classes, size=(height, width), p=shares).astype(np.uint8)
        other = rng.integers(0, classes, label.shape).astype(np.uint8)
        blocks.append((np.where(rng.random(label.shape) < 0.7, label, other), label))
    return blocks


def _pooled(rng: np.random.Generator) -> list[Case]:
    return [(_blocks(rng, 4), 4)]


def _holes(rng: np.random.Generator, which: int) -> list[Case]:
    blocks = _blocks(rng, 4)
    for pair in blocks:
        pair[which][rng.random(pair[0].shape) < 0.2] = IGNORE_INDEX
    return [(blocks, 4)]


def _unlabelled(rng: np.random.Generator) -> list[Case]:
    return _holes(rng, 1)


def _unpredicted(rng: np.random.Generator) -> list[Case]:
    return _holes(rng, 0)


def _absent(rng: np.random.Generator) -> list[Case]:
    return [(_blocks(rng, 3), 5)]


def _many(rng: np.random.Generator) -> list[Case]:
    return [(_blocks(rng, 30), 30)]


def _flat(blocks: Blocks) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    predictions, labels = zip(*blocks, strict=True)
    return np.concatenate([p.ravel() for p in predictions]), np.concatenate([p.ravel() for p in labels])


def _without_ignoring(blocks: Blocks, classes: int) -> Scores:
    prediction, label = _flat(blocks)
    guess, true = (np.arange(classes)[:, None] == values for values in (prediction, label))
    union = (guess | true).sum(1)
    return np.where(union > 0, (guess & true).sum(1) / np.maximum(union, 1), np.nan)


def _mean_of_blocks(blocks: Blocks, classes: int) -> Scores:
    scores = np.array([_reference([block], classes) for block in blocks])
    number = (~np.isnan(scores)).sum(0)
    return np.where(number > 0, np.nansum(scores, 0) / np.maximum(number, 1), np.nan)


def _nowhere_is_0(blocks: Blocks, classes: int) -> Scores:
    return np.nan_to_num(_reference(blocks, classes), nan=0.0)


def _nowhere_is_1(blocks: Blocks, classes: int) -> Scores:
    return np.nan_to_num(_reference(blocks, classes), nan=1.0)


def _empty_left_out(blocks: Blocks, classes: int) -> Scores:
    return _reference([(p, np.where(p == IGNORE_INDEX, np.uint8(IGNORE_INDEX), t)) for p, t in blocks], classes)


def _confusion(blocks: Blocks, classes: int) -> Confusion:
    confusion = Confusion([str(k) for k in range(classes)])
    for prediction, label in blocks:
        confusion.update(prediction, label)
    return confusion


def _dice(blocks: Blocks, classes: int) -> Scores:
    return _confusion(blocks, classes).f1()


def _recall(blocks: Blocks, classes: int) -> Scores:
    return _confusion(blocks, classes).recall()


def _precision(blocks: Blocks, classes: int) -> Scores:
    return _confusion(blocks, classes).precision()


def _mean(blocks: Blocks, classes: int) -> float:
    return float(np.nanmean(_reference(blocks, classes)))


def _overflowing(blocks: Blocks, classes: int) -> Scores:
    prediction, label = _flat(blocks)
    scored = label != IGNORE_INDEX
    pairs = label[scored] * np.uint8(classes) + prediction[scored]  # in uint8, as the arrays are
    matrix = np.bincount(pairs, minlength=classes**2)[: classes**2].reshape(classes, classes)
    hit = matrix.diagonal()
    union = matrix.sum(0) + matrix.sum(1) - hit
    return np.where(union > 0, hit / np.maximum(union, 1), np.nan)


ASSIGNMENT = Assignment(
    name="iou",
    function="scene_iou",
    component="rsseglab.evaluation.Confusion",
    reference=_reference,
    checks=(
        Check("blocks are pooled", 2, _pooled),
        Check("pixels without a label", 2, _unlabelled),
        Check("pixels without a prediction", 2, _unpredicted),
        Check("a class that is nowhere", 2, _absent),
        Check("thirty classes", 2, _many),
    ),
    mistakes=(
        Mistake(
            "pixels whose label is 255 count: what is predicted on them is nobody's error. Leave them out of "
            "prediction and label before you count",
            _without_ignoring,
        ),
        Mistake(
            "this is a mean of the blocks' IoUs: a block with three pixels of a class weighs as much as one with "
            "thousands. Add up intersections and unions of all blocks first, and divide once",
            _mean_of_blocks,
        ),
        Mistake(
            "a class that is neither labelled nor predicted gets 0, as if all of it had been missed; it has no score: "
            "NaN",
            _nowhere_is_0,
        ),
        Mistake("a class that is neither labelled nor predicted gets 1, for nothing; it has no score: NaN",
                _nowhere_is_1),
        Mistake(
            "pixels that have a label and no prediction (255) are left out, so that a method gains by leaving hard "
            "pixels empty; they are missed pixels of their class",
            _empty_left_out,
        ),
        Mistake("this is F1 (Dice), 2 TP / (2 TP + FP + FN); IoU is TP / (TP + FP + FN)", _dice),
        Mistake("this is recall, TP / (TP + FN); pixels that are wrongly given the class are missing (FP)", _recall),
        Mistake("this is precision, TP / (TP + FP); pixels of the class that were missed are missing (FN)", _precision),
        Mistake("this is one number, the mean; give the IoU of each class", _mean),
        Mistake(
            "indices overflow: label * classes + prediction is computed in uint8, which ends at 255. Make the arrays "
            "wider first (astype(int))",
            _overflowing,
        ),
    ),
)  # fmt: skip
