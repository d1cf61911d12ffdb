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
# # F2CE: a class takes in what it looks like here
#
# **The goal.** In BiCoR-Seg a class is a vector, its *embedding*. Write the step by which an embedding takes in what its
# class looks like in this image: features to class embeddings, one half of HBIS.
#
# **What to know.** Score $s_n(x)$ says how much pixel $x$ looks like class $n$, and $H_n = \sigma(s_n)$ is its heatmap. The
# pixels with the highest scores, a share $r$ of all, are the class's region $\Omega_n$. Their features are averaged,
# weighed by the heatmap, and a gate says how much of it the embedding believes:
#
# $$ \begin{aligned}
#    \tilde H_n(x) &= \frac{H_n(x)}{\sum_{u \in \Omega_n} H_n(u)} \;\text{ in } \Omega_n, \quad 0 \text{ elsewhere} && (2) \\
#    C_n &= \sum_{x} \mathrm{sg}\big[\tilde H_n(x)\big]\; (W F(x) + b) && (3) \\
#    G_n &= \sigma\big(w_g \cdot [CE_n \,\|\, C_n] + b_g\big) && (4) \\
#    CE'_n &= (1 - G_n)\, CE_n + G_n\, C_n && (5)
#    \end{aligned} $$
#
# (Shi, Song, "BiCoR-Seg", arXiv:2512.20255, section 3.2, equations 2 to 5.) $\mathrm{sg}$ stops the gradient
# (section 4.2): neither *which* pixels are taken nor *how they are weighed* is learnt here, only what their features say.
# $\|$ puts two vectors one after the other.
#
# ```text
#   score of class n      region (r = 0.25)      weights (sum to 1)
#    2.1  0.3 -1.0         1  0  0                .53   0   0
#    1.4 -0.5 -2.0   -->   1  0  0         -->    .47   0   0        C_n = .53 F(0) + .47 F(3), projected
#    0.2 -1.1  0.1         0  0  0                 0    0   0
# ```
#
# **Points**: 10. **In the library**: `rsseglab.bicor_seg.FeatureToEmbedding` with ``preset="paper"``.

# %%
import torch

# %% [markdown]
# ## Your task
#
# The region has ``max(1, round(share * H * W))`` pixels a class. Scores are never equal here.


# %% nbgrader={"grade": false, "grade_id": "f2ce", "locked": false, "schema_version": 3, "solution": true, "task": false}
def refine(features, embeddings, score, value, gate, share):
    """Embeddings, refined by what an image shows of their classes.

    Args:
        features: F, a tensor of shape (B, C, H, W).
        embeddings: CE, of shape (B, N, C).
        score: s, of shape (B, N, H, W).
        value: W of shape (C, C) and b of shape (C), a pair.
        gate: w_g of shape (1, 2 C) and b_g of shape (1), a pair.
        share: r, of the pixels that are a class's region.

    Returns:
        A tensor of shape (B, N, C).
    """
    ### BEGIN SOLUTION
    flat = score.flatten(2)  # (B, N, H W)
    count = max(1, round(share * flat.shape[2]))
    lowest = flat.topk(count).values[..., -1:]
    weights = flat.sigmoid() * (flat >= lowest)
    weights = (weights / weights.sum(dim=2, keepdim=True)).detach()
    weight, bias = value
    projected = features.flatten(2).mT @ weight.mT + bias  # (B, H W, C)
    context = weights @ projected  # (B, N, C)
    weight, bias = gate
    G = (torch.cat([embeddings, context], dim=-1) @ weight.mT + bias).sigmoid()  # (B, N, 1)
    return (1 - G) * embeddings + G * context
    ### END SOLUTION


# %% [markdown]
# ## Checks
#
# Each compares your function with the library's, on numbers drawn from seed 0, and says what is wrong. When your work is
# graded, the same is done with other seeds: copying the right numbers does not help.

# %%
from rsseglab.assignments import check

# %% nbgrader={"grade": true, "grade_id": "f2ce-all-pixels-are-the-region", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
check("f2ce", refine, "all pixels are the region")
### BEGIN HIDDEN TESTS
check("f2ce", refine, "all pixels are the region", hidden=True)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "f2ce-the-region-is-a-share-of-the-pixels", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
check("f2ce", refine, "the region is a share of the pixels")
### BEGIN HIDDEN TESTS
check("f2ce", refine, "the region is a share of the pixels", hidden=True)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "f2ce-a-batch", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check("f2ce", refine, "a batch")
### BEGIN HIDDEN TESTS
check("f2ce", refine, "a batch", hidden=True)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "f2ce-where-gradients-pass-and-where-not", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check("f2ce", refine, "where gradients pass, and where not")
### BEGIN HIDDEN TESTS
check("f2ce", refine, "where gradients pass, and where not", hidden=True)
### END HIDDEN TESTS

# %% [markdown]
# ## Go further
#
# - The projection is linear, so it may be applied before or after the sum. Which is cheaper, and by how much on a map of
#   128 x 128 px with 7 classes and 256 channels?
# - Cut a map in four and take the top share of each part. Is the region the same? What would a worker have to know?
# - Let the gradient pass through the weights, and train. What does the heatmap learn to do? (The loss no longer only asks
#   that it be right.)
# - *Read next*: the notebook "Classes that look back".
