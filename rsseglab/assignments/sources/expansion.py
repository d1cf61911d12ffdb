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
# # Label expansion: from clicks to maps
#
# **The goal.** Somebody has clicked a few pixels a class. Write the step that lets these labels grow: pixels whose features
# point clearly along one class's clicks take its label.
#
# **What to know.** A class's *prototype* is the mean direction of its clicks $A_k$. A pixel is compared with all
# prototypes by the cosine, and takes the label of the best one, if it is like it (threshold $\tau$) and much less like the
# second best (margin $m$):
#
# $$ \mu_k = \frac{1}{|A_k|} \sum_{x \in A_k} \frac{f(x)}{|f(x)|}, \qquad
#    s_k(x) = \cos(f(x), \mu_k), \qquad
#    \hat y(x) = \arg\max_k s_k(x) \;\text{ if }\; s_{(1)} \ge \tau \;\text{ and }\; s_{(1)} - s_{(2)} \ge m $$
#
# This is the library's reading of "dynamic label expansion guided by high-dimensional semantic feature similarity" (Chan et
# al., Sci. Rep. 15, 27347, 2025, abstract; the formula is ours, as the rest of the paper could not be had). A click stays
# what it is, whatever its features say, and a class that nobody clicked is given to no pixel.
#
# ```text
#        ^  class 0's prototype
#        |  / a pixel near it: label 0
#        | /
#        |/   . a pixel between the two: none (margin)
#        +-------------->  class 1's prototype
#         `
#           ` a pixel unlike both: none (threshold)
# ```
#
# **Points**: 10. **In the library**: `rsseglab.penet.expansion.similar_labels`, with prototypes of ``mean_directions``.

# %%
import torch
import torch.nn.functional as F

# %% [markdown]
# ## Your task
#
# Prototypes are of the whole batch. At least two classes have a click.


# %% nbgrader={"grade": false, "grade_id": "expansion", "locked": false, "schema_version": 3, "solution": true, "task": false}
def expand(features, anchors, classes, threshold, margin):
    """Labels of the pixels that are clearly like the clicks of one class.

    Args:
        features: a tensor of shape (B, C, H, W).
        anchors: integers of shape (B, H, W): a class index where somebody clicked, 255 elsewhere.
        classes: number of classes K.
        threshold: a cosine.
        margin: by which the best class leads the second.

    Returns:
        Integers of shape (B, H, W): the clicks as they are, and what has grown from them; 255 elsewhere.
    """
    ### BEGIN SOLUTION
    directions = F.normalize(features.movedim(1, -1), dim=-1)  # (B, H, W, C)
    clicked = [k for k in range(classes) if (anchors == k).any()]
    prototypes = torch.stack([directions[anchors == k].mean(dim=0) for k in clicked])
    cosine = directions @ F.normalize(prototypes, dim=1).mT  # (B, H, W, clicked classes)
    (best, second), label = cosine.topk(2, dim=-1).values.unbind(-1), cosine.argmax(dim=-1)
    clear = (best >= threshold) & (best - second >= margin) & (anchors == 255)
    return torch.where(clear, torch.tensor(clicked)[label], anchors)
    ### END SOLUTION


# %% [markdown]
# ## Checks
#
# Each compares your function with the library's, on numbers drawn from seed 0, and says what is wrong. When your work is
# graded, the same is done with other seeds: copying the right numbers does not help.

# %%
from rsseglab.assignments import check

# %% nbgrader={"grade": true, "grade_id": "expansion-pixels-take-the-label-that-they-point-along", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check("expansion", expand, "pixels take the label that they point along")
### BEGIN HIDDEN TESTS
check("expansion", expand, "pixels take the label that they point along", hidden=True)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "expansion-bright-and-dark-pixels", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check("expansion", expand, "bright and dark pixels")
### BEGIN HIDDEN TESTS
check("expansion", expand, "bright and dark pixels", hidden=True)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "expansion-clicks-stay-as-they-are", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check("expansion", expand, "clicks stay as they are")
### BEGIN HIDDEN TESTS
check("expansion", expand, "clicks stay as they are", hidden=True)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "expansion-pixels-between-two-classes", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check("expansion", expand, "pixels between two classes")
### BEGIN HIDDEN TESTS
check("expansion", expand, "pixels between two classes", hidden=True)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "expansion-a-class-that-nobody-clicked", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check("expansion", expand, "a class that nobody clicked")
### BEGIN HIDDEN TESTS
check("expansion", expand, "a class that nobody clicked", hidden=True)
### END HIDDEN TESTS

# %% [markdown]
# ## Go further
#
# - Lower the threshold in steps, and draw how many pixels get a label and how many of these are right. Where would you
#   stop?
# - Give a third of the clicks a wrong class. How do prototypes change? What would a median direction do?
# - What is expanded early in training is learnt later as if it were true. Why does the library wait, and lower the
#   threshold as it goes?
# - *Read next*: the notebook "From clicks to maps".
