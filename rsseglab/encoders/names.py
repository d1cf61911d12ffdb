"""Names of encoders, and the arguments that let timm's models take images of any size."""

import difflib
import inspect
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from torch import nn

from rsseglab.errors import UserError

#: torchgeo's models that timm has not; they are built in `rsseglab.encoders.foundation`.
FOUNDATION = (
    "dofa_small_patch16_224",
    "dofa_base_patch16_224",
    "dofa_large_patch16_224",
    "dofa_huge_patch14_224",
    "scalemae_large_patch16",
)

#: By these timm's models take images of any size: position embeddings are resampled, windows filled and moved.
ANY_SIZE = {"dynamic_img_size": True, "strict_img_size": False, "always_partition": True}


def _register(name: str) -> None:
    def build(pretrained: bool = False, **arguments: Any) -> nn.Module:
        from rsseglab.encoders.foundation import build_foundation  # torchgeo takes seconds to import

        return build_foundation(name, pretrained, **arguments)

    build.__name__ = name
    timm.models.register_model(build)


for _name in FOUNDATION:
    _register(_name)


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


@cache
def blank(name: str) -> nn.Module:
    """A model of timm without memory, to ask what it is like."""
    try:
        with torch.device("meta"):
            return timm.create_model(name)
    except Exception:  # a few models compute with numbers while they are built
        return timm.create_model(name)


def is_plain_vit(name: str) -> bool:
    """Whether an encoder is a plain vision transformer: all its maps have the stride of its patches."""
    if not timm.is_model(name):
        return False
    model = blank(name)
    return hasattr(model, "patch_embed") and len({stage["reduction"] for stage in _stages(model)}) == 1


def _stages(model: nn.Module) -> list[dict[str, Any]]:
    stages = getattr(model, "feature_info", None)
    return stages if isinstance(stages, list) else []


def encoder_arguments(
    name: str, wavelengths_um: Sequence[float] | None = None, gsd_m: float | None = None
) -> dict[str, Any]:
    """The arguments by which timm builds an encoder for images of any size.

    Args:
        name: the encoder's name.
        wavelengths_um: the centre of each band in micrometres; DOFA alone asks for it.
        gsd_m: ground sampling distance in metres; ScaleMAE alone asks for it.

    Returns:
        Arguments of ``timm.create_model``; none for smp's own encoders.
    """
    if not timm.is_model(name):
        return {}
    model = blank(name)
    known = {key for kind in type(model).__mro__ for key in inspect.signature(kind.__init__).parameters}  # type: ignore[misc]
    arguments: dict[str, Any] = {key: value for key, value in ANY_SIZE.items() if key in known}
    if is_plain_vit(name) and "patch_size" in known and _stages(model)[0]["reduction"] == 14:
        arguments["patch_size"] = 16
    if name.startswith("dofa_"):
        arguments["wavelengths_um"] = wavelengths_um and tuple(wavelengths_um)
    if name.startswith("scalemae_"):
        arguments["gsd_m"] = gsd_m
    return {key: value for key, value in arguments.items() if value is not None}
