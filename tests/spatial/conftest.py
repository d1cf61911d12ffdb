import sys
from pathlib import Path

import torch

sys.path.insert(0, Path(__file__).parent.as_posix())  # equality.py and ranks.py, in spawned ranks too
torch.set_num_threads(1)
