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
# # Find the leak between two scenes
#
# **The goal.** A training scene and a test scene may show the same ground: neighbouring sheets of a map overlap by some
# metres, mosaics are cut twice, a sensor passes again. What was learnt there is no evidence of what a network can do
# elsewhere. Write the function that finds the part of a test scene that a training scene shows too.
#
# **What to know.** A georeferenced raster carries an affine *transform* from (column, row) to map coordinates; of a
# north-up raster with square pixels of $g$ metres and its upper left corner at $(x_0, y_0)$ it is
#
# $$ \begin{pmatrix} x \\ y \end{pmatrix} =
#    \begin{pmatrix} g & 0 & x_0 \\ 0 & -g & y_0 \end{pmatrix}
#    \begin{pmatrix} \text{column} \\ \text{row} \\ 1 \end{pmatrix}, \qquad
#    \text{row} = \frac{y_0 - y}{g}, \quad \text{column} = \frac{x - x_0}{g} $$
#
# (the GDAL data model, "affine geotransform"; here without rotation). What two scenes share is the rectangle
#
# $$ [\max x_\text{west},\, \min x_\text{east}] \times [\max y_\text{south},\, \min y_\text{north}] $$
#
# and nothing, if a side of it is not longer than 0. In pixels of the test scene it is a *window*: first row, first
# column, height, width. A test pixel that was seen in part was seen: round outwards.
#
# ```text
#   north                                   the window of the test scene (#):
#     +-----------+  training                 row    = (y0 of test - northern edge of #) / g of test
#     |           |                           column = (western edge of # - x0 of test) / g of test
#     |     +-----+-------+
#     |     |#####|       |  test
#     +-----+#####|       |
#           |             |
#           +-------------+
#   south
# ```
#
# **Points**: 10. **In the library**: `rsseglab.scenes.Scene` knows ``height``, ``width``, ``transform`` (``transform.a``
# is $g$, ``.c`` is $x_0$, ``.f`` is $y_0$) and ``crs``; `rasterio.windows.from_bounds` turns coordinates into a window.

# %%
from math import ceil, floor

import matplotlib.pyplot as plt
from affine import Affine

from rsseglab.scenes import Scene, Window
from rsseglab.scenes.raster import ArraySource
from rsseglab.scenes.synthetic import render

# %% [markdown]
# ## Your task
#
# Both scenes are north-up, have square pixels, and lie in the same coordinate system.


# %% nbgrader={"grade": false, "grade_id": "leak", "locked": false, "schema_version": 3, "solution": true, "task": false}
def shared_window(train, test):
    """The part of a test scene that a training scene shows too.

    Args:
        train: a scene (`rsseglab.scenes.Scene`).
        test: a scene, perhaps with pixels of another size.

    Returns:
        (row, col, height, width) in pixels of the test scene, as integers, every pixel included that is shared in part;
        None where nothing is shared.
    """
    ### BEGIN SOLUTION
    a, b = train.transform, test.transform
    west, east = max(a.c, b.c), min(a.c + a.a * train.width, b.c + b.a * test.width)
    south, north = max(a.f - a.a * train.height, b.f - b.a * test.height), min(a.f, b.f)
    if west >= east or south >= north:
        return None
    row, col = floor((b.f - north) / b.a), floor((west - b.c) / b.a)
    bottom, right = ceil((b.f - south) / b.a), ceil((east - b.c) / b.a)
    return row, col, bottom - row, right - col
    ### END SOLUTION


# %% [markdown]
# ## Checks
#
# Each compares your function with the library's, on numbers drawn from seed 0, and says what is wrong. When your work is
# graded, the same is done with other seeds: copying the right numbers does not help.

# %%
from rsseglab.assignments import check

# %% nbgrader={"grade": true, "grade_id": "leak-scenes-that-overlap", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
check("leak", shared_window, "scenes that overlap")
### BEGIN HIDDEN TESTS
check("leak", shared_window, "scenes that overlap", hidden=True)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "leak-scenes-that-only-touch", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check("leak", shared_window, "scenes that only touch")
### BEGIN HIDDEN TESTS
check("leak", shared_window, "scenes that only touch", hidden=True)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "leak-a-scene-inside-another", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
check("leak", shared_window, "a scene inside another")
### BEGIN HIDDEN TESTS
check("leak", shared_window, "a scene inside another", hidden=True)
### END HIDDEN TESTS

# %% nbgrader={"grade": true, "grade_id": "leak-pixels-of-another-size", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
check("leak", shared_window, "pixels of another size")
### BEGIN HIDDEN TESTS
check("leak", shared_window, "pixels of another size", hidden=True)
### END HIDDEN TESTS

# %% [markdown]
# ## See it
#
# Two scenes of one synthetic land. Your window, read from the test scene, has to show what the training scene shows.

# %% tags=["picture"]
places = {"train": Window(0, 0, 300, 260), "test": Window(190, 140, 280, 320)}
scenes = {
    name: Scene(
        ArraySource(
            render(6, place)[0].transpose(1, 2, 0), transform=Affine(0.5, 0, 0.5 * place.col, 0, -0.5, -0.5 * place.row)
        ),
        name=name,
    )
    for name, place in places.items()
}
row, col, height, width = shared_window(scenes["train"], scenes["test"])
figure, axes = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
for panel, (name, scene) in zip(axes, scenes.items(), strict=True):
    panel.imshow(scene.read().transpose(1, 2, 0))
    panel.set(title=f"{name} scene, {scene.height} x {scene.width} px", xlabel="column, px", ylabel="row, px")
corner = (col - 0.5, row - 0.5)
axes[1].add_patch(plt.Rectangle(corner, width, height, fill=False, edgecolor="#E69F00", linewidth=3, label="the leak"))
axes[1].legend(loc="lower right")
plt.show()

# %% [markdown]
# ## Go further
#
# - Which share of the test scene's *labelled* pixels has leaked? Score a network with and without them.
# - Benchmarks of PNG tiles have no transform. Find the shared window of the two scenes above from their pixels alone: which
#   shift makes them equal? (`skimage.registration.phase_cross_correlation`, or a set of hashes of 16 x 16 px blocks.)
# - Two scenes that touch share no pixel, and still leak: neighbouring fields are alike. How far apart should training and
#   test be? Look at how the error rate of the nearest training pixel's label grows with distance.
# - *Read next*: the notebook "What counts as evidence?", and the assignment on the block bootstrap.
