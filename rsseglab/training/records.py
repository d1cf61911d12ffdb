"""Run records: one small JSON a run, from which every number in the book comes.

A record says what was run (command, configuration and its hash, seeds), on what (package versions, hardware, commit),
how long, and with which result. It is strict JSON (NaN is null), written whole or not at all, and checked against
`SCHEMA` when written and when read. It holds nothing of the machine's own: absolute paths are cut to their last part,
and neither user nor host is ever asked for.

A record carries two hashes. ``configuration_sha256`` tells which runs were made alike; ``content_sha256``, of all else
in the record, tells one that was edited by hand. Records that are older than the second one do without it: of them
only an edited configuration is noticed.
"""

import hashlib
import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any, Self

import numpy as np

from rsseglab.errors import UserError

SCHEMA_VERSION = 1

#: Packages beside this one whose version may change a result.
PACKAGES = (
    "torch", "torchvision", "torchgeo", "lightning", "segmentation-models-pytorch", "timm", "kornia",
    "torchmetrics", "numpy", "scipy", "rasterio",
)  # fmt: skip

#: JSON Schema (draft 2020-12) of a record. Null among the metrics is a score that is not defined.
SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "rsseglab run record",
    "type": "object",
    "additionalProperties": False,
    "required": [
        "schema_version", "created", "command", "configuration", "configuration_sha256", "seeds", "minutes",
        "metrics", "packages", "hardware", "git_commit",
    ],
    "properties": {
        "schema_version": {"type": "integer", "const": SCHEMA_VERSION},
        "created": {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$"},
        "command": {"type": "string"},
        "configuration": {"type": "object"},
        "configuration_sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
        "content_sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
        "seeds": {"type": "array", "items": {"type": "integer"}},
        "minutes": {"type": "number", "minimum": 0},
        "metrics": {
            "type": "object",
            "additionalProperties": False,
            "required": ["pooled", "scenes"],
            "properties": {
                "pooled": {"type": "object"},
                "scenes": {"type": "object", "additionalProperties": {"type": "object"}},
            },
        },
        "packages": {
            "type": "object",
            "required": ["python", "rsseglab"],
            "additionalProperties": {"type": "string"},
        },
        "hardware": {
            "type": "object",
            "additionalProperties": False,
            "required": ["cpu", "cores", "memory_mib", "accelerator", "accelerator_memory_mib"],
            "properties": {
                "cpu": {"type": "string"},
                "cores": {"type": "integer", "minimum": 1},
                "memory_mib": {"type": ["integer", "null"], "minimum": 0},
                "accelerator": {"type": ["string", "null"]},
                "accelerator_memory_mib": {"type": ["integer", "null"], "minimum": 0},
            },
        },
        "git_commit": {"type": ["string", "null"], "pattern": "^[0-9a-f]{40}(-dirty)?$"},
    },
}  # fmt: skip


def created_now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def package_versions() -> dict[str, str]:
    """Versions of Python, of this package, and of those of `PACKAGES` that are installed."""
    from rsseglab import __version__

    versions = {"python": platform.python_version(), "rsseglab": __version__}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def hardware() -> dict[str, Any]:
    """Processor, usable cores, memory in MiB, and the accelerator that torch would use."""
    import torch

    accelerator, accelerator_memory_mib = None, None
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        accelerator, accelerator_memory_mib = properties.name, properties.total_memory // 2**20
    elif torch.backends.mps.is_available():
        accelerator = "Apple MPS"
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)  # not on macOS, Windows
    return {
        "cpu": _cpu_model(),
        "cores": len(affinity(0)) if affinity else os.cpu_count() or 1,
        "memory_mib": _memory_mib(),
        "accelerator": accelerator,
        "accelerator_memory_mib": accelerator_memory_mib,
    }


