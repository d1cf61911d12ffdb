r"""Mean IoU and differences of it with an interval over place and seed: a paired block bootstrap.

A method is trained with S seeds and scored on the same blocks of the same scenes each time. With :math:`M_s(w)` the
mean IoU of seed s from the counts of all blocks, block b taken :math:`w_b` times, the score and the difference of two
methods are

.. math:: \bar M = \frac{1}{S} \sum_s M_s(1), \qquad \Delta = \frac{1}{S} \sum_s \left(M^A_s(1) - M^B_s(1)\right)

One draw of the bootstrap takes, with replacement and for both methods alike,

- *places*: of each scene's n blocks with a label, n - 1, each of weight n / (n - 1), which makes the variance unbiased
  however few blocks a scene has (Rao and Wu, "Resampling inference with complex survey data", JASA 83, 1988). Scenes
  are strata: the interval speaks of other places of *these* scenes, not of other scenes;
- *seeds*: S of the S, independently of the places, since each seed is scored on each block (Owen, "The pigeonhole
  bootstrap", Annals of Applied Statistics 1, 2007). A resample of few values spreads less than their mean does: the
  deviation that the drawn seeds cause is multiplied by :math:`\sqrt{S / (S - 1)}\; t_{S-1} / z`, quantiles of
  Student's and of the normal distribution (Hesterberg, "What teachers should know about the bootstrap", The American
  Statistician 69, 2015): by 2.7 for three seeds, 1.6 for five. One seed says nothing about others.

The interval is between percentiles of the draws. Blocks are taken as independent: see `count_blocks` for their size.
A class that is neither labelled nor predicted in a draw is left out of that draw's mean, as in `Confusion.mean_iou`.

**Smallest detectable effect.** With se the standard deviation of the draws, a two-sided test of level 5 % finds a true
difference of

.. math:: (z_{0.975} + z_{0.8})\,\text{se} = 2.80\,\text{se}

in 80 % of all repetitions; what is smaller is likely to be missed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

from rsseglab.errors import UserError
from rsseglab.evaluation.blocks import BlockCounts

Run = Sequence[BlockCounts]  # one a scene, of one seed

LEVEL, POWER = 0.05, 0.8


@dataclass(frozen=True)
class Estimate:
    """A score, or a difference of scores, with its interval.

    Attributes:
        value: mean over the seeds.
        low: lower end of the interval.
        high: upper end.
        standard_error: standard deviation of the draws, so of a few seeds as wide as the interval is.
        seeds: how many; from one alone the interval covers place only.
        blocks: labelled blocks of all scenes.
    """

    value: float
    low: float
    high: float
    standard_error: float
    seeds: int
    blocks: int

    @property
    def smallest_detectable(self) -> float:
        """The least true difference that would have been found four times out of five, see the module."""
        return smallest_detectable(self.standard_error)


def smallest_detectable(standard_error: float) -> float:
    """(z_0.975 + z_0.8) standard errors: what a two-sided test of level 5 % finds with a power of 80 %."""
    return float(ndtri(1 - LEVEL / 2) + ndtri(POWER)) * standard_error


def mean_iou_interval(
    runs: Sequence[Run],
    *,
    classes: Sequence[str] | None = None,
    draws: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Mean IoU of a method, pooled over scenes and averaged over seeds, with its interval.

    Args:
        runs: one a training seed, each with the same scenes in the same order.
        classes: the classes that enter the mean; all when not given.
        draws: of the bootstrap.
        confidence: probability that the interval should cover.
        seed: of the draws.

    Raises:
        UserError: runs differ in scenes, classes, block size or labels; no scene has two labelled blocks; a name is no
            class; there are too few draws.
    """
    return _estimate([runs], classes, draws, confidence, seed)


