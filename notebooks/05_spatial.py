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
# # One scene over many workers
#
# **The question.** Cropping changes the answer, as *What is a whole scene* showed. A scene can also be *cut*: each worker holds
# one tile, and the workers exchange what their neighbours need. Can a stock network, unmodified, then answer exactly as if
# the scene had never been cut? And what does it gain?
#
# **It assumes** *What is a whole scene*, and that you know what convolution, normalisation and attention compute. **It takes**
# about a minute on a laptop with two cores, and 2 GiB of memory. No data is needed.

# %% tags=["parameters"] nbmake={"mock": {"size": 64, "scale_size": 64}}
size = 512  # rows and columns of the scene in sections 5 and 6, px
scale_size = 640  # rows and columns of the scene in section 8, px
ranks = "1,2"  # numbers of worker processes in section 8; more, if you have the cores

# %%
import subprocess
import sys
from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from IPython.display import Image
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

from rsseglab import plots
from rsseglab.scenes.manifest import load_manifest
from rsseglab.spatial import Layout, SpatialError, cut, join, replicate
from rsseglab.spatial.exchange import Traffic
from rsseglab.spatial.layout import bounds
from rsseglab.spatial.rules.convolution import conv_needs
from rsseglab.widgets import Explorer

BLUE, SKY, ORANGE, GREY = "#0072B2", "#56B4E9", "#D55E00", "0.9"
folder = Path(mkdtemp())  # for what this notebook writes

# %% [markdown]
# ## 1. A cut
#
# A `Layout` says how a scene is shared out: in bands of rows, or in a grid. `cut` gives a tensor that still says the size of
# the *whole* scene, and holds the tiles. `join` puts them together. Here all tiles live in this one process; with a `mesh`
# each lives in a process, or on a GPU, of its own. The code is the same.

# %%
bands, grid = Layout(3), Layout(2, 3)
x = torch.randn(1, 3, 100, 120)
scene = cut(x, bands)
print(scene)
print("the whole scene's shape:", tuple(scene.shape), " the tiles:", [tuple(t.shape) for t in scene.tiles])
print("joined again, it is the same:", torch.equal(join(scene), x))

figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for axis, layout, title in ((axes[0], bands, "Layout(3): bands of rows"), (axes[1], grid, "Layout(2, 3): a grid")):
    picture = np.zeros((100, 120))
    for tile, (row, col, height, width) in enumerate(layout.windows(100, 120)):
        picture[row : row + height, col : col + width] = tile
        axis.text(col + width / 2, row + height / 2, f"worker {tile}\n{height} x {width} px", ha="center", va="center")
    axis.imshow(picture, cmap="Pastel1", vmin=0, vmax=8)
    axis.set(title=title, xlabel="column, px", ylabel="row, px")
plots.show(figure, "A scene cut in bands of rows, and in a grid: which worker owns which pixel.")

# %% [markdown]
# ## 2. Convolution: the halo
#
# A 3 x 3 convolution makes a pixel of a pixel and its eight neighbours. At a tile's border some of them belong to another
# worker: the **halo**. Which rows does a band of the output need? Output row $o$ of a convolution with kernel $k$, stride $s$,
# padding $p$ and dilation $d$ reads the input rows $o s - p + d j$, $j = 0 \ldots k - 1$. So the rows $[a, b)$ of the output need
#
# $$[\, a s - p,\;\; (b - 1)\, s - p + d\,(k - 1) + 1 \,)$$
#
# of the input. That is all the arithmetic there is: fetch these rows, wherever they live, and run the stock kernel.

# %%
kinds = {"fetched: the halo": ORANGE, "its own, and read": BLUE, "its own, not read": SKY, "another worker's": GREY}


