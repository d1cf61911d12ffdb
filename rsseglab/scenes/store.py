"""Where data sets lie, whether they are whole, and how to get them: ``rsseglab data list | show | verify | get``.

A data set is a folder with its manifest's name, in ``RSSEGLAB_DATA`` or else in ``~/.cache/rsseglab``. The
synthetic one is made in the cache when it is first asked for.
"""

import errno
import hashlib
import os
import re
import tarfile
import tempfile
import textwrap
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from rsseglab.errors import UserError
from rsseglab.scenes.manifest import DataFile, Manifest, load_manifest, manifest_folder, manifest_names

_CHUNK = 1 << 20
_TIMEOUT_S = 60
_SYNTHETIC = "synthetic"


# --- Where -----------------------------------------------------------------------------------------------------


def data_folders() -> list[Path]:
    """The folders that data sets are looked for in: ``RSSEGLAB_DATA``, where set, then the cache."""
    given = os.environ.get("RSSEGLAB_DATA")
    return [*([Path(given).expanduser()] if given else []), Path.home() / ".cache" / "rsseglab"]


def data_present(name: str) -> Path | None:
    """The folder of a data set, None when there is none or an empty one."""
    for folder in data_folders():
        if (folder / name).is_dir() and any((folder / name).iterdir()):
            return folder / name
    return None


def find_data(manifest: Manifest) -> Path:
    """The folder of a data set; the synthetic one is made on demand, one's own may lie beside its manifest.

    Raises:
        UserError: the data set is not on this machine.
    """
    present = data_present(manifest.name)
    if manifest.name == _SYNTHETIC:
        return _make_synthetic(present)
    if present is None and manifest.path.parent.resolve() != manifest_folder().resolve():
        return manifest.path.parent
    if present is None:
        places = " or ".join(str(folder / manifest.name) for folder in data_folders())
        raise UserError(f"{manifest.name} is not in {places}; 'rsseglab data get {manifest.name}' says how to get it.")
    return present


def _make_synthetic(present: Path | None) -> Path:
    from rsseglab.scenes.synthetic import ensure_synthetic  # costs a moment, and few ask

    # The cache comes first; where it cannot be written to, RSSEGLAB_DATA is the way out.
    places = [present] if present else [folder / _SYNTHETIC for folder in reversed(data_folders())]
    for place in places:
        try:
            ensure_synthetic(place)
            return place
        except UserError as error:
            failure = error
    raise failure


# --- Whole? ------------------------------------------------------------------------------------------------


def verify(manifest: Manifest, root: Path) -> list[tuple[DataFile, str]]:
    """Compare a data set's files with its manifest.

    Args:
        manifest: lists the files.
        root: the data set's folder.

    Returns:
        For each file "ok", "missing", "wrong size", "wrong sum", "no sum known", or "unpacked" for an archive
        that is gone but whose content is there.
    """
    total = sum((root / file.path).stat().st_size for file in manifest.files if (root / file.path).is_file())
    with _bar(total, f"checking {manifest.name}") as bar:
        return [(file, _state(file, root, bar)) for file in manifest.files]


def _state(file: DataFile, root: Path, bar: "tqdm[Any]") -> str:
    path = root / file.path
    if not path.is_file():
        return "unpacked" if file.unpacks_to and (root / file.unpacks_to).exists() else "missing"
    size = path.stat().st_size
    if file.bytes is not None and size != file.bytes:
        bar.update(size)
        return "wrong size"
    if file.checksum is None:
        bar.update(size)
        return "ok" if file.bytes else "no sum known"
    algorithm, expected = file.checksum
    return "ok" if _checksum(path, algorithm, bar) == expected else "wrong sum"


def _checksum(path: Path, algorithm: str, bar: "tqdm[Any]") -> str:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                bar.update(len(chunk))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}); mend its permissions or fetch it again.") from error
    return digest.hexdigest()


def _complain(manifest: Manifest, root: Path, states: Sequence[tuple[DataFile, str]]) -> None:
    """One error for all that is amiss; names the first file and the key that it contradicts."""
    bad = [(file, state) for file, state in states if state in _BAD]
    if not bad:
        return
    file, state = bad[0]
    key = {"missing": "path", "wrong size": "bytes", "wrong sum": file.checksum[0] if file.checksum else ""}[state]
    where = f"key files[{manifest.files.index(file)}].{key} of {manifest.path.name}"
    more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
    remedy = "fetch it" if state == "missing" else "remove it and fetch it again"
    raise UserError(f"{root / file.path}: {state} ({where}){more}; {remedy}, see 'rsseglab data get {manifest.name}'.")


_BAD = ("missing", "wrong size", "wrong sum")


# --- Get -------------------------------------------------------------------------------------------------------


