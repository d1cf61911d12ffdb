r"""Efficient multi-scale attention: each group of channels is weighed by a map of its own.

The channels come in g groups of k = C / g, which all share the same weights. Of a group G (k, H, W):

.. math::
    [a_h; a_w] = W_1 [\mathrm{mean}_W G; \mathrm{mean}_H G] + b_1, \qquad
    X_1 = \mathrm{IN}\big(G \odot \sigma(a_h) \odot \sigma(a_w)\big), \qquad X_2 = W_3 * G + b_3

.. math::
    M = \mathrm{softmax}_k(\overline{X_1})^T X_2 + \mathrm{softmax}_k(\overline{X_2})^T X_1, \qquad
    \mathrm{out} = G \odot \sigma(M)

with the bar for the mean over the map, :math:`W_1` a 1 x 1 and :math:`W_3` a 3 x 3 convolution of k channels, and IN
the normalisation of each channel over the map, with a scale and a shift :math:`\beta`. M is one map (H, W) a group.

What follows from the equations, and is tested: the mean of a normalised map is its shift, so that
:math:`\overline{X_1} = \beta` whatever the image, and the first softmax weighs the channels alike for all of them.
10 k^2 + 4 k parameters, however many groups there are. All means are of the whole map: over tiles, workers or bands
it is one scene's (`rsseglab.spatial`).

Source:
    Ouyang et al., "Efficient Multi-Scale Attention Module with Cross-Spatial Learning", ICASSP 2023; what the text
    leaves open: facts read from the authors' public code, of which none is used here (it has no licence). PENet's
    abstract names the module; where in the network it stands, and how many groups it has there, we do not know.
"""

from __future__ import annotations

from torch import Tensor, nn

from rsseglab.errors import UserError


class EfficientMultiScaleAttention(nn.Module):
    """The module's equations.

    Args:
        dim: channels C, a multiple of ``groups``.
        groups: g.

    Shapes:
        input and output (B, C, H, W).

    Raises:
        UserError: the channels can't be grouped so.
    """

    def __init__(self, dim: int, groups: int = 32) -> None:
        super().__init__()
        if groups < 1 or dim < groups or dim % groups:
            raise UserError(f"{dim} channels can't be put in {groups} groups; give a divisor of {dim}.")
        self.groups, width = groups, dim // groups
        self.along = nn.Conv2d(width, width, 1)
        self.around = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.GroupNorm(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Weigh."""
        batch, dim, height, width = x.shape
        group = x.reshape(batch * self.groups, dim // self.groups, height, width)  # (B g, k, H, W)
        weights = self.weights(group).sigmoid()
        return (group * weights).reshape(batch, dim, height, width)

    def weights(self, group: Tensor) -> Tensor:
        """The map M (B g, 1, H, W) of groups G (B g, k, H, W)."""
        a_h, a_w = self.along(group.mean(3, keepdim=True)), self.along(group.mean(2, keepdim=True))
        first = self.norm(group * a_h.sigmoid() * a_w.sigmoid())
        second = self.around(group)
        return _read(first, second) + _read(second, first)


def _read(what: Tensor, where: Tensor) -> Tensor:
    """The map (B, 1, H, W) of ``where`` (B, k, H, W), its channels weighed by the mean of ``what``."""
    shares = what.mean((2, 3), keepdim=True).softmax(1)  # (B, k, 1, 1)
    return (shares * where).sum(1, keepdim=True)
