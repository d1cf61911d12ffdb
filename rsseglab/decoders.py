"""Every decoder by name, on every encoder: a whole segmentation network."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch.nn.functional as F
from torch import Tensor, nn

from rsseglab.encoders import load_weights, smp_name, unknown
from rsseglab.errors import UserError


class FCN(nn.Module):
    r"""Fully convolutional network with skips at strides 8, 16 and 32 (FCN-8s).

    .. math:: s_{32} = W_{32} f_{32},\quad s_{16} = W_{16} f_{16} + \uparrow_2 s_{32},\quad
              s_8 = W_8 f_8 + \uparrow_2 s_{16},\quad y = \uparrow_8 s_8

    with 1 x 1 convolutions :math:`W` and bilinear upsampling.

    Args:
        encoder_name: smp's name of the encoder.
        encoder_weights: passed to smp; only ``None`` is used here.
        in_channels: number of bands.
        classes: number of classes K.

    Shapes:
        input (B, bands, H, W), H and W multiples of 32; output (B, K, H, W).

    Source:
        Long, Shelhamer, Darrell, "Fully convolutional networks for semantic segmentation", CVPR 2015, section 4.2.
    """

    def __init__(self, encoder_name: str, encoder_weights: None, in_channels: int, classes: int) -> None:
        super().__init__()
        self.encoder = smp.encoders.get_encoder(encoder_name, in_channels=in_channels, depth=5, weights=encoder_weights)
        channels: Sequence[int] = self.encoder.out_channels[-3:]  # strides 8, 16, 32
        self.scores = nn.ModuleList(nn.Conv2d(c, classes, 1) for c in channels)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K, H, W) of an image (B, bands, H, W)."""
        f8, f16, f32 = self.encoder(image)[-3:]
        score8, score16, score32 = self.scores
        s16 = score16(f16) + _up(score32(f32), f16)
        s8 = score8(f8) + _up(s16, f8)
        return _up(s8, image)


def _up(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


DECODERS: dict[str, Any] = {
    "unet": smp.Unet,
    "unetplusplus": smp.UnetPlusPlus,
    "fpn": smp.FPN,
    "deeplabv3": smp.DeepLabV3,
    "deeplabv3plus": smp.DeepLabV3Plus,
    "pspnet": smp.PSPNet,
    "pan": smp.PAN,
    "linknet": smp.Linknet,
    "manet": smp.MAnet,
    "upernet": smp.UPerNet,
    "segformer": smp.Segformer,
    "dpt": smp.DPT,
    "fcn": FCN,
}


def create_network(
    encoder: str, decoder: str, bands: int, classes: int, weights: str | Path | None = None
) -> nn.Module:
    """Build an encoder with a decoder.

    Args:
        encoder: a name that `rsseglab.encoders.encoder_names` lists.
        decoder: a key of `DECODERS`.
        bands: number of input bands.
        classes: number of classes K.
        weights: of the encoder, see `rsseglab.encoders`.

    Returns:
        A network from (B, bands, H, W) to logits (B, K, H, W); most need H and W to be multiples of 32.

    Raises:
        UserError: a name is unknown, the two do not go together, or the weights cannot be loaded.
    """
    if decoder not in DECODERS:
        raise unknown("decoder", decoder, DECODERS)
    name = smp_name(encoder)
    try:
        network: nn.Module = DECODERS[decoder](
            encoder_name=name, encoder_weights=None, in_channels=bands, classes=classes
        )
    except (ValueError, TypeError, RuntimeError, KeyError, AttributeError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"encoder '{encoder}' does not go with decoder '{decoder}' ({reason}); try decoder unet with a "
            "convolutional or hierarchical encoder, dpt with a plain ViT."
        ) from error
    load_weights(network.encoder, encoder, bands, weights)  # type: ignore[arg-type]
    return network
