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
# # Hyperspectral, one class, drone
#
# **The question.** What changes with 200 bands, one class, or 7 cm pixels? The network hardly does. What changes is
# what a split is worth, what a score means, and what a pixel has to see. Three worked cases, each trained with REST
# (`exact+spim`, one scene over tiles that interact) by the same few lines.
#
# **It assumes** *What is a whole scene* and *One scene over many workers* (tiles), and that you know what a confusion matrix is. **It takes**
# about a minute on a laptop with two cores, and 4 GiB of memory. Where `RSSEGLAB_DATA` has the real scenes
# (`rsseglab data get indian_pines`, `dubai`, `oam_buildings` say how to get them) these are used, and it takes twice as long; else made ones, which
# run but prove little.

# %% tags=["parameters"] nbmake={"mock": {"real": false, "encoder": "test_resnet", "steps": 2, "side_px": 512}}
real = True  # use the real scenes where they are; made ones otherwise
encoder = "test_resnet"  # of the U-Nets that are trained: timm's tiny ResNet
steps = 30  # training steps of each network
side_px = 640  # side of the part of a drone scene that is labelled in section 5
seed = 0

# %%
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.patches import Rectangle
from torch.utils.flop_counter import FlopCounterMode

from rsseglab import plots
from rsseglab.cli import main
from rsseglab.decoders import create_network
from rsseglab.errors import UserError
from rsseglab.evaluation import Confusion, evaluate_scene, pool
from rsseglab.evaluation.receptive_field import receptive_field
from rsseglab.inference import Cropping, predict_scene
from rsseglab.inference.estimate import estimate_mib
from rsseglab.inference.whole import predict_whole
from rsseglab.scenes import Window
from rsseglab.scenes.manifest import load_manifest
from rsseglab.scenes.raster import RasterWriter
from rsseglab.scenes.store import find_data
from rsseglab.scenes.synthetic import CLASSES, render
from rsseglab.scenes.views import decimated, in_memory, part_of, single_class
from rsseglab.training.checkpoint import load_checkpoint
from rsseglab.training.fit import TrainConfig, fit

BLUE, ORANGE, GREEN, SKY, VERMILION, PURPLE = (tuple(c / 255 for c in color) for color in plots.OKABE_ITO[:6])
torch.manual_seed(seed)
folder = Path(mkdtemp())  # for what this notebook writes
REST = TrainConfig(
    encoder=encoder,
    method="rest",
    options={"interaction": "exact+spim", "strides": [16, 32]},
    steps=steps,
    val_every=steps,
    val_window_px=None,  # whole scenes
    seed=seed,
)


def here(name):
    """Whether the real scenes of a data set are at hand."""
    try:
        return real and find_data(load_manifest(name)).is_dir()
    except UserError:
        return False


def sources(*names):
    """Whose data this is."""
    rows = {name: load_manifest(name) for name in names}
    return pd.DataFrame({n: {"licence": m.licence, "credit": m.credit} for n, m in rows.items()}).T


pd.set_option("display.max_colwidth", None)
used = [name for name in ("indian_pines", "dubai", "oam_buildings") if here(name)]
sources(*used, "synthetic")

# %% [markdown]
# ## 1. Two hundred bands
#
# Indian Pines is the scene that the hyperspectral field grew up with: farmland in Indiana, 145 x 145 pixels of 20 m,
# seen by AVIRIS on 12 June 1992 in 220 channels from 0.40 to 2.50 µm. Twenty that water in the air absorbs are left out
# here. Three of the others make a picture; which three should always be said.


# %%
def made_pines(root):
    """A cube in Indian Pines' layout: fields of 16 classes, each with a smooth spectrum of its own."""
    draw = np.random.default_rng(seed)
    plan = draw.integers(1, 17, (13, 13))
    label = np.kron(plan, np.ones((12, 12), int))[:145, :145].astype(np.uint8)
    wave = np.linspace(0, 1, 200)
    spectra = np.array([np.exp(-wave) * (1 + 0.2 * np.sin(9 * wave * (1 + k / 40) + k / 3)) for k in range(17)])
    cube = 1000 + 4000 * spectra[label] + draw.normal(0, 150, (145, 145, 200))
    label[draw.random((145, 145)) < 0.4] = 0
    np.save(root / "Indian_pines_corrected.npy", cube.astype(np.uint16))
    np.save(root / "Indian_pines_gt.npy", label)


