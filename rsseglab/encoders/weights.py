"""Weights of encoders by name: from a file, the folder ``RSSEGLAB_WEIGHTS``, timm, smp or torchgeo."""

import os
import re
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor, nn

from rsseglab.encoders.names import FOUNDATION, unknown
from rsseglab.errors import UserError

#: How a weights file in ``RSSEGLAB_WEIGHTS`` is named, after the encoder's name.
ENDINGS = (".pth", ".pt", ".safetensors", "_timm.pth")

#: timm's names of the models that torchgeo takes from torchvision.
TORCHVISION = {
    "swin_t": "swin_tiny_patch4_window7_224",
    "swin_s": "swin_small_patch4_window7_224",
    "swin_b": "swin_base_patch4_window12_384",
    "swin_v2_t": "swinv2_tiny_window8_256",
    "swin_v2_b": "swinv2_base_window8_256",
}

State = dict[str, Tensor]


def load_weights(
    encoder: nn.Module, name: str, bands: int, weights: str | Path | None, arguments: dict[str, Any] | None = None
) -> None:
    """Load named weights into an encoder of segmentation_models_pytorch, in place.

    Where the weights were made for three bands and the encoder has another number, the first convolution is adapted
    as timm does: its kernels are repeated over the bands and rescaled, so that the sum over bands keeps its size.

    Args:
        encoder: the module ``network.encoder``.
        name: the encoder's name.
        bands: number of input bands.
        weights: see the table of `rsseglab.encoders`.
        arguments: by which the encoder was built, see `rsseglab.encoders.encoder_arguments`.

    Raises:
        UserError: the weights are unknown, cannot be downloaded, or do not fit the encoder.
    """
    if weights is None:
        return
    source: Any = _torchgeo_state(str(weights), name) if "_Weights." in str(weights) else _weights_file(name, weights)
    if source is None and name in FOUNDATION:
        source = _torchgeo_state(_torchgeo_default(name), name)
    origin = f"weights {source}" if isinstance(source, Path) else f"weights '{weights}' of '{name}'"
    try:
        if not timm.is_model(name):
            pretrained = _smp_state(name, bands, source)
        else:
            overlay = {} if source is None else _overlay(origin, name, bands, source, arguments or {})
            pretrained = _timm_state(encoder, name, bands, overlay, arguments or {})
    except UserError:
        raise
    except Exception as error:  # timm, smp, huggingface_hub and the network raise what they like
        raise UserError(
            f"{origin} cannot be loaded ({_first_line(error)}); put a state dict named {name}.pth in the folder "
            "RSSEGLAB_WEIGHTS, name a file, or ask for random weights with --weights none."
        ) from error
    target: nn.Module = encoder.model if timm.is_model(name) else encoder  # type: ignore[assignment]
    target.load_state_dict({key: pretrained[key] for key in target.state_dict()})


def _timm_state(encoder: Any, name: str, bands: int, overlay: dict[str, Any], arguments: dict[str, Any]) -> State:
    # timm's own loader adapts the first convolution, drops the classifier, renames old keys, resamples positions.
    info: Any = encoder.model.feature_info
    if hasattr(info, "out_indices"):  # the pretrained twin must have the same stages as the encoder that smp built
        arguments = arguments | {"features_only": True, "out_indices": tuple(info.out_indices)}
    else:
        arguments = arguments | {"num_classes": 0}
    model = timm.create_model(name, pretrained=True, in_chans=bands, pretrained_cfg_overlay=overlay, **arguments)
    return dict(model.state_dict())


def _overlay(origin: str, name: str, bands: int, source: Path | State, arguments: dict[str, Any]) -> dict[str, Any]:
    """What timm is to load, once it is known to fit."""
    state = timm.models.load_state_dict(str(source)) if isinstance(source, Path) else dict(source)
    if name in TORCHVISION.values() and "features.0.0.weight" in state:
        state = _from_torchvision(state)
    with torch.device("meta"):
        model: Any = timm.create_model(name, in_chans=bands, **arguments)
    wanted = model.state_dict()
    # timm loads what it finds, and says nothing where that is nothing.
    if not wanted.keys() & state.keys():
        raise UserError(f"{origin} are not of '{name}': no parameter has its name; give another file.")
    first = f"{model.pretrained_cfg.get('first_conv')}.weight"
    if first not in wanted or first not in state:
        return {"state_dict": state}
    had, has = state[first].shape[1], wanted[first].shape[1]
    if had == has:
        return {"state_dict": state, "first_conv": None}  # nothing to adapt
    if had * bands != 3 * has:
        raise UserError(
            f"{origin} are made for {had} bands, and cannot be turned into {bands}; give the {had} bands that they "
            "were made for, or take weights of 3 bands, whose kernels are repeated."
        )
    return {"state_dict": state}


