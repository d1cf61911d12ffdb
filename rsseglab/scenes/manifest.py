"""Manifests: one TOML file a data set, with all there is to know before using it.

A manifest says where the data come from and under which licence, which files there are and their sums, how
image and label are laid out, the classes, the splits by identifier, and the traps: what to know before a
number from this data set is compared with a published one.

Identifiers and paths. ``[layout]`` gives patterns with fields in braces; an identifier is the values of the
fields, joined by ``/``::

    image = "{part}/{area}/images_png/{name}.png"      "Train/Urban/1366"  ->  Train/Urban/images_png/1366.png

Splits list identifiers, or patterns with ``*`` for all that lie on disk (``"Train/*"``). A table inside
``[splits]`` is another protocol on the same data: ``[splits.crgnet] test = [...]`` is the split "crgnet/test".
Where a data set is a single scene, ``[parts]`` cuts it in identifiers of its own, so that train and test lie apart.
"""

import difflib
import fnmatch
import hashlib
import re
import string
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Self, TypeVar

from rsseglab.errors import UserError
from rsseglab.scenes.scene import LabelClass, Scene, Window

if TYPE_CHECKING:
    from rsseglab.scenes.readers import DataFolder

T = TypeVar("T")


@dataclass(frozen=True)
class DataFile:
    """One file of a data set.

    Attributes:
        path: relative to the data set's folder.
        sha256: its sum, where known.
        md5: likewise; at most one of the two is needed.
        bytes: its size, where known.
        url: where a plain download gets it, where the source allows one.
        unpacks_to: for an archive, a path in the data set's folder that exists once it is unpacked.
    """

    path: str
    sha256: str | None = None
    md5: str | None = None
    bytes: int | None = None
    url: str | None = None
    unpacks_to: str | None = None

    @property
    def checksum(self) -> tuple[str, str] | None:
        """Algorithm and hexadecimal sum, where known."""
        if self.sha256:
            return "sha256", self.sha256
        return ("md5", self.md5) if self.md5 else None


