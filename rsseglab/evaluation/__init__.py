"""Scores of whole scenes: confusion and what follows from it, boundary F1, seam error."""

from rsseglab.evaluation.boundary import BoundaryF1
from rsseglab.evaluation.confusion import Confusion
from rsseglab.evaluation.evaluate import Evaluation, count_labels, evaluate_scene, pool, read_placement
from rsseglab.evaluation.seams import Placement, SeamCounter, SeamError

__all__ = [
    "BoundaryF1",
    "Confusion",
    "Evaluation",
    "Placement",
    "SeamCounter",
    "SeamError",
    "count_labels",
    "evaluate_scene",
    "pool",
    "read_placement",
]
