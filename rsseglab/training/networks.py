"""Networks by the name of the method that makes them.

The papers stand above training in this house, so a method's maker is found by its name when it is asked for: a
checkpoint names its method, and loading it needs no more than that.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from torch import nn

from rsseglab.errors import UserError

#: method -> module and function; called with encoder, decoder, bands, classes, weights, and the method's options.
METHODS = {
    "stock": ("rsseglab.decoders", "create_network"),
    "rest": ("rsseglab.rest.model", "create_rest"),
    "fctl": ("rsseglab.fctl.model", "create_fctl"),
    "bicor_seg": ("rsseglab.bicor_seg.model", "create_bicor_seg"),
    "penet": ("rsseglab.penet.model", "create_penet"),
    "refinement": ("rsseglab.fctl.refinement", "create_refinement"),
}
#: Methods whose networks take windows of any size; all others want multiples of 32 px.
ANY_SIZE = ("fctl", "refinement")


def build_network(
    method: str,
    encoder: str,
    decoder: str,
    bands: int,
    classes: int,
    weights: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build the network of a method.

    Args:
        method: a key of `METHODS`.
        encoder: name, see `rsseglab.encoders`.
        decoder: name, see `rsseglab.decoders`.
        bands: number of input bands.
        classes: number of classes K.
        weights: of the encoder.
        options: the method's own.

    Raises:
        UserError: there is no such method, or it can't be built so.
    """
    if method not in METHODS:
        raise UserError(f"unknown method '{method}'; choose one of {', '.join(METHODS)}.")
    module, name = METHODS[method]
    network: nn.Module = getattr(import_module(module), name)(
        encoder, decoder, bands, classes, weights, **(options or {})
    )
    return network


def load_weights_of(network: nn.Module, earlier: nn.Module) -> None:
    """Take the weights of a network that was trained before.

    Raises:
        UserError: it is another network.
    """
    try:
        network.load_state_dict(earlier.state_dict())
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"the checkpoint is of another network ({reason} ...); give one that was trained with this encoder and "
            "decoder."
        ) from error
