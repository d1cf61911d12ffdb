"""The networks that the engine is held to: smp decoders over smp, timm CNN and timm transformer encoders."""

import segmentation_models_pytorch as smp
import torch
from torch import nn

from rsseglab.spatial import Layout

# (decoder, encoder, rows and columns of the scene)
NETWORKS = [
    ("Unet", "resnet18", (96, 64)),
    ("UnetPlusPlus", "resnet18", (96, 64)),
    ("FPN", "resnet18", (96, 64)),
    ("FPN", "resnet50", (96, 64)),
    ("DeepLabV3", "resnet18", (72, 64)),
    ("DeepLabV3Plus", "resnet18", (96, 64)),
    ("PSPNet", "resnet18", (88, 64)),
    ("PAN", "resnet18", (128, 128)),
    ("Linknet", "resnet18", (96, 64)),
    ("MAnet", "resnet18", (96, 64)),
    ("UPerNet", "resnet18", (96, 64)),
    ("Segformer", "resnet18", (96, 64)),
    ("Unet", "efficientnet-b0", (96, 64)),
    ("DeepLabV3Plus", "efficientnet-b0", (96, 64)),
    ("FPN", "mobilenet_v2", (96, 64)),
    ("Unet", "tu-efficientnet_b0", (96, 64)),
    ("Unet", "tu-convnext_atto", (96, 64)),
    ("UPerNet", "tu-convnext_atto", (96, 64)),
    ("Unet", "tu-hrnet_w18_small", (96, 64)),
    ("Segformer", "mit_b0", (96, 64)),
    ("Unet", "mit_b0", (96, 64)),
    ("UPerNet", "tu-swin_tiny_patch4_window7_224", (224, 224)),
    ("UPerNet", "tu-swinv2_tiny_window8_256", (256, 256)),
    ("FPN", "tu-swinv2_cr_tiny_ns_224", (224, 224)),
    ("Unet", "tu-maxvit_nano_rw_256", (256, 256)),
    ("DPT", "tu-vit_tiny_patch16_224", (224, 224)),
]
QUICK = [n for n in NETWORKS if n[0] in ("Unet", "DeepLabV3Plus", "MAnet") and n[1] in ("resnet18", "mit_b0")]
LAYOUTS = [Layout(p) for p in (1, 2, 3, 5, 7, 8, 11)] + [Layout(2, 2), Layout(2, 3), Layout(3, 3)]


def build(decoder, encoder):
    """The network in float64, its dropout off: its coins are the engine's own, tested apart."""
    torch.manual_seed(0)
    model = getattr(smp, decoder)(encoder_name=encoder, encoder_weights=None, classes=3).double()
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    return model


def scene(size, batch=2):
    """Noise on a slope, so that no two rows look alike."""
    x = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x + torch.linspace(-1, 1, size[0], dtype=torch.float64)[:, None]