def get(manifest: Manifest) -> Path | None:
    """Fetch, check and unpack what the source lets anyone download; what was put there by hand is unpacked too.

    Args:
        manifest: lists files with addresses.

    Returns:
        The data set's folder; None when something is left to fetch by hand (`by_hand` says what).

    Raises:
        UserError: a download fails or has a wrong sum, an archive is damaged or leaves its folder, or the disk
            is full. A broken download stays as ``FILE.part`` and goes on where it stopped.
    """
    if manifest.name == _SYNTHETIC:
        return find_data(manifest)
    root = data_present(manifest.name) or data_folders()[0] / manifest.name
    for i, file in enumerate(manifest.files):
        if file.url and not _have(file, root):
            _download(manifest, i, root)
    states = verify(manifest, root)
    _complain(manifest, root, [(file, state) for file, state in states if state != "missing"])
    for file, _ in states:
        if file.unpacks_to and (root / file.path).is_file() and not (root / file.unpacks_to).exists():
            unpack(root / file.path, root)
    complete = bool(states) and all(state != "missing" for _, state in states)
    return root if complete or (not states and data_present(manifest.name)) else None


def by_hand(manifest: Manifest) -> str:
    """What to fetch by hand, from which page, and where to put it."""
    folder = data_present(manifest.name) or data_folders()[0] / manifest.name
    return f"{manifest.get}\n\nPage:   {manifest.page}\nFolder: {folder}"


def _have(file: DataFile, root: Path) -> bool:
    return (root / file.path).is_file() or bool(file.unpacks_to and (root / file.unpacks_to).exists())


def _download(manifest: Manifest, i: int, root: Path) -> None:
    file = manifest.files[i]
    path = root / file.path
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fetch(str(file.url), part, file.path)
    except (urllib.error.URLError, HTTPException, OSError, ValueError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC
        remedy = "free some space" if full else f"try again later, or fetch it by hand from {manifest.page}"
        raise UserError(f"{file.url} cannot be fetched to {path} ({error}); {remedy}.") from error
    with _bar(part.stat().st_size, f"checking {file.path}") as bar:
        state = _state(DataFile(part.name, file.sha256, file.md5, file.bytes), part.parent, bar)
    if state in _BAD:
        part.unlink()
        _complain(manifest, root, [(file, state)])
    part.replace(path)


def fetch(url: str, part: Path, what: str) -> None:
    """Download to a file; what is there already is not asked for again, where the server can do that."""
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "rsseglab", "Range": f"bytes={start}-"})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not start:  # 416: the part is as long as the file, or longer
            raise
        part.unlink()
        return fetch(url, part, what)
    with response:
        goes_on = response.status == 206 and start > 0
        length = int(response.headers.get("Content-Length") or 0)
        total = length + (start if goes_on else 0)
        with part.open("ab" if goes_on else "wb") as file, _bar(total, f"fetching {what}") as bar:
            bar.update(start if goes_on else 0)
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    if total and part.stat().st_size < total:
        raise HTTPException(f"the connection broke after {part.stat().st_size} of {total} bytes")


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip or tar archive into a folder: all of it, or nothing.

    Args:
        archive: the file.
        folder: gets its content; existing files of the same names are replaced.

    Raises:
        UserError: a member would land outside the folder, the archive is damaged or of another kind, or the
            disk is full; nothing is left behind.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".unpacking-") as aside:
            _extract(archive, Path(aside))
            found = sorted(Path(aside).rglob("*"))
            for path in found:  # before anything is moved
                target = folder / path.relative_to(aside)
                if target.exists() and target.is_dir() != path.is_dir():
                    kinds = ("folder", "file") if path.is_dir() else ("file", "folder")
                    raise UserError(
                        f"{archive} has a {kinds[0]} {path.name} where {target} is a {kinds[1]}; move that away."
                    )
            for path in found:
                target = folder / path.relative_to(aside)
                if path.is_dir():
                    target.mkdir(exist_ok=True)
                else:
                    path.replace(target)
    except tarfile.FilterError as error:
        raise _escape(archive, str(error)) from error
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise UserError(f"{archive} is damaged ({error}); remove it and fetch it again.") from error
    except OSError as error:
        raise UserError(f"{archive} cannot be unpacked to {folder} ({error}); free some space.") from error


def _extract(archive: Path, folder: Path) -> None:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            members = zipped.infolist()
            for member in members:
                _check_member(archive, member.filename)
            for member in tqdm(members, desc=f"unpacking {archive.name}", unit="file", disable=None):
                zipped.extract(member, folder)
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as tar:
            for name in tar.getnames():
                _check_member(archive, name)
            tar.extractall(folder, filter="data")
            while tar.fileobj and tar.fileobj.read(_CHUNK):  # a compressed stream has its sum at the end
                pass
    else:
        raise UserError(f"{archive} is no zip or tar archive, or is cut short; remove it and fetch it again.")


def _check_member(archive: Path, name: str) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", name):
        raise _escape(archive, f"member {name!r}")


