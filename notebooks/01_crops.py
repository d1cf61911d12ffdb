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
# # What is a whole scene, and what does cropping do to it?
#
# **The question.** A remote sensing scene is larger than what fits in memory, so everybody cuts it in crops, labels each
# crop alone, and puts the labels together again. What does that cost? This notebook shows a seam, finds its cause, and
# measures it: against the whole scene, and against a placebo.
#
# **It assumes** that you know what a convolution is and have seen a segmentation network. No data is needed: the scene is
# made here. **It takes** about a minute on a laptop with two cores, and 2 GiB of memory.

# %% tags=["parameters"] nbmake={"mock": {"steps": 2}}
steps = 220  # training steps; more give a better map and the same lesson
seed = 0

# %%
from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from rsseglab import plots
from rsseglab.evaluation import evaluate_scene
from rsseglab.inference import Cropping, crop_and_merge, predict_scene
from rsseglab.inference.predict import read_normalized
from rsseglab.scenes import Window
from rsseglab.scenes.manifest import load_manifest
from rsseglab.training.checkpoint import load_checkpoint
from rsseglab.training.fit import TrainConfig, fit
from rsseglab.widgets import swipe

folder = Path(mkdtemp())  # for what this notebook writes

# %% [markdown]
# ## 1. A whole scene
#
# A `Scene` is an image with its label, on disk. It knows its size, its bands, its place on Earth; and it reads *windows*:
# a read decodes only the blocks of the file that the window touches. Nobody has to hold the scene in memory.

# %%
manifest = load_manifest("synthetic")
scene = manifest.scenes("test")[0]
print(scene)
print("classes:", ", ".join(c.name for c in scene.classes))
print(f"one pixel is {scene.transform.a} m; the upper left corner lies at {scene.transform.c} E, {scene.transform.f} N")
window = scene.read(Window(row=400, col=500, height=200, width=300))
print("a window:", window.shape, window.dtype)

