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
# # SPIM's all-to-all, by hand, on four tiles
#
# **The goal.** Four workers hold a tile of a scene each. Attention is to span all of it, and no worker may hold more than
# a quarter of the work. Write the exchange that makes it so.
#
# **What to know.** SPIM's attention is over the tokens (pixels of a feature map) of *all* tiles, in $H$ heads:
#
# $$ q, k, v = x W_{qkv}^\top + b, \qquad
#    o = \mathrm{softmax}\!\left(\frac{q k^\top}{\sqrt{C / H}}\right) v \quad\text{in each head} $$
#
# (Chen et al., "REST", TPAMI 48:1, 2026, the spatial parallel interaction module.) Heads do not meet each other, so they
# can be shared out: worker $w$ computes heads $w H / P$ to $(w + 1) H / P$ for *all* $N$ tokens. For that it needs those
# heads' $q$, $k$ and $v$ of all tokens, and gets them in one **all-to-all**: every worker cuts what it has in $P$ blocks,
# one for each worker, and each block travels once. A second all-to-all brings the results home (Jacobs et al., "DeepSpeed
# Ulysses", arXiv:2309.14509, section 3).
#
# ```text
#            before: tokens are shared out          between: heads are shared out
#
#            head 0  head 1  head 2  head 3         worker 0  worker 1  worker 2  worker 3
#   tile 0   [------- worker 0 -----------]         head 0    head 1    head 2    head 3
#   tile 1   [------- worker 1 -----------]  --->   of all    of all    of all    of all
#   tile 2   [------- worker 2 -----------]  <---   tokens    tokens    tokens    tokens
#   tile 3   [------- worker 3 -----------]
# ```
#
# Gathering all keys and values everywhere is right too, and sends more: that costs points here.
#
# **Points**: 10. **In the library**: `rsseglab.rest.SPIM`.

# %%
import torch

# %% [markdown]
# ## Your task
#
# ``exchange(blocks)`` is the network between the workers: ``blocks[source][worker]`` is what ``source`` sends to
# ``worker``, and the answer's ``[worker][source]`` is what ``worker`` got from ``source``. A block is one tensor of any
# shape. No other way leads from tile to tile: until a block has arrived, ``tiles[0]`` may be used for what worker 0
# computes, and so on.


# %% nbgrader={"grade": false, "grade_id": "all_to_all", "locked": false, "schema_version": 3, "solution": true, "task": false}
def attend(tiles, weight, bias, heads, exchange):
    """Attention over the tokens of four tiles, the heads shared out among their workers.

    Args:
        tiles: a list of four tensors, tokens of a tile each, of shape (n_p, C); n_p may differ.
        weight: of shape (3 C, C): rows for queries, then for keys, then for values.
        bias: of shape (3 C).
        heads: number of heads H, a multiple of 4; a head is a run of C / H neighbouring channels.
        exchange: the all-to-all.

    Returns:
        A list of four tensors, the tokens of each tile, of shape (n_p, C).
    """
    ### BEGIN SOLUTION
    workers, n, C = len(tiles), [len(tile) for tile in tiles], weight.shape[1]
    width = C // heads

    # To each worker q, k and v of its heads: a run of C / 4 channels of each.
    projected = [(tile @ weight.mT + bias).reshape(-1, 3, workers, heads // workers, width) for tile in tiles]
    received = exchange([[its[:, :, worker] for worker in range(workers)] for its in projected])

    # All tokens of my heads.
    answers = []
    for mine in received:
        q, k, v = torch.cat(mine).permute(1, 2, 0, 3)  # each (heads, N, width)
        o = (q @ k.mT / width**0.5).softmax(dim=-1) @ v
        answers.append(list(o.transpose(0, 1).flatten(1).split(n)))  # of each tile, (n_p, C / 4)

    # Home again: the tokens of my tile, of all heads.
    return [torch.cat(its, dim=1) for its in exchange(answers)]
    ### END SOLUTION


# %% [markdown]
# ## Checks
#
# Each compares your function with the library's, on numbers drawn from seed 0, and says what is wrong. When your work is
# graded, the same is done with other seeds: copying the right numbers does not help.

# %%
from rsseglab.assignments import check

# %% nbgrader={"grade": true, "grade_id": "all_to_all-a-head-for-each-worker", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
check("all_to_all", attend, "a head for each worker")
### BEGIN HIDDEN TESTS
check("all_to_all", attend, "a head for each worker", hidden=True)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "all_to_all-two-heads-for-each-worker", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
check("all_to_all", attend, "two heads for each worker")
### BEGIN HIDDEN TESTS
check("all_to_all", attend, "two heads for each worker", hidden=True)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "all_to_all-tiles-of-unequal-size", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check("all_to_all", attend, "tiles of unequal size")
### BEGIN HIDDEN TESTS
check("all_to_all", attend, "tiles of unequal size", hidden=True)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "all_to_all-no-more-is-sent-than-has-to-be", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check("all_to_all", attend, "no more is sent than has to be")
### BEGIN HIDDEN TESTS
check("all_to_all", attend, "no more is sent than has to be", hidden=True)
### END HIDDEN TESTS

# %% [markdown]
# ## Go further
#
# - How many numbers does a worker send in both exchanges, for $N$ tokens and $P$ workers? And if all keys and values were
#   gathered? Where do the two cross?
# - With "as many heads as workers", as the authors' code has it, two GPUs and four GPUs compute different functions of
#   the same weights. Show it with your function.
# - What becomes of the answer if tiles arrive in another order? Why?
# - *Read next*: the notebooks "SPIM, tile by tile" and "One scene over many workers".
