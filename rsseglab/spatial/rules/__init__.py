"""The rules, one file a family. Importing this package registers them all."""

from rsseglab.spatial.rules import (
    attention,
    contraction,
    convolution,
    indexing,
    joining,
    losses,
    norms,
    padding,
    pointwise,
    pooling,
    randomness,
    reductions,
    resize,
    shapes,
    softmax,
    unfolding,
)

__all__ = [
    "attention",
    "contraction",
    "convolution",
    "indexing",
    "joining",
    "losses",
    "norms",
    "padding",
    "pointwise",
    "pooling",
    "randomness",
    "reductions",
    "resize",
    "shapes",
    "softmax",
    "unfolding",
]
