"""The published settings of all papers, by the names that ``rsseglab train --preset`` takes."""

from importlib import import_module
from typing import Any

from rsseglab.errors import UserError

#: What a preset's name begins with -> the module whose ``PUBLISHED`` has it.
MODULES = {
    "rest": "rsseglab.rest.preset",
    "fctl": "rsseglab.fctl.preset",
    "bicor": "rsseglab.bicor_seg.preset",
    "penet": "rsseglab.penet.preset",
}


def published(name: str) -> dict[str, Any]:
    """Settings of a preset, as options of ``rsseglab train``.

    Raises:
        UserError: there is no such preset.
    """
    family = name.partition("-")[0]
    known: dict[str, dict[str, Any]] = {}
    for module in [MODULES[family]] if family in MODULES else MODULES.values():
        known |= import_module(module).PUBLISHED
    if name not in known:
        raise UserError(f"unknown preset '{name}'; choose one of {', '.join(known)}.")
    return dict(known[name])