pines, pines_root = load_manifest("indian_pines"), None
if "indian_pines" not in used:
    pines_root = folder / "pines"
    pines_root.mkdir()
    made_pines(pines_root)
(scene,) = pines.scenes("all", pines_root)
cube, label = scene.read().astype(float), scene.read_label()
channel = np.setdiff1d(np.arange(1, 221), [*range(104, 109), *range(150, 164), 220])  # AVIRIS's numbers of the 200
print(scene)


def composite(pixels, channels):
    """Three channels as red, green and blue, each stretched to its 2nd and 98th percentiles."""
    shown = pixels[np.searchsorted(channel, channels)].transpose(1, 2, 0)
    low, high = np.percentile(shown, (2, 98), axis=(0, 1))
    return ((shown - low) / (high - low)).clip(0, 1)


# %%
picks = {"near infrared, red, green": (50, 27, 17), "short-wave infrared, near infrared, red": (180, 50, 27)}
figure, axes = plt.subplots(1, 3, figsize=(14, 6.2), layout="constrained")
for axis, (name, channels) in zip(axes, picks.items(), strict=False):
    plots.draw(axis, composite(cube, channels), f"{name}:\nAVIRIS channels {', '.join(map(str, channels))}")
plots.draw(axes[2], plots.colorize(label, scene.classes), "label,\nand the three parts that it is split in")
for name, part in pines.parts.items():
    row, col, height, width = part.window
    axes[2].add_patch(Rectangle((col - 0.5, row - 0.5), width, height, fill=False, edgecolor="black", linewidth=2))
    axes[2].text(3, row + height - 4, name, fontsize=9, bbox={"facecolor": "white", "alpha": 0.85, "linewidth": 0})
figure.legend(handles=plots.class_legend(scene.classes), loc="outside lower center", ncols=6, frameon=False, fontsize=9)
plots.show(
    figure, "A hyperspectral scene in two colour composites, its label, and the three parts that it is split in."
)

# %% [markdown]
# The numbers in the file are 1000 plus 500 times a radiance (Purdue University's documentation of the 220 channels; its
# unit there, W cm$^{-2}$ nm$^{-1}$ sr$^{-1}$, can only be µW in sunlight). Spectra of a few classes: median, and the
# middle half of the pixels. Vegetation is dark in the red and bright beyond; soils rise smoothly. On that day in June
# corn and soybeans had hardly come up, so their fields are mostly soil, and how they were tilled differs more than what
# grows. The spread *within* a class is what a classifier has to live with.

# %%
shown = ["Corn-notill", "Soybean-mintill", "Grass-pasture", "Woods", "Hay-windrowed", "Stone-Steel-Towers"]
figure, axis = plt.subplots(figsize=(11, 4.6), layout="constrained")
for name, color in zip(shown, (ORANGE, VERMILION, GREEN, (0, 0, 0), PURPLE, BLUE), strict=True):
    k = [c.name for c in scene.classes].index(name)
    low, middle, high = np.percentile((cube[:, label == k] - 1000) / 500, (25, 50, 75), axis=1)
    breaks = np.flatnonzero(np.diff(channel) > 1) + 1  # no line across what was left out
    x, low, middle, high = (np.insert(np.asarray(y, float), breaks, np.nan) for y in (channel, low, middle, high))
    axis.plot(x, middle, color=color, label=f"{name} ({(label == k).sum()} px)")
    axis.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
for channels, style in zip(picks.values(), (":", "--"), strict=True):
    for number in channels:
        axis.axvline(number, color="0.7", linestyle=style, linewidth=1, zorder=0)
axis.set(
    xlabel="AVIRIS channel (1 to 220 are 0.40 to 2.50 µm); grey lines: those of the pictures",
    ylabel="radiance, µW cm$^{-2}$ nm$^{-1}$ sr$^{-1}$", title="median and middle half of the pixels of a class",
)  # fmt: skip
axis.legend(frameon=False)
plots.show(figure, "Median radiance of each class over 220 channels.")

