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
# # Bring your own scene
#
# **The question.** You have one GeoTIFF, and an afternoon to draw polygons in a GIS. How do you get from there to a map of the
# whole scene that your GIS opens, and what may you say of how good it is?
#
# **It assumes** *What is a whole scene* (whole scenes, crops, mean IoU) and that you have drawn a polygon before. **It takes** about a
# minute on a laptop with two cores, and 2 GiB of memory. Where `RSSEGLAB_DATA` has the drone scenes of Kampala, one of them
# is used; else a made scene. With a scene of your own the command is
#
# ```console
# rsseglab own scene.tif --labels polygons.gpkg --class-column class --out outputs/own
# ```

# %% tags=["parameters"] nbmake={"mock": {"real": false, "encoder": "test_resnet", "steps": 2, "crop_px": 32, "shrink": 8, "plot_px": 40}}
real = True  # use the real scene where it is; a made one otherwise
encoder = ""  # empty: EfficientNet-Lite0 where its ImageNet weights are at hand, else timm's tiny ResNet
steps = 80  # of training
crop_px = 128  # side of a crop
shrink = 2  # the scene is averaged over so many px a side first, to save minutes
plot_count = 10  # squares in which everything is outlined
plot_px = 160  # side of one
seed = 0

# %%
import logging
from pathlib import Path
from tempfile import mkdtemp

import geopandas as gpd
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import shapely
from IPython.display import Markdown
from rasterio.features import shapes

from rsseglab import plots
from rsseglab.encoders.weights import local_weights
from rsseglab.errors import UserError
from rsseglab.evaluation import evaluate_scene
from rsseglab.evaluation.evaluate import index_reader
from rsseglab.experiments.own_labels import prepare
from rsseglab.experiments.own_scene import overview, own_scene, validated
from rsseglab.inference.gis import region_polygons
from rsseglab.scenes import ArraySource, RasterWriter, Scene, Window, class_values
from rsseglab.scenes.manifest import load_manifest
from rsseglab.scenes.points import unused_value
from rsseglab.scenes.polygons import footprint
from rsseglab.scenes.scene import IGNORE_INDEX
from rsseglab.scenes.store import find_data
from rsseglab.scenes.views import decimated, in_memory

logging.getLogger("timm").setLevel(logging.ERROR)  # no news of the weights that a decoder has no use for
encoder = encoder or ("tf_efficientnet_lite0" if local_weights("tf_efficientnet_lite0") else "test_resnet")
work = Path(mkdtemp())
ORANGE, SKY = (f"#{r:02x}{g:02x}{b:02x}" for r, g, b in (plots.OKABE_ITO[1], plots.OKABE_ITO[3]))

# %% [markdown]
# ## 1. What you would bring
#
# A raster that GDAL opens and that knows its place on Earth; and polygons with a class each, in any format and coordinate system.
# Nobody outlines a whole scene. A good habit is to draw **plots**: squares here and there in which *everything* is outlined, what is
# not of interest too. A network that has never been shown a street will not leave it out.
#
# We have no afternoon, so we take an annotated scene, put its label aside for later, and let the label draw for us: polygons in
# some plots, with corners cut as a hand cuts them, in longitude and latitude, as web maps give them.

