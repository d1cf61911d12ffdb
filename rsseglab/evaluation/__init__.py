"""Scores of whole scenes: confusion and what follows from it, boundary F1, seam error, intervals, published numbers."""

from rsseglab.evaluation.blocks import BlockCounts, count_blocks
from rsseglab.evaluation.bootstrap import Estimate, mean_iou_difference, mean_iou_interval
from rsseglab.evaluation.boundary import BoundaryF1
from rsseglab.evaluation.confusion import Confusion
from rsseglab.evaluation.evaluate import Evaluation, count_labels, evaluate_scene, pool, read_placement
from rsseglab.evaluation.padding import Padding
from rsseglab.evaluation.protocols import PROTOCOLS
from rsseglab.evaluation.published import published_bicor_seg, published_fctl, published_rest
from rsseglab.evaluation.seams import Placement, SeamCounter, SeamError

__all__ = [
    "PROTOCOLS",
    "BlockCounts",
    "BoundaryF1",
    "Confusion",
    "Estimate",
    "Evaluation",
    "Padding",
    "Placement",
    "SeamCounter",
    "SeamError",
    "count_blocks",
    "count_labels",
    "evaluate_scene",
    "mean_iou_difference",
    "mean_iou_interval",
    "pool",
    "published_bicor_seg",
    "published_fctl",
    "published_rest",
    "read_placement",
]
