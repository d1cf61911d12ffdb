# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What counts as evidence?
#
# **The question.** A paper says 72.9, yours says 72.1. Is theirs better? Between a number and a method stand the split, the
# interval, the choice of checkpoint, and the way a score is added up. Each of them can move it by more than methods differ.
# This notebook makes each of the four go wrong on purpose, and measures by how much.
#
# **It assumes** *Cropping, fusion, whole scene* (paired intervals, the claim matrix). **It takes** less than a minute on a laptop
# with two cores, and 1 GiB of memory. No data is needed: scenes are made here.

# %% tags=["parameters"] nbmake={"mock": {"side_px": 192, "worlds": 20, "draws": 60, "runs": 200}}
side_px = 384  # of the scene in sections 1 and 4
worlds = 150  # made test scenes in section 2
draws = 400  # of each bootstrap
runs = 2000  # repetitions of section 3
seed = 0

# %%
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy.ndimage import distance_transform_edt, gaussian_filter, shift
from scipy.spatial import cKDTree

from rsseglab import plots
from rsseglab.evaluation import Confusion
from rsseglab.evaluation.blocks import count_blocks
from rsseglab.evaluation.bootstrap import mean_iou_interval
from rsseglab.evaluation.padding import padded_size
from rsseglab.scenes import ArraySource, LabelClass, Scene
from rsseglab.scenes.synthetic import CLASSES, IGNORE_VALUES, write_synthetic_scene

random = np.random.default_rng(seed)
BLUE, ORANGE, GREEN, SKY, VERMILION = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in plots.OKABE_ITO[:5]]
folder = mkdtemp()
image_path, label_path = write_synthetic_scene(folder, "made", side_px, side_px, seed)
scene = Scene(image_path, label_path, CLASSES, IGNORE_VALUES, name="made")
image, label = scene.read().astype(float), scene.read_label()
names = [c.name for c in CLASSES]

# %% [markdown]
# ## 1. The split: how a neighbour tells the answer
#
# Take the plainest classifier there is: each test pixel gets the class of the training pixel that is most like it. As
# features it has its own colour and the mean colours around it. It has no idea of roads or roofs. Now split the pixels of
# one scene in training and test,
#
# - *at random*, as is common for a single hyperspectral scene,
# - in *blocks*, so that a test pixel is mostly far from all training pixels,
# - in blocks with a *gap* as wide as the features reach, so that no test pixel shares one pixel with a training one.

# %%
reach_px = 12  # how far the widest of the features reaches: four standard deviations of 3 px


def features_of(picture):
    """Colour, and mean colours at two scales: (pixels, 9)."""
    return np.concatenate([gaussian_filter(picture, (0, s, s)) for s in (0, 1.5, 3)]).reshape(9, -1).T


def in_blocks(px):
    """Which pixels are for testing, by a checkerboard of blocks."""
    rows, cols = np.indices(label.shape) // px
    return (rows + cols) % 2 == 1