# %% [markdown]
# ### What bands cost
#
# Only the first layer of a network sees bands. The table is for a U-Net on ResNet-18 and 1024 x 1024 px, by counting: operations on
# tensors without values, memory by `estimate_mib` (what `rsseglab predict --whole` prints before it starts). The last
# row is what a tile gives to its neighbour before the first convolution (7 x 7, so three rows) along a border of 1024
# px, when a scene is cut in tiles that interact.


# %%
def cost(bands):
    network = create_network("resnet18", "unet", bands, 16).eval()
    first = next(m for m in network.modules() if isinstance(m, torch.nn.Conv2d))
    weights = sum(p.numel() for p in network.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.to("meta")(torch.empty(1, bands, 1024, 1024, device="meta"))
    flops = counter.get_total_flops()
    own = 2 * first.weight.numel() * (1024 // first.stride[0]) ** 2
    network = create_network("resnet18", "unet", bands, 16).eval()
    return {
        "weights of the first layer": f"{first.weight.numel():,}",
        "of all weights": f"{first.weight.numel() / weights:.1%}",
        "of all operations": f"{own / flops:.1%}",
        "the image as float32, MiB": f"{4 * bands:,}",
        "a pass, MiB": f"{estimate_mib(network, bands, 1024, 1024):,.0f}",
        "a border's halo, MiB": f"{first.kernel_size[0] // 2 * 1024 * bands * 4 / 2**20:.2f}",
    }


pd.DataFrame({f"{bands} bands": cost(bands) for bands in (3, 32, 200)})

# %% [markdown]
# So bands change no architecture, but they are not free: with 200 of them the first layer has a few percent of the
# weights and most of the operations, and the *image* is the largest tensor of a pass. Cutting the scene over workers
# helps with exactly that: each reads its own tile and computes the first layer of it, for a few MiB of halo.
#
# ### What a split is worth
#
# There is one scene, and often training pixels are drawn at random from it. Look at the label: fields. The nearest
# training pixel of a test pixel then lies one or two pixels away, in the same field, under the same sun, on the same
# soil. Here are two splits with the same number of training pixels: at random, and by the parts drawn above. The
# classifier is the simplest there is: the class of the training pixel with the nearest spectrum. Its only knob is how
# many neighbours are averaged before: `1 x 1` is a pixel alone, `7 x 7` looks around as any network does.


# %%
def nearest_class(features, train, test):
    """Share of the test pixels whose nearest training pixel has their class."""
    a, b = features[:, train].T, features[:, test].T
    distance = (b**2).sum(1)[:, None] + (a**2).sum(1) - 2 * b @ a.T
    return np.mean(label[train][distance.argmin(1)] == label[test])


def averaged(side):
    pad = np.pad(spread, ((0, 0), (side // 2, side // 2), (side // 2, side // 2)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(pad, (side, side), axis=(1, 2))
    return windows.mean((-1, -2))


spread = (cube - cube.mean((1, 2), keepdims=True)) / cube.std((1, 2), keepdims=True)
labelled = label != 255
in_part = {name: np.zeros_like(labelled) for name in pines.parts}
for name, part in pines.parts.items():
    in_part[name][part.window.row : part.window.row + part.window.height] = True
apart_train, south = labelled & in_part["north"], labelled & in_part["south"]
learnable = south & np.isin(label, np.unique(label[apart_train]))
drawn = np.random.default_rng(seed).permutation(np.flatnonzero(labelled))
random_train, random_test = np.zeros((2, *labelled.shape), bool)
random_train.flat[drawn[: apart_train.sum()]] = True
random_test.flat[drawn[apart_train.sum() :]] = True
pd.DataFrame(
    {
        f"{side} x {side}": {
            "pixels at random": f"{nearest_class(averaged(side), random_train, random_test):.1%}",
            "parts that lie apart": f"{nearest_class(averaged(side), apart_train, south):.1%}",
            "  of them, classes that training has": f"{nearest_class(averaged(side), apart_train, learnable):.1%}",
        }
        for side in (1, 3, 7)
    }
).rename_axis("accuracy; neighbours averaged", axis=1)

# %% [markdown]
# At random, looking around makes this toy nearly perfect: the wider it looks, the more of the training pixels it has
# seen. Apart, it is another number altogether. Neither is *the* accuracy. But only the second asks for land that was
# not seen, and it pays for it: with few fields a class, and some classes on one side only, it is small and shaky.
# Whoever compares two papers on this scene should first compare their splits.
#
# ### The same with REST
#
# `rsseglab train --data indian_pines --interaction exact+spim --strides 16 32 --crop 64 --val-window 0`, as a call. The
# parts are scenes of their own: no crop of the north holds a pixel of the south. They are thinner than usual windows
# (32 and 33 rows); whole scenes of any size are padded to a multiple of 32 px, and padding is never scored.

# %%
train, val, test = (pines.scenes(split, pines_root) for split in ("train", "val", "test"))
config = replace(REST, crop_px=64, batch_size=8)
result = fit(train, val, config, folder / "pines_run", progress=False)
trained = load_checkpoint(result.checkpoint)
predicted = np.full(label.shape, 255, np.uint8)
for part in (*train, *val, *test):
    done = predict_whole(trained, part, folder / f"{part.name}.tif", progress=False)
    row = pines.parts[part.name].window.row
    predicted[row : row + part.height] = plots.prediction_thumbnail(done.path, part)
score = evaluate_scene(folder / "south.tif", test[0]).confusion
most = int(score.label_counts.argmax())
right = np.mean(predicted[learnable] == label[learnable])
print(
    f"south: accuracy {score.overall_accuracy():.1%} ({right:.1%} of what could be learnt), "
    f"mean IoU {score.mean_iou():.3f}"
)
print(f"a map of {scene.classes[most].name} alone: accuracy {score.label_counts[most] / score.pixels:.1%}")
print(f"{steps} steps, {result.seconds:.0f} s")

# %%
counted = np.where(np.logical_or.reduce(list(in_part.values())), label, 255).astype(np.uint8)
figure, axes = plt.subplots(1, 3, figsize=(14, 6.2), layout="constrained")
plots.draw(axes[0], plots.colorize(label, scene.classes), "label")
plots.draw(axes[1], plots.colorize(predicted, scene.classes), "REST, each part labelled by itself (north: trained on)")
plots.draw(axes[2], plots.error_map(predicted, counted), "grey right, black wrong; white: not labelled, and gaps")
for axis in axes:
    for part in pines.parts.values():
        row, col, height, width = part.window
        axis.add_patch(Rectangle((col - 0.5, row - 0.5), width, height, fill=False, edgecolor="black", linewidth=1.5))
figure.legend(handles=plots.class_legend(scene.classes), loc="outside lower center", ncols=6, frameon=False, fontsize=9)
plots.show(figure, "Label, prediction and errors of the hyperspectral scene, part by part.")

# %% [markdown]
# Read the accuracy beside that of the constant map: with the real scene, one wood is half of what is labelled in the
# south. The mean IoU, where every class counts alike and a class that training never had counts 0, says how little so
# few steps on 72 rows have found out about other fields.
#
# ## 2. Thirty-two bands, in a data set's own layout
#
# WHU-OHS (32 bands, 10 m) is not at hand, so here is a small tree in its layout, numbers and class values, made from
# the synthetic scenes: each class gets a made spectrum. It shows that the path from files to map works, and nothing
# about WHU-OHS. The commands are those that one would type.

# %%
# Our classes, by the numbers that theirs have.
OHS = {"water": 11, "road": 17, "building": 15, "forest": 3, "field": 2, "grassland": 7, "bare": 22}
whu, whu_root = load_manifest("whu_ohs"), folder / "whu_ohs"
wave = np.linspace(0, 1, 32)  # 0.4 to 1.0 µm, in WHU-OHS
green = 1 / (1 + np.exp(-40 * (wave - 0.5)))  # the red edge
shape = {
    "water": 900 * np.exp(-4 * wave), "road": 1500 + 300 * wave, "building": 2000 + 700 * wave,
    "forest": 300 + 2200 * green, "field": 700 + 2400 * green, "grassland": 600 + 1800 * green,
    "bare": 1000 + 2000 * wave,
}  # fmt: skip
draw = np.random.default_rng(seed)


def write(path, pixels, dtype):
    path.parent.mkdir(parents=True, exist_ok=True)
    with RasterWriter(path, *pixels.shape[1:], len(pixels), dtype) as writer:
        writer.write(pixels.astype(dtype), 0)


for part, seeds in (("tr", (6, 9, 11, 5)), ("val", (10,)), ("ts", (8,))):
    for number in seeds:
        rgb, value = render(number, Window(0, 0, 256, 256))
        spectra = np.stack([np.zeros(32), *(shape[c.name] for c in CLASSES)])
        light = rgb.mean(0) / np.maximum(rgb.mean(), 1)  # shadow and texture of the synthetic scene
        pixels = spectra[value].transpose(2, 0, 1) * (0.6 + 0.4 * light) + draw.normal(0, 150, (32, 256, 256))
        codes = np.array([0, *(OHS[c.name] for c in CLASSES)])
        write(whu_root / part / "image" / f"{number}.tif", pixels, "int16")
        write(whu_root / part / "label" / f"{number}.tif", codes[value][None], "uint8")


def rsseglab(line):
    """What the command line does."""
    print(f"$ rsseglab {line}")
    assert main(line.split()) == 0


data = f"--data whu_ohs --root {whu_root}"
how = "--interaction exact+spim --strides 16 32 --crop 128 --batch-size 2 --val-window 256"
often = f"--steps {steps} --val-every {steps} --seed {seed}"
rsseglab(f"train {data} --encoder {encoder} {how} {often} --out {folder / 'whu_run'}")
rsseglab(f"predict {data} --whole --checkpoint {folder / 'whu_run' / 'best.ckpt'} --output {folder / 'whu'}")
rsseglab(f"evaluate {folder / 'whu' / 'ts' / '8.tif'} {data}")

# %%
scene32 = whu.scene("ts/8", whu_root)
guessed = plots.prediction_thumbnail(folder / "whu" / "ts" / "8.tif", scene32)
present = [c for c in scene32.classes if c.value in OHS.values()]
pixels = scene32.read()[[27, 14, 7]].transpose(1, 2, 0)
low, high = np.percentile(pixels, (2, 98), axis=(0, 1))
figure, axes = plt.subplots(1, 4, figsize=(17, 4.9), layout="constrained", width_ratios=(1, 1, 1, 1.25))
plots.draw(axes[0], ((pixels - low) / (high - low)).clip(0, 1), "made scene: bands 28, 15 and 8")
plots.draw(axes[1], plots.colorize(scene32.read_label(), scene32.classes), "label, in WHU-OHS's classes")
plots.draw(axes[2], plots.colorize(guessed, scene32.classes), "REST")
for c in present:
    k = scene32.classes.index(c)
    if (here_k := scene32.read_label() == k).any():
        middle = np.median(scene32.read()[:, here_k], axis=1) / 10_000
        axes[3].plot(range(1, 33), middle, color=np.array(c.color) / 255, label=c.name)
axes[3].set(xlabel="band", ylabel="reflectance (number / 10000)", title="medians of the classes (made)")
axes[3].legend(frameon=False, fontsize=8)
figure.legend(handles=plots.class_legend(present), loc="outside lower center", ncols=8, frameon=False, fontsize=9)
plots.show(figure, "A made scene of 32 bands, its label, the prediction, and median spectra of its classes.")

# %% [markdown]
# ## 3. One class
#
# GLH-Water asks for water and nothing else, and reports **the IoU of water**. `single_class` makes that problem of any
# labelled scene, `rsseglab train --single-class water` of any data set. Here: the Dubai scenes, or the synthetic ones
# where these are not at hand, downsampled by 4.

# %%
water_name, factor = "dubai" if "dubai" in used else "synthetic", 4
water_data = load_manifest(water_name)


def of_water(split):
    return [in_memory(single_class(decimated(s, factor), "water")) for s in water_data.scenes(split)]


train, val, test = (of_water(split) for split in ("train", "val", "test"))
config = replace(REST, crop_px=128, batch_size=4)
result = fit(train, val, config, folder / "water_run", progress=False)
trained = load_checkpoint(result.checkpoint)
paths = [folder / f"water_{s.name}.tif" for s in test]
for s, path in zip(test, paths, strict=True):
    predict_whole(trained, s, path, progress=False)
found = pool([evaluate_scene(path, s) for path, s in zip(paths, test, strict=True)]).confusion
counts = found.label_counts
nothing = Confusion(found.classes, [[counts[0], 0, 0], [counts[1], 0, 0]])
everywhere = Confusion(found.classes, [[0, counts[0], 0], [0, counts[1], 0]])
print(f"{water_name}: {counts[1] / counts.sum():.1%} of the labelled pixels of the test scenes are water")
pd.DataFrame(
    {
        name: {
            "IoU of water": f"{c.mean_iou(['water']):.3f}",
            "IoU of background": f"{c.mean_iou(['background']):.3f}",
            "mean of both": f"{c.mean_iou():.3f}",
            "F1 of water": f"{c.mean_f1(['water']):.3f}",
            "overall accuracy": f"{c.overall_accuracy():.1%}",
        }
        for name, c in (
            ("no water anywhere", nothing),
            ("water everywhere", everywhere),
            (f"REST, {steps} steps", found),
        )
    }
)

# %% [markdown]
# Read the first row. The IoU of water is 0 where no water is found. For a map that is all water it is water's share of
# the scene: that is what a map has to beat, and it is high where water is common. The mean of both adds what the
# background is worth, of which nobody asked. For a rare class that hides nearly everything: where water covers 1 %, a
# map without any has an accuracy of 99 % and a mean of both of 0.495, and 10 points of water are worth 5 in the mean.
# Numbers of the two kinds must never stand side by side. `rsseglab evaluate --single-class water` therefore averages
# over water alone, and the row says so. (In training, the best checkpoint is still picked by the mean of both.)

# %%
figure = plots.comparison(list(zip(test, paths, strict=True)), f"water, {water_name}, downsampled by {factor}")
plots.show(figure, "Water scenes: image, label, prediction and errors.")

# %% [markdown]
# ## 4. Seven centimetres
#
# The drone scenes of Zanzibar and Kampala have pixels of about 7 cm. A house is some 10 m wide: 140 pixels. A U-Net's
# reach is a number of *pixels*. So resolution buys detail and costs context, in metres, and memory, with the square.

# %%
gsd_m = load_manifest("oam_buildings").gsd_m
reach_px = receptive_field(create_network(encoder, "unet", 3, 2).eval(), limit_px=1024).radius_px
network = create_network(encoder, "unet", 3, 2).eval()
rows = {}
for shrink in (1, 2, 4, 8):
    height, width = 4096 // shrink, 8192 // shrink
    rows[f"{100 * gsd_m * shrink:.0f} cm"] = {
        "zanzibar_a, px": f"{width} x {height}",
        "labelled whole, GiB": f"{estimate_mib(network, 3, height, width) / 1024:.1f}",
        "a crop of 256 px, m": f"{256 * gsd_m * shrink:.0f}",
        "the network's reach, m": f"{reach_px * gsd_m * shrink:.0f}",
        "a house of 10 m, px": f"{10 / gsd_m / shrink:.0f}",
    }
pd.DataFrame(rows).rename_axis("pixel", axis=1)

# %% [markdown]
# ## 5. Near, or far?
#
# The same network, steps and crops in pixels, once at full resolution and once downsampled by 4. Both maps are scored
# at full resolution: the coarse one is blown up again first, so that what it has lost counts. Training: a part of each
# town; test: a part of a scene that neither saw. Whole at the coarse resolution, in windows of 512 px at the fine one.

# %%
drone = load_manifest("oam_buildings" if "oam_buildings" in used else "synthetic")


def corner(s):
    """The middle of a scene, at most side_px a side."""
    height, width = min(s.height, side_px), min(s.width, side_px)
    return part_of(s, Window((s.height - height) // 2, (s.width - width) // 2, height, width), s.name)


def of_buildings(split, shrink):
    return [in_memory(decimated(single_class(corner(s), "building"), shrink)) for s in drone.scenes(split)]


results, maps = {}, {}
target = of_buildings("test", 1)[0]
for shrink in (1, 4):
    config = replace(REST, crop_px=min(192, 32 * (side_px // 4 // 32)), batch_size=2, val_window_px=512)
    train, val = of_buildings("train", shrink), of_buildings("val", shrink)
    config = replace(config, crop_px=min(config.crop_px, *(min(s.height, s.width) // 32 * 32 for s in train)))
    result = fit(train, val, config, folder / f"drone_{shrink}", progress=False)
    trained = load_checkpoint(result.checkpoint)
    small = target if shrink == 1 else in_memory(decimated(target, shrink))
    path = folder / f"buildings_{shrink}.tif"
    if shrink == 1:
        done = predict_scene(trained, small, path, Cropping(512, 0.5, batch_size=1), progress=False)
    else:
        done = predict_whole(trained, small, path, progress=False)
    index = plots.prediction_thumbnail(path, small, max_px=10_000)
    maps[shrink] = index.repeat(shrink, 0).repeat(shrink, 1)[: target.height, : target.width]
    score = evaluate_scene(maps[shrink], target)
    results[f"{100 * drone.gsd_m * shrink:.0f} cm"] = {
        "IoU of building": f"{score.confusion.mean_iou(['building']):.3f}",
        "boundary F1 within 3 px": f"{score.boundary.mean_f1(['building']):.3f}",
        "labelled in, s": f"{done.seconds:.1f}",
        "trained in, s": f"{result.seconds:.0f}",
    }
share = np.mean(target.read_label()[target.read_label() != 255] == 1)
print(f"{target.name}: {target.width} x {target.height} px of {100 * drone.gsd_m:.0f} cm, {share:.1%} building")
pd.DataFrame(results).rename_axis("pixel", axis=1)

# %%
figure, axes = plt.subplots(1, 4, figsize=(17, 5), layout="constrained")
step = -(-target.height // 1000)
truth = target.read_label()[::step, ::step]
plots.draw(axes[0], plots.thumbnail(target, 1000), f"{target.name}, {target.width} x {target.height} px")
plots.draw(axes[1], plots.colorize(truth, target.classes), "label")
for axis, (shrink, index) in zip(axes[2:], maps.items(), strict=True):
    pixel = f"{100 * drone.gsd_m * shrink:.0f} cm"
    plots.draw(
        axis,
        plots.colorize(index[::step, ::step], target.classes),
        f"REST at {pixel}: IoU {results[pixel]['IoU of building']}",
    )
figure.legend(
    handles=plots.class_legend(target.classes, ignored=False), loc="outside lower center", ncols=2, frameon=False
)
plots.show(figure, "A drone scene, its label, and predictions at several pixel sizes.")

# %% [markdown]
# Take the two numbers for what they are: one seed, a few dozen steps, one part of one scene, labels from
# OpenStreetMap with houses missing, shifted, or only begun. When we ran this on the real scenes, with more steps, the fine map was the
# better one, perhaps because walls and the edges of roofs tell a house without the street that it stands in. With
# another class (a track, a field) it may be the other way round. What is no matter of luck is the table before: at 7 cm
# a pass over the whole scene needs more memory than many laptops have, and a crop shows less than two houses.
# Downsampling is the cheapest of all ways to give a network context, and so a baseline that a method for large scenes
# has to beat.
#
# ## What to keep
#
# - Bands touch the first layer and the reading. 200 of them train as three do, and are cut in tiles as three are; they
#   cost memory and time.
# - A split is part of the result. On a single scene, pixels at random measure memory; parts that lie apart measure what
#   one usually wants to know, and less precisely.
# - One class: report its own IoU, and say so. The mean with the background is another measure.
# - Small pixels are not more information about what is far away. State crops and reach in metres.
#
# ## Exercises
#
# 1. **The nearest neighbour.** In section 1, draw only one training pixel in a hundred at random. Does the gap between
#    the splits close? Explain by the distance to the nearest training pixel.
# 2. **Which bands?** Train on three bands of Indian Pines (`Scene` takes any array: `ArraySource(cube[..., [49, 26,
#    16]])`) and on all. What do 197 bands buy on the south? And with a split at random?
# 3. **Both ways.** Swap north and south: copy `indian_pines.toml`, change its splits, give its path as the data set.
#    How far apart are the two scores? What does that say about one decimal place?
# 4. **By hand.** A class covers a share $p$ of a scene, and a map finds none of it. What are its overall accuracy, its
#    mean IoU over two classes, its IoU? At which $p$ is the mean 0.4?
# 5. **A rarer class.** `--single-class road`, or two at once: `--single-class road building`. Which loss would you
#    take, and how do you find out without the test scenes?
# 6. **Metres.** Give the 7 cm network crops of 512 px with a batch of 1: several times the pixels a step. Does it close the gap
#    of section 5, if there is one? What did it cost?
#
# **Read next.** `rsseglab/scenes/views.py` (`part_of`, `single_class`, `decimated`), `data_manifests/indian_pines.toml`
# and `glh_water.toml` (what to know before comparing numbers), and *Why context?* for reach.