def _escape(archive: Path, what: str) -> UserError:
    return UserError(f"{archive} would write outside its folder ({what}); do not use it, fetch it from its source.")


def _bar(total: int, what: str) -> "tqdm[Any]":
    # disable=None: no bar where standard error is no terminal.
    return tqdm(total=total or None, desc=what, unit="B", unit_scale=True, unit_divisor=1024, disable=None)


# --- The command -------------------------------------------------------------------------------------------


def data_command(action: str, name: str | None = None) -> None:
    """``rsseglab data ACTION [NAME]``: prints to standard output.

    Args:
        action: "list", "show", "verify" or "get".
        name: of a data set, or the path of a manifest.

    Raises:
        UserError: the name is missing or unknown, or files are missing or wrong.
    """
    if action == "list":
        return _print_list()
    if action == "verify":
        return _print_verify([load_manifest(name)] if name else [load_manifest(one) for one in manifest_names()], name)
    if name is None:
        raise UserError(f"'rsseglab data {action}' needs the name of a data set: {', '.join(manifest_names())}.")
    manifest = load_manifest(name)
    if action == "show":
        print(describe(manifest))
    elif action == "get":
        folder = get(manifest)
        print(by_hand(manifest) if folder is None else f"{manifest.name} is in {folder}.")
    else:
        raise UserError(f"there is no 'rsseglab data {action}'; there are list, show, verify and get.")


def _print_list() -> None:
    rows = [("name", "scenes", "get", "here", "title")]
    for name in manifest_names():
        manifest = load_manifest(name)
        here = data_present(name)
        rows.append((name, _counts(manifest), _way(manifest), str(here.parent) if here else "-", manifest.title))
    print(_table(rows))
    print("\nMore on one of them: rsseglab data show NAME")


def _counts(manifest: Manifest) -> str:
    return ", ".join(f"{split} {_count(ids)}" for split, ids in manifest.splits.items() if "/" not in split)


def _count(identifiers: Sequence[str]) -> str:
    return "*" if any("*" in one for one in identifiers) else str(len(identifiers))


def _way(manifest: Manifest) -> str:
    if manifest.name == _SYNTHETIC:
        return "made here"
    urls = [file.url for file in manifest.files]
    return "download" if urls and all(urls) else "by hand"


def _print_verify(manifests: Sequence[Manifest], name: str | None) -> None:
    present = [(manifest, find_data(manifest) if name else data_present(manifest.name)) for manifest in manifests]
    checked = [(manifest, root, verify(manifest, root)) for manifest, root in present if root]
    rows = [("data set", "file", "state")]
    for manifest, _, states in checked:
        rows += [(manifest.name, file.path, state) for file, state in states]
        if not states:
            rows.append((manifest.name, "-", "no sums are published"))
    print(_table(rows) if checked else f"no data set in {' or '.join(map(str, data_folders()))}")
    for manifest, root, states in checked:
        _complain(manifest, root, states)


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def describe(manifest: Manifest) -> str:
    """All that a manifest says, for people."""
    unknown = "not known here; see the page"
    facts = {
        "page": manifest.page,
        "licence": manifest.licence or unknown,
        "credit": manifest.credit or unknown,
        "bands": _shorten(manifest.bands) + (f" ({manifest.dtype})" if manifest.dtype else ""),
        "GSD": f"{manifest.gsd_m:g} m" if manifest.gsd_m else unknown,
        "sizes": _shorten([f"{key} {w} x {h} px" for key, (w, h) in manifest.sizes.items()]) or unknown,
        "here": str(data_present(manifest.name) or "no"),
    }
    lines = [f"{manifest.name}: {manifest.title}", ""]
    lines += [_wrap(fact, f"{key:<9}", " " * 9) for key, fact in facts.items()]
    lines += ["", "Classes (value in the label, colour, name)"]
    lines += [f"  {c.value:>3}  #{c.color[0]:02x}{c.color[1]:02x}{c.color[2]:02x}  {c.name}" for c in manifest.classes]
    lines += [f"  {value:>3}  {'':7}  ignored" for value in manifest.ignore_values]
    lines += ["", "Splits"]
    for split, identifiers in manifest.splits.items():
        lines.append(_wrap(_shorten(identifiers), f"  {f'{split} ({_count(identifiers)})':<20}", " " * 22))
    lines += ["", "Before comparing numbers"]
    lines += [_wrap(trap, "  - ", "    ") for trap in manifest.traps]
    return "\n".join([*lines, "", "How to get it", textwrap.indent(manifest.get, "  ")])


def _wrap(text: str, first: str, other: str) -> str:
    return textwrap.fill(text, 100, initial_indent=first, subsequent_indent=other, break_long_words=False)


def _shorten(many: Sequence[str], most: int = 8) -> str:
    return ", ".join([*many[:most], *(["..."] if len(many) > most else [])])