def git_commit() -> str | None:
    """Commit of this library's checkout, with "-dirty" after local changes; None for an installed package."""
    here = Path(__file__)
    # A virtual environment may lie inside another project's repository: only one that tracks this file counts.
    if _output("git", "-C", str(here.parent), "ls-files", "--error-unmatch", here.name) is None:
        return None
    git = ("git", "-C", str(here.parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    return _output(*git)


@dataclass(frozen=True)
class RunRecord:
    """One run. Values are made portable and plain when it is built, so it equals what is read back.

    Attributes:
        command: what was typed, as a list of arguments or one line.
        configuration: everything the result depends on, beside code and data.
        metrics: ``{"pooled": {...}, "scenes": {name: {...}}}``, such as from `Evaluation.metrics`; NaN becomes None.
        seeds: of everything random.
        minutes: wall-clock time of the run.
        packages: versions, see `package_versions`.
        hardware: see `hardware`.
        git_commit: see `git_commit`.
        created: UTC, such as ``2025-01-31T12:00:00Z``.
    """

    command: str | Sequence[str]
    configuration: Mapping[str, Any]
    metrics: Mapping[str, Any]
    seeds: Sequence[int]
    minutes: float
    packages: Mapping[str, str] = field(default_factory=package_versions)
    hardware: Mapping[str, Any] = field(default_factory=hardware)
    git_commit: str | None = field(default_factory=git_commit)
    created: str = field(default_factory=created_now)

    def __post_init__(self) -> None:
        arguments = shlex.split(self.command) if isinstance(self.command, str) else self.command
        object.__setattr__(self, "command", shlex.join(portable(list(arguments))))
        for name in ("configuration", "metrics", "seeds", "minutes", "packages", "hardware"):
            object.__setattr__(self, name, portable(getattr(self, name)))

    @property
    def configuration_sha256(self) -> str:
        """SHA-256 of the configuration as canonical JSON: keys sorted, no spaces, ASCII."""
        return _sha256(self.configuration)

    def to_json(self) -> dict[str, Any]:
        """The record in plain types, as in `SCHEMA`."""
        content = asdict(self) | {
            "schema_version": SCHEMA_VERSION,
            "configuration_sha256": self.configuration_sha256,
        }
        content = {key: content[key] for key in SCHEMA["required"]}
        return content | {"content_sha256": _sha256(content)}

    def write(self, path: str | Path) -> None:
        """Write the record; a reader, or a power cut, finds the old file or the new one, never a part.

        Raises:
            UserError: the record does not follow `SCHEMA`, or the file cannot be written.
        """
        path = Path(path)
        content = self.to_json()
        validate(content, SCHEMA, str(path))
        text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_atomically(path, text)
        except OSError as error:
            raise UserError(
                f"{path} cannot be written ({error.strerror}); free some space or choose another folder."
            ) from error

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a record and check it.

        Raises:
            UserError: the file is missing, is no strict JSON, does not follow `SCHEMA`, or its configuration or its
                content is not the one that was hashed.
        """
        path = Path(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path} is no JSON: {error.msg} in line {error.lineno}; write the record again."
            ) from error
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is no UTF-8 text; give a run record.") from error
        except ValueError as error:
            raise UserError(f"{path} is no strict JSON: it holds {error}; write null instead.") from error
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); check the path.") from error
        validate(content, SCHEMA, str(path))
        values = {key: value for key, value in content.items() if key in cls.__dataclass_fields__}
        record = cls(**values)
        if record.configuration_sha256 != content["configuration_sha256"]:
            raise UserError(
                f"{path}: key 'configuration' is not the one that was run (its hash is another); run it again."
            )
        written = content.pop("content_sha256", None)
        if written not in (None, _sha256(content)):
            raise UserError(f"{path} was edited after it was written (its hash is another); run it again.")
        return record


def _sha256(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def validate(content: Any, schema: Mapping[str, Any], file: str, key: str = "") -> None:
    """Check plain JSON types against the part of JSON Schema that `SCHEMA` uses.

    Args:
        content: what `json.loads` gives.
        schema: a JSON Schema of type, const, pattern, minimum, required, properties, additionalProperties and items.
        file: named in errors.
        key: where the content lies in the file, such as ``hardware.cores``.

    Raises:
        UserError: names the file, the key, what is wrong and what is expected.
    """

    def fail(cause: str, remedy: str) -> UserError:
        return UserError(f"{file}: key '{key}' {cause}; {remedy}." if key else f"{file}: it {cause}; {remedy}.")

    if "const" in schema and content != schema["const"]:
        raise fail(f"is {content!r}, not {schema['const']!r}", "read it with the version of rsseglab that wrote it")
    types = schema.get("type", [])
    types = [types] if isinstance(types, str) else types
    if types and not any(_TYPES[name](content) for name in types):
        raise fail(f"is {json.dumps(content)[:40]}", f"it must be {' or '.join(types)}")
    if "pattern" in schema and isinstance(content, str) and not re.search(schema["pattern"], content):
        raise fail(f"is {content!r}", f"it must match {schema['pattern']}")
    if "minimum" in schema and content is not None and content < schema["minimum"]:
        raise fail(f"is {content}", f"it must be at least {schema['minimum']}")
    if isinstance(content, list):
        for i, item in enumerate(content):
            validate(item, schema.get("items", {}), file, f"{key}[{i}]")
    if isinstance(content, dict):
        for name in schema.get("required", []):
            if name not in content:
                raise fail(f"has no '{name}'", "add it, or write the record again")
        properties, rest = schema.get("properties", {}), schema.get("additionalProperties", {})
        for name, value in content.items():
            if rest is False and name not in properties:
                raise fail(f"has an unknown '{name}'", "remove it")
            validate(value, properties.get(name, rest or {}), file, f"{key}.{name}" if key else name)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "number": _is_number,
    "integer": lambda value: _is_number(value) and value == int(value),
    "null": lambda value: value is None,
}


def portable(value: Any) -> Any:
    """Turn a value into plain JSON types that mean the same on any machine.

    NumPy numbers and arrays, tuples and mappings become plain; NaN and infinity become None; paths become texts, and
    absolute paths, alone or inside a text, are cut (see `portable_path`).

    Raises:
        UserError: the value has no JSON form.
    """
    match value:
        case None | bool() | int():
            return value
        case str():
            return _portable_text(value)
        case PurePath():
            return _portable_text(str(value))
        case float():
            return float(value) if math.isfinite(value) else None
        case np.generic() | np.ndarray():
            return portable(value.tolist())
        case Mapping():
            return {portable(str(key)): portable(item) for key, item in value.items()}
        case list() | tuple():
            return [portable(item) for item in value]
    raise UserError(f"a run record cannot hold a {type(value).__name__}; give numbers, texts, lists or mappings.")


def portable_path(path: str) -> str:
    """Make an absolute path relative to the working directory; one that lies elsewhere keeps its last part only."""
    here, home = Path.cwd(), Path.home()
    if path == str(home):
        return "~"
    # Seen from above the home folder, a relative path would begin with the user's name.
    if Path(path).is_relative_to(here) and here not in home.parents:
        return Path(path).relative_to(here).as_posix()
    return (PureWindowsPath if "\\" in path else PurePosixPath)(path).name


_ROOT = r"(?:~[\w.-]*|[A-Za-z]:)?[/\\]"  # /, ~/, ~user/, C:\
# A text that is one path, which may hold spaces, or an option with one (--out=/a/b).
_PATH = re.compile(rf"(-[\w-]+=)?((?:file:/*(?=/))?{_ROOT}.*)")
# A path inside a text, up to a space or a quote; not the end of a relative path or of a URL.
_PATH_IN_TEXT = re.compile(rf"(?:file:/*(?=/)|(?<![\w.:/\\~*-])){_ROOT}[^\s'\",;|)\]]+")


def _portable_text(text: str) -> str:
    if whole := _PATH.fullmatch(text):
        return (whole[1] or "") + portable_path(whole[2])
    return _PATH_IN_TEXT.sub(lambda found: portable_path(found[0]), text)


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def _write_atomically(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # the content before the name
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _cpu_model() -> str:
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _memory_mib() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    except (AttributeError, OSError, ValueError):  # Windows
        return None


def _output(*command: str) -> str | None:
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip() or None
