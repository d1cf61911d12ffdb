"""A pyramid of feature maps for plain vision transformers, so that every decoder can read them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import log2
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn


class SimpleFeaturePyramid(nn.Module):
    r"""Maps of several strides out of the last map of a plain vision transformer, each by itself.

    .. math:: f_s = D_{\log_2 (p/s)}(f) \text{ for } s < p,\quad f_p = f,\quad
              f_s = \mathrm{maxpool}_{s/p}(f) \text{ for } s > p

    where :math:`D_n` is n transposed convolutions of 2 x 2 and stride 2, each halving the channels, with a layer norm
    and a GELU between two of them. What follows in the source, 1 x 1 and 3 x 3 convolutions to 256 channels, is
    left to the decoder, which has its own.

    Args:
        channels: of the map, C.
        patch_px: its stride p, a power of two.
        strides: of the maps to make, powers of two.

    Shapes:
        input (B, C, H/p, W/p); output, for each stride s, (B, ``out_channels[s]``, H/s, W/s).

    Raises:
        ValueError: ``patch_px`` is no power of two.

    Source:
        Li, Mao, Girshick, He, "Exploring plain vision transformer backbones for object detection", ECCV 2022,
        section 3 (simple feature pyramid).
    """

    def __init__(self, channels: int, patch_px: int, strides: Sequence[int]) -> None:
        super().__init__()
        if patch_px & (patch_px - 1):
            raise ValueError(f"patches of {patch_px} px do not give maps of strides {', '.join(map(str, strides))}")
        doublings = [int(log2(patch_px)) - int(log2(s)) for s in strides]
        self.out_channels = [channels >> max(n, 0) for n in doublings]
        self.levels = nn.ModuleList(
            _upsampling(channels, n) if n > 0 else nn.MaxPool2d(1 << -n) if n < 0 else nn.Identity() for n in doublings
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps, one a stride, of the last map (B, C, H/p, W/p)."""
        return [level(x) for level in self.levels]


def _upsampling(channels: int, doublings: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n in range(doublings):
        if n:
            layers += [LayerNorm2d(channels >> n), nn.GELU()]
        layers.append(nn.ConvTranspose2d(channels >> n, channels >> (n + 1), kernel_size=2, stride=2))
    return nn.Sequential(*layers)


class PyramidEncoder(nn.Module):
    """A plain vision transformer and its simple feature pyramid, as an encoder of segmentation_models_pytorch.

    Args:
        name: timm's name of the transformer.
        bands: number of input bands.
        arguments: of ``timm.create_model``.
        depth: the last map has the stride 2 ** depth; set by smp.
        output_stride: set by smp; only 32 is possible.

    Attributes:
        model: the transformer; ``model.forward_intermediates`` gives the maps between its blocks.
        pyramid: the `SimpleFeaturePyramid`.
        out_channels: of the maps of strides 1 (the image), 2 (empty, as smp has it for transformers), 4, 8, ...

    Raises:
        ValueError: a decoder asks for dilated convolutions, or patches do not fit the strides.
    """

    def __init__(
        self, name: str, bands: int, arguments: dict[str, Any], depth: int = 5, output_stride: int = 32
    ) -> None:
        super().__init__()
        if output_stride != 32:
            raise ValueError("a plain ViT cannot be dilated")
        model: Any = timm.create_model(name, in_chans=bands, **arguments)
        model.prune_intermediate_layers(prune_norm=True)  # nothing reads its last norm and its classifier
        self.model, last = model, model.feature_info[-1]
        self.pyramid = SimpleFeaturePyramid(last["num_chs"], last["reduction"], [2**n for n in range(2, depth + 1)])
        self.out_channels = [bands, 0, *self.pyramid.out_channels]
        self.output_stride = 2**depth

    def forward(self, image: Tensor) -> list[Tensor]:
        """Maps of strides 1, 2, 4, ... of an image (B, bands, H, W)."""
        B, _, H, W = image.shape
        (last,) = self.model.forward_intermediates(image, indices=1, intermediates_only=True)
        empty = torch.empty([B, 0, H // 2, W // 2], dtype=image.dtype, device=image.device)
        return [image, empty, *self.pyramid(last)]

    def set_in_channels(self, bands: int, pretrained: bool) -> None:
        """Nothing to do: smp calls it for its own encoders, which are built for three bands."""


@contextmanager
def known_to_smp(encoder: Callable[..., nn.Module]) -> Iterator[str]:
    """The name under which smp's models find an encoder that is not smp's, as long as the context lasts."""
    name = "rsseglab-pyramid"
    smp.encoders.encoders[name] = {"encoder": encoder, "params": {}, "pretrained_settings": {}}
    try:
        yield name
    finally:
        del smp.encoders.encoders[name]