def split_of(name):
    """Training and test pixels of a split."""
    blocks = in_blocks(side_px // 4)
    if name == "at random":
        test = random.random(label.shape) < 0.5
        return ~test, test
    gap = 2 * reach_px if name == "blocks with a gap" else 0
    return ~blocks & (distance_transform_edt(~blocks) > gap), blocks


features = features_of(image)
found, maps = {}, {}
for name in ("at random", "blocks", "blocks with a gap"):
    train, test = (part.ravel() & (label.ravel() < len(names)) for part in split_of(name))
    chosen = random.choice(np.flatnonzero(train), min(20_000, int(train.sum())), replace=False)
    nearest = cKDTree(features[chosen]).query(features[test])[1]
    guessed = np.full(label.size, 255, np.uint8)
    guessed[test] = label.ravel()[chosen][nearest]
    counts = Confusion(names)
    counts.update(guessed[test], label.ravel()[test])
    found[name] = {"mean IoU, %": 100 * counts.mean_iou(), "accuracy, %": 100 * counts.overall_accuracy()}
    maps[name] = plots.colorize(guessed.reshape(label.shape), CLASSES)
pd.DataFrame(found).T.round(1)

# %%
figure, axes = plt.subplots(1, 5, figsize=(15, 3.7), layout="constrained")
plots.draw(axes[0], plots.thumbnail(scene), "scene")
plots.draw(axes[1], plots.colorize(label, CLASSES), "label")
for axis, (name, picture) in zip(axes[2:], maps.items(), strict=True):
    plots.draw(axis, picture, f"{name}: {found[name]['mean IoU, %']:.0f} % mean IoU")
figure.legend(handles=plots.class_legend(CLASSES), loc="outside lower center", ncols=8, frameon=False)
plots.show(
    figure,
    "A made scene, its label, and what a nearest-neighbour classifier makes of the test pixels of three splits: at random "
    "it looks nearly perfect, in blocks it does not.",
)

# %% [markdown]
# Same classifier, same scene, same number of training pixels. Split at random, nearly every test pixel has a training pixel
# next to it, whose features overlap with its own: what is measured is memory. How good the classifier would be on *ground it
# has not seen*, the score of the random split cannot say. Scenes leak too: overlapping tiles of one flight, two dates of one
# place, neighbouring sheets. Before you split by scenes, look at their coordinates: assignment *Find the leak* does.
#
# ## 2. The interval: pixels are not independent
#
# A test scene has a million pixels, so is its accuracy known to a tenth of a percent? Only if each pixel were a new
# experiment. But errors come in patches: a field is wrong as a whole. Make many scenes with known true accuracy, whose errors
# are patches of some 10 px, and see how often the interval of each scene holds the truth. It should in 95 of 100.

# %%
SIDE, PATCH_PX = 256, 10
TWO = [LabelClass("right", 0, (0, 114, 178)), LabelClass("wrong", 1, (230, 159, 0))]


def field_of_errors():
    """Which pixels of a made scene are wrong: 20 % in the mean over all scenes, in patches."""
    noise = gaussian_filter(random.normal(size=(SIDE, SIDE)), PATCH_PX / 2, mode="wrap")
    return noise / (1 / (2 * np.sqrt(np.pi) * PATCH_PX / 2)) < -0.8416  # the 20 % quantile of a normal distribution


def interval_of(error, block_px):
    """The middle 95 % of the mean error over scenes drawn from its blocks."""
    count = SIDE // block_px
    blocks = (
        error[: count * block_px, : count * block_px].reshape(count, block_px, count, block_px).mean((1, 3)).ravel()
    )
    if block_px == 1:  # of so many, the normal approximation is exact enough, and quicker
        half = 1.96 * blocks.std() / np.sqrt(blocks.size)
        return blocks.mean() - half, blocks.mean() + half
    means = blocks[random.integers(0, blocks.size, (draws, blocks.size))].mean(1)
    return tuple(np.percentile(means, (2.5, 97.5)))


sizes = [1, 4, 16, 32, 64]
held = {px: [] for px in sizes}
for _ in range(worlds):
    error = field_of_errors()
    for px in sizes:
        low, high = interval_of(error, px)
        held[px].append((low <= 0.2 <= high, high - low))
coverage = pd.DataFrame({px: np.mean(values, 0) for px, values in held.items()}, index=["coverage", "width"]).T

figure, axes = plt.subplots(1, 3, figsize=(13, 3.7), layout="constrained")
plots.draw(axes[0], plots.colorize(error.astype(np.uint8), TWO), f"{SIDE} x {SIDE} px, wrong in patches (orange)")
axes[1].plot(sizes, 100 * coverage["coverage"], "o-", color=BLUE)
axes[1].axhline(95, color="black", linestyle="--", label="as promised")
axes[1].set(xscale="log", xticks=sizes, xticklabels=sizes, xlabel="side of the blocks, px", ylim=(0, 102))
axes[1].set(ylabel="intervals that hold the truth, %", title="how often the interval is right")
axes[1].legend(frameon=False)
axes[2].plot(sizes, 100 * coverage["width"], "s-", color=VERMILION)
axes[2].set(xscale="log", xticks=sizes, xticklabels=sizes, xlabel="side of the blocks, px", ylim=(0, None))
axes[2].set(ylabel="width, percentage points", title="how wide it is")
plots.show(
    figure,
    "A scene that is wrong in patches; the share of intervals that hold the truth over the side of the blocks: few for "
    "single pixels, near 95 percent for blocks larger than a patch; and the intervals' widths, which grow with it.",
)

# %% [markdown]
# With pixels as units about nine of ten intervals are wrong; with blocks of a few patches' size most are right. (With very large
# blocks too few are left to draw from; the library takes $n - 1$ of $n$ and stretches for few seeds,
# `rsseglab/evaluation/bootstrap.py`.) The library's own interval for the mean IoU of such a scene:

# %%
truth = np.zeros((SIDE, SIDE), np.uint8)
truth[:, SIDE // 2 :] = 1
two = [LabelClass("left", 0, (0, 114, 178)), LabelClass("right", 1, (230, 159, 0))]
halves = Scene(ArraySource(np.zeros((SIDE, SIDE, 3), np.uint8)), ArraySource(truth), two, name="halves")
guess = np.where(field_of_errors(), 1 - truth, truth).astype(np.uint8)
for px in (8, 32):
    found = mean_iou_interval([[count_blocks(guess, halves, block_px=px)]])
    print(
        f"mean IoU {100 * found.value:.1f} % [{100 * found.low:.1f}, {100 * found.high:.1f}] from {found.blocks} blocks of {px} px;"
    )
    print(f"   a true difference of less than {100 * found.smallest_detectable:.1f} points would mostly be missed")

# %% [markdown]
# ## 3. The choice: the best of many is too good
#
# Ten checkpoints of one run are equally good in truth, and differ on the test set by chance, with a standard deviation of
# half a point. Report the best *on the test set*, and you report the chance as well. Select on validation scenes instead,
# and the score is honest again; what validation scenes cost you is training data, not truth.

# %%
spread = 0.5
candidates = [1, 2, 5, 10, 20, 50]
test_scores = random.normal(72.0, spread, (runs, max(candidates)))
val_scores = random.normal(72.0, spread, (runs, max(candidates)))
picked_on_test = [test_scores[:, :n].max(1) for n in candidates]
picked_on_val = [test_scores[np.arange(runs), val_scores[:, :n].argmax(1)] for n in candidates]

figure, axis = plt.subplots(figsize=(7.5, 3.7), layout="constrained")
for scores, text, color, style in (
    (picked_on_test, "checkpoint selected on the test set", VERMILION, "o-"),
    (picked_on_val, "selected on validation scenes", BLUE, "s--"),
):
    middle = [s.mean() for s in scores]
    axis.plot(candidates, middle, style, color=color, label=text)
    axis.fill_between(
        candidates, *zip(*(np.percentile(s, (5, 95)) for s in scores), strict=True), color=color, alpha=0.15
    )
axis.axhline(72, color="black", linewidth=1, linestyle=":", label="true, of all of them")
axis.set(xscale="log", xticks=candidates, xticklabels=candidates)
axis.set(xlabel="checkpoints, or settings, to select from", ylabel="reported mean IoU, %")
axis.legend(frameon=False)
plots.show(
    figure,
    "Reported score over the number of checkpoints: selected on the test set it rises above the truth with their number; "
    "selected on validation scenes it stays there.",
)

# %% [markdown]
# The rise is no fraud; nobody needs to know that it happens. Ten checkpoints, four learning rates and two augmentations are
# eighty candidates. Published gains of a few tenths of a point, of single runs selected on the test set, are of this size.
#
# ## 4. The sum: one prediction, six scores
#
# One prediction of one scene, scored in ways that are all in use. The prediction is the label, moved by a pixel or two, with
# some fields given to another class.

# %%
moved = shift(label, (2, 1), order=0, mode="nearest")
blobs = gaussian_filter(random.normal(size=label.shape), 12) > 0.02
prediction = np.where(blobs & (moved < len(names)), (moved + 1) % len(names), moved).astype(np.uint8)
prediction[prediction > len(names)] = 0


def counted(predicted, reference):
    """Counts of one part."""
    counts = Confusion(names)
    counts.update(predicted, reference)
    return counts


whole = counted(prediction, label)
crop_px = side_px // 6
crops = [
    counted(prediction[r : r + crop_px, c : c + crop_px], label[r : r + crop_px, c : c + crop_px])
    for r in range(0, side_px, crop_px)
    for c in range(0, side_px, crop_px)
]
height, width = padded_size(side_px + 40, side_px + 40, side_px)
padded_label, padded_guess = (np.zeros((height, width), np.uint8) for _ in range(2))  # padding: class 0, predicted so
padded_label[:side_px, :side_px], padded_guess[:side_px, :side_px] = label, prediction
inner = distance_transform_edt(np.abs(np.gradient(label.astype(float))).sum(0) == 0) > 3  # px from a border
scores = {
    "pooled over the scene, all classes": whole.mean_iou(),
    "mean over crops of each crop's mean": np.mean([c.mean_iou() for c in crops]),
    "without the class that is worst": np.sort(whole.iou())[1:].mean(),
    "without pixels at borders": counted(prediction[inner], label[inner]).mean_iou(),
    "with padding, as class 0": counted(padded_guess, padded_label).mean_iou(),
    "accuracy, not IoU": whole.overall_accuracy(),
}
figure, axis = plt.subplots(figsize=(9, 3.2), layout="constrained")
places = np.arange(len(scores))
axis.barh(places, [100 * s for s in scores.values()], color=[BLUE] + [ORANGE] * (len(scores) - 1))
for place, value in zip(places, scores.values(), strict=True):
    axis.text(100 * value + 0.5, place, f"{100 * value:.1f}", va="center")
axis.set(yticks=places, yticklabels=list(scores), xlabel="%", xlim=(0, 105))
axis.invert_yaxis()
plots.show(figure, "Six scores of one and the same prediction, which differ by many points.")

# %% [markdown]
# None of them is wrong by itself. Comparing one with another is. In this library scores are pooled over whole scenes, over
# all classes, and without padding; `rsseglab evaluate --protocol` prints what a paper would have reported beside it, and
# every published number in [the tables](../tables) says how it was had.
#
# ## A list for your next table
#
# | ask | because |
# |---|---|
# | Are test places apart from training places? Which distance? | section 1 |
# | An interval over blocks, and over seeds? Which difference could have been found? | section 2, *Cropping, fusion, whole scene* |
# | On what was the checkpoint selected, and from how many? | section 3 |
# | Pooled over what, which classes, which pixels, padding, flips at test time? | section 4 |
# | As many steps, pixels and parameters for the baseline? The best one? | *Cropping, fusion, whole scene* |
# | How well do two annotators agree? | *Cropping, fusion, whole scene*, section 5 |
# | What was claimed, and was the threshold there before the run? | the claim matrix, same place |
#
# ## Exercises
#
# 1. **How far is far?** In section 1 let the gap grow from 0 to 60 px and draw the score over it. Where does it level off? What
#    does the scene's own texture have to do with it?
# 2. **A network instead.** Train the U-Net of *What is a whole scene* on the same three splits. Is it more or less easily
#    deceived than a nearest neighbour? Why?
# 3. **The right block.** Estimate, from one error map alone, how far errors are alike (their autocorrelation), and choose the
#    block's side from it. Repeat section 2 with patches of 5 and of 40 px: does your rule hold?
# 4. **Paired.** Make two methods that share 80 % of their errors. Compare the interval of the difference with and without
#    pairing. By how much does pairing lower the smallest detectable effect?
# 5. **Winner's curse, twice.** In section 3, let the candidates differ in truth by 0.2 points. How often does selecting on the
#    test set find the truly best one, and by how much is it over-reported then?
# 6. **Read one.** Take a paper of your choice and fill the list above for its main table. What can't you find?
#
# **Read next.** `rsseglab/evaluation/bootstrap.py` (places, seeds, and why $n - 1$), `rsseglab/evaluation/confusion.py`,
# `rsseglab/evaluation/protocols.py` (published definitions), and *Reproduce a paper*.
