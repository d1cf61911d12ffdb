"""A scene in, a georeferenced label raster out."""

from rsseglab.inference.crops import Cropping, crop_and_merge
from rsseglab.inference.estimate import estimate_mib
from rsseglab.inference.predict import Prediction, pick_device, predict_scene
from rsseglab.inference.stream import predict_stream
from rsseglab.inference.whole import predict_whole

__all__ = [
    "Cropping",
    "Prediction",
    "crop_and_merge",
    "estimate_mib",
    "pick_device",
    "predict_scene",
    "predict_stream",
    "predict_whole",
]
