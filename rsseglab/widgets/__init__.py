"""Pieces of notebooks that are drawn in the browser; they need ``rsseglab[notebooks]``."""

from rsseglab.widgets.explorer import Explorer
from rsseglab.widgets.point_annotator import PointAnnotator
from rsseglab.widgets.swipe import Swipe, swipe

__all__ = ["Explorer", "PointAnnotator", "Swipe", "swipe"]