def mean_iou_difference(
    first: Sequence[Run],
    second: Sequence[Run],
    *,
    classes: Sequence[str] | None = None,
    draws: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """How much higher the mean IoU of the first method is than that of the second, with its interval.

    Args:
        first: one run a training seed, each with the same scenes in the same order.
        second: likewise, the same seeds in the same order.
        classes: the classes that enter the mean; all when not given.
        draws: of the bootstrap.
        confidence: probability that the interval should cover.
        seed: of the draws.

    Raises:
        UserError: as for `mean_iou_interval`; the methods differ in their number of seeds.
    """
    if len(first) != len(second):
        raise UserError(f"{len(first)} and {len(second)} seeds are no pairs; train both methods with the same seeds.")
    return _estimate([first, second], classes, draws, confidence, seed)


def _estimate(
    methods: Sequence[Sequence[Run]], classes: Sequence[str] | None, draws: int, confidence: float, seed: int
) -> Estimate:
    if draws < 100:
        raise UserError(f"{draws} draws give no interval; take at least 100, better 2000.")
    scenes = _stack(methods)
    chosen = _chosen(methods[0][0][0].classes, classes)
    seeds, blocks = len(methods[0]), [len(scene) for scene in scenes]
    rng = np.random.default_rng(seed)
    places = [_place_weights(rng, n, draws) for n in blocks]
    scores = _mean_iou(scenes, places, chosen)  # (1 + draws, methods, seeds)
    value = scores[:, 0] - scores[:, 1] if len(methods) == 2 else scores[:, 0]  # (1 + draws, seeds)

    mean = value.mean(axis=1)  # (1 + draws,)
    if np.isnan(mean[0]):
        raise UserError("none of the classes to average is labelled or predicted in these scenes; choose others.")
    seed_weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws) / seeds  # (draws, seeds)
    deviation = (seed_weights * value[1:]).sum(axis=1) - mean[1:]
    drawn = mean[1:] + stretch(seeds, confidence) * deviation
    low, high = np.nanquantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(float(mean[0]), float(low), float(high), float(np.nanstd(drawn, ddof=1)), seeds, sum(blocks))


def _stack(methods: Sequence[Sequence[Run]]) -> list[NDArray[np.float64]]:
    """Per scene true positives, labelled and predicted pixels: (labelled blocks, methods, seeds, 3, K)."""
    runs = [run for method in methods for run in method]
    if not runs or not runs[0]:
        raise UserError("there are no block counts; score at least one seed on one scene.")
    if len({tuple((part.scene, part.classes, part.block_px, len(part.counts)) for part in run) for run in runs}) > 1:
        raise UserError("runs differ in scenes, classes or block size; score all on the same blocks.")
    seeds = len(methods[0])
    stacked = []
    for parts in zip(*runs, strict=True):
        counts = np.stack([part.counts for part in parts], axis=1)  # (blocks, runs, K, K + 1)
        labelled = counts.sum(axis=3)
        if (labelled != labelled[:, :1]).any():
            raise UserError(f"runs differ in the labels of scene {parts[0].scene}; score all on the same labels.")
        diagonal = counts.diagonal(axis1=2, axis2=3)
        cells = np.stack([diagonal, labelled, counts[..., :-1].sum(axis=2)], axis=2)  # (blocks, runs, 3, K)
        cells = cells[labelled[:, 0].any(axis=1)].astype(np.float64)
        stacked.append(cells.reshape(len(cells), len(methods), seeds, 3, -1))
    if max(len(scene) for scene in stacked) < 2:
        raise UserError("no scene has two labelled blocks, so nothing can be resampled; count smaller blocks.")
    return stacked


def _chosen(names: Sequence[str], classes: Sequence[str] | None) -> list[int]:
    """Indices of the classes that enter the mean."""
    wanted = names if classes is None else classes
    if unknown := [name for name in wanted if name not in names]:
        raise UserError(f"no classes {unknown}; choose from {', '.join(names)}.")
    return [list(names).index(name) for name in wanted]


def _place_weights(rng: np.random.Generator, blocks: int, draws: int) -> NDArray[np.float64]:
    """How often each block of a scene counts, first in the data and then in each draw: (1 + draws, blocks)."""
    if blocks < 2:  # nothing to draw from
        return np.ones((1 + draws, blocks))
    drawn = rng.multinomial(blocks - 1, np.full(blocks, 1 / blocks), size=draws) * (blocks / (blocks - 1))
    return np.concatenate([np.ones((1, blocks)), drawn])


def _mean_iou(
    scenes: Sequence[NDArray[np.float64]], places: Sequence[NDArray[np.float64]], chosen: Sequence[int]
) -> NDArray[np.float64]:
    """Pooled mean IoU under weights of the blocks: (1 + draws, methods, seeds); NaN where no class is left."""
    counts = sum(np.tensordot(w, scene, axes=1) for w, scene in zip(places, scenes, strict=True))
    tp, labelled, predicted = np.moveaxis(np.asarray(counts)[..., chosen], -2, 0)  # each (draws, methods, seeds, K)
    union = labelled + predicted - tp
    there = union > 0
    iou = np.divide(tp, union, out=np.zeros_like(tp), where=there)
    number = there.sum(axis=-1)
    return np.where(number > 0, iou.sum(axis=-1) / np.maximum(number, 1), np.nan)


def stretch(seeds: int, confidence: float = 0.95) -> float:
    """How much wider the mean of a few seeds spreads than their resamples do, see the module."""
    if seeds < 2:
        return 0.0  # no deviation either
    tail = (1 + confidence) / 2
    return float(np.sqrt(seeds / (seeds - 1)) * stdtrit(seeds - 1, tail) / ndtri(tail))
