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
# **The question.** Cropping changes the answer, as the first notebook showed. A scene can also be *cut*: each worker holds
# one tile, and the workers exchange what their neighbours need. Can a stock network, unmodified, then answer exactly as if
# the scene had never been cut? And what does it gain?
#
# **It assumes** the first notebook, and that you know what convolution, normalisation and attention compute. **It takes**
# about two minutes on a laptop with two cores, and 2 GiB of memory. No data is needed.

# %% tags=["parameters"] nbmake={"mock": {"size": 64, "scale_size": 64}}
size = 512  # rows and columns of the scene in sections 5 and 6, px
scale_size = 768  # rows and columns of the scene in section 8, px
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

from rsseglab.scenes.manifest import load_manifest
from rsseglab.spatial import Layout, SpatialError, cut, join, replicate
from rsseglab.spatial.exchange import Traffic

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "0.75"
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
plt.show()

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
rows, kernel = 12, 5
middle = Layout(3).windows(rows, 1)[1]
own = range(middle[0], middle[0] + middle[2])
needs = range(own.start - kernel // 2, own.stop + kernel // 2)

figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained", width_ratios=(1, 1, 1.3))
for axis, title in ((axes[0], "input"), (axes[1], "output")):
    for row in range(rows):
        colour = GREY
        if row in own:
            colour = BLUE
        elif title == "input" and row in needs:
            colour = ORANGE
        axis.barh(row, 1, color=colour, edgecolor="white")
    axis.invert_yaxis()
    axis.set(title=f"{title} rows", xticks=[], yticks=range(rows), ylabel="row, px")
axes[0].text(0.5, own.start + 1.5, "worker 1's own rows", ha="center", va="center", color="white")
for row in (needs.start + 0.5, own.stop + 0.5):
    axes[0].text(0.5, row, "halo: from a neighbour", ha="center", va="center")

impulse, weight = torch.randn(1, 1, rows, 8).double(), torch.randn(1, 1, kernel, kernel).double()
whole = F.conv2d(impulse, weight, padding=kernel // 2)
alone = torch.cat([F.conv2d(t, weight, padding=kernel // 2) for t in cut(impulse, Layout(3)).tiles], 2)
engine = join(F.conv2d(cut(impulse, Layout(3)), weight, padding=kernel // 2))
for result, name, colour in ((alone, "each tile alone", ORANGE), (engine, "with halos", BLUE)):
    axes[2].plot((result - whole).abs().amax((0, 1, 3)), "o-", color=colour, label=name)
for border in (4, 8):
    axes[2].axvline(border - 0.5, color="0.6", linewidth=0.8, linestyle="--")
axes[2].set(title="error against the whole scene, 5 x 5 kernel", xlabel="row, px", ylabel="largest absolute error")
axes[2].legend()
plt.show()
print("largest error with halos:", float((engine - whole).abs().max()))

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
axis.bar([f"tile {k}" for k in range(4)], means, color=GREY)
axis.axhline(float(land[:, 1].mean()), color=BLUE, label="the scene's mean, by which all are normalised")
axis.set(ylabel="mean of the green band", title="each tile has a mean of its own")
axis.set_ylim(min(means) * 0.9, max(means) * 1.1)
axis.legend()
plt.show()

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
tokens, parts = 24, 3
figure, axes = plt.subplots(1, 3, figsize=(12, 3.9), layout="constrained")
pictures = {"every token looks at every token": 1, "keys reduced 4 times first": 4}
for axis, (title, step) in zip(axes, pictures.items(), strict=False):
    owner_of_query = np.arange(tokens)[:, None] * parts // tokens
    owner_of_key = np.arange(0, tokens, step)[None] * parts // tokens
    axis.imshow(owner_of_query != owner_of_key, cmap="cividis_r", aspect="auto", vmin=-0.3, vmax=1.3)
    axis.set(title=title, xlabel="key", ylabel="query")
window = np.arange(tokens) // 8
axes[2].imshow(
    np.where(window[:, None] == window[None], 0.0, np.nan), cmap="cividis_r", aspect="auto", vmin=-0.3, vmax=1.3
)
axes[2].set(title="inside windows of 8 tokens", xlabel="key", ylabel="query")
handles = [plt.Rectangle((0, 0), 1, 1, color=plt.get_cmap("cividis_r")(level)) for level in (0.3 / 1.6, 1.3 / 1.6)]
figure.legend(handles, ["the key is on the query's worker", "it has to come"], loc="outside lower center", ncols=2)
plt.show()

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
plt.show()

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
# grows with their number. Dots are measured, dotted lines are a model: the seconds of one worker shared out, plus messages and
# bytes, which follow from the layout alone.

# %%
command = [sys.executable, "-m", "rsseglab.spatial.scale", "--ranks", ranks, "--size", str(scale_size), "--width", "8"]
done = subprocess.run([*command, "--out", str(folder)], capture_output=True, text=True, check=True)
measured = pd.read_csv(folder / "scale.csv")
shown = {
    "forward_backward_seconds": "seconds",
    "forward_backward_speedup": "speed-up",
    "forward_backward_efficiency": "efficiency",
    "forward_backward_peak_mib_a_rank": "peak MiB a worker",
    "forward_backward_bytes_sent_a_rank": "bytes sent",
    "forward_backward_reckoned_bytes_a_rank": "bytes from the layout",
}
measured.set_index(["kind", "ranks"])[list(shown)].rename(columns=shown).round(2)

# %%
Image(filename=folder / "scale.png", width=820)

# %% [markdown]
# Is the efficiency below 1? Two workers on two cores also share the memory's bandwidth, and everything else that your machine is
# doing. The bytes are not to blame: look how few they are beside the activations.
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
#    on paper, then check with `Traffic` as in section 9. Why do both inner neighbours not need the same number of rows?
# 2. **Grid or bands?** For 16 workers and the network of section 9, compare `Layout(16)` with `Layout(4, 4)`: bytes *and*
#    messages (`Traffic.most()`). Which would you choose where a message costs 1 ms? Where it costs 10 microseconds?
# 3. **Write a rule yourself.** `torch.cumsum` along rows is refused. A tile's sum is its own plus the total of all tiles above.
#    Write it, in one process first: `from rsseglab.spatial.tensor import rule`, decorate your function with `@rule(torch.cumsum)`, and
#    build the result with `x.like([...])` of `x.tiles`. Compare with the plain call in float64, for 1, 3 and 7 bands. What would
#    have to be exchanged over ranks?
# 4. **Break it.** Run section 5 with `network.train()`, each crop normalised by itself. Where are the errors now? Why everywhere?
# 5. **Too many workers.** Cut a scene of 64 rows in 11 bands and run the U-Net. At 1/32 of the size there are two rows: what do the
#    other nine workers do there? Is the answer still exact?
#
# **Read next.** `rsseglab/spatial/rules/convolution.py` (one family, with its arithmetic), `rsseglab/spatial/exchange.py` (the only
# place where tiles meet), `book/exactness.md` (which networks are held to this, on which layouts).
