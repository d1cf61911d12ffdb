r"""BiCoR-Seg over any encoder: aggregated maps and class embeddings, refined in turns, and a head at full resolution.

.. math::
    F_0 = W[\uparrow A_{32} f_{32}, \dots, A_4 f_4], \qquad
    (F_l, CE_l) = \mathrm{HBIS}_l(F_{l-1}, CE_{l-1}), \qquad
    P_n = \begin{cases} \uparrow \langle F_L, CE_{L,n} \rangle & \text{paper} \\
        \langle \mathrm{up}(F_L), V\, CE_{L,n} \rangle & \text{code} \end{cases}

=================  ================================================================  ====================
part               what it is                                                        of 512 px, C = 256
=================  ================================================================  ====================
maps f             of the encoder, of strides 4 to 32                                128 to 16 px
aggregation        a linear layer each, bilinear to stride 4, joined, a linear one   256 at 128 px
CE_0               learned, the same for all images                                  N x 256
HBIS               L of them, without shared weights                                 as F_0 and CE_0
up                 pixel shuffle by 2, norm, GELU, pixel shuffle by 2, GELU          16 at 512 px
head               the embeddings, in 16 channels, times the map: no bilinear step   N at 512 px
auxiliary head     in training alone: CE_0, not learned by it, times up(F_0)         N at 512 px
=================  ================================================================  ====================

Head and auxiliary head are the code's (preset ``code``). In the paper (``paper``) the product with F_L is taken at
stride 4 and then upsampled, here bilinearly, and there is no auxiliary head. What the aggregation is made of the paper
leaves open, and it speaks of CE_0 as a result of it; here both are the code's in both presets.

Source:
    Shi, Song, arXiv 2512.20255, section 3.1; what it leaves open: facts read from the authors' public code, of which
    none is used here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsseglab.bicor_seg.attention import CrossAttention
from rsseglab.bicor_seg.hbis import HBIS, ChannelNorm
from rsseglab.bicor_seg.heatmap import check_preset
from rsseglab.bicor_seg.losses import BiCoRLoss, Refined
from rsseglab.decoders import create_network
from rsseglab.errors import UserError

REFINEMENTS = ("hbis", "attention")
MULTIPLE_PX = 32
SHUFFLE = 16  # the head's map has so many times fewer channels


class BiCoRSeg(nn.Module):
    """The network; see the module.

    Args:
        encoder: name, see `rsseglab.encoders`.
        classes: number of classes N, 2 or more.
        layers: number of refinements L.
        top_k: of `HBIS`.
        preset: "paper" or "code".
        pretrained: whether the encoder has its weights of ImageNet; ``weights`` names others.
        bands: number of input bands.
        dim: channels C of features and embeddings, a multiple of 16.
        refinement: "hbis", or "attention" for the ablation's `CrossAttention`.
        heatmap: weight of the heatmap loss, see `BiCoRLoss`.
        fisher: weight of the Fisher loss.
        weights: of the encoder, see `rsseglab.encoders`.
        wavelengths_um: of the bands, see `rsseglab.decoders.create_network`.
        gsd_m: of the scenes, likewise.

    Shapes:
        input (B, bands, H, W) of any H and W, a plain tensor or a `rsseglab.spatial.SceneTensor`; output logits
        (B, N, H, W) of the same kind. Zeros are added below and to the right up to a multiple of 32 px, and taken away
        again. On a cut scene regions are of the whole scene, and the answer is that of one tile.

    Raises:
        UserError: an option is unknown or out of range.
    """

    def __init__(
        self,
        encoder: str = "convnext_base",
        classes: int = 7,
        layers: int = 2,
        top_k: float = 0.02,
        preset: str = "code",
        pretrained: bool = False,
        *,
        bands: int = 3,
        dim: int = 256,
        refinement: str = "hbis",
        heatmap: float = 0.1,
        fisher: float = 0.1,
        weights: str | Path | None = None,
        wavelengths_um: Sequence[float] | None = None,
        gsd_m: float | None = None,
    ) -> None:
        super().__init__()
        check_preset(preset)
        if refinement not in REFINEMENTS:
            raise UserError(f"there is no refinement '{refinement}'; choose {' or '.join(REFINEMENTS)}.")
        if classes < 2 or layers < 0 or dim < SHUFFLE or dim % SHUFFLE:
            raise UserError(
                f"{classes} classes, {layers} layers, {dim} channels: give at least 2, at least 0, and a multiple of "
                f"{SHUFFLE}."
            )
        source = weights or ("pretrained" if pretrained else None)
        network: Any = create_network(
            encoder, "fcn", bands, classes, source, wavelengths_um=wavelengths_um, gsd_m=gsd_m
        )
        self.encoder, self.preset, self.classes = network.encoder, preset, classes
        channels = self.encoder.out_channels[2:]
        self.aggregation = Aggregation(channels, dim)
        self.embeddings = nn.Embedding(classes, dim)
        nn.init.trunc_normal_(self.embeddings.weight, std=0.02)
        self.layers = nn.ModuleList(
            HBIS(dim, preset, top_k) if refinement == "hbis" else CrossAttention(dim) for _ in range(layers)
        )
        self.head = Head(dim) if preset == "code" else None
        self.auxiliary_head = nn.Linear(dim, dim // SHUFFLE, bias=False) if preset == "code" else None
        self.criterion = BiCoRLoss(preset, heatmap, fisher)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of images."""
        return self.refine(image).logits

    def refine(self, image: Tensor) -> Refined:
        """Logits of images, and what refined them on the way."""
        height, width = image.shape[2:]
        down, right = -height % MULTIPLE_PX, -width % MULTIPLE_PX
        x = F.pad(image, (0, right, 0, down)) if down or right else image
        features = self.aggregation(self.encoder(x)[2:])
        embeddings = self.embeddings.weight.expand(len(image), -1, -1)
        auxiliary = None
        if self.training and self.head is not None and self.auxiliary_head is not None:
            auxiliary = scores(self.head.up(features), self.auxiliary_head(embeddings.detach()))
        heatmaps, refined = [], []
        for layer in self.layers:
            features, embeddings, logits = layer(features, embeddings)
            refined.append(embeddings)
            if logits is not None:
                heatmaps.append(logits)
        logits = self._logits(features, embeddings, x)
        if down or right:
            logits = logits[:, :, :height, :width]
            auxiliary = None if auxiliary is None else auxiliary[:, :, :height, :width]
            quarter = (-(-height // 4), -(-width // 4))
            heatmaps = [h[:, :, : quarter[0], : quarter[1]] for h in heatmaps]
        return Refined(logits, tuple(heatmaps), tuple(refined), auxiliary)

    def _logits(self, features: Tensor, embeddings: Tensor, image: Tensor) -> Tensor:
        if self.head is not None:
            return cast(Tensor, self.head(features, embeddings))
        size = (int(image.shape[2]), int(image.shape[3]))
        return F.interpolate(scores(features, embeddings), size=size, mode="bilinear", align_corners=False)


def scores(features: Tensor, embeddings: Tensor) -> Tensor:
    """How well each pixel (B, C, H, W) fits each class (B, N, C): (B, N, H, W)."""
    return torch.einsum("bnc,bchw->bnhw", embeddings, features)


class Head(nn.Module):
    """The code's head: features at full resolution, in few channels, times the embeddings in as many.

    Args:
        dim: channels C of features and embeddings.

    Shapes:
        features (B, C, H / 4, W / 4), embeddings (B, N, C); output (B, N, H, W).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.up = nn.Sequential(nn.PixelShuffle(2), ChannelNorm(dim // 4), nn.GELU(), nn.PixelShuffle(2), nn.GELU())
        self.few = nn.Linear(dim, dim // SHUFFLE, bias=False)

    def forward(self, features: Tensor, embeddings: Tensor) -> Tensor:
        """Logits."""
        return scores(self.up(features), self.few(embeddings))


class Aggregation(nn.Module):
    """Maps of all strides as one of the finest.

    Args:
        channels: of the maps, the finest first.
        dim: channels of the result.

    Shapes:
        maps (B, C_s, H / s, W / s) for s = 4 to 32; output (B, dim, H / 4, W / 4).
    """

    def __init__(self, channels: Sequence[int], dim: int) -> None:
        super().__init__()
        self.each = nn.ModuleList(nn.Conv2d(c, dim, 1) for c in channels)
        self.joined = nn.Conv2d(dim * len(channels), dim, 1, bias=False)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Aggregate."""
        size = (int(maps[0].shape[2]), int(maps[0].shape[3]))
        each = [linear(x) for linear, x in zip(self.each, maps, strict=True)]
        finest, *coarse = each
        large = [F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in coarse]
        joined: Tensor = self.joined(torch.cat([*reversed(large), finest], 1))
        return joined


def create_bicor_seg(
    encoder: str,
    decoder: str,
    bands: int,
    classes: int,
    weights: str | Path | None = None,
    **options: Any,
) -> BiCoRSeg:
    """A `BiCoRSeg` by the arguments that `rsseglab.training.networks` has for all methods.

    Args:
        encoder: see `BiCoRSeg`.
        decoder: has no meaning here; the network has its own.
        bands: see `BiCoRSeg`.
        classes: likewise.
        weights: likewise.
        **options: likewise.
    """
    return BiCoRSeg(encoder, classes, bands=bands, weights=weights, **options)
