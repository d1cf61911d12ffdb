"""FCtL: patches that look at wider contexts of themselves.

Li, Yang, Liu, Yu, He, "From Contexts to Locality: Ultra-high Resolution Image Segmentation via Locality-aware
Contextual Correlation", ICCV 2021.
"""

from rsseglab.fctl.contexts import Contexts
from rsseglab.fctl.correlation import Concatenation, LocalityAwareCorrelation
from rsseglab.fctl.fcn8s import FCN8s
from rsseglab.fctl.fusion import ContextFusion
from rsseglab.fctl.model import FCtL
from rsseglab.fctl.refinement import ContextualRefinement

__all__ = [
    "Concatenation",
    "ContextFusion",
    "Contexts",
    "ContextualRefinement",
    "FCN8s",
    "FCtL",
    "LocalityAwareCorrelation",
]
