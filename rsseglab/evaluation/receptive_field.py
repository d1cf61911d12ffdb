r"""How far a network sees: the receptive field it has by construction, and the part of it that it uses.

**Theoretical**: the input pixels that can change an output pixel. It is measured, not computed from kernel sizes and
strides, so it holds for a network of any operations: part of the image is set to NaN, and whatever depends on it is NaN
then. Nothing cancels a NaN, no ReLU stops it, and a weight of zero passes it on; only what compares and chooses, such
as argmax, may lose it. With all rows above row r set to NaN, an output pixel is NaN when it sees a row above r; the
least r where that is so is found by bisection, likewise for the other three sides.

**Effective** (Luo, Li, Urtasun, Zemel, "Understanding the effective receptive field in deep convolutional neural
networks", NeurIPS 2016, arXiv:1701.04128): how much each input pixel counts. With :math:`y_c` the highest logit of the
middle pixel c of an image and :math:`x_{b,p}` band b of the pixel p of N images,

.. math:: e_p = \frac{1}{Z} \sum_{n=1}^{N} \sum_b \left| \frac{\partial y_c}{\partial x_{b,p}} \right|_{x = x_n},
          \qquad \sum_p e_p = 1

The radius of a share is half the side of the least square around c that holds that share of e.
"""

import math
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rsseglab.errors import UserError


@dataclass(frozen=True)
class ReceptiveField:
    """How far an output pixel sees on each side, in px; infinite where a global operation shows it everything.

    A network of stride s treats s pixels in a row differently: each number is that of the pixel that sees farthest.

    Attributes:
        top_px: rows above the pixel's own that it depends on.
        bottom_px: rows below.
        left_px: columns to the left.
        right_px: columns to the right.
    """

    top_px: float
    bottom_px: float
    left_px: float
    right_px: float

    @property
    def radius_px(self) -> float:
        """The farthest of the four: farther from a crop's border than this, a crop changes nothing."""
        return max(self.top_px, self.bottom_px, self.left_px, self.right_px)


def receptive_field(
    network: nn.Module, bands: int = 3, *, multiple_px: int = 32, limit_px: int = 2048
) -> ReceptiveField:
    """Measure a network's theoretical receptive field, see the module.

    The network is tried in its present mode, as a copy in float64 on the CPU, on strips ``multiple_px`` wide. (In
    float32 a convolution may be computed by transforms that mix neighbours, where a NaN spreads too far.)

    Args:
        network: from an image (B, bands, H, W) to a map (B, K, H, W).
        bands: number of input bands.
        multiple_px: the sizes that the network takes are multiples of it, and it treats pixels so far apart alike: its
            largest stride, or for attention in windows the largest window's side.
        limit_px: what reaches as far is taken for infinite.

    Raises:
        UserError: the map has another size than the image, or is NaN without our doing.
    """
    tried = deepcopy(network).to("cpu", torch.float64)
    if _sees(tried, bands, 2, False, 2 * multiple_px, multiple_px, 0).any():
        raise UserError("the network gives NaN for an image of zeros, so nothing can be traced; load other weights.")
    sides = [_reach(tried, bands, axis, flip, multiple_px, limit_px) for axis in (2, 3) for flip in (False, True)]
    return ReceptiveField(*sides)


def _reach(network: nn.Module, bands: int, axis: int, flip: bool, multiple_px: int, limit_px: int) -> float:
    """How far pixels in the middle of a strip see towards its start, or its end where flipped."""
    half = multiple_px
    while (seen := _sees(network, bands, axis, flip, 2 * half, multiple_px, half))[-multiple_px:].any():
        half *= 2
        if half > limit_px:
            return math.inf
    last = int(seen.nonzero()[0].max(initial=half))  # that sees the first half
    # Of pixels that are treated alike one in multiple_px rows is asked here: the last to see may lie that much later.
    pixels = half + np.arange(multiple_px)
    low, high = (
        np.zeros(multiple_px, int),
        np.full(multiple_px, last - half + multiple_px),
    )  # bounds of each one's reach
    while (least := low.max()) < high.max():
        asked = high.argmax()
        cut = pixels[asked] + 1 - (least + high[asked] + 1) // 2
        seen = _sees(network, bands, axis, flip, 2 * half, multiple_px, cut)[pixels]
        reach = pixels + 1 - cut  # of a pixel that just sees the last row before the cut
        low, high = np.where(seen, np.maximum(low, reach), low), np.where(seen, high, np.minimum(high, reach - 1))
    return int(least)


def _sees(
    network: nn.Module, bands: int, axis: int, flip: bool, length: int, width: int, cut: int
) -> NDArray[np.bool_]:
    """Which rows of a strip depend on any of its first ``cut`` rows; shape (length)."""
    image = torch.zeros(1, bands, length, width, dtype=torch.float64)
    image[:, :, :cut] = math.nan
    image = image.flip(2) if flip else image
    with torch.no_grad():
        output = network(image if axis == 2 else image.mT)
    output = output if axis == 2 else output.mT
    if output.shape[2:] != image.shape[2:]:
        raise UserError(
            f"an image of {list(image.shape[2:])} px gives a map of {list(output.shape[2:])}; "
            "give a network whose map has the image's size."
        )
    output = output.flip(2) if flip else output
    return output[0].isnan().any(dim=2).any(dim=0).numpy()


@dataclass(frozen=True, eq=False)
class EffectiveField:
    """How much each input pixel counts for the middle one.

    Attributes:
        magnitude: e of the module, shape (height, width), sums to 1; the pixel asked lies at
            ``height // 2, width // 2``.
    """

    magnitude: NDArray[np.float64]

    def share_within(self, radius_px: int) -> float:
        """The share of a square that reaches so many px to each side."""
        height, width = self.magnitude.shape
        rows, cols = (slice(max(n // 2 - radius_px, 0), n // 2 + radius_px + 1) for n in (height, width))
        return float(self.magnitude[rows, cols].sum())

    def radius_px(self, share: float) -> int:
        """The least radius whose square holds a share, such as 0.95.

        Raises:
            UserError: the share is not in [0, 1].
        """
        if not 0 <= share <= 1:
            raise UserError(f"share is {share}; give a number from 0 to 1, such as 0.95.")
        return next(r for r in range(max(self.magnitude.shape)) if self.share_within(r) >= share - 1e-9)


def effective_receptive_field(network: nn.Module, images: Tensor) -> EffectiveField:
    """Measure a network's effective receptive field on images, see the module.

    Args:
        network: from images to logits (N, K, H, W), in eval mode: batch norm in train mode mixes images.
        images: as the network wants them, shape (N, bands, H, W); as large as the field is thought to be, or larger.
    """
    total = torch.zeros(images.shape[2:], dtype=torch.float64)
    row, col = images.shape[2] // 2, images.shape[3] // 2
    for image in images.split(1):  # one at a time, for memory's sake
        x = image.detach().clone().requires_grad_()
        y = network(x)[0, :, row, col].max()
        (gradient,) = torch.autograd.grad(y, x)
        total += gradient[0].double().abs().sum(dim=0).cpu()
    return EffectiveField((total / total.sum()).numpy())
