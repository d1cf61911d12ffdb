r"""FCN-8s on VGG16, the network that FCtL was published with.

VGG16's five blocks, with 100 px of padding before the first convolution and pools that round up, so that a patch of any
size leaves something behind the 7 x 7 convolution; scores at strides 32, 16 and 8, each brought to the next by a fixed
bilinear transposed convolution, cropped and added:

.. math:: s_{32} = W_{32}\, \mathrm{fc}(p_5), \quad
          s_{16} = \uparrow_2 s_{32} + W_{16} (10^{-2} p_4)|_5, \quad
          s_8 = \uparrow_2 s_{16} + W_8 (10^{-4} p_3)|_9, \quad y = (\uparrow_8 s_8)|_{31}

with :math:`p_k` the k-th pool and :math:`|_o` what lies from row and column o on. A patch of 508 px goes

=================  ===  ====  ====  ===  ==========  =====  =====  =====  ======
conv1, padded      p1   p2    p3    p4   p5          fc     x 2    x 2    x 8
=================  ===  ====  ====  ===  ==========  =====  =====  =====  ======
706                353  177   89    45   23          17     36     74     600
64 channels        64   128   256   512  512         4096   K      K      K
=================  ===  ====  ====  ===  ==========  =====  =====  =====  ======

Source:
    Long, Shelhamer, Darrell, "Fully convolutional networks for semantic segmentation", CVPR 2015, section 4; Simonyan,
    Zisserman, "Very deep convolutional networks", ICLR 2015, table 1, column D. Padding, crops and the two factors as
    in FCN-8s "at once" and in FCtL's public code (MIT), of which none is used here.
"""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from rsseglab.encoders import local_weights
from rsseglab.errors import UserError

BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))  # channels of VGG16's convolutions
PADDING_PX = 100
WIDE = 4096  # channels of the two convolutions that were VGG16's fully connected layers


class VGG16(nn.Module):
    """VGG16's convolutions, the first padded by 100 px, the pools rounding up.

    Args:
        bands: number of input bands.

    Shapes:
        input (B, bands, H, W); output the pools of strides 8, 16 and 32 with 256, 512 and 512 channels.
    """

    def __init__(self, bands: int) -> None:
        super().__init__()
        self.out_channels = (256, 512, 512)
        layers: list[nn.Module] = []
        inputs, padding = bands, PADDING_PX
        for block in BLOCKS:
            for channels in block:
                layers += [nn.Conv2d(inputs, channels, 3, padding=padding), nn.ReLU(inplace=True)]
                nn.init.kaiming_normal_(layers[-2].weight, nonlinearity="relu")  # type: ignore[arg-type]
                nn.init.zeros_(layers[-2].bias)  # type: ignore[arg-type]
                inputs, padding = channels, 1
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)  # numbered as timm and torchvision number them

    def forward(self, image: Tensor) -> list[Tensor]:
        """The last three pools."""
        pools = []
        for layer in self.features:
            image = layer(image)
            if isinstance(layer, nn.MaxPool2d):
                pools.append(image)
        return pools[2:]


class FCN8sDecoder(nn.Module):
    """Scores at strides 32, 16 and 8, added up and brought to the padded patch's size; see the module.

    Args:
        classes: number of classes K.

    Shapes:
        input the three pools of `VGG16`; output (B, K, 8 (h + 1), 8 (w + 1)) for a sum of scores of h x w.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Conv2d(512, WIDE, 7), nn.ReLU(inplace=True), nn.Dropout2d(),
            nn.Conv2d(WIDE, WIDE, 1), nn.ReLU(inplace=True), nn.Dropout2d(),
        )  # fmt: skip
        self.score32 = nn.Conv2d(WIDE, classes, 1)
        self.score16 = nn.Conv2d(512, classes, 1)
        self.score8 = nn.Conv2d(256, classes, 1)
        self.up32, self.up16, self.up8 = bilinear(classes, 2), bilinear(classes, 2), bilinear(classes, 8)

    def forward(self, pools: list[Tensor]) -> Tensor:
        """Scores of the padded patch."""
        pool3, pool4, pool5 = pools
        s32 = self.up32(self.score32(self.fc(pool5)))
        s16 = self.up16(s32 + _part(self.score16(1e-2 * pool4), 5, s32))
        s8: Tensor = self.up8(s16 + _part(self.score8(1e-4 * pool3), 9, s16))
        return s8


def bilinear(channels: int, factor: int) -> nn.ConvTranspose2d:
    """A transposed convolution that interpolates each channel bilinearly, by a fixed kernel of 2 x factor px."""
    up = nn.ConvTranspose2d(channels, channels, 2 * factor, factor, groups=channels, bias=False)
    tent = 1 - (torch.arange(2 * factor) + 0.5 - factor).abs() / factor
    up.weight.data[:] = tent[:, None] * tent
    return up.requires_grad_(False)


def _part(scores: Tensor, first: int, like: Tensor) -> Tensor:
    height, width = like.shape[-2:]
    return scores[:, :, first : first + height, first : first + width]


class FCN8s(nn.Module):
    """FCN-8s on VGG16; see the module.

    Args:
        bands: number of input bands.
        classes: number of classes K.
        weights: of VGG16's convolutions: ``None`` for random (He), "pretrained" for timm's (ImageNet), or the path of a
            state dict of timm's or torchvision's; for other than three bands kernels are repeated and rescaled, as timm
            does. The decoder is random; VGG16's classifier is not used in the public code either.

    Shapes:
        input (B, bands, H, W) of any size; output (B, K, H, W).

    Raises:
        UserError: the weights can't be loaded.
    """

    OFFSET_PX = 31  # where the patch begins in the decoder's scores

    def __init__(self, bands: int, classes: int, weights: str | Path | None = None) -> None:
        super().__init__()
        self.encoder, self.decoder, self.segmentation_head = VGG16(bands), FCN8sDecoder(classes), nn.Identity()
        if weights is not None:
            self.encoder.features.load_state_dict(_features(bands, weights))

    def forward(self, image: Tensor) -> Tensor:
        """Scores of an image."""
        scores: Tensor = self.segmentation_head(self.decoder(self.encoder(image)))
        (height, width), first = image.shape[-2:], self.OFFSET_PX
        return scores[:, :, first : first + height, first : first + width]


def _features(bands: int, weights: str | Path) -> dict[str, Tensor]:
    """VGG16's convolutions, adapted to so many bands by timm."""
    source = local_weights("vgg16") if weights == "pretrained" else Path(weights)
    if source is not None and not source.is_file():
        raise UserError(f"no weights at {source}; name a file, 'pretrained', or 'none'.")
    try:
        given = {} if source is None else {"file": str(source)}
        model = timm.create_model("vgg16", pretrained=True, in_chans=bands, num_classes=0, pretrained_cfg_overlay=given)
        state: dict[str, Tensor] = model.get_submodule("features").state_dict()
        wanted = {f"features.{name}" for name in state}
        if source is not None and (absent := wanted - timm.models.load_state_dict(str(source)).keys()):
            raise ValueError(f"it has no {min(absent)}")  # timm leaves random what a file does not have
    except Exception as error:  # timm, huggingface_hub and the network raise what they like
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"weights '{source or weights}' of vgg16 cannot be loaded ({reason}); put a state dict named vgg16.pth in "
            "the folder RSSEGLAB_WEIGHTS, name a file, or ask for random weights with --weights none."
        ) from error
    return state
