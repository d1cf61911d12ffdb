"""torchgeo's foundation models as timm builds models, so that decoders, weights and any image size come with them."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import build_model_with_cfg
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchgeo.models.dofa import DOFAEmbedding, position_embedding
from torchgeo.models.scale_mae import ScaleMAE, get_2d_sincos_pos_embed_from_grid_torch

from rsseglab.encoders.wavelengths import check_wavelengths

#: Sizes of torchgeo's DOFA models.
DOFA_SIZES = {
    "dofa_small_patch16_224": {"patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6},
    "dofa_base_patch16_224": {"patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12},
    "dofa_large_patch16_224": {"patch_size": 16, "embed_dim": 1024, "depth": 24, "num_heads": 16},
    "dofa_huge_patch14_224": {"patch_size": 14, "embed_dim": 1280, "depth": 32, "num_heads": 16},
}
SCALEMAE_SIZES = {"scalemae_large_patch16": {"patch_size": 16, "embed_dim": 1024, "depth": 24, "num_heads": 16}}

#: What belongs to the images and not to the weights.
BUFFERS = ("patch_embed.wavelengths_um", "gsd_m")


def build_foundation(name: str, pretrained: bool = False, **arguments: Any) -> nn.Module:
    """Build DOFA or ScaleMAE, as timm's registry asks for it.

    Args:
        name: a key of `DOFA_SIZES` or `SCALEMAE_SIZES`.
        pretrained: load the weights that ``pretrained_cfg_overlay`` names.
        **arguments: of ``timm.create_model`` and of the model.

    Raises:
        UserError: the wavelengths do not fit the bands.
    """
    kind, sizes = (DOFA, DOFA_SIZES) if name in DOFA_SIZES else (GSDViT, SCALEMAE_SIZES)
    first_conv = "patch_embed.proj" if kind is GSDViT else None
    arguments["pretrained_cfg"] = {
        "input_size": (3, 224, 224), "num_classes": 0, "classifier": "head", "first_conv": first_conv
    }  # fmt: skip
    fixed = {"num_classes": 0, "dynamic_img_size": True, "norm_layer": partial(nn.LayerNorm, eps=1e-6)}
    settings: dict[str, Any] = fixed | sizes[name] | arguments
    return build_model_with_cfg(kind, name, pretrained, pretrained_filter_fn=_own_keys, **settings)


def _own_keys(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    # torchgeo's files have classifiers, and the position table that ScaleMAE computes; the last norm may be missing.
    ours = model.state_dict()
    kept = {key for key in ours if key in BUFFERS or key.startswith("norm.")}
    return {key: value for key, value in state.items() if key in ours} | {key: ours[key] for key in kept}


class WavelengthPatchEmbed(DOFAEmbedding):
    r"""Patches embedded by kernels that a small transformer makes out of each band's wavelength.

    .. math:: K_b = 0.01\, g(\phi(\lambda_b)),\quad x = \sum_b K_b * I_b + 0.01\, \beta

    with the sine-cosine embedding :math:`\phi` of the wavelength in nanometres; so any number of bands goes in.
    Parameters are those of torchgeo's module, and so are the results; here they may also be in double precision,
    and are laid out as timm asks for images of any size.

    Args:
        wavelengths_um: centre of each band in micrometres; kept with the weights in a checkpoint.
        img_size: of the pretraining, in pixels.
        patch_size: p, in pixels.
        in_chans: number of bands.
        embed_dim: D.
        **_: what else timm tells a patch embedding.

    Shapes:
        input (B, bands, H, W); output (B, H/p, W/p, D).

    Source:
        Xiong et al., "Neural plasticity-inspired multimodal foundation model for Earth observation" (DOFA),
        arXiv:2403.15356.
    """

    def __init__(
        self,
        wavelengths_um: Sequence[float] | None,
        img_size: int = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        **_: Any,
    ) -> None:
        super().__init__(dynamic_embed_dim=128, kernel_size=patch_size, embed_dim=embed_dim)
        self.grid_size = (img_size // patch_size, img_size // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.register_buffer("wavelengths_um", torch.tensor(check_wavelengths(wavelengths_um, in_chans)))
        self.wavelengths_um: Tensor

    def init_weights(self) -> None:
        """Initialise as torchgeo does; timm calls this after its own initialisation."""
        self._init_weights()

    def feat_ratio(self) -> int:
        """The stride p."""
        return self.kernel_size

    def dynamic_feat_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches of an image of this size."""
        return size[0] // self.kernel_size, size[1] // self.kernel_size

    def forward(self, image: Tensor) -> Tensor:  # type: ignore[override]
        """Patches (B, H/p, W/p, D) of an image (B, bands, H, W)."""
        p, dtype = self.kernel_size, self.fclayer.w1.weight.dtype
        waves = position_embedding(self.dynamic_embed_dim, 1000 * self.wavelengths_um.float())  # (bands, 128)
        weight, bias = self.weight_generator(self.fclayer(waves.to(dtype)))  # (bands, p p D), (1, D)
        kernel = weight.view(-1, p, p, self.embed_dim).permute(3, 0, 1, 2)  # (D, bands, p, p)
        x = F.conv2d(image, self.scaler * kernel, self.scaler * bias.view(-1), stride=p, padding=1)
        return x.permute(0, 2, 3, 1)


