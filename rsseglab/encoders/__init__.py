"""Every encoder by name: timm's, segmentation_models_pytorch's own, torchgeo's, and where their weights come from.

An encoder turns an image (B, bands, H, W) into feature maps of strides 1, 2, 4, ..., 32. A name is timm's
(``resnet18``, ``convnext_tiny``, ``swinv2_tiny_window8_256``, ``vit_small_patch16_224``, ...), torchgeo's
(``dofa_base_patch16_224``, ``scalemae_large_patch16``, ...) or, where neither has one, smp's (``mit_b0``).

====================================  =================================================================
encoder                               maps
====================================  =================================================================
convolutional                         of strides 2 or 4 to 32, images of any size
hierarchical transformer (Swin, ...)  of strides 4 to 32; windows are moved and filled, for any size
plain ViT, DOFA, ScaleMAE             of one stride: as they are (``dpt``), or as a simple feature
                                      pyramid, see `rsseglab.encoders.pyramid` (all other decoders)
====================================  =================================================================

Sizes in a name (``_224``) are those of the pretraining. Some families of timm (``beit``, ``maxvit``, ``gcvit``,
``hiera``, ...) have a position for each pixel of that size and refuse others. A ViT with patches of 14 px gets
patches of 16 px, as strides 4 to 32 need; timm resamples the kernels of its weights.

Weights are named too:

=====================================  ================================================================
``None``                               random
``"pretrained"``                       timm's, smp's or torchgeo's: from the folder ``RSSEGLAB_WEIGHTS``,
                                       else downloaded
a path                                 a state dict in a file, of timm, torchvision or torchgeo
``"ResNet18_Weights.SENTINEL2_..."``   torchgeo's: from that folder under the name that they have in
                                       their address, else downloaded
=====================================  ================================================================
"""

from rsseglab.encoders.names import encoder_arguments, encoder_names, is_plain_vit, smp_name, unknown
from rsseglab.encoders.wavelengths import band_wavelengths
from rsseglab.encoders.weights import load_weights, local_weights

__all__ = [
    "band_wavelengths",
    "encoder_arguments",
    "encoder_names",
    "is_plain_vit",
    "load_weights",
    "local_weights",
    "smp_name",
    "unknown",
]
