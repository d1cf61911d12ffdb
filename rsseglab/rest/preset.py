"""The published settings of REST's two stages, as found in the authors' public configurations (Swin-L, UPerNet).

=====================  ==============================  =======================================
setting                stage 1, baseline on crops       stage 2, SPIM added
=====================  ==============================  =======================================
crop                   512 px                          1024 px, cut over 4 GPUs
steps                  80 000                          10 000
batch                  16 a GPU                        8
optimiser              AdamW, 6e-5, decay 0.01         the same
schedule               1500 steps up, linear to 0      linear to 0
trained                all                             last stage, SPIM, decoder
=====================  ==============================  =======================================

Not taken over: the random resizing of 0.5 to 2 times, the limit of 75 % on a crop's most frequent class, saturation
and hue. The auxiliary head (FCN on stride 16, weight 0.4) is not there either; losses are chosen with ``--loss``.
"""

from typing import Any

PUBLISHED: dict[str, dict[str, Any]] = {
    "rest-stage1": {
        "crop_px": 512, "steps": 80_000, "batch_size": 16, "lr": 6e-5, "weight_decay": 0.01, "schedule": "linear",
        "warmup_steps": 1500, "loss": "ce", "val_every": 500,
    },
    "rest-stage2": {
        "crop_px": 1024, "steps": 10_000, "batch_size": 8, "lr": 6e-5, "weight_decay": 0.01, "schedule": "linear",
        "warmup_steps": 0, "loss": "ce", "val_every": 500, "freeze_early": True,
    },
}  # fmt: skip
