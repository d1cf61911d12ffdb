"""The published settings of FCtL on its two data sets, as found in the paper and the authors' public code.

=====================  ==========================  ==========================
setting                DeepGlobe                   Inria Aerial
=====================  ==========================  ==========================
patch                  508 px                      508 px
overlap                50 px at least, even        the same
contexts               1, 3, the whole scene       1, 2, 3
whitened correlation   yes                         no
steps                  3800 (50 epochs of 76)      1050 (50 epochs of 21)
patches a step         216 (all of 6 images)       726 (all of 6 images)
optimiser              Adam, 5e-5, decay 5e-4      the same
schedule               poly, power 0.9             the same
loss                   focal, gamma 3              the same
=====================  ==========================  ==========================

Not taken over: a step is one of random patches, as many as ``batch_size`` says, and not of all patches of six images
with gradients summed; AdamW stands for Adam with an L2 penalty; 'unknown' is ignored and no class. Images are
standardised (there: divided by 255), and patches vary in brightness and contrast too (there: whole images are flipped
and turned alone). The code's Inria stages begin in the middle of a schedule of 100 epochs, which the paper does not
speak of. For DeepGlobe's stage of the whole scene see `rsseglab.fctl.training`.
"""

from typing import Any

_BOTH: dict[str, Any] = {
    "method": "fctl", "encoder": "vgg16", "weights": "pretrained", "stages": "published", "crop_px": 508,
    "batch_size": 6, "lr": 5e-5, "weight_decay": 5e-4, "schedule": "poly", "warmup_steps": 0, "loss": "focal",
}  # fmt: skip
PUBLISHED: dict[str, dict[str, Any]] = {
    # As many patches are seen as in the published number of steps, 36 or 121 of an image and six images a step.
    "fctl-deepglobe": {
        **_BOTH, "data": "deepglobe", "contexts": ["1", "3", "scene"], "whiten": True, "steps": 3800 * 36,
        "val_every": 76 * 36,
    },
    "fctl-inria": {**_BOTH, "data": "inria", "contexts": ["1", "2", "3"], "steps": 1050 * 121, "val_every": 21 * 121},
}  # fmt: skip
OVERLAP_PX = 50  # of neighbouring patches, at least; evenly placed
