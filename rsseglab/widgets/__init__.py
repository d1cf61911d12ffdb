"""Pieces of notebooks that are drawn in the browser; they need ``rsseglab[notebooks]``."""

from rsseglab.widgets.point_annotator import PointAnnotator

__all__ = ["PointAnnotator"]
