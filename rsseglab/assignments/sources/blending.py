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
# # Blending: where windows overlap
#
# **The goal.** Windows overlap, and a network says something else of a pixel at a window's rim than in its middle. Write
# the function that merges overlapping windows by weights that fade out towards the rim.
#
# **What to know.** Let $f_w(p)$ be what window $w$ says of pixel $p$, and $\omega_w(p)$ how much that counts. The merged
# scene is a mean whose weights sum to one at every pixel,
#
# $$ y_p = \frac{\sum_{w \ni p} \omega_w(p)\, f_w(p)}{\sum_{w \ni p} \omega_w(p)}, \qquad
#    \omega(i, j) = h(i)\, h(j), \qquad h(i) = \sin^2\!\left(\pi\, \frac{i + \frac{1}{2}}{n}\right) $$
#
# with $h$ Hann's window over the $n$ pixels of a side (Pielawski and Wählby, "Introducing Hann windows for reducing
# edge-effects in patch-based image segmentation", PLoS ONE 15, 2020), taken in the *middle* of each pixel: at
# $i / (n - 1)$ it would be 0 in the corners of a scene, where no other window helps.
#
# ```text
# weight of three windows (n = 8, s = 4) along an axis, and their sum
#
#   1 |      .--.        .--.        .--.
#     |    .'    '.    .'    '.    .'    '.        with half a side of overlap two neighbours' weights sum to 1
#     |  .'        '..'        '..'        '.      by themselves; at the scene's rim, and where the last window
#   0 |.'        .'  '.      .'  '.          '.    was moved back, only dividing by the sum makes it so
#     +----------------------------------------
# ```
#
# **Points**: 10. **In the library**: `rsseglab.inference.crops.crop_and_merge`, which does this a band of rows at a time,
# so that the scene need not fit in memory.

# %%
import torch

from rsseglab.inference.windows import window_starts

# %% [markdown]
# ## Your task
#
# Windows start at ``window_starts(height, n, stride)`` and ``window_starts(width, n, stride)``: the function of the
# assignment on window arithmetic. Use it.


# %% nbgrader={"grade": false, "grade_id": "blending", "locked": false, "schema_version": 3, "solution": true, "task": false}
def blend(outputs, stride, height, width):
    """Merge overlapping windows of a scene by Hann weights.

    Args:
        outputs: a tensor of shape (R, C, K, n, n): K numbers a pixel, for R rows of C windows of n x n px each.
        stride: distance between two windows, in px.
        height: of the scene, in px, at least n.
        width: of the scene, in px, at least n.

    Returns:
        A tensor of shape (K, height, width).
    """
    ### BEGIN SOLUTION
    n = outputs.shape[-1]
    hann = (torch.pi * (torch.arange(n) + 0.5) / n).sin() ** 2
    weights = hann[:, None] * hann
    total, norm = torch.zeros(outputs.shape[2], height, width), torch.zeros(height, width)
    for i, row in enumerate(window_starts(height, n, stride)):
        for j, col in enumerate(window_starts(width, n, stride)):
            total[:, row : row + n, col : col + n] += weights * outputs[i, j]
            norm[row : row + n, col : col + n] += weights
    return total / norm
    ### END SOLUTION


# %% [markdown]
# ## Checks
#
# Each compares your function with the library's, on numbers drawn from seed 0, and says what is wrong. When your work is
# graded, the same is done with other seeds: copying the right numbers does not help.

# %%
from rsseglab.assignments import check

# %% nbgrader={"grade": true, "grade_id": "blending-windows-that-agree-stay-as-they-are", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
check("blending", blend, "windows that agree stay as they are")
### BEGIN HIDDEN TESTS
check("blending", blend, "windows that agree stay as they are", hidden=True)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "blending-windows-weigh-by-a-hann-window", "locked": true, "points": 4, "schema_version": 3, "solution": false, "task": false}
check("blending", blend, "windows weigh by a Hann window")
### BEGIN HIDDEN TESTS
check("blending", blend, "windows weigh by a Hann window", hidden=True)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "blending-a-last-window-that-is-moved-back", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
check("blending", blend, "a last window that is moved back")
### BEGIN HIDDEN TESTS
check("blending", blend, "a last window that is moved back", hidden=True)
### END HIDDEN TESTS

# %% [markdown]
# ## Go further
#
# - Give your function windows of ones and of noise, and draw the scene: where does the noise stay strongest? Why there?
# - With half a side of overlap and no moved window, $\sum_w \omega_w(p) = 1$ inside the scene without dividing. Prove it
#   from $\sin^2 + \cos^2 = 1$.
# - Should logits or probabilities be merged? Find two windows for which the answers differ.
# - *Read next*: the notebook "Cropping, fusion, whole scene", which measures what blending does to the seam error.
