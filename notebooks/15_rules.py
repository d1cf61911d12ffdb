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
# # Add your own: encoder, decoder, rule, paper
#
# **The question.** Your network is not in the list. Does it run on a whole scene, over tiles, exactly? Mostly it does, and
# there is nothing to write. Where an operation is missing, the engine says so by name, and a rule for it is a page. This
# notebook writes one, and then shows where a whole paper would go.
#
# **It assumes** *One scene over many workers* (tiles, halos), and that you have written a `torch.nn.Module`. **It takes** less
# than a minute on a laptop with two cores, and 1 GiB of memory. No data is needed.

# %% tags=["parameters"] nbmake={"mock": {"size": 96}}
size = 192  # rows and columns of the scene
seed = 0

# %%
import matplotlib.pyplot as plt
import pandas as pd
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import handle_torch_function, has_torch_function

from rsseglab import plots
from rsseglab.decoders import create_network
from rsseglab.scenes.manifest import load_manifest
from rsseglab.spatial import Layout, SpatialError, cut, join
from rsseglab.spatial.rules.convolution import conv_needs
from rsseglab.spatial.tensor import rule
from rsseglab.spatial.windows import windowed
from rsseglab.training.networks import METHODS

torch.manual_seed(seed)
scene = load_manifest("synthetic").scenes("test")[0]
image = torch.from_numpy(scene.read()[None, :, :size, :size] / 255.0).double()
LAYOUTS = {"4 bands": Layout(4), "2 x 2": Layout(2, 2), "3 x 2, uneven": Layout(3, 2)}


def held_to_it(network):
    """Largest error over tiles against the whole scene: of the output, and of the gradients of all parameters."""

    def run(x):
        network.zero_grad()
        y = join(network(x))
        (y * torch.linspace(0, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
        return y.detach(), torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])

    whole = run(image)
    rows = {}
    for name, layout in LAYOUTS.items():
        tiles = run(cut(image, layout))
        rows[name] = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(tiles, whole, strict=True)]
    return pd.DataFrame(rows, index=["output", "gradients"]).T.map("{:.0e}".format)


# %% [markdown]
# ## 1. An encoder and a decoder by name
#
# All of timm's encoders, and the decoders of segmentation_models_pytorch, take any number of bands. Nothing of them knows of
# tiles. Try a name of your own.

# %%
print(
    f"timm knows {len(timm.list_models())} networks; some with 'mobilenetv3':",
    timm.list_models("mobilenetv3_small*")[:4],
)
network = create_network("mobilenetv3_small_050", "fpn", bands=3, classes=7).double().eval()
held_to_it(network)

# %% [markdown]
# ## 2. A network of your own
#
# Stock operations are all that is needed: here strided, dilated and transposed convolutions, group norm, a global mean that
# weighs channels, and an odd size. No line of it was written for tiles.


# %%
class Mine(nn.Module):
    """Two paths, one of them over the whole scene."""

    def __init__(self, bands=3, classes=7, dim=16):
        super().__init__()
        self.down = nn.Conv2d(bands, dim, 5, stride=2, padding=2)
        self.wide = nn.Conv2d(dim, dim, 3, padding=6, dilation=6)
        self.norm = nn.GroupNorm(4, dim)
        self.weigh = nn.Linear(dim, dim)
        self.up = nn.ConvTranspose2d(dim, dim, 2, stride=2)
        self.head = nn.Conv2d(dim, classes, 1)

    def forward(self, x):
        """Logits."""
        y = F.gelu(self.norm(self.wide(F.relu(self.down(x)))))
        y = y * self.weigh(y.mean((2, 3))).sigmoid()[:, :, None, None]  # of the whole scene, whatever the tiles
        return self.head(self.up(y))


held_to_it(Mine().double())

# %% [markdown]
# ## 3. An operation without a rule
#
# A median filter takes from each window its middle value. PyTorch has none; this is the usual way to write it. On a whole
# scene it works. On tiles:


