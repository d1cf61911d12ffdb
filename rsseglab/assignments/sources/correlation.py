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
# # Locality-aware correlation
#
# **The goal.** FCtL shows a patch wider and wider *contexts* of itself. Write its core: each place of the patch looks at
# all places of a context, and gathers what resembles it.
#
# **What to know.** Patch and context are feature maps with $C$ channels; every place is a vector. Queries come from the
# patch, keys and values from the context:
#
# $$ R_{ij} = \langle q_i, k_j \rangle, \qquad
#    \bar X_i = \gamma \sum_j \mathrm{softmax}_j(R_{ij})\, v_j, \qquad
#    q = W_q X^\text{local}, \quad k = W_k X^\text{context}, \quad v = W_v X^\text{context} $$
#
# (Li, Yang, Liu, Yu, He, "From Contexts to Locality", ICCV 2021, section 3.1.2.) Place $i$ is one of the patch's
# $H W$ places, $j$ one of the context's $H' W'$. The softmax is over $j$: a place shares its attention out among the
# places of the context. $\gamma$ is a number that is learnt from 0 on, so that training starts from the patch alone. The
# paper's formula has values from the patch; here they are from the context, as in the authors' code. Nothing is divided
# by $\sqrt C$.
#
# ```text
#   patch (H x W)              context (H' x W')
#   +--+--+--+                 +--+--+--+--+
#   |  |i |  |  -- R_ij -->    |  |  |j |  |         row i of the softmax sums to 1 over all j
#   +--+--+--+                 +--+--+--+--+
#   |  |  |  |                 |  |  |  |  |
#   +--+--+--+                 +--+--+--+--+
# ```
#
# **Points**: 10. **In the library**: `rsseglab.fctl.correlation.LocalityAwareCorrelation`.

# %%
import torch  # noqa: F401

# %% [markdown]
# ## Your task
#
# A 1 x 1 convolution without a bias is a matrix that is applied at each place; here the three are given as matrices of
# shape (C, C), a row an output channel.


# %% nbgrader={"grade": false, "grade_id": "correlation", "locked": false, "schema_version": 3, "solution": true, "task": false}
def correlate(local, context, w_query, w_key, w_value, gamma):
    """What each place of a patch gathers from a context.

    Args:
        local: features of the patch, a tensor of shape (B, C, H, W).
        context: features of the context, of shape (B, C, H', W').
        w_query: of shape (C, C).
        w_key: of shape (C, C).
        w_value: of shape (C, C).
        gamma: a number.

    Returns:
        A tensor of shape (B, C, H, W).
    """
    ### BEGIN SOLUTION
    patch, around = local.flatten(2).mT, context.flatten(2).mT  # (B, H W, C), (B, H' W', C)
    q, k, v = patch @ w_query.mT, around @ w_key.mT, around @ w_value.mT
    relevance = (q @ k.mT).softmax(dim=-1)  # (B, H W, H' W')
    return gamma * (relevance @ v).mT.reshape(local.shape)
    ### END SOLUTION


# %% [markdown]
# ## Checks
#
# Each compares your function with the library's, on numbers drawn from seed 0, and says what is wrong. When your work is
# graded, the same is done with other seeds: copying the right numbers does not help.

# %%
from rsseglab.assignments import check

# %% nbgrader={"grade": true, "grade_id": "correlation-a-patch-in-its-context", "locked": true, "points": 4, "schema_version": 3, "solution": false, "task": false}
check("correlation", correlate, "a patch in its context")
### BEGIN HIDDEN TESTS
check("correlation", correlate, "a patch in its context", hidden=True)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "correlation-a-context-of-another-shape", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
check("correlation", correlate, "a context of another shape")
### BEGIN HIDDEN TESTS
check("correlation", correlate, "a context of another shape", hidden=True)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "correlation-a-batch", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
check("correlation", correlate, "a batch")
### BEGIN HIDDEN TESTS
check("correlation", correlate, "a batch", hidden=True)
### END HIDDEN TESTS

# %% [markdown]
# ## Go further
#
# - Shuffle the places of the context. Does the result change? What does FCtL then know of *where* something lies?
# - How many numbers does $R$ have for a patch of 508 px at stride 8 and three contexts? What does
#   `torch.nn.functional.scaled_dot_product_attention` do instead of keeping them?
# - Take values from the patch, as printed in the paper, with a context that is a shuffled copy of the patch. What is
#   gathered?
# - *Read next*: the notebook "Local patches, wide contexts".
