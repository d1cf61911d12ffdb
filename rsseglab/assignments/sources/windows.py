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
# # Window arithmetic: where crops lie on a scene
#
# **The goal.** A scene is labelled in windows. Write the function that says where they start along one axis, so that
# every pixel is in a window and no window reaches past the scene.
#
# **What to know.** A window has $n$ pixels a side, and neighbours start $s \le n$ pixels apart (the *stride*; windows
# share $n - s$ pixels). A scene's length $L$ is seldom $n$ and some strides. Then the last window is moved back until it
# ends with the scene: its start is *clamped*. With $m$ windows after the first one,
#
# $$ a_i = \min(i\,s,\; L - n), \qquad i = 0, \dots, m, \qquad m = \left\lceil \frac{L - n}{s} \right\rceil $$
#
# and a single window at 0 where the scene is no longer than a window (it is padded then). This is the placement of
# MONAI's sliding windows (Cardoso et al., *MONAI*, arXiv:2211.02701), and the library's ``placement="flush"``.
#
# ```text
# L = 11, n = 4, s = 3
#
# pixel    0  1  2  3  4  5  6  7  8  9 10
# window 0 [--------]
# window 1          [--------]
# window 2                   [--------]         ends with pixel 9: pixel 10 is left
# window 3                      [--------]      moved back from 9 to 7: it ends with the scene
# ```
#
# Two mistakes hide from an average: a strip of pixels that nobody has labelled, and a window twice in the same place,
# which costs time and counts double where windows are blended.
#
# **Points**: 10. **In the library**: `rsseglab.inference.windows.window_starts`; read it when your checks have passed.

# %% [markdown]
# ## Your task


# %% nbgrader={"grade": false, "grade_id": "windows", "locked": false, "schema_version": 3, "solution": true, "task": false}
def starts(length, window, stride):
    """First pixels of the windows along one axis.

    Args:
        length: of the scene, in px.
        window: side n of a window, in px.
        stride: distance s between two starts, in px, at most the side of a window.

    Returns:
        A sorted list of int, without repetition; [0] where the scene is no longer than a window.
    """
    ### BEGIN SOLUTION
    if length <= window:
        return [0]
    count = -(-(length - window) // stride)  # rounded up
    return [min(i * stride, length - window) for i in range(count + 1)]
    ### END SOLUTION


# %% [markdown]
# ## Checks
#
# Each compares your function with the library's, on numbers drawn from seed 0, and says what is wrong. When your work is
# graded, the same is done with other seeds: copying the right numbers does not help.

# %%
from rsseglab.assignments import check

# %% nbgrader={"grade": true, "grade_id": "windows-the-last-pixels-are-covered", "locked": true, "points": 4, "schema_version": 3, "solution": false, "task": false}
check("windows", starts, "the last pixels are covered")
### BEGIN HIDDEN TESTS
check("windows", starts, "the last pixels are covered", hidden=True)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "windows-windows-that-fit-exactly", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
check("windows", starts, "windows that fit exactly")
### BEGIN HIDDEN TESTS
check("windows", starts, "windows that fit exactly", hidden=True)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "windows-scenes-as-short-as-a-window", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
check("windows", starts, "scenes as short as a window")
### BEGIN HIDDEN TESTS
check("windows", starts, "scenes as short as a window", hidden=True)
### END HIDDEN TESTS

# %% [markdown]
# ## Go further
#
# - How many windows does a scene of 6447 x 4438 px take, in windows of 512 px that share half their side? How often is a
#   pixel computed, on average? And with no overlap?
# - FCtL spreads the same number of windows evenly. Write that placement, and say which of the two has the smaller
#   overlap at its worst. (`rsseglab.inference.windows.window_starts` has it as ``placement="even"``.)
# - *Read next*: the notebook "What is a whole scene, and what does cropping do to it?".
