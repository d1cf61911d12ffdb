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
# # IoU with ignore done right
#
# **The goal.** Write the intersection over union of each class over a *whole scene* that is read block by block, with
# pixels that nobody has labelled, pixels that a method left empty, and classes that do not occur.
#
# **What to know.** With $TP$, $FP$ and $FN$ the pixels of a class that were found, wrongly given to it, and missed,
#
# $$ \text{IoU}_c = \frac{TP_c}{TP_c + FP_c + FN_c}, \qquad
#    TP_c = \sum_{b} TP_{c,b} \;\text{ over all blocks } b \text{, and likewise } FP_c, FN_c $$
#
# (Jaccard 1912; Everingham et al., "The PASCAL VOC challenge", IJCV 88, 2010, section 4.2.1 for the pooled form). Four
# rules make it honest:
#
# 1. *Pool, then divide.* The ratio of sums, not the mean of ratios: a block with three pixels of water must not weigh as
#    much as a block that is all water.
# 2. *A label of 255 is no label.* Such a pixel counts neither as right nor as wrong, whatever was predicted on it.
# 3. *A prediction of 255 is no class.* Where there is a label, that pixel was missed, or else a method would gain by
#    leaving hard pixels empty.
# 4. *A class that is neither labelled nor predicted has no score*: NaN, and the mean over classes leaves it out.
#
# ```text
# label        prediction          class 0                        class 1
#  0  0 255     0  1  1            TP 1 (the first pixel)         TP 1
#  1  1   0     1 255 0            + 1 (the last) = 2             FP 1 (0 taken for 1), FN 1 (left empty)
#                                  FN 1, FP 0: IoU 2 / 3          IoU 1 / 3; the 1 on 255 counts nowhere
# ```
#
# **Points**: 10. **In the library**: `rsseglab.evaluation.Confusion`.

# %%
import numpy as np

# %% [markdown]
# ## Your task


# %% nbgrader={"grade": false, "grade_id": "iou", "locked": false, "schema_version": 3, "solution": true, "task": false}
def scene_iou(blocks, classes):
    """IoU of each class over all blocks of a scene.

    Args:
        blocks: a list of pairs (prediction, label), arrays of uint8 and of one shape a pair: class indices 0 to
            classes - 1, or 255.
        classes: number of classes K, at most 255.

    Returns:
        An array of K floats; NaN for a class that is neither labelled nor predicted on a labelled pixel.
    """
    ### BEGIN SOLUTION
    matrix = np.zeros((classes, classes + 1), int)  # label by prediction; the last column is "no class"
    for prediction, label in blocks:
        scored = label != 255
        true, guess = label[scored].astype(int), prediction[scored].astype(int)
        guess[guess == 255] = classes
        pairs = true * (classes + 1) + guess
        matrix += np.bincount(pairs, minlength=matrix.size).reshape(matrix.shape)
    hit = matrix.diagonal()
    union = matrix.sum(axis=1) + matrix[:, :-1].sum(axis=0) - hit
    return np.where(union > 0, hit / np.maximum(union, 1), np.nan)
    ### END SOLUTION


# %% [markdown]
# ## Checks
#
# Each compares your function with the library's, on numbers drawn from seed 0, and says what is wrong. When your work is
# graded, the same is done with other seeds: copying the right numbers does not help.

# %%
from rsseglab.assignments import check

# %% nbgrader={"grade": true, "grade_id": "iou-blocks-are-pooled", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check("iou", scene_iou, "blocks are pooled")
### BEGIN HIDDEN TESTS
check("iou", scene_iou, "blocks are pooled", hidden=True)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "iou-pixels-without-a-label", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check("iou", scene_iou, "pixels without a label")
### BEGIN HIDDEN TESTS
check("iou", scene_iou, "pixels without a label", hidden=True)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "iou-pixels-without-a-prediction", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check("iou", scene_iou, "pixels without a prediction")
### BEGIN HIDDEN TESTS
check("iou", scene_iou, "pixels without a prediction", hidden=True)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "iou-a-class-that-is-nowhere", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check("iou", scene_iou, "a class that is nowhere")
### BEGIN HIDDEN TESTS
check("iou", scene_iou, "a class that is nowhere", hidden=True)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "iou-thirty-classes", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check("iou", scene_iou, "thirty classes")
### BEGIN HIDDEN TESTS
check("iou", scene_iou, "thirty classes", hidden=True)
### END HIDDEN TESTS

# %% [markdown]
# ## Go further
#
# - Make a scene of two blocks on which the mean of the blocks' IoUs is above 0.9 and the pooled IoU below 0.2.
# - Papers differ in what they average. Compute the mean IoU of a map with and without a class that is nowhere, counted as
#   0, as 1 and as NaN. Which of the three would you report, and how would a reader know?
# - Why do `uint8` arrays overflow here, and at how many classes?
# - *Read next*: `rsseglab/evaluation/protocols.py`, on how published scores are counted.
