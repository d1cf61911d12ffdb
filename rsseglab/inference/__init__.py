"""A scene in, a georeferenced label raster out."""

from rsseglab.inference.crops import Cropping, crop_and_merge
from rsseglab.inference.predict import Prediction, pick_device, predict_scene

__all__ = ["Cropping", "Prediction", "crop_and_merge", "pick_device", "predict_scene"]
