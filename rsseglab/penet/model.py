r"""A network that learns from points: any encoder, most decoders, with EMA between decoder and head.

.. math:: z = \mathrm{EMA}(\mathrm{decoder}(\mathrm{encoder}(x))), \qquad \mathrm{logits} = \mathrm{head}(z)

z are the features that labels are expanded by. Encoder, decoder, and where EMA stands are our choice: of PENet's
network only is known that it has EMA (its abstract).

Source:
    Our reading of the abstract of Chan et al., "PENet", Sci. Rep. 15, 27347, 2025.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from rsseglab.decoders import create_network
from rsseglab.errors import UserError
from rsseglab.penet.ema import EfficientMultiScaleAttention
from rsseglab.penet.losses import Mapped, PointLoss

ATTENTIONS = ("ema", "none")


class PENet(nn.Module):
    """The network; see the module.

    Args:
        encoder: name, see `rsseglab.encoders`.
        classes: number of classes K.
        attention: "ema" or "none".
        decoder: name, see `rsseglab.decoders`, of one with a head of convolutions (all but dpt and fcn); its map has
            channels that ``groups`` divides.
        groups: of EMA.
        steps: of the training, see `rsseglab.penet.losses.PointLoss`.
        expansion: likewise.
        masks: likewise.
        expanded: likewise.
        absence: likewise.
        bands: number of input bands.
        weights: of the encoder, see `rsseglab.encoders`.
        wavelengths_um: of the bands, see `rsseglab.decoders.create_network`.
        gsd_m: of the scenes, likewise.

    Shapes:
        input (B, bands, H, W) of multiples of 32; output (B, K, H, W).

    Raises:
        UserError: an option is unknown or out of range.
    """

    def __init__(
        self,
        encoder: str = "resnet18",
        classes: int = 6,
        attention: str = "ema",
        *,
        decoder: str = "fpn",
        groups: int = 8,
        steps: int = 1000,
        expansion: str = "similarity",
        masks: float = 1.0,
        expanded: float = 0.5,
        absence: float = 0.0,
        bands: int = 3,
        weights: str | Path | None = None,
        wavelengths_um: Sequence[float] | None = None,
        gsd_m: float | None = None,
    ) -> None:
        super().__init__()
        if attention not in ATTENTIONS:
            raise UserError(f"there is no attention '{attention}'; choose {' or '.join(ATTENTIONS)}.")
        network: Any = create_network(
            encoder, decoder, bands, classes, weights, wavelengths_um=wavelengths_um, gsd_m=gsd_m
        )
        head = next((m for m in network.segmentation_head.modules() if isinstance(m, nn.Conv2d)), None)
        if head is None or decoder == "dpt":
            raise UserError(f"PENet reads the map before a decoder's head, and {decoder} has none; try fpn or unet.")
        dim = head.in_channels
        self.network: Any = network
        self.attention = EfficientMultiScaleAttention(dim, groups) if attention == "ema" else nn.Identity()
        self.criterion = PointLoss(classes, dim, steps, expansion, masks, expanded, absence)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of images."""
        return self.refine(image).logits

    def refine(self, image: Tensor) -> Mapped:
        """Logits of images, and the features that labels are expanded by."""
        features = self.attention(self.network.decoder(self.network.encoder(image)))
        return Mapped(cast(Tensor, self.network.segmentation_head(features)), cast(Tensor, features))


def create_penet(
    encoder: str,
    decoder: str,
    bands: int,
    classes: int,
    weights: str | Path | None = None,
    **options: Any,
) -> PENet:
    """A `PENet` by the arguments that `rsseglab.training.networks` has for all methods.

    Args:
        encoder: see `PENet`.
        decoder: likewise.
        bands: likewise.
        classes: likewise.
        weights: likewise.
        **options: likewise.
    """
    return PENet(encoder, classes, decoder=decoder, bands=bands, weights=weights, **options)