class DOFA(VisionTransformer):
    """DOFA's encoder: a plain vision transformer over `WavelengthPatchEmbed`, its positions sine-cosine and fixed.

    Args:
        wavelengths_um: centre of each band in micrometres; ``None`` for the default of
            `rsseglab.encoders.wavelengths.check_wavelengths`.
        **arguments: of timm's ``VisionTransformer``.
    """

    def __init__(self, wavelengths_um: Sequence[float] | None = None, **arguments: Any) -> None:
        super().__init__(embed_layer=partial(WavelengthPatchEmbed, wavelengths_um), final_norm=False, **arguments)
        table = torch.zeros(1, 1 + self.patch_embed.num_patches, self.embed_dim)
        table[:, 1:] = _positions(self.patch_embed.grid_size, table)
        self.pos_embed = nn.Parameter(table, requires_grad=False)


class GSDViT(ScaleMAE):
    """ScaleMAE's encoder: a plain vision transformer whose positions are metres on the ground, for any image size.

    Args:
        gsd_m: ground sampling distance in metres; kept with the weights in a checkpoint.
        **arguments: of timm's ``VisionTransformer``.

    Source:
        Reed et al., "Scale-MAE: a scale-aware masked autoencoder for multiscale geospatial representation learning",
        ICCV 2023, section 3.
    """

    def __init__(self, gsd_m: float = 1.0, **arguments: Any) -> None:
        super().__init__(gsd_m, pos_embed="none", **arguments)
        self.register_buffer("gsd_m", torch.tensor(float(gsd_m)))
        self.gsd_m: Tensor

    def _pos_embed(self, x: Tensor) -> Tensor:
        B, h, w, _ = x.shape
        first: Any = self.cls_token  # (1, 1, D)
        x = x.flatten(1, 2) + _positions((h, w), first, self.gsd_m)  # (B, h w, D)
        return self.pos_drop(torch.cat([first.expand(B, -1, -1), x], dim=1))


def _positions(grid: tuple[int, int], like: Tensor, scale: float | Tensor = 1.0) -> Tensor:
    """Sine-cosine embedding (h w, D) of a grid of patches, ``scale`` apart."""
    h, w = (torch.arange(n, dtype=like.dtype, device=like.device) * scale for n in grid)
    columns_and_rows = torch.stack(torch.meshgrid(w, h, indexing="xy"))  # (2, h, w)
    return get_2d_sincos_pos_embed_from_grid_torch(like.shape[-1], columns_and_rows)
