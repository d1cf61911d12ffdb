"""Where windows lie on a scene, and how much each one counts in a pixel."""

import torch
from torch import Tensor

from rsseglab.errors import UserError

PLACEMENTS = ("flush", "even")
BLENDS = ("flat", "linear", "hann", "gaussian")


def window_starts(length: int, window: int, stride: int, placement: str = "flush") -> list[int]:
    """First pixels of the windows along one axis.

    Args:
        length: of the scene, in px.
        window: side of a window, in px.
        stride: largest distance between two starts, in px.
        placement: "flush": every ``stride`` px, the last window moved back until it ends with the scene
            (MONAI's placement). "even": the same number of windows, evenly spread (FCtL's and GLNet's).

    Returns:
        Sorted starts; ``[0]`` where the scene is no longer than a window.
    """
    if length <= window:
        return [0]
    count = -(-(length - window) // stride) + 1
    if placement == "flush":
        return [min(i * stride, length - window) for i in range(count)]
    return [round(i * (length - window) / (count - 1)) for i in range(count)]


def stride_px(window: int, overlap: float) -> int:
    """Distance between windows that share the given part of their side.

    Raises:
        UserError: the overlap is not in [0, 1).
    """
    if not 0 <= overlap < 1:
        raise UserError(
            f"overlap is {overlap}; it is the shared part of a window's side, from 0 to less than 1, such as 0.5."
        )
    return max(int(window * (1 - overlap)), 1)


def blend_weights(blend: str, window: int) -> Tensor:
    r"""How much each pixel of a window counts where windows overlap.

    With :math:`u_i = (i + \frac{1}{2}) / n` and :math:`n` the side of the window, the product over both axes of

    .. math:: \text{flat: } 1, \quad \text{linear: } 1 - |2u - 1|, \quad \text{hann: } \sin^2(\pi u), \quad
              \text{gaussian: } \exp\!\left(-\tfrac{1}{2} \left(\tfrac{u - 1/2}{1/8}\right)^2\right)

    all greater than 0; the Gaussian's product is at least 0.001, as in MONAI. Weights are divided by their sum over
    the windows of a pixel, so that they sum to one everywhere.

    Args:
        blend: one of `BLENDS`.
        window: side of a window, in px.

    Returns:
        Shape (window, window).

    Raises:
        UserError: there is no such blend.
    """
    u = (torch.arange(window, dtype=torch.float64) + 0.5) / window
    match blend:
        case "flat":
            axis = torch.ones_like(u)
        case "linear":
            axis = 1 - (2 * u - 1).abs()
        case "hann":
            axis = (torch.pi * u).sin() ** 2
        case "gaussian":
            axis = (-0.5 * ((u - 0.5) * 8) ** 2).exp()
        case _:
            raise UserError(f"unknown blend '{blend}'; choose one of {', '.join(BLENDS)}.")
    weights = axis[:, None] * axis[None, :]
    return (weights.clamp(min=1e-3) if blend == "gaussian" else weights).float()
