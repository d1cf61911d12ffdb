"""Segment Anything's networks and their weights.

=================  ==============================  ==========  ==========================================
name               encoder                         parameters  weights
=================  ==============================  ==========  ==========================================
``mobile_sam``     TinyViT, 5 M, distilled         10 M        ``mobile_sam.pt``, 39 MiB
``sam_vit_b``      ViT-B of 16 px patches          94 M        ``sam_vit_b_01ec64.pth``, 358 MiB
``sam_vit_l``      ViT-L                           312 M       ``sam_vit_l_0b3195.pth``, 1.2 GiB
``sam_vit_h``      ViT-H                           641 M       ``sam_vit_h_4b8939.pth``, 2.4 GiB
=================  ==============================  ==========  ==========================================

Prompt encoder, mask decoder and the ViT encoders are those of the package ``segment-anything``. MobileSAM's encoder is
timm's TinyViT-5M with a last stage that is not halved (stride 16) and SAM's neck.

Weights are looked for in the folder ``RSSEGLAB_WEIGHTS``, then in ``~/.cache/rsseglab/weights``, and fetched there
from the authors' own addresses where they are in neither; SHA-256 sums are checked.

Source:
    Kirillov et al., "Segment Anything", ICCV 2023; Zhang et al., "Faster Segment Anything: Towards Lightweight SAM for
    Mobile Applications", arXiv 2306.14289; Wu et al., "TinyViT", ECCV 2022. Weights: Apache-2.0.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, cast
from urllib.error import URLError

import timm
import torch
from segment_anything.build_sam import sam_model_registry
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.mask_decoder import MaskDecoder
from segment_anything.modeling.prompt_encoder import PromptEncoder
from segment_anything.modeling.sam import Sam
from segment_anything.modeling.transformer import TwoWayTransformer
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from rsseglab.errors import UserError
from rsseglab.scenes.store import fetch

SIDE_PX = 1024  # of an image, padded, as the encoder sees it
DIM = 256  # of an embedding, at a stride of 16 px
_META = "https://dl.fbaipublicfiles.com/segment_anything/"


@dataclass(frozen=True)
class Weights:
    """A file of weights.

    Attributes:
        file: its name.
        sha256: its sum.
        url: where its authors have it.
    """

    file: str
    sha256: str
    url: str


WEIGHTS = {
    "mobile_sam": Weights(
        "mobile_sam.pt",
        "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
        "https://raw.githubusercontent.com/ChaoningZhang/MobileSAM/master/weights/mobile_sam.pt",
    ),
    "sam_vit_b": Weights(
        "sam_vit_b_01ec64.pth",
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        _META + "sam_vit_b_01ec64.pth",
    ),
    "sam_vit_l": Weights(
        "sam_vit_l_0b3195.pth",
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        _META + "sam_vit_l_0b3195.pth",
    ),
    "sam_vit_h": Weights(
        "sam_vit_h_4b8939.pth",
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        _META + "sam_vit_h_4b8939.pth",
    ),
}


class TinyViT(nn.Module):
    """MobileSAM's image encoder.

    Shapes:
        input (B, 3, 1024, 1024), normalised and padded; output (B, 256, 64, 64).
    """

    img_size = SIDE_PX  # as segment-anything asks for it

    def __init__(self) -> None:
        super().__init__()
        body: Any = timm.create_model("tiny_vit_5m_224", num_classes=0)
        body.head = nn.Identity()
        body.stages[3].downsample.conv2.conv.stride = (1, 1)
        self.body: Any = body
        self.neck = nn.Sequential(
            nn.Conv2d(body.num_features, DIM, 1, bias=False),
            LayerNorm2d(DIM),
            nn.Conv2d(DIM, DIM, 3, padding=1, bias=False),
            LayerNorm2d(DIM),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Embed."""
        return cast(Tensor, self.neck(self.body.forward_features(image)))


