"""Every encoder by name: timm's, segmentation_models_pytorch's own, and where their weights come from.

An encoder turns an image (B, bands, H, W) into feature maps of strides 1, 2, 4, ... A name is timm's
(``resnet18``, ``convnext_tiny``, ``swinv2_tiny_window8_256``, ...) or, where timm has none, smp's (``mit_b0``).

Weights are named too:

=====================================  ================================================================
``None``                               random
``"pretrained"``                       timm's: from the folder ``RSSEGLAB_WEIGHTS``, else downloaded
a path                                 timm's or torchvision's state dict in a file
``"ResNet18_Weights.SENTINEL2_..."``   torchgeo's, downloaded
=====================================  ================================================================
"""

import difflib
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from torch import nn

from rsseglab.errors import UserError


@cache
def encoder_names() -> tuple[str, ...]:
    """All names that `smp_name` knows."""
    return tuple(sorted({*timm.list_models(), *smp.encoders.get_encoder_names()}))


def smp_name(name: str) -> str:
    """The name by which segmentation_models_pytorch builds an encoder.

    Raises:
        UserError: there is no such encoder; the nearest names are given.
    """
    if timm.is_model(name):
        return f"tu-{name}"
    if name in smp.encoders.get_encoder_names():
        return name
    raise unknown("encoder", name, encoder_names())


def unknown(kind: str, name: str, names: Iterable[str]) -> UserError:
    """The error for a name that does not exist, with the nearest ones that do."""
    names = list(names)
    near = difflib.get_close_matches(name, names, n=4, cutoff=0.4) or names[:6]
    return UserError(f"unknown {kind} '{name}'; the nearest names are {', '.join(near)}.")


def load_weights(encoder: nn.Module, name: str, bands: int, weights: str | Path | None) -> None:
    """Load named weights into an encoder of segmentation_models_pytorch, in place.

    Where the weights were made for another number of bands, the first convolution is adapted as timm does:
    its kernels are repeated over the bands and rescaled, so that the sum over bands keeps its size.

    Args:
        encoder: the module ``network.encoder``.
        name: the encoder's name.
        bands: number of input bands.
        weights: see the module's table.

    Raises:
        UserError: the weights are unknown, cannot be downloaded, or do not fit the encoder.
    """
    if weights is None:
        return
    state = _torchgeo_state(str(weights), name) if "_Weights." in str(weights) else None
    if not timm.is_model(name):
        raise UserError(f"weights for '{name}' are not known here; choose an encoder of timm, or weights none.")
    file = None if state is not None else _weights_file(name, weights)
    try:
        if file:
            _check_keys(name, file)
        # timm's own loader adapts the first convolution, drops the classifier and renames old keys.
        source: dict[str, Any] = {"file": str(file)} if file else {}
        if state is not None:
            source = {"state_dict": state}
        pretrained = timm.create_model(
            name, pretrained=True, in_chans=bands, pretrained_cfg_overlay=source, **_features(encoder)
        )
    except UserError:
        raise
    except Exception as error:  # timm, huggingface_hub and the network raise what they like
        origin = f"weights {file}" if file else f"weights '{weights}' of '{name}'"
        raise UserError(
            f"{origin} cannot be loaded ({_first_line(error)}); put a state dict named {name}.pth in the folder "
            "RSSEGLAB_WEIGHTS, name a file, or ask for random weights with --weights none."
        ) from error
    encoder.model.load_state_dict(pretrained.state_dict())  # type: ignore[union-attr]


def _check_keys(name: str, file: Path) -> None:
    # timm loads what it finds, and says nothing where that is nothing.
    with torch.device("meta"):
        wanted = timm.create_model(name).state_dict().keys()
    if not wanted & timm.models.load_state_dict(str(file)).keys():
        raise UserError(f"weights {file} are not of '{name}': no parameter has its name; give another file.")


def _features(encoder: nn.Module) -> dict[str, Any]:
    # The pretrained twin must have the same stages as the encoder that smp built.
    model: Any = encoder.model
    if not hasattr(model, "feature_info"):
        return {"num_classes": 0}
    return {"features_only": True, "out_indices": tuple(model.feature_info.out_indices)}


#: How a weights file in ``RSSEGLAB_WEIGHTS`` is named, after the encoder's name.
ENDINGS = (".pth", ".pt", ".safetensors", "_timm.pth")


def local_weights(name: str) -> Path | None:
    """The file of an encoder's pretrained weights in the folder ``RSSEGLAB_WEIGHTS``, if there is one."""
    folder = os.environ.get("RSSEGLAB_WEIGHTS")
    candidates = [Path(folder) / f"{name}{ending}" for ending in ENDINGS] if folder else []
    return next((path for path in candidates if path.is_file()), None)


def _weights_file(name: str, weights: str | Path) -> Path | None:
    if weights == "pretrained":
        return local_weights(name)
    path = Path(weights)
    if not path.is_file():
        raise UserError(f"no weights at {path}; name a file, 'pretrained', or 'none'.")
    return path


def _torchgeo_state(weights: str, name: str) -> dict[str, torch.Tensor]:
    from torchgeo.models import get_weight, list_models  # torchgeo takes seconds to import

    try:
        entry = get_weight(weights)
    except (ValueError, KeyError, AttributeError):
        names = [str(w) for model in list_models() if (enum := _weights_enum(model)) for w in enum]
        raise unknown("torchgeo weights", weights, names) from None
    if entry.meta.get("model") not in (None, name):
        raise UserError(f"weights {weights} are for the encoder '{entry.meta['model']}', not '{name}'.")
    try:
        state: dict[str, torch.Tensor] = entry.get_state_dict(progress=True)
    except OSError as error:
        raise UserError(
            f"weights {weights} cannot be downloaded ({_first_line(error)}); "
            f"fetch {entry.url} by hand and give the file, or ask for random weights with --weights none."
        ) from error
    return state


def _weights_enum(model: str) -> Any:
    from torchgeo.models import get_model_weights

    try:
        return get_model_weights(model)
    except (KeyError, ValueError):  # torchgeo lists models that have no weights
        return None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
