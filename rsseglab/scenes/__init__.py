"""Scenes on disk: manifests, windowed reading and writing, data sets, synthetic and twin scenes."""

from rsseglab.scenes.raster import ArraySource, RasterSource, RasterWriter, Source, Window
from rsseglab.scenes.scene import (
    IGNORE_INDEX,
    LabelClass,
    Scene,
    class_index,
    class_values,
    label_writer,
    probability_writer,
)

__all__ = [
    "IGNORE_INDEX",
    "ArraySource",
    "LabelClass",
    "RasterSource",
    "RasterWriter",
    "Scene",
    "Source",
    "Window",
    "class_index",
    "class_values",
    "label_writer",
    "probability_writer",
]
