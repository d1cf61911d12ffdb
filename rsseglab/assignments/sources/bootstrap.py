# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A paired block bootstrap
#
# **The goal.** Method A has a mean IoU two points above B's on a test scene. Would it on another part of that ground?
# Write the interval: a bootstrap over *blocks* of the scene, *paired*, with *pooled* counts.
#
# **What to know.** The bootstrap asks what the score would have been had other places been tested: it draws places with
# replacement and scores again. Three things make it right for maps:
#
# - *Blocks.* Errors come in patches, so a million pixels are not a million observations. The scene is cut in blocks, and a
#   block counts as a whole.
# - *Pairs.* A block that is hard for A is hard for B. Both methods are scored on the same draw, and what they have in
#   common cancels in the difference.
# - *Pooled.* The mean IoU is computed from the counts of the whole draw. Block $b$ enters $w_b$ times:
#
# $$ M(w) = \frac{1}{|\{c : U_c > 0\}|} \sum_{c:\, U_c > 0} \frac{\sum_b w_b\, TP_{b,c}}{U_c}, \qquad
#    U_c = \sum_b w_b\, (TP_{b,c} + FP_{b,c} + FN_{b,c}), \qquad \Delta(w) = M^A(w) - M^B(w) $$
#
# One draw takes $n - 1$ of the $n$ blocks with a label, each of weight $n / (n - 1)$, which makes the variance unbiased
# however few blocks there are (Rao and Wu, "Resampling inference with complex survey data", JASA 83, 1988). The 95 %
# interval is between the quantiles 0.025 and 0.975 of $\Delta$ over the draws (Efron and Tibshirani, *An introduction to
# the bootstrap*, 1993, chapter 13).
#
# ```text
#   blocks of the scene    a draw: how often each one counts (times n / (n - 1)), for A and for B alike
#   +---+---+---+---+      +---+---+---+---+
#   |   |   |   |   |      | 1 | 0 | 2 | 1 |        M of A and M of B from these counts; their difference is
#   +---+---+---+---+      +---+---+---+---+        one of the draws whose quantiles are the interval
#   |   |   |   |   |      | 0 | 1 | 2 | 0 |
#   +---+---+---+---+      +---+---+---+---+
# ```
#
# **Points**: 10. **In the library**: `rsseglab.evaluation.mean_iou_difference`, which draws training seeds as well.

# %%
import numpy as np

# %% [markdown]
# ## Your task
#
# Draw like this, once, for all draws: ``np.random.default_rng(seed).multinomial(n - 1, np.full(n, 1 / n), size=draws)``,
# of shape (draws, n): how often each of the n labelled blocks was drawn.


# %% nbgrader={"grade": false, "grade_id": "bootstrap", "locked": false, "schema_version": 3, "solution": true, "task": false}
def block_bootstrap(first, second, draws, seed):
    """How much higher the first method's mean IoU is than the second's, with its 95 % interval.

    Args:
        first: confusion of the blocks under the first method, an array of shape (blocks, K, K + 1): label by prediction,
            the last column for labelled pixels that got no class. A block without a labelled pixel holds zeros.
        second: the same of the second method, on the same blocks.
        draws: how many.
        seed: of the draws.

    Returns:
        (difference, low, high), floats: of the scene as it is, and the interval's ends.
    """
    ### BEGIN SOLUTION
    labelled = first.any(axis=(1, 2))
    first, second = first[labelled], second[labelled]
    n, K = first.shape[:2]
    drawn = np.random.default_rng(seed).multinomial(n - 1, np.full(n, 1 / n), size=draws)
    weights = np.concatenate([np.ones((1, n)), drawn * n / (n - 1)])  # the scene as it is comes first

    def mean_iou(counts):
        pooled = np.tensordot(weights, counts, axes=1)  # (1 + draws, K, K + 1)
        hit = pooled[:, range(K), range(K)]
        union = pooled.sum(axis=2) + pooled[:, :, :K].sum(axis=1) - hit
        iou = np.divide(hit, union, out=np.full_like(hit, np.nan), where=union > 0)
        return np.nanmean(iou, axis=1)

    difference = mean_iou(first) - mean_iou(second)
    low, high = np.quantile(difference[1:], [0.025, 0.975])
    return float(difference[0]), float(low), float(high)
    ### END SOLUTION


# %% [markdown]
# ## Checks
#
# Each compares your function with the library's, on numbers drawn from seed 0, and says what is wrong. When your work is
# graded, the same is done with other seeds: copying the right numbers does not help.

# %%
from rsseglab.assignments import check

# %% nbgrader={"grade": true, "grade_id": "bootstrap-the-difference-of-the-pooled-scores", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
check("bootstrap", block_bootstrap, "the difference of the pooled scores")
### BEGIN HIDDEN TESTS
check("bootstrap", block_bootstrap, "the difference of the pooled scores", hidden=True)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "bootstrap-the-interval", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
check("bootstrap", block_bootstrap, "the interval")
### BEGIN HIDDEN TESTS
check("bootstrap", block_bootstrap, "the interval", hidden=True)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "bootstrap-blocks-without-a-label", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check("bootstrap", block_bootstrap, "blocks without a label")
### BEGIN HIDDEN TESTS
check("bootstrap", block_bootstrap, "blocks without a label", hidden=True)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "bootstrap-a-class-that-a-draw-misses", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check("bootstrap", block_bootstrap, "a class that a draw misses")
### BEGIN HIDDEN TESTS
check("bootstrap", block_bootstrap, "a class that a draw misses", hidden=True)
### END HIDDEN TESTS

# %% [markdown]
# ## Go further
#
# - Draw the interval's width for the paired bootstrap and for one that draws anew for B. How many blocks does pairing
#   save?
# - Halve the side of the blocks, again and again. When does the interval shrink, and should you believe it?
# - The standard deviation of the draws times 2.80 is the smallest difference that a test of level 5 % finds with a power
#   of 80 %. Which differences in a published table that you know are smaller?
# - *Read next*: the notebook "What counts as evidence?", and `rsseglab/evaluation/bootstrap.py`.
