r"""Adaptive fusion of several contexts: each place says how much it takes from which.

The locality-aware maps of T contexts are mixed with weights that are estimated from all of them ("squeeze and split"):

.. math::
    u = W_1 [S_1 \bar X^1, \dots, S_T \bar X^T], \qquad
    \{H^t\} = \mathrm{softmax}_t\big(\sigma(E_t u_t)\big), \qquad
    \bar X = \sum_t H^t \odot \bar X^t, \quad \sum_t H^t = 1

with 1 x 1 convolutions S_t, W_1, E_t, and u split into T parts u_t. The code has a weight for each channel and place,
does not squeeze (W_1 keeps the width T C), and passes the estimates through a sigmoid before the softmax, so that for
three contexts every weight lies between 0.155 and 0.576: none can be switched off. The paper has a weight for each
place, squeezes, reconstructs (a second convolution), and names no sigmoid.

Source:
    Li, Yang, Liu, Yu, He, "From Contexts to Locality", ICCV 2021, section 3.1.3, equation 1; widths, biases and the
    sigmoid as in the authors' public code (MIT), of which none is used here. The factor of the squeeze is not in the
    paper; here it is 4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rsseglab.errors import UserError

WEIGHTS = ("channel", "position", "constant", "mean")
PRESETS = {
    "code": {"weights": "channel", "squeeze": 1, "sigmoid": True},
    "paper": {"weights": "position", "squeeze": 4, "sigmoid": False},
}


class ContextFusion(nn.Module):
    """A mean of maps with weights that sum to 1 over the maps; see the module's equation.

    Args:
        dim: channels C of each map.
        streams: number T of maps.
        weights: "channel" (one for each channel and place), "position" (one for each place), or the ablation's
            baselines: "constant" (one learned number a map) and "mean".
        squeeze: factor by which W_1 narrows; 1 for not at all.
        sigmoid: before the softmax.
        preset: "code" or "paper", in the place of the three.

    Shapes:
        T maps (B, C, H, W); output the same.

    Raises:
        UserError: an unknown option; maps of another number, width or size.
    """

    def __init__(
        self,
        dim: int,
        streams: int,
        *,
        weights: str = "channel",
        squeeze: int = 1,
        sigmoid: bool = True,
        preset: str | None = None,
    ) -> None:
        super().__init__()
        if preset is not None:
            if preset not in PRESETS:
                raise UserError(f"there is no preset '{preset}'; choose {' or '.join(PRESETS)}.")
            weights, squeeze, sigmoid = (PRESETS[preset][name] for name in ("weights", "squeeze", "sigmoid"))  # type: ignore[assignment]
        if weights not in WEIGHTS:
            raise UserError(f"there are no weights '{weights}'; choose one of {', '.join(WEIGHTS)}.")
        if streams < 1 or squeeze < 1 or streams * dim % squeeze:
            raise UserError(
                f"{streams} maps of {dim} channels can't be squeezed by {squeeze}; give a divisor of {streams * dim}."
            )
        self.dim, self.streams, self.kind, self.sigmoid = dim, streams, weights, sigmoid
        wide = streams * dim
        if weights == "constant":
            self.constants = nn.Parameter(torch.zeros(streams))
        elif weights != "mean":
            self.before = nn.ModuleList(nn.Conv2d(dim, dim, 1) for _ in range(streams))
            self.blend = nn.Conv2d(wide, wide // squeeze, 1)
            self.rebuild = nn.Conv2d(wide // squeeze, wide, 1) if squeeze > 1 else nn.Identity()
            width = dim if weights == "channel" else 1
            self.estimate = nn.ModuleList(nn.Conv2d(dim, width, 1) for _ in range(streams))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def weights(self, maps: Sequence[Tensor]) -> Tensor:
        """H of each map: (T, B, C or 1, H or 1, W or 1), summing to 1 over the first."""
        self._check(maps)
        if self.kind == "mean":
            return maps[0].new_full((self.streams, 1, 1, 1, 1), 1 / self.streams)
        if self.kind == "constant":
            return self.constants.softmax(0).view(-1, 1, 1, 1, 1)
        blended = self.blend(torch.cat([conv(x) for conv, x in zip(self.before, maps, strict=True)], 1))
        parts = self.rebuild(blended).chunk(self.streams, 1)
        estimates = torch.stack([conv(part) for conv, part in zip(self.estimate, parts, strict=True)])
        return (estimates.sigmoid() if self.sigmoid else estimates).softmax(0)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """The maps, mixed."""
        return (self.weights(maps) * torch.stack(list(maps))).sum(0)

    def _check(self, maps: Sequence[Tensor]) -> None:
        if len(maps) != self.streams:
            raise UserError(f"{len(maps)} maps for {self.streams} streams; give one for each context.")
        for x in maps:
            if x.dim() != 4 or x.shape[1] != self.dim or x.shape != maps[0].shape:
                shapes = ", ".join(str(list(each.shape)) for each in maps)
                raise UserError(f"maps are {shapes}; each must be (batch, {self.dim}, height, width), all of one size.")
