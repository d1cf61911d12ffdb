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
# # The halo of a dilated convolution
#
# **The goal.** A scene is cut in bands of rows, a worker each. To compute its rows of a convolution's output, a worker
# needs rows of its neighbours: the *halo*. Write the rule that says which rows, exactly.
#
# **What to know.** With kernel size $k$, stride $s$, padding $p$ and dilation $d$, output row $o$ is
#
# $$ y_o = \sum_{j=0}^{k-1} w_j\, x_{o s - p + d j} $$
#
# (Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", arXiv:1603.07285, chapters 2 and 5.1). Rows
# $x_i$ with $i < 0$, or beyond the scene, are the padding's zeros. Output rows $[o_0, o_1)$, half open as in Python, are
# made of the input rows $[i_0, i_1)$ that the first and the last of these windows span.
#
# ```text
#   k = 3, s = 1, p = 2, d = 2            output rows [4, 7)
#
#   input row   1   2   3   4   5   6   7   8   9
#   y_4             x       x       x                    from 4 - 2 = 2
#   y_5                 x       x       x
#   y_6                     x       x       x            to 6 - 2 + 2 * 2 = 8, so the interval ends at 9
# ```
#
# A halo that is one row short gives a seam; one that is a row too wide gives rows that nobody asked for. In a deep
# network the rule is applied layer by layer, from the output back to the image.
#
# **Points**: 10. **In the library**: `rsseglab.spatial.rules.convolution.conv_needs`.

# %% [markdown]
# ## Your task


# %% nbgrader={"grade": false, "grade_id": "halo", "locked": false, "schema_version": 3, "solution": true, "task": false}
def input_rows(first, last, kernel, stride, padding, dilation):
    """The input rows that output rows [first, last) of a convolution are made of.

    Args:
        first: first output row.
        last: one after the last output row.
        kernel: size k.
        stride: s.
        padding: p, rows of zeros before and after the scene.
        dilation: d.

    Returns:
        (low, high): rows low to high - 1; low may be negative and high beyond the scene, where there are zeros.
    """
    ### BEGIN SOLUTION
    return first * stride - padding, (last - 1) * stride - padding + dilation * (kernel - 1) + 1
    ### END SOLUTION


# %% [markdown]
# ## Checks
#
# Each compares your function with the library's, on numbers drawn from seed 0, and says what is wrong. When your work is
# graded, the same is done with other seeds: copying the right numbers does not help.

# %%
from rsseglab.assignments import check

# %% nbgrader={"grade": true, "grade_id": "halo-kernels-without-dilation", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check("halo", input_rows, "kernels without dilation")
### BEGIN HIDDEN TESTS
check("halo", input_rows, "kernels without dilation", hidden=True)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "halo-dilated-kernels", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check("halo", input_rows, "dilated kernels")
### BEGIN HIDDEN TESTS
check("halo", input_rows, "dilated kernels", hidden=True)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "halo-strides", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check("halo", input_rows, "strides")
### BEGIN HIDDEN TESTS
check("halo", input_rows, "strides", hidden=True)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "halo-two-layers-one-after-the-other", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check("halo", input_rows, "two layers, one after the other")
### BEGIN HIDDEN TESTS
check("halo", input_rows, "two layers, one after the other", hidden=True)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "halo-bands-give-what-the-scene-gives", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check("halo", input_rows, "bands give what the scene gives")
### BEGIN HIDDEN TESTS
check("halo", input_rows, "bands give what the scene gives", hidden=True)
### END HIDDEN TESTS

# %% [markdown]
# ## Go further
#
# - Which halo has a band of 64 rows of DeepLab's ASPP, at stride 16 and with dilations 6, 12 and 18? How many rows of the
#   image is that? Compare it with the band.
# - Write the same rule for a transposed convolution. (`rsseglab/spatial/rules/convolution.py` has it in its first lines.)
# - Two layers with a halo of one row each: is it the same to fetch one row twice, or two rows once? Count what is sent
#   and what is computed twice.
# - *Read next*: the notebook "One scene over many workers".
