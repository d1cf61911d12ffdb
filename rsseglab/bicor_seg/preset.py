"""The published settings of BiCoR-Seg on its three data sets, as found in the authors' public code.

======================  =======================  =======================  =======================
setting                 LoveDA                   Vaihingen                Potsdam
======================  =======================  =======================  =======================
HBIS layers             2                        2                        3
share r of top-K        0.02                     1 (all pixels)           1 (all pixels)
crop, of 1024 px        512 px                   512 px                   768 px
batch                   8                        4                        4
optimiser               AdamW, 8e-5, 0.01        AdamW, 5e-5, 0.01        AdamW, 1e-4, 0.01
schedule                cosine, by epoch         the same                 the same
epochs                  30                       45                       45
steps                   15 720 = 30 x 524        7 605 = 45 x 169         8 910 = 45 x 198
Fisher loss             0.1 a layer, and 1 of    0.1 a layer              0.1 a layer
                        the last embeddings
======================  =======================  =======================  =======================

For all of them: ConvNeXt-B with ImageNet-1k weights, one learning rate for all, no warm-up, 32 bits, no clipping; the
losses of `rsseglab.bicor_seg.losses`, as the ``code`` has them. The paper names L = 2, r = 0.02, Adam, 0.8e-4 and
batches of 8 for all data sets.

Steps. An epoch is a pass over patches of 1024 px, one crop of each, its last batch counted however small:

- LoveDA: 2522 + 1669 images of Train *and* Val, 4191 / 8 -> 524. The same number of steps on Train alone is 50 epochs.
- Vaihingen: an *estimate*. A tile of 2557 x 1887 px, padded to 3072 x 2048, has 15 patches at a stride of 512; 15
  tiles, as they are and flipped either way, 675 / 4 -> 169. Tiles differ in size, and patches with many cars, which
  the code stores four times, cannot be counted without the labels.
- Potsdam: 22 tiles of 6000 px, padded to 6144, 36 patches each at a stride of 1024, 792 / 4 -> 198. Whether flipped
  copies are stored too we do not know; then an epoch is three times as long.

The checkpoint is selected on the manifests' ``val``, and ``test`` is never looked at. The public code trains LoveDA on
Train and Val together and selects on that Val; of Vaihingen and Potsdam it has no validation folder, and by its default
selects on the test tiles (by reading, not by running it). Here LoveDA has fewer training images; its published
numbers had both advantages, Vaihingen's and Potsdam's the second if that default was used (the paper names a validation
tile of each).

Not taken over: LoveDA's Fisher loss of the last embeddings, weight 1; Lookahead around AdamW; mosaics of four images
(p 0.25); random scales 0.75 to 1.5; SmartCrop, which draws anew a crop with more than 75 % of one class; the patches of
cars; test-time augmentation (8, 40 and 4 passes).
Crops are of whole scenes, and vary in brightness and contrast too; the rate falls to 0 (there: to 1e-6) step by step
(there: by epoch); the encoder's weights are timm's of ImageNet-1k (there: torchvision's). timm's own choice for
``convnext_base`` saw ImageNet-22k first, which would be an advantage. The seed is 42 there.
"""

from typing import Any

_ALL: dict[str, Any] = {
    "method": "bicor_seg", "encoder": "convnext_base.fb_in1k", "weights": "pretrained", "reading": "code",
    "heatmap_weight": 0.1, "fisher_weight": 0.1, "weight_decay": 0.01, "schedule": "cosine", "warmup_steps": 0,
    "precision": "32-true", "val_window": 1024,
}  # fmt: skip
PUBLISHED: dict[str, dict[str, Any]] = {
    "bicor-loveda": {
        **_ALL, "data": "loveda", "layers": 2, "top_k": 0.02, "crop_px": 512, "batch_size": 8, "lr": 8e-5,
        "steps": 30 * 524, "val_every": 524,
    },
    "bicor-vaihingen": {
        **_ALL, "data": "vaihingen", "layers": 2, "top_k": 1.0, "crop_px": 512, "batch_size": 4, "lr": 5e-5,
        "steps": 45 * 169, "val_every": 169,
    },
    "bicor-potsdam": {
        **_ALL, "data": "potsdam", "layers": 3, "top_k": 1.0, "crop_px": 768, "batch_size": 4, "lr": 1e-4,
        "steps": 45 * 198, "val_every": 198,
    },
}  # fmt: skip
