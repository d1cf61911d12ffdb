"""FCtL: patches that look at wider contexts of themselves.

Li, Yang, Liu, Yu, He, "From Contexts to Locality: Ultra-high Resolution Image Segmentation via Locality-aware
Contextual Correlation", ICCV 2021.
"""

from rsseglab.fctl.contexts import Contexts
from rsseglab.fctl.correlation import LocalityAwareCorrelation
from rsseglab.fctl.fusion import ContextFusion

__all__ = ["ContextFusion", "Contexts", "LocalityAwareCorrelation"]
