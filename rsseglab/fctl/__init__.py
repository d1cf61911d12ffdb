"""FCtL: patches that look at wider contexts of themselves (Li et al., ICCV 2021)."""

from rsseglab.fctl.correlation import LocalityAwareCorrelation
from rsseglab.fctl.fusion import ContextFusion

__all__ = ["ContextFusion", "LocalityAwareCorrelation"]