# %%
figure, axes = plt.subplots(1, 2, figsize=(12, 5.4), layout="constrained")
plots.draw(axes[0], plots.thumbnail(scene), f"{scene.name}: {scene.width} x {scene.height} px")
plots.draw(axes[1], plots.colorize(plots.label_thumbnail(scene), scene.classes), "its label")
axes[1].legend(handles=plots.class_legend(scene.classes), loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
plots.show(figure, "A made scene in true colour and its label in seven classes.")

# %% [markdown]
# ## 2. A network trained on crops
#
# The usual way: random crops of the training scenes, a small U-Net (on timm's tiny ResNet), half a minute.

# %%
config = TrainConfig(encoder="test_resnet", steps=steps, val_every=steps, batch_size=4, crop_px=128, lr=3e-3, seed=seed)
result = fit(manifest.scenes("train"), manifest.scenes("val"), config, folder / "run")
trained = load_checkpoint(result.checkpoint)
print(f"validation mean IoU {result.val_mean_iou:.3f} after {result.seconds:.0f} s")

# %% [markdown]
# ## 3. Label the scene crop by crop
#
# Windows of 256 px, side by side. Look at the borders between windows in the zoom: roads break, a roof ends in a straight
# line that is not there in the image. These are **seams**.

# %%
side = 256
flat = predict_scene(trained, scene, folder / "flat.tif", Cropping(side, overlap=0, blend="flat"), progress=False)
predicted = plots.prediction_thumbnail(flat.path, scene, max_px=10_000)

# %% [markdown]
# Swipe between the scene and what the network makes of it; choose its label or its errors in the lists.

# %%
swipe(scene, {"crops of 256 px": flat.path})

# %% [markdown]
# ## 4. The cause: the network looks past the border and sees zeros
#
# This scene is small enough to be labelled whole, in one go, so we can compare. A pixel in the middle of a window gets
# nearly the same answer either way. A pixel near a border does not: its *receptive field* reaches outside the window, where
# the crop has nothing but padding.

# %%
height, width = scene.height // 32 * 32, scene.width // 32 * 32
image = read_normalized(trained, scene, 0, height)[:, :, :width]
with torch.no_grad():
    whole = trained.network(image[None])[0]
    cropped = torch.zeros_like(whole)
    for row in range(0, height - side + 1, side):
        for col in range(0, width - side + 1, side):
            place = (slice(None), slice(row, row + side), slice(col, col + side))
            cropped[place] = trained.network(image[None][(slice(None), *place)])[0]
rows, cols = height // side * side, width // side * side
difference = (cropped - whole)[:, :rows, :cols].abs().amax(dim=0).numpy()
changed = (cropped.argmax(0) != whole.argmax(0))[:rows, :cols].numpy()
print(f"{changed.mean():.2%} of the pixels get another class when the scene is cut in windows of {side} px")

# %%
figure, axes = plt.subplots(1, 2, figsize=(12, 5.2), layout="constrained")
shown = axes[0].imshow(difference, cmap="cividis", vmax=np.percentile(difference, 99))
figure.colorbar(shown, ax=axes[0], label="largest change of a logit", shrink=0.8)
axes[0].set_title("cropped against whole: what changes lies along the borders", fontsize=10)
axes[0].set_xlabel("column, px")
axes[0].set_ylabel("row, px")

place_in_window = np.arange(max(rows, cols)) % side
to_line = np.minimum(place_in_window, side - 1 - place_in_window)
distance = np.minimum(to_line[:rows, None], to_line[None, :cols])
mean_change = [difference[distance == d].mean() for d in range(side // 2)]
flipped = [100 * changed[distance == d].mean() for d in range(side // 2)]
axes[1].plot(mean_change, color="#0072b2", label="mean change of a logit")
axes[1].set_xlabel("distance to the nearest window border, px")
axes[1].set_ylabel("largest change of a logit, mean", color="#0072b2")
right = axes[1].twinx()
right.plot(flipped, color="#d55e00")
right.set_ylabel("pixels with another class, %", color="#d55e00")
axes[1].set_title("the nearer to a border, the more changes", fontsize=10)
plots.show(
    figure,
    "Map of the largest change of a logit between cropped and whole: bright lines along the window borders; and "
    "the mean change over the distance to the nearest border, falling from the border inwards.",
)

# %% [markdown]
# The curve falls, and never quite reaches zero: this U-Net's receptive field is wider than half a window, so even the
# middle of a window sees a little of the padding. But it hardly looks so far. *Why context?* tells the two apart.
#
# ## 5. Measured on the label: the seam error
#
# A change is not yet an error. Let us ask the label: **how much more often are pixels near a window border wrong than
# others?** One trap: pixels near any fixed line may happen to be harder (a river along it, say). So the same is measured
# for a **placebo**: a grid of lines shifted by half a stride, where no window ends. The *seam error* is the difference.
#
# More overlap softens seams, since each pixel is labelled by several windows and those in whose middle it lies count
# most. It is also paid for: with 50 % overlap each pixel is computed four times.

# %%
rows_shown = {}
for overlap, blend in [(0.0, "flat"), (0.25, "flat"), (0.25, "hann"), (0.5, "hann")]:
    cropping = Cropping(side, overlap, blend)
    path = folder / f"{blend}_{overlap:g}.tif"
    done = predict_scene(trained, scene, path, cropping, progress=False)
    score = evaluate_scene(path, scene)
    windows = len(cropping.starts(scene.height)) * len(cropping.starts(scene.width))
    low, high = score.seams.interval()
    rows_shown[f"overlap {overlap:.0%}, {blend}"] = {
        "mean IoU": f"{score.confusion.mean_iou():.3f}",
        "seam error, % points": f"{100 * score.seams.seam_error:+.2f}",
        "95 % interval": f"[{100 * low:+.2f}, {100 * high:+.2f}]",
        "windows": windows,
        "pixels computed / scene": f"{windows * side**2 / scene.height / scene.width:.1f}",
        "seconds": f"{done.seconds:.1f}",
    }
pd.DataFrame(rows_shown).T

# %% [markdown]
# ## 6. Look at one seam
#
# The window border where most pixels change. The right panel is the same network on the whole scene: there is no line,
# since no window ends there. It is not always the truer one: this network was trained on crops, and not for long. Being
# consistent comes first; being right is what training on whole scenes is about, later in this course.

# %%
seam = side * (1 + int(np.argmax([changed[:, c - 8 : c + 8].mean() for c in range(side, cols, side)])))
strip = changed[:, seam - 16 : seam + 16].mean(axis=1)
row = int(np.clip(np.convolve(strip, np.ones(160), "same").argmax() - 80, 0, rows - 160))
zoom = (slice(row, row + 160), slice(max(seam - 80, 0), seam + 80))
label = scene.read_label()
figure, axes = plt.subplots(1, 4, figsize=(14, 4.2), layout="constrained")
panels = [
    ("scene", plots.thumbnail(scene, 10_000)[zoom]),
    ("label", plots.colorize(label[zoom], scene.classes)),
    ("cropped: windows meet at the line", plots.colorize(predicted[zoom], scene.classes)),
    ("whole", plots.colorize(whole.argmax(0).numpy().astype(np.uint8)[zoom], scene.classes)),
]
for axis, (title, picture) in zip(axes, panels, strict=True):
    plots.draw(axis, picture, title)
axes[2].axvline(seam - zoom[1].start - 0.5, color="black", linewidth=1, linestyle="--")
figure.legend(handles=plots.class_legend(scene.classes), loc="outside lower center", ncols=8, frameon=False)
plots.show(
    figure,
    "A detail around a window border: scene, label, prediction from crops with a break at the line, prediction of "
    "the whole scene.",
)

# %% [markdown]
# ## 7. What no overlap can mend
#
# Overlap mends seams. It does not widen the view: however windows overlap, each one sees 256 px and nothing else. **Twin
# scenes** make that provable. They are two scenes that differ in one bit: which crop was sown in their fields. Fields look
# the same in both twins; what tells the crop is a *key*, a striped patch farther from every field than a window is wide.
#
# A window that shows a field never shows the key. So the answer on fields is the same in both twins, bit for bit, and in
# one of the two it is wrong: the accuracy over the pair is exactly one half, for **any** network and any overlap.

# %%
from rsseglab.scenes.twins import normalise, pair_accuracy, twin_scenes

twins = twin_scenes(320, 320, context_px=64, seed=3)
figure, axes = plt.subplots(1, 2, figsize=(9, 4.8), layout="constrained")
for s in (0, 1):
    plots.draw(axes[s], twins.images[s].transpose(1, 2, 0), f"twin {s}: only the stripes differ")
plots.show(figure, "Twin scenes that differ in the direction of the stripes of one patch alone.")

images = torch.from_numpy(normalise(twins.images))
answers = []
for s in (0, 1):
    bands = crop_and_merge(trained.network, lambda a, b: images[s][:, a:b], 320, 320, Cropping(64, 0.5, "hann"))  # noqa: B023
    answers.append(torch.cat([logits for _, logits in bands], dim=1))
fields = torch.from_numpy(twins.look_alike)
print("same answer on every field pixel:", torch.equal(answers[0][:, fields], answers[1][:, fields]))
print("pair accuracy:", pair_accuracy(torch.stack(answers), twins.labels))

# %% [markdown]
# ## What you have seen
#
# - A seam is where a window's padding meets the network's receptive field. It is a property of *cropping*, not of the
#   network or the scene.
# - The seam error measures it on the label, against a placebo.
# - Overlap trades computation for softer seams. It gives no context that the window does not hold.
#
# ## Exercises
#
# 1. **Window size.** Repeat section 5 with `side = 128` and `side = 512`. Does the seam error per border pixel change? And the
#    share of pixels near a border? Which of the two makes small windows worse?
# 2. **Reach.** Take a network of three 3 x 3 convolutions (`padding=1`) in place of the U-Net in section 4. At which distance from
#    the border must the difference be exactly zero? Predict it, then measure.
# 3. **Why a placebo?** Evaluate the *whole* prediction of section 4 with the placement of windows that never were
#    (`Placement` from `rsseglab.evaluation`). What should its seam error be? Is it, within its interval?
# 4. **Padding.** Replace the zeros around a window by its mirror image (`torch.nn.functional.pad` with `mode="reflect"`) and cut the
#    result back. Do seams vanish? Why not?
# 5. **Twins.** Set `context_px=48` in section 7. The windows are still 64 px. Is the pair accuracy still exactly one half? What
#    would have to be trained for it to become 1?
#
# **Read next.** `rsseglab/inference/crops.py` (how memory stays bounded), `rsseglab/evaluation/seams.py` (the definition of
# the seam error), `rsseglab/scenes/twins.py` (what is proved about twins, and what is only measured).
