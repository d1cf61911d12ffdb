"""PENet: from points to maps; of the paper only the abstract is known to us, the rest is our reading of it."""

from rsseglab.penet.ema import EfficientMultiScaleAttention as EfficientMultiScaleAttention