def draw_halo(figure, rows, kernel, stride, dilation, bands):
    """Which rows each worker makes, and which input rows it owns and fetches for them: the engine's own arithmetic."""
    padding = dilation * (kernel - 1) // 2
    made = (rows + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    own, out, needs = bounds(rows, bands), bounds(made, bands), conv_needs(kernel, stride, padding, dilation)
    pictures = np.full((rows, bands), 3), np.full((made, bands), 3)
    for worker in range(bands):
        first, last = out[worker], out[worker + 1]
        low, high = needs(first, last) if first < last else (0, 0)
        pictures[0][own[worker] : own[worker + 1], worker] = 2
        read = pictures[0][max(low, 0) : min(high, rows), worker]
        read[:] = np.where(read == 2, 1, 0)
        pictures[1][first:last, worker] = 1
    for axis, picture, name in zip(figure.subplots(1, 2, sharex=True), pictures, ("input", "output"), strict=True):
        axis.imshow(picture, cmap=ListedColormap(list(kinds.values())), vmin=-0.5, vmax=3.5, aspect="auto")
        axis.set_yticks(np.arange(-0.5, len(picture)), minor=True)
        axis.set_xticks(np.arange(-0.5, bands), minor=True)
        axis.grid(which="minor", color="white", linewidth=1.5)
        axis.tick_params(which="minor", length=0)
        axis.set(title=f"{len(picture)} {name} rows", xlabel="worker", ylabel="row, px", xticks=range(bands))
    handles = [Patch(facecolor=colour, label=kind) for kind, colour in kinds.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize="small")


rows, kernel, layout = 12, 5, Layout(3)
figure = plt.figure(figsize=(12, 4.2), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=(1.4, 1))
draw_halo(left, rows, kernel, stride=1, dilation=1, bands=layout.rows)

noise, weight = torch.randn(1, 1, rows, 8).double(), torch.randn(1, 1, kernel, kernel).double()
whole = F.conv2d(noise, weight, padding=kernel // 2)
alone = torch.cat([F.conv2d(t, weight, padding=kernel // 2) for t in cut(noise, layout).tiles], 2)
engine = join(F.conv2d(cut(noise, layout), weight, padding=kernel // 2))
axis = right.subplots()
for result, name, colour in ((alone, "each tile alone", ORANGE), (engine, "with halos", BLUE)):
    axis.plot((result - whole).abs().amax((0, 1, 3)), "o-", color=colour, label=name)
for border in bounds(rows, layout.rows)[1:-1]:
    axis.axvline(border - 0.5, color="0.6", linewidth=0.8, linestyle="--")
axis.set(title="error against the whole scene, 5 x 5 kernel", xlabel="row, px", ylabel="largest absolute error")
right.legend(loc="outside lower center", ncols=2, fontsize="small")
plots.show(
    figure,
    "Rows that each worker owns and reads for a 5 x 5 kernel; errors of tiles alone lie at the borders, with "
    "halos there is none.",
)
print("largest error with halos:", float((engine - whole).abs().max()))

# %% [markdown]
# **Look for yourself.** The same picture for a scene of 32 rows. Find out:
#
# - With a 3 x 3 kernel, stride 2 and dilation 1, why does a worker fetch a row from above, and none from below?
# - With a 5 x 5 kernel, from which dilation on does a worker need rows of a worker that is not its neighbour?
# - When does a worker fetch nothing? When does it own rows that it does not read?


# %%
def halo_of(kernel, stride, dilation, bands):
    """The picture of one setting."""
    figure = plt.figure(figsize=(9, 5), layout="constrained")
    draw_halo(figure, 32, kernel, stride, dilation, bands)
    return figure


Explorer(
    halo_of,
    {"kernel": [1, 3, 5], "stride": [1, 2], "dilation": [1, 2, 4], "bands": [4, 8]},
    {"kernel": 3, "dilation": 2, "bands": 4},
    "Rows that each of {bands} workers owns, and rows that it reads: kernel {kernel} px, stride {stride}, dilation {dilation}.",
    dpi=70,
)

# %% [markdown]
# ## 3. Normalisation: sums over the scene
#
# Batch norm in training takes the mean and the variance *of the scene*. A tile of water and a tile of roofs have their own,
# and a network that normalises each by its own paints the same roof differently in two tiles. The engine merges: each
# tile contributes its count, its mean and its squares about that mean, two small sums over the workers.
#
# Why not simply sum $x$ and $x^2$? Because $\mathrm{E}[x^2] - \mathrm{E}[x]^2$ takes the difference of two huge numbers where
# values are raw digital numbers. Try it: Sentinel-2 has values around 10000.

# %%
manifest = load_manifest("synthetic")
land = torch.from_numpy(manifest.scenes("test")[0].read()[:, :size, :size].astype(np.float32))[None]
tiles = cut(land, Layout(4))
figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
means = [float(t[:, 1].mean()) for t in tiles.tiles]
axis.plot(means, "o", color=ORANGE, markersize=9, label="a tile's own mean")
axis.axhline(float(land[:, 1].mean()), color=BLUE, label="the scene's mean, by which all are normalised")
axis.set(
    xlabel="tile", ylabel="mean of green, digital number", title="each tile has a mean of its own", xticks=range(4)
)
axis.margins(0.15, 0.2)
figure.legend(loc="outside lower center", ncols=2)
plots.show(figure, "Each tile's own mean of the green band, apart from the scene's mean.")

raw = torch.randn(1, 1, 512, 512, generator=torch.Generator().manual_seed(0)) * 7 + 10_000
exact = raw.double().var().item()
ways = {
    "E[x^2] - E[x]^2, float32": (raw.square().mean() - raw.mean() ** 2).item(),
    "merged, as the engine does, float32": cut(raw, Layout(4)).var(correction=0).item(),
}
print(f"the variance is {exact:.6f}")
for name, value in ways.items():
    print(f"{name}: {value:.6f}, relative error {abs(value / exact - 1):.1e}")

# %% [markdown]
# ## 4. Attention: queries stay, keys come
#
# In attention every pixel may look at every other. Each worker keeps its queries, and needs *all* keys and values. Where a
# network shrinks them first (SegFormer does), they are few, and gathering them is cheap. Where it looks inside windows
# (Swin does), the keys are there already, once windows do not cross tiles.

# %%
tokens, workers = 24, 3
query, key, reduced = np.arange(tokens)[:, None], np.arange(tokens)[None], np.arange(0, tokens, 4)[None]
size_of_part = tokens // workers
pictures = {  # 0: the key is on the query's worker, 1: it has to come, 2: the query does not look at it
    "every token looks at every token": query // size_of_part != key // size_of_part,
    "keys reduced 4 times first": query // size_of_part != reduced // size_of_part,
    "inside windows of 8 tokens": np.where(query // 8 == key // 8, query // size_of_part != key // size_of_part, 2),
}
figure, axes = plt.subplots(1, 3, figsize=(12, 3.9), layout="constrained")
colours = {"the key is on the query's worker": BLUE, "it has to come": ORANGE, "not looked at": "white"}
for axis, (title, picture) in zip(axes, pictures.items(), strict=True):
    axis.imshow(picture, cmap=ListedColormap(list(colours.values())), vmin=0, vmax=2, aspect="auto")
    axis.set(title=title, xlabel="key, token index", ylabel="query, token index")
axes[1].set_xlabel("reduced key, index")
handles = [Patch(facecolor=colour, edgecolor="0.5", label=name) for name, colour in colours.items()]
figure.legend(handles=handles, loc="outside lower center", ncols=3)
plots.show(
    figure,
    "Which keys a query attends to: full attention, reduced keys, windows; coloured by the worker that holds them.",
)

# %% [markdown]
# ## 5. A stock network, unmodified: cropping against cutting
#
# Now a whole U-Net with a ResNet encoder, straight from `segmentation_models_pytorch`. It knows nothing of tiles. Left: the
# scene in 4 crops, each labelled alone, against the whole scene. Right: the scene *cut* in 4 tiles, against the whole scene.
# The scale of both maps is the same.

# %%
torch.manual_seed(0)
network = smp.Unet("resnet18", encoder_weights=None, classes=len(manifest.classes)).double().eval()
image = (land.double() - land.mean((2, 3), keepdim=True)) / land.std((2, 3), keepdim=True)
layout = Layout(2, 2)
with torch.no_grad():
    whole = network(image)
    tiled = join(network(cut(image, layout)))
    cropped = torch.zeros_like(whole)
    for row, col, height, width in layout.windows(size, size):
        here = (slice(None), slice(None), slice(row, row + height), slice(col, col + width))
        cropped[here] = network(image[here])

figure, axes = plt.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
for axis, result, name in ((axes[0], cropped, "cropped"), (axes[1], tiled, "cut")):
    error = ((result - whole).abs().amax((0, 1)) / whole.abs().max()).clamp_min(1e-17)
    shown = axis.imshow(error.log10(), cmap="cividis", vmin=-17, vmax=0)
    flipped = (result.argmax(1) != whole.argmax(1)).double().mean()
    axis.set_title(f"{name}: largest error {float(error.max()):.0e}, {flipped:.2%} of pixels change class", fontsize=10)
    axis.set(xlabel="column, px", ylabel="row, px")
figure.colorbar(shown, ax=axes, label="relative error of the logits, power of ten")
plots.show(figure, "Relative error of the logits as maps: tiles alone with bright borders, the engine at rounding.")

# %% [markdown]
# What is left on the right is rounding of 64-bit numbers: sums are added in another order. On the left every pixel is touched,
# most of all along the borders.
#
# ## 6. Backward too
#
# Training needs gradients. They have to be those of the whole scene: the halo's gradient goes back to the worker that owns
# the row. Here is one training step, batch norm in training mode, for several layouts. A small network, for speed.

# %%
torch.manual_seed(0)
small = smp.Unet("resnet18", encoder_weights=None, classes=3).double().train()
patch, target = image[:, :, :64, :64], (image[:, 0, :64, :64] > 0).long()


def gradients(layout):
    """Loss and gradients of one step, on tiles or, without a layout, on the whole."""
    small.zero_grad()
    y = small(patch if layout is None else cut(patch, layout))
    loss = F.cross_entropy(y, target)
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten().clone() for p in small.parameters()])


loss, exact = gradients(None)
table = {}
for layout in (Layout(2), Layout(3), Layout(7), Layout(2, 2), Layout(3, 3)):
    its_loss, its = gradients(layout)
    table[f"{layout.rows} x {layout.cols} tiles"] = {
        "loss": f"{its_loss:.12f}",
        "difference of the loss": f"{abs(its_loss - loss):.0e}",
        "relative error of all gradients": f"{float((its - exact).norm() / exact.norm()):.0e}",
    }
print(f"whole scene: loss {loss:.12f}")
pd.DataFrame(table).T

# %% [markdown]
# ## 7. Exact, or an error
#
# An operation that the engine has no rule for is refused by name. It never falls back to an answer that depends on the
# number of workers. `replicate` is the honest way out: every worker gets the whole tensor, at the price of its memory.

# %%
try:
    torch.fft.fft2(cut(x, Layout(4)))
except SpatialError as error:
    print(error)
spectrum = torch.fft.fft2(replicate(cut(x, Layout(4))))
print("with replicate:", torch.equal(spectrum, torch.fft.fft2(x)))

# %% [markdown]
# ## 8. What is gained: measure it on your own cores
#
# Each worker computes its tile and holds the activations of its tile. The command `rsseglab scale` starts worker processes,
# each with one thread, and measures a U-Net forward and backward. *Strong*: one scene for all workers. *Weak*: a scene that
# grows with their number. *Speed-up* is how many times more pixels a second P workers label than one; *efficiency* is the
# speed-up divided by P. In the plot, dots and rings are measured. Dotted lines are a model: the seconds of one worker shared out, plus
# messages and bytes, which follow from the layout alone. Solid lines come with three or more numbers of workers: they are a
# *fit* to the dots, and show how much time no worker takes off another. (Through two dots a line of two numbers always
# passes, so it would tell you nothing.)
#
# **Do not be surprised by a speed-up below 1.** Two workers are then slower than one. On a small scene, and where something
# else keeps the cores busy, it happens: at every exchange a worker waits for the other, and if that one has just lost its
# core, both wait. Close what else is running, measure again, and look at how far the dots move.

# %%
command = [sys.executable, "-m", "rsseglab.spatial.scale", "--ranks", ranks, "--size", str(scale_size), "--width", "8"]
done = subprocess.run([*command, "--out", str(folder)], capture_output=True, text=True, check=True)
measured = pd.read_csv(folder / "scale.csv")
columns = {
    "forward_backward_seconds": "seconds",
    "forward_backward_speedup": "speed-up",
    "forward_backward_efficiency": "efficiency",
    "forward_backward_peak_mib_a_rank": "peak MiB a worker",
    "forward_backward_bytes_sent_a_rank": "MiB sent a worker",
    "forward_backward_reckoned_bytes_a_rank": "MiB from the layout",
}
measured[list(columns)[-2:]] /= 2**20
measured.set_index(["kind", "ranks"])[list(columns)].rename(columns=columns).round(2)

# %%
Image(
    folder / "scale.png",
    width=820,
    alt="Speed-up, efficiency and peak memory over the number of workers, on this machine.",
)

# %% [markdown]
# Is the efficiency below 1, or even the speed-up? The dotted line says what messages and bytes alone would cost. What is above
# it, the workers lost by waiting for each other, and by sharing the memory's bandwidth and the cores with all else that your
# machine is doing. The bytes are not to blame: look how few they are beside the activations. What is gained even then is
# memory: the peak a worker.
#
# ## 9. Halo bytes follow from the layout
#
# Nobody has to measure what is sent. Tensors on torch's `meta` device have a shape and no values, so a network runs on them
# at no cost; the exchange writes down what each tile would have sent.

# %%
Traffic.reset()
with torch.no_grad():
    smp.Unet("resnet18", encoder_weights=None).to("meta").eval()(
        cut(torch.empty(1, 3, 8192, 8192, device="meta"), Layout(8))
    )
inner = {name: sent / 2**20 for (name, tile), sent in Traffic.sent.items() if tile == 1}
print(
    f"U-Net on ResNet-18, 8192 x 8192 px, 8 bands: an inner worker sends {sum(inner.values()):.1f} MiB in a forward pass"
)
print(f"the scene itself, three bands of float32, has {3 * 8192**2 * 4 / 2**20:.0f} MiB")
pd.Series(inner, name="MiB sent").round(2).to_frame()

# %% [markdown]
# ## What you have seen
#
# - A cut scene is not a cropped scene: workers exchange halos, sums and keys, and the answer is that of the whole scene, to
#   rounding, forward and backward.
# - What has to be exchanged is arithmetic on the layout. It is little for convolutions, and grows with attention.
# - What can't be kept exact is refused.
#
# ## Exercises
#
# 1. **Predict the halo bytes.** A 7 x 7 convolution with stride 2 and padding 3 on a scene of 3 bands, 1024 x 1024, float32, cut
#    in 4 bands. Which rows does each worker need that it does not hold? How many bytes does an inner worker send? Work it out
#    on paper, then check with `Traffic` as in section 9. Why does the neighbour above need another number of rows than the one
#    below?
# 2. **Grid or bands?** For 16 workers and the network of section 9, compare `Layout(16)` with `Layout(4, 4)`: bytes *and*
#    messages (`Traffic.most()`). Take a link of 10 GB/s, so that the exchange takes messages times latency plus bytes divided
#    by 10 GB/s. Which would you choose where a message costs 1 ms? Where it costs 10 microseconds? At which cost of a message
#    do both take as long?
# 3. **Write a rule yourself.** `torch.cumsum` along the cut rows is refused. A tile's sum is its own plus the total of all tiles
#    above. Write it, in one process and for bands: `from rsseglab.spatial.tensor import RULES, named, rule`, keep the rule that
#    serves the other dimensions (`plain = RULES[torch.cumsum]`), and decorate your `cumsum(x, dim)` with
#    `@rule(*named("cumsum"))`, which stands for every spelling, `x.cumsum(2)` too. It calls `plain` unless `dim % x.dim()` is the
#    cut dimension, `x.axes[0].dim`; else it builds the result with `x.like([...])` of `x.tiles`. Compare with the plain call in
#    float64, for 1, 3 and 7 bands, and along columns too. What would have to be exchanged over ranks?
# 4. **Break it.** Run section 5 with `network.train()`, each crop normalised by itself. Where are the errors now? Why everywhere?
# 5. **Too many workers.** Cut a scene of 64 rows in 11 bands and run the U-Net. At 1/32 of the size there are two rows, and
#    workers 5 and 10 hold them: a map of $L$ rows is cut at $\lfloor k L / P \rfloor$, so worker $k$ holds something where
#    $\lfloor 2 k / 11 \rfloor$ and $\lfloor 2 (k + 1) / 11 \rfloor$ differ. What do the other nine do there? Is the answer
#    still exact?
#
# **Read next.** `rsseglab/spatial/rules/convolution.py` (one family, with its arithmetic), `rsseglab/spatial/exchange.py` (the only
# place where tiles meet), `book/exactness.md` (which networks are held to this, on which layouts).
