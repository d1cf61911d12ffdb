"""One scene cut over many workers, and still the same function; knows torch and nothing else.

    layout = Layout(4)                      # four bands of rows, all in this process
    y = join(model(cut(x, layout)))         # equals model(x), forward and backward, to rounding

A stock model runs unmodified on a ``SceneTensor``: ``tensor`` holds the class and its dispatch, ``rules``
what each operation means on tiles, ``exchange`` how tiles meet, ``cut`` which part of a tensor each tile
holds. An operation that can't be kept exact raises ``SpatialError`` with its name.
"""

from rsseglab.spatial import rules
from rsseglab.spatial.apart import apart, together
from rsseglab.spatial.errors import SpatialError
from rsseglab.spatial.layout import Layout
from rsseglab.spatial.parallel import SceneSampler, augmentation, read_scene, sync_gradients
from rsseglab.spatial.tensor import SceneTensor, cut, from_tile, join, replicate

__all__ = [
    "Layout",
    "SceneSampler",
    "SceneTensor",
    "SpatialError",
    "apart",
    "augmentation",
    "cut",
    "from_tile",
    "join",
    "read_scene",
    "replicate",
    "rules",
    "sync_gradients",
    "together",
]
