"""REST: one scene spread over workers, whose tiles meet in attention (SPIM) or in every operation (the exact engine).

Chen, Bruzzone, Dang, Gao, Deng, Yu, Yuan, Li, "REST: Holistic Learning for End-to-End Semantic Segmentation of
Whole-Scene Remote Sensing Imagery", TPAMI 48:1, 2026, doi:10.1109/TPAMI.2025.3609767.
"""

from rsseglab.rest.model import INTERACTIONS, REST
from rsseglab.rest.spim import SPIM

__all__ = ["INTERACTIONS", "REST", "SPIM"]
