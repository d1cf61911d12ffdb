"""A paired block bootstrap, held against `rsseglab.evaluation.mean_iou_difference`."""

import numpy as np
from numpy.typing import NDArray

from rsseglab.assignments.checking import Assignment, Case, Check, Mistake
from rsseglab.evaluation.blocks import BlockCounts
from rsseglab.evaluation.bootstrap import mean_iou_difference

Counts = NDArray[np.int64]
Interval = tuple[float, float, float]
DRAWS = 200


def _reference(first: Counts, second: Counts, draws: int, seed: int) -> Interval:
    names = tuple(str(k) for k in range(first.shape[1]))
    runs = [[[BlockCounts("scene", names, 256, counts)]] for counts in (first, second)]
    found = mean_iou_difference(*runs, draws=draws, seed=seed)
    return found.value, found.low, found.high


def _counts(rng: np.random.Generator, labelled: Counts, right: float) -> Counts:
    """Confusion of blocks in which so much of each class is right; 5 % of the pixels got no class."""
    K = labelled.shape[1]
    counts = np.zeros((len(labelled), K, K + 1), np.int64)
    for block, row in enumerate(labelled):
        share = np.clip(right + rng.normal(0, 0.15), 0.05, 0.95)
        for k, pixels in enumerate(row):
            shares = np.append(np.full(K, (0.95 - 0.95 * share) / (K - 1)), 0.05)
            shares[k] = 0.95 * share
            counts[block, k] = rng.multinomial(pixels, shares)
    return counts


def _pair(rng: np.random.Generator, *, empty: int = 0, rare: bool = False) -> Case:
    n = int(rng.integers(10, 16))
    labelled = rng.integers(50, 900, (n, 3)) * (rng.random((n, 3)) < 0.8)
    labelled[:, 0] += 50
    if rare:
        labelled[:, 2] = 0
        labelled[n // 2, 2] = 400
    first, second = _counts(rng, labelled, 0.75), _counts(rng, labelled, 0.68)
    if rare:  # nobody predicts the class where it is not
        for counts in (first, second):
            counts[:, :2, 1] += counts[:, :2, 2]
            counts[:, :2, 2] = 0
    if empty:
        first[:empty], second[:empty] = 0, 0
    return first, second, DRAWS, int(rng.integers(100))


def _plain(rng: np.random.Generator) -> list[Case]:
    return [_pair(rng), _pair(rng)]


def _with_empty_blocks(rng: np.random.Generator) -> list[Case]:
    return [_pair(rng, empty=3)]


def _with_a_rare_class(rng: np.random.Generator) -> list[Case]:
    return [_pair(rng, rare=True)]


def _difference_only(function: object, *case: object) -> object:
    """The first of the three numbers."""
    found = function(*case)  # type: ignore[operator]
    return found[0] if isinstance(found, tuple | list) and found else found


def _bootstrapped(
    first: Counts, second: Counts, draws: int, seed: int, *,
    pool: bool = True, paired: bool = True, less: int = 1, tails: float = 0.025, absent: float = np.nan,
    drop: bool = True, column: bool = True, normal: bool = False,
) -> Interval:  # fmt: skip
    """The bootstrap with one thing or another wrong."""
    if drop:
        labelled = first.any((1, 2))
        first, second = first[labelled], second[labelled]
    if not column:
        first, second = first[..., :-1], second[..., :-1]
    n, rng = len(first), np.random.default_rng(seed)

    def draw() -> NDArray[np.floating]:
        return rng.multinomial(n - less, np.full(n, 1 / n), size=draws) * (n / (n - less))

    def mean_iou(counts: Counts, weights: NDArray[np.floating]) -> NDArray[np.floating]:
        K = counts.shape[1]
        hit = counts[:, range(K), range(K)].astype(float)
        union = (counts.sum(2) + counts[:, :, :K].sum(1)).astype(float) - hit
        if not pool:
            with np.errstate(invalid="ignore"):
                return weights @ np.nanmean(hit / union, axis=1) / weights.sum(1)
        hit, union = weights @ hit, weights @ union
        with np.errstate(invalid="ignore"):
            iou = np.where(union > 0, hit / union, absent)
        return np.nanmean(iou, axis=1)

    ones, weights = np.ones((1, n)), draw()
    value = mean_iou(first, ones) - mean_iou(second, ones)
    drawn = mean_iou(first, weights) - mean_iou(second, weights if paired else draw())
    if normal:
        spread = 1.959964 * drawn.std(ddof=1)
        return value[0], value[0] - spread, value[0] + spread
    low, high = np.quantile(drawn, [tails, 1 - tails])
    return value[0], low, high


def _wrong(**how: object) -> object:
    def answer(first: Counts, second: Counts, draws: int, seed: int) -> Interval:
        return _bootstrapped(first, second, draws, seed, **how)  # type: ignore[arg-type]

    return answer


def _sign(first: Counts, second: Counts, draws: int, seed: int) -> Interval:
    return _bootstrapped(second, first, draws, seed)


ASSIGNMENT = Assignment(
    name="bootstrap",
    function="block_bootstrap",
    component="rsseglab.evaluation.mean_iou_difference",
    reference=_reference,
    checks=(
        Check("the difference of the pooled scores", 3, _plain, _difference_only),
        Check("the interval", 3, _plain),
        Check("blocks without a label", 2, _with_empty_blocks),
        Check("a class that a draw misses", 2, _with_a_rare_class),
    ),
    mistakes=tuple(
        Mistake(words, answer)  # type: ignore[arg-type]
        for words, answer in (
            ("the sign is wrong: it is how much higher the first method scores, first - second", _sign),
            (
                "blocks' own mean IoUs are averaged, so that a block with a handful of pixels weighs as much as a full "
                "one; add up the counts of all blocks first, each as often as it was drawn, and divide once",
                _wrong(pool=False),
            ),
            (
                "the methods are not paired: blocks are drawn anew for the second one, so that hard blocks fall on one "
                "of them alone. Use the same draw for both",
                _wrong(paired=False),
            ),
            (
                "n of the n blocks are drawn, which makes the variance too small by (n - 1) / n; draw n - 1 and weigh "
                "each by n / (n - 1)",
                _wrong(less=0),
            ),
            (
                "this is a 90 % interval: 5 % lie beyond each end. Take the quantiles 0.025 and 0.975",
                _wrong(tails=0.05),
            ),
            ("the ends are the difference ± 1.96 deviations; take the quantiles of the draws", _wrong(normal=True)),
            (
                "the last column is missing: a labelled pixel that got no class is missed, and so in the union",
                _wrong(column=False),
            ),
            (
                "blocks without a labelled pixel are drawn too, which widens nothing and shifts every draw; leave them "
                "out before you count n",
                _wrong(drop=False),
            ),
            (
                "a class that a draw has neither labelled nor predicted counts as 0; leave it out of that draw's mean",
                _wrong(absent=0.0),
            ),
        )
    ),
)
