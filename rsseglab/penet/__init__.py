"""PENet: from points to maps; of the paper only the abstract is known to us, the rest is our reading of it.

Chan, Zhou, Lei, Li, Hu, Hong, "PENet: Sparse point annotations for remote sensing image segmentation", Scientific
Reports 15, 27347, 2025.
"""

from rsseglab.penet.ema import EfficientMultiScaleAttention
from rsseglab.penet.expansion import SimilarityExpansion, grow_regions, similar_labels, soft_labels
from rsseglab.penet.losses import PointLoss
from rsseglab.penet.model import PENet

__all__ = [
    "EfficientMultiScaleAttention",
    "PENet",
    "PointLoss",
    "SimilarityExpansion",
    "grow_regions",
    "similar_labels",
    "soft_labels",
]
