"""The published settings of all papers, by the names that ``rsseglab train --preset`` takes.

A preset is a file beside its paper's package, ``rsseglab/PAPER/presets/NAME.toml``: what was published and where it was
found as comments; what differs here; and the settings, as options of ``rsseglab train``. Nothing heavy is imported.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rsseglab
from rsseglab.errors import UserError


@dataclass(frozen=True)
class TrainPreset:
    """Published settings.

    Attributes:
        name: of the file.
        paper: name of its package.
        settings: options of ``rsseglab train`` by name, and ``warmup_steps``, which is none.
        differs: what a run of it does otherwise than was published.
        row: ``table`` and ``method`` of the published numbers (`rsseglab.evaluation.published`) that a run of it stands
            beside, and ``class`` where it is of one class; its data set is that of the settings. None where there is
            none.
        first_stage: preset of the run whose checkpoint it starts from.
        test: how test scenes are labelled and scored: ``overlap``, ``blend`` and ``placement`` of windows, ``protocol``
            and ``no_boundary_px`` of the scores.
    """

    name: str
    paper: str
    settings: Mapping[str, Any]
    differs: tuple[str, ...]
    row: Mapping[str, str] | None = None
    first_stage: str | None = None
    test: Mapping[str, Any] = field(default_factory=dict)


def _files() -> dict[str, Path]:
    return {path.stem: path for path in sorted(Path(rsseglab.__file__).parent.glob("*/presets/*.toml"))}


def preset_names() -> tuple[str, ...]:
    """The names of all presets."""
    return tuple(_files())


def load_preset(name: str) -> TrainPreset:
    """A preset by its name.

    Raises:
        UserError: there is no such preset.
    """
    files = _files()
    if name not in files:
        family = [other for other in files if other.partition("-")[0] == name.partition("-")[0]]
        raise UserError(f"unknown preset '{name}'; choose one of {', '.join(family or files)}.")
    content = tomllib.loads(files[name].read_text(encoding="utf-8"))
    return TrainPreset(name, **content | {"differs": tuple(content["differs"])})


def check_first_stage(preset: TrainPreset) -> None:
    """Called where a run by a preset has no checkpoint to start from.

    Raises:
        UserError: the preset needs one; the command that makes it is named.
    """
    if preset.first_stage is None:
        return
    its = {key: preset.settings[key] for key in ("data", "encoder", "weights", "decoder")}
    options = " ".join(f"--{key} {value}" for key, value in its.items())
    raise UserError(
        f"{preset.name} is the second of two stages; run 'rsseglab train --preset {preset.first_stage} {options} "
        f"--out runs/{preset.name}-stage1', then give --init runs/{preset.name}-stage1/best.ckpt."
    )
