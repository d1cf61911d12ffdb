"""rsseglab: semantic segmentation of remote sensing scenes that do not fit in memory.

Importing the package imports nothing heavy; each room is imported by name:
``rsseglab.scenes``, ``rsseglab.spatial``, ``rsseglab.encoders``, ``rsseglab.inference``, ...
"""

__version__ = "0.1.0"