def _from_torchvision(state: State) -> State:
    """A Swin transformer's state, v1 or v2, under timm's names."""
    second = any("cpb_mlp" in key for key in state)
    renamed: State = {}
    for key, value in state.items():
        if key.startswith("head.") or key.endswith(("relative_position_index", "relative_coords_table")):
            continue  # the classifier, and what timm computes
        key = key.replace("features.0.0.", "patch_embed.proj.").replace("features.0.2.", "patch_embed.norm.")
        key = re.sub(r"features\.([1357])\.", lambda m: f"layers.{int(m[1]) // 2}.blocks.", key)
        key = re.sub(r"features\.([246])\.", lambda m: f"layers.{int(m[1]) // 2}.downsample.", key)
        key = key.replace(".mlp.0.", ".mlp.fc1.").replace(".mlp.3.", ".mlp.fc2.")
        if second and key.endswith("qkv.bias"):  # v2 has no bias for keys
            stem = key.removesuffix("qkv.bias")
            renamed[f"{stem}q_bias"], _, renamed[f"{stem}v_bias"] = value.chunk(3)
        else:
            renamed[key] = value
    return renamed


def _smp_state(name: str, bands: int, source: Path | State | None) -> State:
    """The state of smp's own encoder with the weights in it, its first convolution adapted by smp."""
    if source is None:
        return dict(smp.encoders.get_encoder(name, in_channels=bands, weights="imagenet").state_dict())
    model = smp.encoders.get_encoder(name, weights=None)
    model.load_state_dict(timm.models.load_state_dict(str(source)) if isinstance(source, Path) else source)
    model.set_in_channels(bands, pretrained=True)
    return dict(model.state_dict())


def local_weights(name: str) -> Path | None:
    """The file of an encoder's pretrained weights in the folder ``RSSEGLAB_WEIGHTS``, if there is one."""
    return next((path for ending in ENDINGS if (path := _local(f"{name}{ending}"))), None)


def _local(file: str) -> Path | None:
    folder = os.environ.get("RSSEGLAB_WEIGHTS")
    path = Path(folder) / file if folder else None
    return path if path and path.is_file() else None


def _weights_file(name: str, weights: str | Path) -> Path | None:
    if weights == "pretrained":
        return local_weights(name)
    path = Path(weights)
    if not path.is_file():
        raise UserError(f"no weights at {path}; name a file, 'pretrained', or 'none'.")
    return path


def _torchgeo_default(name: str) -> str:
    weights = _weights_enum(name)
    if not weights:
        raise UserError(
            f"torchgeo has no weights of '{name}'; name a file, or ask for random ones with --weights none."
        )
    return str(next(iter(weights)))


def _torchgeo_state(weights: str, name: str) -> State | Path:
    from torchgeo.models import get_weight, list_models  # torchgeo takes seconds to import

    try:
        entry = get_weight(weights)
    except (ValueError, KeyError, AttributeError):
        names = [str(w) for model in list_models() if (enum := _weights_enum(model)) for w in enum]
        raise unknown("torchgeo weights", weights, names) from None
    model = next(m for m in list_models() if entry in (_weights_enum(m) or ()))
    wanted = TORCHVISION.get(model, model)
    if wanted != name:
        raise UserError(f"weights {weights} are for the encoder '{wanted}', not '{name}'.")
    file = Path(entry.url).name
    if path := _local(file):
        return path
    try:
        state: State = entry.get_state_dict(progress=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"weights {weights} cannot be downloaded ({_first_line(error)}); fetch {entry.url} by hand into the folder "
            "RSSEGLAB_WEIGHTS or name the file, or ask for random weights with --weights none."
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