def build_sam(name: str = "mobile_sam", weights: Path | None = None) -> Sam:
    """A network of Segment Anything with its weights, in eval mode.

    Args:
        name: see the module.
        weights: a file; looked for, and fetched, if not given.

    Raises:
        UserError: there is no such network; the file is missing, damaged, or of another network; the download fails.
    """
    _check_name(name)
    path = weights or find_weights(name)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"no weights at {path}; check the path.") from None
    except Exception as error:  # pickle, zip and torch raise what they like
        raise UserError(f"{path} is no file of weights ({str(error).splitlines()[0]}); fetch it again.") from error
    sam = _mobile() if name == "mobile_sam" else sam_model_registry[name.removeprefix("sam_")]()
    try:
        sam.load_state_dict(_renamed(state) if name == "mobile_sam" else state)
    except (RuntimeError, AttributeError, TypeError) as error:
        others = ", ".join(other for other in WEIGHTS if other != name)
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{path} has no weights of {name} ({reason} ...); name its network: {others}.") from error
    sam.eval()
    if name == "mobile_sam":  # batch norms folded into convolutions, channels last: 1.4 times as fast on a CPU
        sam.image_encoder = reparameterize_model(sam.image_encoder).to(memory_format=torch.channels_last)
    return cast(Sam, sam)


def _check_name(name: str) -> None:
    if name not in WEIGHTS:
        raise UserError(f"there is no network '{name}' of Segment Anything; choose one of {', '.join(WEIGHTS)}.")


def _mobile() -> Sam:
    return Sam(
        TinyViT(),
        PromptEncoder(DIM, (SIDE_PX // 16, SIDE_PX // 16), (SIDE_PX, SIDE_PX), mask_in_chans=16),
        MaskDecoder(
            transformer_dim=DIM,
            transformer=TwoWayTransformer(depth=2, embedding_dim=DIM, num_heads=8, mlp_dim=2048),
        ),
    )


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """MobileSAM's weights under timm's names; its classifier is left out."""
    out = {}
    for key, value in state.items():
        stem = key.removeprefix("image_encoder.")
        if stem == key:  # prompt encoder and mask decoder
            out[key] = value
            continue
        if stem.startswith(("head.", "norm_head.")):
            continue
        stem = re.sub(r"^patch_embed\.seq\.([02])\.", lambda m: f"patch_embed.conv{int(m[1]) // 2 + 1}.", stem)
        # There a stage ends with what halves the map; here the next one begins with it.
        stem = re.sub(r"^layers\.(\d)\.downsample", lambda m: f"stages.{int(m[1]) + 1}.downsample", stem)
        stem = re.sub(r"^layers\.", "stages.", stem).replace(".c.weight", ".conv.weight")
        out["image_encoder." + ("" if stem.startswith("neck.") else "body.") + stem] = value
    return out


def _cache() -> Path:
    return Path.home() / ".cache" / "rsseglab" / "weights"


def local_sam_weights(name: str) -> Path | None:
    """The file of a network's weights, where it is on this machine: in ``RSSEGLAB_WEIGHTS``, or fetched before."""
    folders = [Path(os.environ["RSSEGLAB_WEIGHTS"])] if os.environ.get("RSSEGLAB_WEIGHTS") else []
    files = [folder / WEIGHTS[name].file for folder in (*folders, _cache())]
    return next((file for file in files if file.is_file()), None)


def find_weights(name: str) -> Path:
    """The file of a network's weights, fetched where it is not there yet.

    Raises:
        UserError: there is no such network; the file can't be fetched, or has a wrong sum.
    """
    _check_name(name)
    if here := local_sam_weights(name):
        return here
    weights = WEIGHTS[name]
    path = _cache() / weights.file
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fetch(weights.url, part, weights.file)
    except (URLError, HTTPException, OSError, ValueError) as error:
        raise UserError(
            f"{weights.url} can't be fetched ({error}); fetch it by hand and put it in the folder RSSEGLAB_WEIGHTS, or "
            "grow points by superpixels."
        ) from error
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != weights.sha256:
        part.unlink()
        raise UserError(f"{weights.url} gave a file with a wrong sum ({found[:12]} ...); try again later.")
    part.replace(path)
    return path
