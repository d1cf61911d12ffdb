"""BiCoR-Seg: class embeddings and feature maps that refine each other.

Shi, Song, "BiCoR-Seg: Bidirectional Co-Refinement Framework for High-Resolution Remote Sensing Image Segmentation",
arXiv 2512.20255, Computational Visual Media 2026.
"""

from rsseglab.bicor_seg.attention import CrossAttention
from rsseglab.bicor_seg.ce2f import EmbeddingToFeature
from rsseglab.bicor_seg.f2ce import FeatureToEmbedding
from rsseglab.bicor_seg.hbis import HBIS
from rsseglab.bicor_seg.heatmap import ClassHeatmap
from rsseglab.bicor_seg.losses import BiCoRLoss, FisherDiscriminativeLoss, HeatmapLoss, Refined
from rsseglab.bicor_seg.model import BiCoRSeg

__all__ = [
    "HBIS",
    "BiCoRLoss",
    "BiCoRSeg",
    "ClassHeatmap",
    "CrossAttention",
    "EmbeddingToFeature",
    "FeatureToEmbedding",
    "FisherDiscriminativeLoss",
    "HeatmapLoss",
    "Refined",
]