# %%
def plain_median(x, kernel):
    """Median over windows of an odd side, zeros beyond the scene."""
    columns = F.unfold(x, kernel, padding=kernel // 2).unflatten(1, (x.shape[1], kernel**2))
    return columns.median(2).values.unflatten(2, x.shape[2:])


filtered = plain_median(image, 5)
try:
    plain_median(cut(image, Layout(4)), 5)
except SpatialError as error:
    print("SpatialError:", error)

# %% [markdown]
# Refused, by name. That is the promise: exact, or an error. A silent answer, each tile filtered alone, would be wrong in the
# rows at the borders, and nobody would see it.
#
# A rule that mixes space answers two questions:
#
# - **needs**: of which input rows are the output rows $[a, b)$ made? For a window of side $k$ with $k // 2$ rows of padding:
#   $[a - k // 2,\; b - 1 + k // 2 + 1)$. `conv_needs` says so for any kernel, stride and dilation.
# - **compute**: given these rows, and told how many are missing because the scene ends, what is the output?
#
# `windowed` does the rest: who fetches what from whom, forward and backward, uneven and empty tiles. Your operation has to be
# a function that can be overridden, which takes two lines (`has_torch_function`).


# %%
def median_filter(x, kernel):
    """Median over windows of an odd side, zeros beyond the scene; whole scenes and cut ones."""
    if has_torch_function((x,)):
        return handle_torch_function(median_filter, (x,), x, kernel)
    return plain_median(x, kernel)


@rule(median_filter)
def median_of_tiles(x, kernel):
    """The rule: what a window of the output needs, and how it is computed."""

    def compute(window, rows, cols):
        # rows.span.before: rows that the window lacks above, because the scene ends; the filter pads with as many zeros.
        beyond = (cols.span.before, cols.span.after, rows.span.before, rows.span.after)
        columns = F.unfold(F.pad(window, beyond), kernel).unflatten(1, (window.shape[1], kernel**2))
        return columns.median(2).values.unflatten(2, (rows.out[1] - rows.out[0], cols.out[1] - cols.out[0]))

    needs = conv_needs(kernel, stride=1, before=kernel // 2, dilation=1)
    return windowed(x, tuple(x.shape[2:]), x.shape[1], (needs, needs), compute, "median_filter")


alone = torch.cat([plain_median(t, 5) for t in cut(image, Layout(4)).tiles], 2)
exact = join(median_filter(cut(image, Layout(4)), 5))
print("equal to the whole scene:", torch.equal(exact, filtered))

figure, axes = plt.subplots(1, 3, figsize=(11, 3.9), layout="constrained")
axes[0].imshow(filtered[0].permute(1, 2, 0))
axes[0].set(title="the scene, filtered whole", xlabel="column, px", ylabel="row, px")
for axis, (title, answer) in zip(axes[1:], {"each tile alone": alone, "by the rule": exact}.items(), strict=True):
    drawn = axis.imshow((answer - filtered).abs().amax((0, 1)), cmap="cividis", vmin=0, vmax=0.3)
    axis.set(title=f"error, {title}", xlabel="column, px")
figure.colorbar(drawn, ax=axes[2], label="largest absolute error of a band")
plots.show(
    figure,
    "A filtered scene, and two maps of errors: filtered tile by tile they lie in the rows at the borders, by the rule there "
    "are none.",
)

# %% [markdown]
# A rule is held to the same test as all others: output and gradients, on bands and grids, even and uneven. And it must be
# able to fail: put `before=kernel // 2 - 1` and look at it go red.


# %%
class Filtered(nn.Module):
    """The filter between two convolutions, so that gradients pass through it."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        """Logits."""
        return self.last(median_filter(self.first(x), 5))


held_to_it(Filtered().double())

# %% [markdown]
# Streaming (*A scene larger than memory*) and ranks use the same rules, so the filter streams, and runs on any number of
# workers, from now on.
#
# ## 4. A paper
#
# A method is a name that makes a network; training, prediction, checkpoints and records find it by that name:

# %%
pd.DataFrame(METHODS, index=["module", "made by"]).T

# %% [markdown]
# Where the parts of a new paper go, and who holds them to what:
#
# | part | where | held to |
# |---|---|---|
# | one component | `rsseglab/PAPER/COMPONENT.py`: what it is, its equation, shapes, then code that mirrors the equation | a literal twin in float64, `tests/PAPER` |
# | the network | `rsseglab/PAPER/model.py`, a line in `METHODS` | parameter counts, sizes, the engine's equality test |
# | its loss, where it has one | `network.criterion`, called by the common training task | hand-worked cases, ignored pixels, a class that is absent |
# | training that needs more than crops | `rsseglab/PAPER/training.py`, a branch in `rsseglab/experiments/methods.py` | resume gives the same weights |
# | published settings and numbers | presets, and the file of published numbers in `data_manifests` | the tables: theirs beside ours |
# | what each part is worth | a class in `rsseglab/experiments/ablate.py` | records, three seeds, intervals |
# | a chapter | `notebooks/NN_PAPER.py` | runs in the book, ends with exercises |
#
# Read a paper twice, once for what it says and once for what its code does; where they differ both are worth having, under
# two names. Mind licences: where code has none, write from the formulas.
#
# ## Exercises
#
# 1. **Needs.** Write `needs` for a median filter with stride 2 and dilation 3 by hand, then compare with `conv_needs`.
# 2. **A carry.** `torch.cumprod` down the rows needs *everything* above, and yet only one row from each tile. Which exchange
#    would you use (`rsseglab/spatial/exchange.py`)? Write the rule.
# 3. **Refuse.** Which input makes `median_filter` wrong rather than slow: an even kernel, integers, NaN? Refuse it by name.
# 4. **A network that fails.** Find a network of timm that the engine refuses. Is its operation hard, or only missing?
# 5. **Ranks.** Run section 3 with `torchrun --nproc-per-node 2` and a `mesh` in the layout. What changed in your rule?
# 6. **A method.** Put `Mine` into `METHODS` in a notebook cell, train it with `rsseglab.training.fit`, and label a scene whole
#    with `rsseglab predict --whole`.
#
# **Read next.** `rsseglab/spatial/windows.py` (the shape of a rule), `rsseglab/spatial/rules/pooling.py` (a longer one),
# `CONTRIBUTING.md`.
