import hashlib
import http.server
import io
import os
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest

from rsseglab.errors import UserError
from rsseglab.scenes import store, synthetic
from rsseglab.scenes.manifest import Manifest, load_manifest

MANIFEST = """\
name = "town"
title = "A town"
page = "https://example.org/town"
get = "Ask for town.zip."
bands = ["red"]
traps = ["Small."]
classes = [{ name = "a", value = 0, color = [0, 0, 0] }, { name = "b", value = 1, color = [9, 9, 9] }]
[layout]
image = "{id}.tif"
[splits]
all = ["x"]
"""


@pytest.fixture
def places(tmp_path, monkeypatch):
    """RSSEGLAB_DATA and a home of our own: (data, cache)."""
    monkeypatch.setenv("RSSEGLAB_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "data", tmp_path / "home" / ".cache" / "rsseglab"


def manifest_with(folder: Path, *files: dict[str, object]) -> Manifest:
    tables = ["\n".join(["[[files]]", *(f"{k} = {v!r}" for k, v in file.items())]) for file in files]
    path = folder / "town.toml"
    path.write_text("\n".join([MANIFEST, *tables]))
    return Manifest.load(path)


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def tarred(members: dict[str, bytes], link: tuple[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
        if link:
            info = tarfile.TarInfo(link[0])
            info.type, info.linkname = tarfile.SYMTYPE, link[1]
            file.addfile(info)
    return buffer.getvalue()


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- Where


def test_data_is_looked_for_in_order(places):
    data, cache = places
    manifest = load_manifest("dubai")
    with pytest.raises(UserError, match=r"dubai is not in .*data/dubai or .*rsseglab/dubai; 'rsseglab data get dubai'"):
        store.find_data(manifest)
    put(cache / "dubai" / "a", b"")
    assert store.find_data(manifest) == cache / "dubai"
    (data / "dubai").mkdir(parents=True)  # empty: not there
    assert store.find_data(manifest) == cache / "dubai"
    put(data / "dubai" / "a", b"")
    assert store.find_data(manifest) == data / "dubai"


def test_the_cache_alone(places, monkeypatch):
    monkeypatch.delenv("RSSEGLAB_DATA")
    assert store.data_folders() == [places[1]]


def test_the_synthetic_data_set_is_made_when_asked_for(places, monkeypatch):
    data, cache = places
    small = {"train_1": (40, 50, 11), "val_1": (33, 44, 21)}
    monkeypatch.setattr(synthetic, "SCENES", small)
    manifest = load_manifest("synthetic")
    (scene,) = manifest.scenes("val")
    assert (scene.height, scene.width, scene.gsd_m) == (33, 44, synthetic.GSD_M)
    assert not data.exists()
    assert sorted(tree(cache)) == [
        f"synthetic/{name}_{part}.tif" for name in sorted(small) for part in ("image", "label")
    ]
    before = (cache / "synthetic" / "val_1_image.tif").stat().st_mtime_ns
    assert manifest.scene("val_1").name == "val_1"
    assert (cache / "synthetic" / "val_1_image.tif").stat().st_mtime_ns == before


def test_synthetic_goes_to_rsseglab_data_where_the_cache_cannot_be_written(places, monkeypatch):
    data, cache = places
    monkeypatch.setattr(synthetic, "SCENES", {"val_1": (33, 44, 21)})
    put(cache.parent.parent / ".cache", b"a file where the cache's folder should be")
    assert load_manifest("synthetic").scene("val_1").width == 44
    assert (data / "synthetic" / "val_1_label.tif").exists()


def test_a_synthetic_data_set_in_rsseglab_data_is_used(places, monkeypatch):
    data, cache = places
    monkeypatch.setattr(synthetic, "SCENES", {"val_1": (33, 44, 21), "test_1": (30, 40, 31)})
    synthetic.write_synthetic_scene(data / "synthetic", "val_1", 33, 44, 21)
    assert load_manifest("synthetic").scene("test_1").width == 40  # what was missing is made beside it
    assert (data / "synthetic" / "test_1_image.tif").exists()
    assert not cache.exists()


# --- Whole?


def test_verify_tells_the_states_apart(places, tmp_path):
    root = places[0] / "town"
    for name in ("right", "sum", "size", "unknown"):
        put(root / name, name.encode())
    (root / "unpacked_here").mkdir()
    manifest = manifest_with(
        tmp_path,
        {"path": "right", "sha256": sha256(b"right"), "bytes": 5},
        {"path": "sum", "md5": hashlib.md5(b"other").hexdigest()},
        {"path": "size", "bytes": 7, "sha256": sha256(b"size")},
        {"path": "unknown"},
        {"path": "missing"},
        {"path": "gone.zip", "unpacks_to": "unpacked_here"},
    )
    states = {file.path: state for file, state in store.verify(manifest, root)}
    assert states == {
        "right": "ok",
        "sum": "wrong sum",
        "size": "wrong size",
        "unknown": "no sum known",
        "missing": "missing",
        "gone.zip": "unpacked",
    }


def test_verify_command_names_file_and_key(places, tmp_path, capsys):
    put(places[0] / "town" / "a", b"a")
    put(places[0] / "town" / "b", b"b")
    good = {"path": "a", "sha256": sha256(b"a")}
    manifest_with(tmp_path, good)
    store.data_command("verify", str(tmp_path / "town.toml"))
    assert "town      a     ok" in capsys.readouterr().out
    manifest_with(tmp_path, good, {"path": "b", "sha256": sha256(b"a")}, {"path": "c"})
    with pytest.raises(UserError, match=r"town/b: wrong sum \(key files\[1\]\.sha256 of town\.toml\) \(and 1 more\)"):
        store.data_command("verify", str(tmp_path / "town.toml"))
    assert "wrong sum" in capsys.readouterr().out


def test_verify_without_a_name_checks_what_is_here(places, capsys):
    store.data_command("verify")
    assert "no data set in" in capsys.readouterr().out
    put(places[1] / "dubai" / "tile1_image.tif", b"not that tile")
    with pytest.raises(UserError, match=r"dubai/LICENSE-CC0\.txt: missing .*\(and 14 more\)"):
        store.data_command("verify")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1:] for line in lines[2:4]] == [
        ["LICENSE-CC0.txt", "missing"],
        ["tile1_image.tif", "wrong", "size"],
    ]


def test_verify_agrees_with_the_scenes_at_hand(tmp_path):
    """The project's own scenes where they are at hand; else a file made here stands in for them."""
    given = Path(os.environ.get("RSSEGLAB_DATA", "/nowhere"))
    put(tmp_path / "town" / "a", b"a")
    sets = [(manifest_with(tmp_path, {"path": "a", "sha256": sha256(b"a")}), tmp_path / "town")]
    sets += [(load_manifest(n), given / n) for n in ("dubai", "indian_pines", "oam_buildings", "s2_clouds")]
    for manifest, root in sets:
        if root.is_dir():
            assert {state for _, state in store.verify(manifest, root)} == {"ok"}
            for split in manifest.splits if root.parent == given else ():
                for scene in manifest.scenes(split, root):
                    assert (scene.width, scene.height) == manifest.sizes[scene.name]
                    assert scene.dtype == manifest.dtype


# --- Get


class Server(http.server.BaseHTTPRequestHandler):
    """Serves ``files``; honours Range; breaks off after ``limit`` bytes of an answer."""

    files: dict[str, bytes] = {}  # noqa: RUF012
    limit: int | None = None
    ranges: list[str | None] = []  # noqa: RUF012
    has_range = True

    def do_GET(self):
        content = self.files.get(self.path)
        if content is None:
            return self.send_error(404)
        asked = self.headers.get("Range")
        self.ranges.append(asked)
        start = int(asked[6:-1]) if asked and self.has_range else 0
        if start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : start + self.limit if self.limit is not None else None])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    handler = type("Handler", (Server,), {"files": {}, "limit": None, "ranges": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        handler.address = f"http://127.0.0.1:{running.server_port}"
        yield handler
        running.shutdown()
        thread.join()


@pytest.fixture
def archive():
    return zipped({"Train/x.tif": os.urandom(3000), "Train/deep/y.tif": b"y", "note.txt": b"n"})


def test_get_fetches_checks_and_unpacks(places, tmp_path, server, archive):
    server.files = {"/Train.zip": archive}
    file = {
        "path": "Train.zip", "url": f"{server.address}/Train.zip", "md5": hashlib.md5(archive).hexdigest(),
        "bytes": len(archive), "unpacks_to": "Train",
    }  # fmt: skip
    manifest = manifest_with(tmp_path, file)
    root = store.get(manifest)
    assert root == places[0] / "town"
    assert sorted(tree(root)) == ["Train.zip", "Train/deep/y.tif", "Train/x.tif", "note.txt"]
    (root / "Train.zip").unlink()
    assert store.get(manifest) == root  # unpacked: nothing to fetch
    assert len(server.ranges) == 1


def test_get_from_a_file_address(places, tmp_path):
    source = put(tmp_path / "there" / "a.bin", b"abc")
    manifest = manifest_with(tmp_path, {"path": "sub/a.bin", "url": source.as_uri(), "sha256": sha256(b"abc")})
    assert store.get(manifest) == places[0] / "town"
    assert tree(places[0]) == {"town/sub/a.bin": b"abc"}


@pytest.mark.parametrize("has_range", [True, False])
def test_a_broken_download_goes_on_where_it_stopped(places, tmp_path, server, has_range):
    content = os.urandom(5000)
    server.files, server.limit, server.has_range = {"/a": content}, 2000, has_range
    manifest = manifest_with(tmp_path, {"path": "a", "url": f"{server.address}/a", "sha256": sha256(content)})
    with pytest.raises(UserError, match=r"cannot be fetched to .* after 2000 of 5000 bytes.*try again later"):
        store.get(manifest)
    assert tree(places[0] / "town") == {"a.part": content[:2000]}
    server.limit = None
    store.get(manifest)
    assert tree(places[0] / "town") == {"a": content}
    assert server.ranges == ["bytes=0-", "bytes=2000-"]


def test_a_part_that_is_too_long_is_fetched_anew(places, tmp_path, server):
    server.files = {"/a": b"abc"}
    put(places[0] / "town" / "a.part", b"longer than it should be")
    manifest = manifest_with(tmp_path, {"path": "a", "url": f"{server.address}/a", "sha256": sha256(b"abc")})
    store.get(manifest)
    assert tree(places[0] / "town") == {"a": b"abc"}


@pytest.mark.parametrize("key", ["sha256", "md5", "bytes"])
def test_a_wrong_sum_leaves_nothing(places, tmp_path, server, key):
    server.files = {"/a": b"tampered"}
    wrong = {"sha256": sha256(b"x"), "md5": hashlib.md5(b"x").hexdigest(), "bytes": 1}[key]
    manifest = manifest_with(tmp_path, {"path": "a", "url": f"{server.address}/a", key: wrong})
    with pytest.raises(UserError, match=rf"town/a: wrong (sum|size) \(key files\[0\]\.{key} of town\.toml\)"):
        store.get(manifest)
    assert tree(places[0]) == {}


def test_an_address_that_answers_not(places, tmp_path, server):
    for url in (f"{server.address}/none", "http://127.0.0.1:1/a", "nonsense"):
        manifest = manifest_with(tmp_path, {"path": "a", "url": url})
        with pytest.raises(UserError, match=r"cannot be fetched .*or fetch it by hand from https://example\.org/town"):
            store.get(manifest)
    assert tree(places[0]) == {}


def test_what_was_put_there_by_hand_is_checked_and_unpacked(places, tmp_path, archive, capsys):
    root = places[0] / "town"
    manifest_with(tmp_path, {"path": "Train.zip", "sha256": sha256(archive), "unpacks_to": "Train"})
    toml = str(tmp_path / "town.toml")
    store.data_command("get", toml)
    out = capsys.readouterr().out
    assert "Ask for town.zip." in out
    assert "https://example.org/town" in out
    assert str(root) in out
    put(root / "Train.zip", archive)
    store.data_command("get", toml)
    assert capsys.readouterr().out == f"town is in {root}.\n"
    assert (root / "Train" / "deep" / "y.tif").read_bytes() == b"y"
    (root / "Train.zip").write_bytes(archive[:-1])
    with pytest.raises(UserError, match=r"Train\.zip: wrong sum"):
        store.data_command("get", toml)


ESCAPES = {
    "zip parent": zipped({"ok.txt": b"ok", "../evil.txt": b"e"}),
    "zip deep parent": zipped({"ok.txt": b"ok", "a/../../evil.txt": b"e"}),
    "zip absolute": zipped({"ok.txt": b"ok", "/evil.txt": b"e"}),
    "zip backslash": zipped({"ok.txt": b"ok", "..\\evil.txt": b"e"}),
    "zip drive": zipped({"ok.txt": b"ok", "C:\\evil.txt": b"e"}),
    "tar parent": tarred({"ok.txt": b"ok", "../evil.txt": b"e"}),
    "tar absolute": tarred({"ok.txt": b"ok", "/evil.txt": b"e"}),
    "tar link": tarred({"ok.txt": b"ok"}, link=("way_out", "../../elsewhere")),
}


@pytest.mark.parametrize("content", ESCAPES.values(), ids=ESCAPES.keys())
def test_a_member_that_leaves_its_folder_is_refused(tmp_path, content):
    archive = put(tmp_path / "a", content)
    with pytest.raises(UserError, match="would write outside its folder"):
        store.unpack(archive, tmp_path / "inner" / "folder")
    assert tree(tmp_path) == {"a": content}
    assert list((tmp_path / "inner" / "folder").iterdir()) == []


@pytest.mark.parametrize("make", [zipped, tarred])
def test_a_file_where_a_folder_is_in_the_way_moves_nothing(tmp_path, make):
    (tmp_path / "here" / "b").mkdir(parents=True)
    with pytest.raises(UserError, match="move that away"):
        store.unpack(put(tmp_path / "a", make({"a.txt": b"1", "b": b"2", "c.txt": b"3"})), tmp_path / "here")
    assert [p.name for p in (tmp_path / "here").iterdir()] == ["b"]


@pytest.mark.parametrize("make", [zipped, tarred])
def test_a_damaged_archive_leaves_nothing(tmp_path, make):
    members = {f"{i}.bin": os.urandom(4000) for i in range(4)}
    whole = make(members)
    store.unpack(put(tmp_path / "whole", whole), tmp_path / "good")
    assert tree(tmp_path / "good") == members
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    for content in (whole[: len(whole) * 2 // 3], bytes(flipped), b"no archive at all"):
        with pytest.raises(UserError, match=r"damaged|no zip or tar archive"):
            store.unpack(put(tmp_path / "a", content), tmp_path / "folder")
        assert list((tmp_path / "folder").iterdir()) == []


def test_a_full_disk_is_said_so(places, tmp_path, server, monkeypatch):
    server.files = {"/a": b"abc"}
    manifest = manifest_with(tmp_path, {"path": "a", "url": f"{server.address}/a"})

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "fetch", full)
    with pytest.raises(UserError, match=r"No space left on device.*; free some space"):
        store.get(manifest)


# --- The command


def test_list_and_show(places, capsys):
    put(places[1] / "dubai" / "a", b"")
    store.data_command("list")
    rows = capsys.readouterr().out.splitlines()
    (dubai,) = [row for row in rows if row.startswith("dubai ")]
    assert "train 3, val 2, test 2" in dubai
    assert str(places[1]) in dubai
    (deepglobe,) = [row for row in rows if row.startswith("deepglobe ")]
    assert "train 454, val 207, test 142" in deepglobe
    assert "by hand" in deepglobe
    (loveda,) = [row for row in rows if row.startswith("loveda ")]
    assert "download" in loveda

    store.data_command("show", "inria")
    shown = " ".join(capsys.readouterr().out.split())
    for part in ("IoU of buildings alone", "project.inria.fr", "train (126)", "0.3 m", "#d55e00 building"):
        assert part in shown


def test_a_name_is_needed(places):
    with pytest.raises(UserError, match="'rsseglab data show' needs the name of a data set: deepglobe, dubai"):
        store.data_command("show")
    with pytest.raises(UserError, match="there is no 'rsseglab data drop'"):
        store.data_command("drop", "dubai")