@dataclass(frozen=True)
class Layout:
    """Where image and label of a scene lie, as patterns below the data set's folder.

    Attributes:
        image: one pattern, or one a part of the bands.
        label: pattern of the label; may be absent on disk only for `Manifest.unlabelled` splits.
        image_bands: 1-based numbers of the bands to read; all when None.
        recode: numbers in the label file that stand for another one (``{255: 1}``).
        torchgeo: the class of torchgeo.datasets that reads images and labels; `image` is then the pattern
            of the image paths that this class lists, with ``*`` for folders that are no part of the name.
    """

    image: tuple[str, ...]
    label: str | None
    image_bands: tuple[int, ...] | None = None
    recode: Mapping[int, int] = field(default_factory=dict)
    torchgeo: str | None = None

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields that make an identifier, in order."""
        return tuple(dict.fromkeys(re.findall(r"{(\w+)}", self.image[0])))

    def fill(self, pattern: str, identifier: str) -> str | None:
        """The path that a pattern gives for an identifier; None when that has not one part a field."""
        values = identifier.split("/")
        if len(values) != len(self.fields):
            return None
        return pattern.format(**dict(zip(self.fields, values, strict=True)))

    def identifier(self, path: str, pattern: str | None = None) -> str | None:
        """The identifier for which a pattern (the first image's) gives a path; None when there is none."""
        pattern = re.escape(pattern or self.image[0]).replace(r"\*", "[^/]+")
        for name in self.fields:
            quoted = re.escape(f"{{{name}}}")
            pattern = pattern.replace(quoted, f"(?P<{name}>[^/]+)", 1).replace(quoted, f"(?P={name})")
        match = re.fullmatch(pattern, path)
        return "/".join(match[name] for name in self.fields) if match else None


@dataclass(frozen=True)
class Part:
    """A part of a scene with an identifier of its own.

    Attributes:
        of: the scene's identifier.
        window: where in it, in px.
    """

    of: str
    window: Window


@dataclass(frozen=True)
class Manifest:
    """A data set: its source, files, layout, classes, splits and traps.

    Attributes:
        path: the manifest's own file.
        name: short name, and the name of the data set's folder.
        title: full name.
        page: the source's page.
        get: how to get it where there is no plain download: what to fetch, from where, and where to put it.
        layout: where images and labels lie.
        bands: names of the bands as read.
        classes: classes of the label, index k in memory is ``classes[k]``.
        ignore_values: numbers in the label file that are never trained on and never scored.
        label_encoding: "value" or "color", see `Scene`.
        splits: identifiers (or patterns with ``*``) by split.
        parts: parts of scenes by identifier; those of different splits of a protocol share no pixel.
        traps: what to know before comparing numbers.
        overlaps: groups of identifiers that show the same ground and so must stay in one split.
        unlabelled: splits that are published without labels.
        files: the files, with sums where known.
        sizes: (width, height) in px by identifier, ``*`` for all others.
        licence: what may be done with it, where known.
        credit: whom to name.
        gsd_m: ground sampling distance in metres, where known.
        dtype: NumPy's name of the image's pixel type, where known.
    """

    path: Path
    name: str
    title: str
    page: str
    get: str
    layout: Layout
    bands: tuple[str, ...]
    classes: tuple[LabelClass, ...]
    ignore_values: tuple[int, ...]
    label_encoding: str
    splits: Mapping[str, tuple[str, ...]]
    parts: Mapping[str, Part]
    traps: tuple[str, ...]
    overlaps: tuple[tuple[str, ...], ...]
    unlabelled: tuple[str, ...]
    files: tuple[DataFile, ...]
    sizes: Mapping[str, tuple[int, int]]
    licence: str | None
    credit: str | None
    gsd_m: float | None
    dtype: str | None

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read and check a manifest.

        Raises:
            UserError: the file is missing or no TOML (names the line), a key is missing, unknown or of the
                wrong kind (names the key), or the splits contradict themselves.
        """
        path = Path(path)
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{path} does not exist; see the known data sets with 'rsseglab data list'.") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
            raise UserError(f"{path} is not valid TOML: {error}; correct it there.") from None
        table = _Table(path, content)
        manifest = cls(
            path=path,
            name=table.take("name", _text),
            title=table.take("title", _text),
            page=table.take("page", _text),
            get=table.take("get", _text).strip(),
            layout=_layout(table.table("layout")),
            bands=table.take("bands", _texts),
            classes=tuple(_label_class(one) for one in table.tables("classes")),
            ignore_values=table.take("ignore_values", _ints, ()),
            label_encoding=table.take("label_encoding", _encoding, "value"),
            splits=table.take("splits", _splits),
            parts=table.take("parts", _parts, {}),
            traps=table.take("traps", _texts),
            overlaps=table.take("overlaps", _groups, ()),
            unlabelled=table.take("unlabelled", _texts, ()),
            files=tuple(_data_file(one) for one in table.tables("files", optional=True)),
            sizes=table.take("sizes", _sizes, {}),
            licence=table.take("licence", _text, None),
            credit=table.take("credit", _text, None),
            gsd_m=table.take("gsd_m", _positive, None),
            dtype=table.take("dtype", _text, None),
        )
        table.finish()
        _check(manifest)
        return manifest

    @property
    def sha256(self) -> str:
        """The sum of the manifest's own file: which splits and classes a run was made with."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def identifiers(self, split: str, root: str | Path | None = None) -> list[str]:
        """The identifiers of a split; patterns with ``*`` are looked up on disk.

        Args:
            split: its name.
            root: the data set's folder; looked for (`rsseglab.scenes.store.find_data`) when not given.

        Raises:
            UserError: there is no such split, or nothing of it on disk.
        """
        entries = self.split(split)
        if not any("*" in entry for entry in entries):
            return list(entries)
        return self._on_disk(split, self._open(root))

    def split(self, name: str) -> tuple[str, ...]:
        """A split as the manifest lists it.

        Raises:
            UserError: there is no such split.
        """
        if name not in self.splits:
            raise UserError(
                f"{self.name} has no split {name!r}; its splits: {', '.join(self.splits)}. "
                f"For another one, copy {self.path.name} and give the copy's path as the data set."
            )
        return self.splits[name]

    def is_unlabelled(self, identifier: str) -> bool:
        """Whether a scene is published without a label."""
        entries = [entry for split in self.unlabelled for entry in self.splits[split]]
        return any(fnmatch.fnmatchcase(identifier, entry) for entry in entries)

    def scene(self, identifier: str, root: str | Path | None = None) -> Scene:
        """Open one scene.

        Args:
            identifier: see the splits.
            root: the data set's folder; looked for when not given.

        Raises:
            UserError: the data are not there, or damaged; or there is no such scene.
        """
        return self._scene(self._open(root), identifier)

    def scenes(self, split: str, root: str | Path | None = None) -> list[Scene]:
        """Open the scenes of a split, in the manifest's order.

        Args:
            split: its name.
            root: the data set's folder; looked for when not given.

        Raises:
            UserError: see `scene`; or there is no such split.
        """
        self.split(split)
        data = self._open(root)
        return [self._scene(data, identifier) for identifier in self._on_disk(split, data)]

    def _scene(self, data: "DataFolder", identifier: str) -> Scene:
        if identifier not in self.parts:
            return data.scene(identifier)
        from rsseglab.scenes.views import part_of  # needs scipy, which few data sets do

        part = self.parts[identifier]
        return part_of(data.scene(part.of), part.window, identifier)

    def _on_disk(self, split: str, data: "DataFolder") -> list[str]:
        """A split's identifiers, its patterns replaced by what lies on disk."""
        found: list[str] = []
        for entry in self.split(split):
            found += [one for one in data.identifiers() if fnmatch.fnmatchcase(one, entry)] if "*" in entry else [entry]
        if not found:
            raise UserError(
                f"no scene of {self.name}'s split {split} ({', '.join(self.split(split))}) lies in {data.root}; "
                f"see 'rsseglab data get {self.name}'."
            )
        return list(dict.fromkeys(found))

    def _open(self, root: str | Path | None) -> "DataFolder":
        from rsseglab.scenes import readers, store  # both build on manifests

        return readers.open_folder(self, store.find_data(self) if root is None else Path(root))


def manifest_folder() -> Path:
    """Where the manifests lie: inside an installed package, or at the top of a source checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "data_manifests"
    return installed if installed.is_dir() else package.parent / "data_manifests"


def manifest_names() -> list[str]:
    """The names of the data sets that come with rsseglab."""
    return sorted(path.stem for path in manifest_folder().glob("*.toml"))


def load_manifest(name: str | Path) -> Manifest:
    """Load a data set's manifest.

    Args:
        name: of a data set that comes with rsseglab, or the path of a manifest of your own (``.toml``).

    Raises:
        UserError: there is no such data set, or its manifest is wrong.
    """
    if Path(name).suffix == ".toml":
        return Manifest.load(name)
    names = manifest_names()
    if name not in names:
        raise UserError(f"there is no data set {name!r}{nearest(str(name), names)}; known: {', '.join(names)}.")
    return Manifest.load(manifest_folder() / f"{name}.toml")


def load_protocol(data: str) -> tuple[Manifest, str]:
    """A data set's manifest by "NAME", or "NAME:PROTOCOL", and what its protocol's splits begin with ("PROTOCOL/")."""
    name, _, protocol = data.partition(":")
    return load_manifest(name), f"{protocol}/" if protocol else ""


def nearest(word: str, words: Sequence[str]) -> str:
    """`` (did you mean ...?)`` for a word that is almost one of some others, else nothing."""
    close = difflib.get_close_matches(word, words, n=3)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


# --- From TOML to types ------------------------------------------------------------------------------------


class _Table:
    """A TOML table that is read key by key, and complains with the file's and the key's name."""

    def __init__(self, path: Path, content: Mapping[str, Any], where: str = "") -> None:
        self.path, self.content, self.where = path, content, where
        self.taken: set[str] = set()

    def take(self, key: str, parse: Callable[[Any], T], *default: Any) -> Any:
        """The value of a key, parsed; a default makes the key optional."""
        if not self._has(key, bool(default)):
            return default[0]
        try:
            return parse(self.content[key])
        except ValueError as error:
            raise self.wrong(key, str(error)) from None

    def table(self, key: str) -> "_Table":
        """The table under a key."""
        return _Table(self.path, self.take(key, _dict), f"{self.where}{key}.")

    def tables(self, key: str, optional: bool = False) -> list["_Table"]:
        """The tables under a key."""
        if not self._has(key, optional):
            return []
        many = self.take(key, _list_of(dict, "tables"))
        return [_Table(self.path, one, f"{self.where}{key}[{i}].") for i, one in enumerate(many)]

    def finish(self) -> None:
        """Complain of keys that nobody asked for: most are misspelt."""
        for key in sorted(self.content.keys() - self.taken):
            hint = nearest(key, sorted(self.taken))
            raise UserError(f"{self.path}: the key {self.where}{key} is unknown{hint}; correct or remove it.")

    def wrong(self, key: str, why: str) -> UserError:
        """The error for a value that does not do."""
        return UserError(f"{self.path}: the key {self.where}{key} is wrong ({why}); correct it.")

    def _has(self, key: str, optional: bool) -> bool:
        self.taken.add(key)
        if key not in self.content and not optional:
            raise UserError(f"{self.path}: the key {self.where}{key} is missing; add it.")
        return key in self.content


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("it has to be text")
    return value


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError("it has to be a whole number, 0 or more")
    return value


def _positive(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise ValueError("it has to be a positive number")
    return float(value)


def _dict(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("it has to be a table")
    return value


def _list_of(kind: type, what: str) -> Callable[[Any], tuple[Any, ...]]:
    def parse(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list) or not all(type(one) is kind for one in value):
            raise ValueError(f"it has to be a list of {what}")
        return tuple(value)

    return parse


_texts = _list_of(str, "text")
_ints = _list_of(int, "whole numbers")


def _text_or_texts(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else _texts(value)


def _groups(value: Any) -> tuple[tuple[str, ...], ...]:
    return tuple(_texts(one) for one in _list_of(list, "lists")(value))


def _color(value: Any) -> tuple[int, int, int]:
    color = _ints(value)
    if len(color) != 3 or not all(0 <= c <= 255 for c in color):
        raise ValueError("it has to be red, green, blue, each 0 to 255")
    return (color[0], color[1], color[2])


def _encoding(value: Any) -> str:
    if value not in ("value", "color"):
        raise ValueError('it has to be "value" or "color"')
    return str(value)


def _hexadecimal(digits: int) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(f"[0-9a-f]{{{digits}}}", value):
            raise ValueError(f"it has to be {digits} hexadecimal digits in lower case")
        return value

    return parse


def _relative(value: Any) -> str:
    path = PurePosixPath(_text(value))
    if path.is_absolute() or ".." in path.parts:
        raise ValueError("it has to be a path inside the data set's folder")
    return str(path)


def _sizes(value: Any) -> dict[str, tuple[int, int]]:
    sizes = {key: _ints(size) for key, size in _dict(value).items()}
    if not all(len(size) == 2 and min(size) > 0 for size in sizes.values()):
        raise ValueError("each size has to be [width, height] in px")
    return {key: (size[0], size[1]) for key, size in sizes.items()}


def _recode(value: Any) -> dict[int, int]:
    if not all(key.isdecimal() for key in _dict(value)):
        raise ValueError("each key has to be a number of the label file")
    return {int(key): _whole(to) for key, to in value.items()}


def _splits(value: Any) -> dict[str, tuple[str, ...]]:
    splits: dict[str, tuple[str, ...]] = {}
    for key, entry in _dict(value).items():
        inner = {f"{key}/{name}": ids for name, ids in entry.items()} if isinstance(entry, dict) else {key: entry}
        splits |= {name: _texts(ids) for name, ids in inner.items()}
    return splits


def _parts(value: Any) -> dict[str, Part]:
    parts = {}
    for key, entry in _dict(value).items():
        if not isinstance(entry, dict) or entry.keys() != {"of", "window"} or len(_ints(entry["window"])) != 4:
            raise ValueError('each part has to be { of = "SCENE", window = [row, column, height, width] } in px')
        parts[key] = Part(_text(entry["of"]), Window(*_ints(entry["window"])))
    return parts


def _label_class(table: _Table) -> LabelClass:
    one = LabelClass(table.take("name", _text), table.take("value", _whole), table.take("color", _color))
    table.finish()
    return one


def _pattern(value: Any) -> str:
    pattern = _relative(value)
    for _, name, spec, conversion in string.Formatter().parse(pattern):
        if name is not None and (spec or conversion or not re.fullmatch(r"[A-Za-z]\w*", name)):
            raise ValueError(f"{{{name}}} is no plain field such as {{id}}")
    return pattern


def _patterns(value: Any) -> tuple[str, ...]:
    patterns = tuple(_pattern(one) for one in _text_or_texts(value))
    if not patterns:
        raise ValueError("it names no file")
    return patterns


def _layout(table: _Table) -> Layout:
    layout = Layout(
        image=table.take("image", _patterns),
        label=table.take("label", _pattern, None),
        image_bands=table.take("image_bands", _ints, None),
        recode=table.take("recode", _recode, {}),
        torchgeo=table.take("torchgeo", _text, None),
    )
    table.finish()
    return layout


def _data_file(table: _Table) -> DataFile:
    one = DataFile(
        path=table.take("path", _relative),
        sha256=table.take("sha256", _hexadecimal(64), None),
        md5=table.take("md5", _hexadecimal(32), None),
        bytes=table.take("bytes", _whole, None),
        url=table.take("url", _text, None),
        unpacks_to=table.take("unpacks_to", _relative, None),
    )
    table.finish()
    return one


def _check(manifest: Manifest) -> None:
    """Splits of one protocol share no scene, nor ground; classes have each their own value and name."""
    table = _Table(manifest.path, {})
    if not re.fullmatch(r"\w[\w.-]*", manifest.name):
        raise table.wrong("name", "it has to be a plain word, which is also the folder's name")
    if len(manifest.classes) < 2:
        raise table.wrong("classes", "there have to be two or more")
    if not manifest.bands:
        raise table.wrong("bands", "there has to be one or more")
    strange = set(re.findall(r"{(\w+)}", manifest.layout.label or "")) - set(manifest.layout.fields)
    if strange:
        raise table.wrong("layout.label", f"the image's pattern has no {sorted(strange)}")
    for what in ("name", "value"):
        values = [getattr(one, what) for one in manifest.classes]
        if len(set(values)) < len(values):
            raise table.wrong("classes", f"two have the same {what}")
    both = {one.value for one in manifest.classes} & set(manifest.ignore_values)
    if both:
        raise table.wrong("ignore_values", f"{sorted(both)} are classes as well")
    for name in manifest.unlabelled:
        if name not in manifest.splits:
            raise table.wrong("unlabelled", f"there is no split {name!r}")
    owner: dict[tuple[str, str], str] = {}
    for split, identifiers in manifest.splits.items():
        protocol = split.rpartition("/")[0]
        for one in identifiers:
            if (protocol, one) in owner:
                other = owner[protocol, one]
                raise table.wrong(f"splits.{split}", f"{one} stands twice, here and in {other}")
            owner[protocol, one] = split
    for (protocol, one), split in owner.items():
        for (its, other), where in owner.items():
            if its == protocol and where > split and _share_pixels(manifest.parts.get(one), manifest.parts.get(other)):
                raise table.wrong("parts", f"{one} and {other} overlap but lie in {split} and {where}")
    for group in manifest.overlaps:
        for protocol in {key[0] for key in owner}:
            splits = sorted({owner[protocol, one] for one in group if (protocol, one) in owner})
            if len(splits) > 1:
                raise table.wrong("splits", f"{', '.join(group)} overlap but lie in {' and '.join(splits)}")


def _share_pixels(a: Part | None, b: Part | None) -> bool:
    if a is None or b is None or a.of != b.of:
        return False
    v, w = a.window, b.window
    rows = min(v.row + v.height, w.row + w.height) - max(v.row, w.row)
    cols = min(v.col + v.width, w.col + w.width) - max(v.col, w.col)
    return rows > 0 and cols > 0
