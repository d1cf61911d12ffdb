"""Every decoder by name, on every encoder: a whole segmentation network."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch.nn.functional as F
from segmentation_models_pytorch.base import SegmentationModel
from torch import Tensor, nn

from rsseglab.encoders import encoder_arguments, is_plain_vit, load_weights, smp_name, unknown
from rsseglab.encoders.pyramid import PyramidEncoder, known_to_smp
from rsseglab.errors import UserError


class FCNDecoder(nn.Module):
    r"""Scores at strides 8, 16 and 32, added up (FCN-8s).

    .. math:: s_{32} = W_{32} f_{32},\quad s_{16} = W_{16} f_{16} + \uparrow_2 s_{32},\quad
              s_8 = W_8 f_8 + \uparrow_2 s_{16}

    with 1 x 1 convolutions :math:`W` and bilinear upsampling.

    Args:
        channels: of the maps of strides 8, 16 and 32.
        classes: number of classes K.

    Shapes:
        input maps, the last three (B, C, H/8, W/8), ..., (B, C, H/32, W/32); output (B, K, H/8, W/8).

    Source:
        Long, Shelhamer, Darrell, "Fully convolutional networks for semantic segmentation", CVPR 2015, section 4.2.
    """

    def __init__(self, channels: Sequence[int], classes: int) -> None:
        super().__init__()
        self.scores = nn.ModuleList(nn.Conv2d(c, classes, 1) for c in channels)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Scores (B, K, H/8, W/8) of an encoder's maps."""
        f8, f16, f32 = features[-3:]
        score8, score16, score32 = self.scores
        s16 = score16(f16) + _up(score32(f32), f16)
        s8: Tensor = score8(f8) + _up(s16, f8)
        return s8


def _up(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


class FCN(SegmentationModel):
    """Fully convolutional network, made as smp makes its models: `FCNDecoder`, then upsampling by 8.

    Args:
        encoder_name: smp's name of the encoder.
        encoder_weights: passed to smp; only ``None`` is used here.
        in_channels: number of bands.
        classes: number of classes K.
        **arguments: of the encoder.

    Shapes:
        input (B, bands, H, W), H and W multiples of 32; output (B, K, H, W).
    """

    def __init__(
        self, encoder_name: str, encoder_weights: None, in_channels: int, classes: int, **arguments: Any
    ) -> None:
        super().__init__()
        self.encoder = smp.encoders.get_encoder(
            encoder_name, in_channels=in_channels, depth=5, weights=encoder_weights, **arguments
        )
        self.decoder = FCNDecoder(self.encoder.out_channels[-3:], classes)
        self.segmentation_head = nn.Upsample(scale_factor=8, mode="bilinear")
        self.classification_head = None


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
    encoder: str,
    decoder: str,
    bands: int,
    classes: int,
    weights: str | Path | None = None,
    *,
    wavelengths_um: Sequence[float] | None = None,
    gsd_m: float | None = None,
) -> nn.Module:
    """Build an encoder with a decoder.

    Args:
        encoder: a name that `rsseglab.encoders.encoder_names` lists.
        decoder: a key of `DECODERS`.
        bands: number of input bands.
        classes: number of classes K.
        weights: of the encoder, see `rsseglab.encoders`.
        wavelengths_um: centre of each band in micrometres, for DOFA; `rsseglab.encoders.band_wavelengths` knows those
            of common names. ``None``: red, green, blue (and near infrared) for three (four) bands, else evenly spaced
            from 0.4 to 2.5. Kept in the network's state.
        gsd_m: ground sampling distance in metres, for ScaleMAE; ``None``: 1. Kept in the network's state.

    Returns:
        A network from (B, bands, H, W) to logits (B, K, H, W); H and W multiples of 32 (some need less). It is
        ``encoder``, from the image to a list of maps (``dpt``: maps of one stride, and prefix tokens), ``decoder`` and
        ``segmentation_head``.

    Raises:
        UserError: a name is unknown, the two do not go together, the wavelengths are not those of the bands, or the
            weights cannot be loaded.
    """
    if decoder not in DECODERS:
        raise unknown("decoder", decoder, DECODERS)
    name = smp_name(encoder)
    arguments = encoder_arguments(encoder, wavelengths_um, gsd_m)
    try:
        network = _build(encoder, name, decoder, bands, classes, arguments)
    except UserError:
        raise
    except (ValueError, TypeError, RuntimeError, KeyError, AttributeError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"encoder '{encoder}' does not go with decoder '{decoder}' ({reason}); try decoder unet with a "
            "convolutional or hierarchical encoder, dpt or upernet with a plain ViT."
        ) from error
    load_weights(network.encoder, encoder, bands, weights, arguments)  # type: ignore[arg-type]
    return network


def _build(encoder: str, name: str, decoder: str, bands: int, classes: int, arguments: dict[str, Any]) -> nn.Module:
    network: Any
    sizes: dict[str, Any] = {"encoder_weights": None, "in_channels": bands, "classes": classes}
    if decoder == "dpt":
        network = DECODERS[decoder](encoder_name=name, num_classes=0, **sizes, **arguments)
        if is_plain_vit(encoder):  # nothing reads its last norm, and whoever sums gradients would wait for its
            network.encoder.model.prune_intermediate_layers(network.encoder._output_indices, prune_norm=True)
    elif is_plain_vit(encoder):
        with known_to_smp(partial(PyramidEncoder, encoder, bands, arguments)) as name:
            network = DECODERS[decoder](encoder_name=name, **sizes)
    else:
        network = DECODERS[decoder](encoder_name=name, **sizes, **arguments)
    return network
