"""Settings for points on Vaihingen and Potsdam, after the two published protocols; PENet's own are not known.

======================  =======================  =======================  =======================
setting                 penet-vaihingen          penet-vaihingen-crgnet   penet-potsdam
======================  =======================  =======================  =======================
protocol of             DBFNet                   CRGNet, FESTA            DBFNet
tiles, published        16 and 17                11 and 5                 24 and 14
tiles here              15, 1 and 17             10, 1 and 5              22, 1 and 14
crop                    256 px                   128 px                   256 px
batch                   32                       64                       32
steps                   13 300 = 100 x 133       5 000                    35 700 = 100 x 357
highest rate            AdamW, 1e-3              AdamW, 1e-3 (there SGD)  AdamW, 1e-3
======================  =======================  =======================  =======================

An epoch of DBFNet is a pass over its 256 px patches less a tenth that is held out: 4724 - 473 of Vaihingen, 11 426 of
Potsdam. DBFNet has five classes and ignores clutter: ``rsseglab points sample --data vaihingen --leave-out clutter``
makes such clicks. Here clutter stays a sixth class that is never learnt, and that counts with an IoU of 0 in the mean
by which a run is selected; ``rsseglab evaluate --classes`` leaves it out of the scores.

Selection is on the manifests' ``val``: one of the published training tiles (tile 7_10 of Potsdam is left out, for
errors in its label), where DBFNet holds out patches and CRGNet, by
its public code, selects on the test tiles. Not taken over: DBFNet's filter, second stage and CRF, CRGNet's dilated
VGG-16 and self-training; the schedules in steps; test-time augmentation.

Source:
    Wu et al., DBFNet, TIP 2022; Xu, Ghamisi, CRGNet, TIP 2022, and facts read from their public code.
"""

from typing import Any

_ALL: dict[str, Any] = {
    "method": "penet", "encoder": "resnet18", "decoder": "fpn", "weights": "pretrained", "lr": 1e-3,
    "weight_decay": 0.01, "schedule": "poly",
}  # fmt: skip
PUBLISHED: dict[str, dict[str, Any]] = {
    "penet-vaihingen": {
        **_ALL, "data": "vaihingen", "crop_px": 256, "batch_size": 32, "steps": 13_300, "val_every": 133,
    },
    "penet-vaihingen-crgnet": {
        **_ALL, "data": "vaihingen:crgnet", "crop_px": 128, "batch_size": 64, "steps": 5_000, "val_every": 100,
    },
    "penet-potsdam": {
        **_ALL, "data": "potsdam", "crop_px": 256, "batch_size": 32, "steps": 35_700, "val_every": 357,
    },
}  # fmt: skip