# %%
name, scene_name, factor = "synthetic", "test_1", max(1, shrink // 2)
if real:
    try:
        find_data(load_manifest("oam_buildings"))
        name, scene_name, factor = "oam_buildings", "kampala_a", shrink
    except UserError as reason:
        print(f"a made scene instead: {reason}")
truth = in_memory(decimated(load_manifest(name).scene(scene_name), factor))
image = work / f"{scene_name}.tif"
with RasterWriter(image, truth.height, truth.width, truth.count, "uint8", truth.crs, truth.transform) as writer:
    writer.write(truth.read().astype(np.uint8), 0)

draw, label = np.random.default_rng(seed), truth.read_label()
windows, polygons = [], []
while len(windows) < plot_count:
    row, col = (int(draw.integers(length - plot_px)) for length in label.shape)
    if any(abs(row - w.row) < plot_px and abs(col - w.col) < plot_px for w in windows):
        continue
    windows.append(Window(row, col, plot_px, plot_px))
    there = np.full(label.shape, IGNORE_INDEX, np.uint8)
    there[row : row + plot_px, col : col + plot_px] = label[row : row + plot_px, col : col + plot_px]
    found = shapes(there, mask=there != IGNORE_INDEX, transform=truth.transform)
    polygons += [(truth.classes[int(k)].name, shapely.geometry.shape(shape)) for shape, k in found]
drawn = gpd.GeoDataFrame({"class": [n for n, _ in polygons]}, geometry=[s for _, s in polygons], crs=truth.crs.to_wkt())
pixel_m = abs(truth.transform.a)
drawn["geometry"] = drawn.simplify(1.2 * pixel_m)
drawn = drawn[drawn.area > 9 * pixel_m**2].to_crs("EPSG:4326")
drawn.to_file(work / "drawn.gpkg")
share = sum(w.height * w.width for w in windows) / label.size
Markdown(f"**{len(drawn)} polygons** in {len(windows)} plots, {share:.0%} of the scene.")

# %%
gpd.read_file(work / "drawn.gpkg").head(4)

# %%
figure, axis = plt.subplots(figsize=(10, 10 * truth.height / truth.width + 0.8), layout="constrained")
west, north = truth.transform.c, truth.transform.f
extent = (west, west + truth.width * pixel_m, north - truth.height * pixel_m, north)
axis.imshow(plots.thumbnail(truth), extent=extent)
colors = {c.name: np.array(c.color) / 255 for c in truth.classes}
for class_name, its in drawn.to_crs(truth.crs.to_wkt()).groupby("class"):
    its.plot(ax=axis, facecolor=(*colors[class_name], 0.35), edgecolor=colors[class_name], linewidth=1.2)
axis.set(title=f"{scene_name}, {truth.width} x {truth.height} px, and what was drawn", xlim=extent[:2], ylim=extent[2:])
axis.ticklabel_format(useOffset=False, style="plain")
axis.set(xlabel=f"x, m ({truth.crs})", ylabel="y, m")
axis.locator_params(nbins=5)
figure.legend(
    handles=plots.class_legend(truth.classes, ignored=False), loc="outside lower center", ncols=8, frameon=False
)
plots.show(figure, "The scene, with polygons of each class in some square plots.")

# %% [markdown]
# ## 2. One command
#
# What follows is what `rsseglab own` does. It says what it has mended, what it is about to do and for how long, and then does it.
# Overlaps are the rule with drawn polygons: where two classes claim a pixel, the smaller polygon is on top (a pond in a
# field), or nobody (`--conflicts ignore`).

# %%
result = own_scene(
    [image], work / "drawn.gpkg", work / "own", encoder=encoder, steps=steps, crop_px=crop_px, sieve_px=12, seed=seed
)

# %%
split, scene = result.prepared.split, result.prepared.scenes[0]
figure = overview(scene, result.maps[0], split)
plots.show(
    figure, "The scene; the labelled plots, with the parts for training and validation; the map of the scene.", 70
)

# %% [markdown]
# ## 3. Validated by whom?
#
# Selecting a checkpoint and giving a score both need labels that were not trained on. There is only one scene. Pixels drawn at
# random would not do: each has its neighbour in training. So the scene is cut in **blocks**; blocks are for one or the other, and
# training steps back from validation by half a crop. The frames in the picture above are these parts; a label between them serves
# neither.

# %% [markdown]
# Now the honest part. We have put a dense label aside, which you will not have. Three scores of the same map: where the network was
# trained, on the validation blocks, and on everything that lies outside of all of them.


# %%
def score(keep):
    """The map against the dense label, where ``keep`` is true."""
    values = class_values(np.where(keep, label, IGNORE_INDEX).astype(np.uint8), truth.classes, nodata)
    its = Scene(
        truth._images, ArraySource(values, truth.crs, truth.transform, nodata), truth.classes, bands=truth.bands
    )
    return evaluate_scene(by_name[mapped], its)


nodata = unused_value(truth.classes)
mapped = index_reader(result.maps[0], scene)(scene.window)
names = [c.name for c in truth.classes]
by_name = np.full(256, IGNORE_INDEX, np.uint8)  # the drawn classes are numbered by their names
by_name[: len(scene.classes)] = [names.index(c.name) for c in scene.classes]

trained, val, near = (np.zeros(label.shape, bool) for _ in range(3))
labelled = scene.read_label() != IGNORE_INDEX
for mask, parts in ((trained, split.train), (val, split.val)):
    for row, col, height, width in (part.window for part in parts):
        mask[row : row + height, col : col + width] = True
places = {
    "training labels": trained & labelled,
    "validation labels": val & labelled,
    "the rest": ~trained & ~val & ~labelled,
}
scored = {place: score(keep).confusion for place, keep in places.items()}
shown = validated(result.prepared)
table = pd.DataFrame({place: dict(zip(names, 100 * c.iou(), strict=True)) for place, c in scored.items()}).loc[shown]
table.loc["mean"] = table.mean()
table.round(1).rename_axis("IoU, %")

# %%
figure, axis = plt.subplots(figsize=(8, 3.2), layout="constrained")
table.plot.bar(ax=axis, color=[ORANGE, "black", SKY], width=0.75, rot=0)
axis.set(ylabel="IoU, %", ylim=(0, 100))
axis.grid(axis="y", color="0.92")
axis.set_axisbelow(True)
axis.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
plots.show(figure, "IoU of each class on training labels, on validation labels, and on the rest of the scene.")
Markdown(
    f"Validation says **{table.loc['mean', 'validation labels']:.0f} %**, the rest of the scene "
    f"**{table.loc['mean', 'the rest']:.0f} %**. Validation blocks are few, have chosen the checkpoint, and lie where somebody chose "
    "to draw; and the label of the rest is not free of errors either. On a scene of another day or town neither number holds."
)

# %% [markdown]
# ## 4. What is in the folder
#
# | file | what it is |
# | --- | --- |
# | `labels.tif` | the map: a Cloud Optimised GeoTIFF with overviews, a colour table, class names as tags, nodata 255 |
# | `polygons.gpkg` | its regions as polygons: `class`, `value`, `area_m2` on the ellipsoid, whatever the coordinate system |
# | `labels.qml`, `polygons.qml`, `polygons.sld` | styles, which QGIS finds by their names; SLD for other programs |
# | `overview.png`, `record.json` | a picture, and what was run on what with which result |
# | `scene.toml`, `scenes/` | a manifest: `rsseglab train`, `predict` and `evaluate` take it as `--data` |
# | `run/best.ckpt` | the network, for `rsseglab predict another.tif --checkpoint` |
#
# **In QGIS**: *Layer > Add Layer > Add Raster Layer*, `labels.tif`; *Add Vector Layer*, `polygons.gpkg`; or drag both into the
# window. Colours and names are there at once. Set the raster's opacity to 50 % in *Layer Styling* and lay it over your scene; in
# the attribute table of the polygons, *Statistical Summary* of `area_m2` by `class` gives areas for a report. If a layer comes in
# grey, its style lies elsewhere: *Properties > Style > Load Style*.

# %%
table = gpd.read_file(work / "own" / "polygons.gpkg")
true_m2 = {
    c.name: float((label == k).sum()) * load_manifest(name).gsd_m ** 2 * factor**2 for k, c in enumerate(truth.classes)
}
areas = table.groupby("class")["area_m2"].agg(["count", "sum", "median"])
areas["dense label"] = areas.index.map(true_m2)
areas.round(0).rename(
    columns={"count": "polygons", "sum": "mapped, m2", "median": "median polygon, m2", "dense label": "dense label, m2"}
)

# %%
side = min(240, *label.shape)
middle = Window((truth.height - side) // 2, (truth.width - side) // 2, side, side)
zoom = footprint(truth, middle)
figure, axes = plt.subplots(1, 3, figsize=(14, 5.2), layout="constrained", sharex=True, sharey=True)
view = (slice(middle.row, middle.row + side), slice(middle.col, middle.col + side))
left, bottom, right, top = zoom.bounds
background = plots.thumbnail(truth, max(label.shape))[view]
legend = {c.name: np.array(c.color) / 255 for c in scene.classes}
for axis, least in zip(axes, (0, 12, 100), strict=True):
    regions = region_polygons(result.maps[0], least)
    axis.imshow(background, extent=(left, right, bottom, top))
    for class_name, its in regions[regions.intersects(zoom)].groupby("class"):
        its.plot(ax=axis, facecolor=(*legend[class_name], 0.4), edgecolor="black", linewidth=0.6)
    axis.set(
        xlim=(left, right), ylim=(bottom, top), title=f"--sieve {least}: {len(regions)} polygons", xticks=[], yticks=[]
    )
figure.legend(
    handles=plots.class_legend(scene.classes, ignored=False), loc="outside lower center", ncols=8, frameon=False
)
plots.show(figure, "A part of the scene with the map's polygons, without a sieve and with two: specks vanish.")

# %% [markdown]
# A network's map has specks. As polygons they are noise, so `--sieve` gives regions of few pixels to their neighbours. It touches the
# polygons alone: the raster is what the network said, and scores are of that.
#
# ## 5. What people bring, and what they are told
#
# Half of the work with drawn labels is what is wrong with them. What can be mended is mended and said; the rest is one line, with
# the cause and then the remedy.

# %%
few = gpd.read_file(work / "drawn.gpkg")
few.translate(1.0, 0).to_frame("geometry").assign(**{"class": few["class"]}).to_file(work / "elsewhere.gpkg")
few.iloc[:0].to_file(work / "nothing.gpkg")
few[["geometry"]].to_file(work / "nameless.gpkg")
for file, options in (
    ("elsewhere.gpkg", {}),
    ("nothing.gpkg", {}),
    ("nameless.gpkg", {}),
    ("drawn.gpkg", {"class_column": "Class"}),
    ("drawn.gpkg", {"crop_px": 1024}),
):
    try:
        prepare([image], work / file, work / "refused", **options)
    except UserError as error:
        print(f"{file}: {str(error).replace(str(work) + '/', '')}\n")

# %% [markdown]
# ## What to take along
#
# - Draw plots, not objects alone: what is in no polygon is ignored, and what is never shown is never learnt (`--rest background` says that
#   all else is one class; then a forgotten house is a lesson in what a house is not).
# - Spread plots over the scene, and give each class several, so that some can validate.
# - A score from the same scene is mostly higher than what you will see elsewhere. Say so in the report.
# - Report areas from `area_m2`; web mercator's own areas are wrong by the square of its scale.
#
# ## Exercises
#
# 1. **More plots or larger ones?** Compare `plot_count, plot_px = 10, 160` with `40, 80`, which is the same area. Which helps the rest of
#    the scene more, and which the validation score?
# 2. **A leak.** Write a split that takes every second *polygon* for validation, of all plots. By how much does its score exceed
#    that of the rest of the scene?
# 3. **Clicks.** Take an innermost point of each polygon (`drawn.representative_point()`), save them, and run `own_scene` on the points:
#    they are grown by masks first. How far does a click an object take you?
# 4. **The rest.** Draw the buildings alone (`drawn[drawn["class"] == "building"]`) and give `rest="background"`. What happens between the
#    plots, and why? How would you draw so that it is right?
# 5. **Your scene.** Cut a scene of your own place from OpenAerialMap, draw six plots in QGIS (*New GeoPackage Layer*, polygon, a text
#    field `class`), and write the paragraph of a report: area a class, score, and what the score does not say.
#
# **Read next:** *From clicks to maps* (labels that are points), *What counts as evidence?* (intervals for the scores above), and
# Roberts et al., "Cross-validation strategies for data with temporal, spatial, hierarchical, or phylogenetic structure", *Ecography*
# 40, 2017. The code is in `rsseglab/scenes/polygons.py`, `rsseglab/scenes/split.py` and `rsseglab/inference/gis.py`.
