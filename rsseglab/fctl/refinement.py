r"""Contextual semantics refinement: a mask is mended by what the mask around it says.

A patch of the crude mask m, all classes' probabilities, and the same patch's wider context of the mask, go through two
encoders; the deepest map of the patch gathers from that of the context what resembles it, as in
`rsseglab.fctl.correlation`, and a decoder with skips says what to change:

.. math:: X' = X + \bar X(X, U), \qquad y = \log m + D(X', \text{skips of the patch})

D's last convolution starts at 0: before training the mask is left as it is.

The paper's text is all there is of this network; no code of it was found. It says: a two-stream variant of U-Net, a
local-context relevance module like the correlation's, masks of one size, skips, focal loss. What it leaves open, and
what was chosen here:

================  ============================================================================================
open              here
================  ============================================================================================
mask's encoding   class probabilities, 0 without data (not colours, not one-hot: doubt is information)
depth and width   4 halvings, 16 to 256 channels: about 3.3 M parameters
relevance         at the deepest level alone, after its convolutions; its gamma starts at 0
skips             of the patch's stream alone, as in the segmentation network
answer            a change to the mask's logarithm
norms             over the batch: much of a mask is of one class, and has no contrast of its own to be normed by
several contexts  mixed by `rsseglab.fctl.fusion`; the paper has one, of scale 2
================  ============================================================================================

Source:
    Li, Yang, Liu, Yu, He, "From Contexts to Locality", ICCV 2021, section 3.2 and figure 4; Ronneberger, Fischer, Brox,
    "U-Net", MICCAI 2015.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsseglab.errors import UserError
from rsseglab.fctl.contexts import EDGES, check_scales
from rsseglab.fctl.correlation import LocalityAwareCorrelation
from rsseglab.fctl.fusion import ContextFusion

LEAST = 1e-4  # of a probability, whose logarithm is changed


class ContextualRefinement(nn.Module):
    """A patch of a mask, mended by the mask around it; see the module.

    Args:
        classes: number of classes K.
        contexts: scales of the contexts, see `rsseglab.fctl.contexts`.
        width: channels at full resolution; twice as many at each halving.
        depth: number of halvings.
        edge: how contexts are read past the scene's edge; kept for those who read them.

    Raises:
        UserError: a scale is none or there is no context.
    """

    #: Of a batch, beside the image: see `forward`.
    reads = ("contexts",)

    def __init__(
        self, classes: int, contexts: Sequence[float | str] = (2,), width: int = 16, depth: int = 4, edge: str = "pad"
    ) -> None:
        super().__init__()
        check_scales(contexts)
        if not contexts or 1 in contexts:
            raise UserError("a mask is mended by wider contexts of it; give scales greater than 1, such as 2.")
        if edge not in EDGES:
            raise UserError(f"there is no edge '{edge}'; choose {' or '.join(EDGES)}.")
        self.classes, self.scales, self.edge, self.step_px = classes, tuple(contexts), edge, 2**depth
        widths = [width * 2**level for level in range(depth + 1)]
        self.local_encoder, self.context_encoder = _Encoder(classes, widths), _Encoder(classes, widths)
        self.correlations = nn.ModuleList(LocalityAwareCorrelation(widths[-1]) for _ in contexts)
        weights = "channel" if len(contexts) > 1 else "mean"  # one map is its own mean: no weights that can't learn
        self.fusion = ContextFusion(widths[-1], len(contexts), weights=weights)
        upward = list(pairwise(reversed(widths)))
        self.decoder = nn.ModuleList(_convolutions(deep + near, near) for deep, near in upward)
        self.change = nn.Conv2d(width, classes, 1)
        nn.init.zeros_(self.change.weight)
        nn.init.zeros_(self.change.bias)  # type: ignore[arg-type]

    def forward(self, local: Tensor, contexts: Tensor) -> Tensor:
        """Logits of patches.

        Args:
            local: probabilities of the patch, 0 without data: (B, K, h, w), of any size.
            contexts: those of its S contexts: (B, S, K, h', w').

        Returns:
            (B, K, h, w).

        Raises:
            UserError: another number of classes or contexts.
        """
        if contexts.dim() != 5 or contexts.shape[:2] != (len(local), len(self.scales)):
            raise UserError(
                f"contexts are {list(contexts.shape)}; they must be ({len(local)}, {len(self.scales)}, {self.classes}, "
                "height, width), one of each scale for each patch."
            )
        return self.label(local, [self.look(i, contexts[:, i]) for i in range(len(self.scales))])

    def look(self, number: int, context: Tensor) -> Tensor:
        """The map (B, C, h, w) of contexts (B, K, h', w'), whichever of the scales they are of."""
        deepest: Tensor = self.context_encoder(self._padded(context))[-1]
        return deepest

    def label(self, local: Tensor, wide: Sequence[Tensor]) -> Tensor:
        """Logits (B, K, h, w) of patches (B, K, h, w), given their contexts' maps from `look`."""
        *skips, deepest = self.local_encoder(self._padded(local))
        pairs = zip(self.correlations, wide, strict=True)
        x = deepest + self.fusion([c(deepest, u.expand(len(deepest), -1, -1, -1)) for c, u in pairs])
        for up, skip in zip(self.decoder, reversed(skips), strict=True):
            x = up(torch.cat([F.interpolate(x, scale_factor=2.0), skip], 1))
        height, width = local.shape[-2:]
        change: Tensor = self.change(x)[:, :, :height, :width]
        return local.clamp(min=LEAST).log() + change

    def _padded(self, mask: Tensor) -> Tensor:
        """A mask with no data to the right and below, up to a multiple of the deepest stride."""
        if mask.shape[1] != self.classes:
            raise UserError(f"a mask has {mask.shape[1]} classes, not {self.classes}; train on masks of this data set.")
        height, width = mask.shape[-2:]
        return F.pad(mask, (0, -width % self.step_px, 0, -height % self.step_px))


class _Encoder(nn.Module):
    """Convolutions and halvings; the map of each level, the finest first."""

    def __init__(self, bands: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(_convolutions(a, b) for a, b in pairwise([bands, *widths]))

    def forward(self, x: Tensor) -> list[Tensor]:
        maps: list[Tensor] = []
        for level in self.levels:
            maps.append(level(F.max_pool2d(maps[-1], 2) if maps else x))
        return maps


def _convolutions(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [
            nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
        ]  # fmt: skip
    return nn.Sequential(*layers)


def create_refinement(
    encoder: str,
    decoder: str,
    bands: int,
    classes: int,
    weights: str | Path | None = None,
    *,
    contexts: Sequence[float | str] = (2,),
    edge: str = "pad",
) -> ContextualRefinement:
    """A `ContextualRefinement` by the arguments that `rsseglab.training.networks` has for all methods.

    Args:
        encoder: has no meaning here; the network has its own.
        decoder: likewise.
        bands: of an image: the mask's classes.
        classes: number of them.
        weights: have no meaning here.
        contexts: scales.
        edge: see `ContextualRefinement`.

    Raises:
        UserError: the image is no mask of these classes.
    """
    if bands != classes:
        raise UserError(f"a mask of {classes} classes has a band for each, and not {bands}; give its probabilities.")
    return ContextualRefinement(classes, contexts, edge=edge)
