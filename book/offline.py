"""Fetch what a page of the book loads, so that it asks no other host when it is opened: MathJax, require.js, widgets.

    python book/offline.py     # into book/_offline/vendor, which git leaves out; nothing is fetched twice

Three packages of npm, each held to its sum; anywidget's own script lies in the environment already.
"""

import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VENDOR = Path(__file__).parent / "_offline" / "vendor"

#: Package of npm, its sha256, and which of its files go where; a folder where the name ends with a slash.
PACKAGES = (
    (
        "mathjax@3.2.2",
        "1b9c0a1c44df864e915690558e72adb9cc5203360daefd385084ced3b6c64c09",
        {"es5/tex-mml-chtml.js": "mathjax/", "es5/output/chtml/fonts/woff-v2/": "mathjax/output/chtml/fonts/woff-v2/"},
    ),
    (
        "@jupyter-widgets/html-manager@1.0.15",
        "2b9d65cb7913e1c7d671757a10008b32c9c2448d4429513371e55c07d6107638",
        {
            "dist/embed-amd.js": "",
            "dist/1551f4f60c37af51121f.woff2": "html-manager/",
            "dist/7a3337626410ca2f4071.woff2": "html-manager/",
            "dist/d878b0a6a1144760244f.woff2": "html-manager/",
        },
    ),
    (
        "requirejs@2.3.8",
        "777158e89275e16bd51aec3ef714fbcb5dc45789e7078659933bc814916d7dec",
        {"require.js": ""},
    ),
)
ANYWIDGET = Path(sys.prefix) / "share" / "jupyter" / "nbextensions" / "anywidget" / "index.js"
#: Where require.js finds anywidget's script, and the widget manager its fonts.
PATHS = """\
const vendor = document.documentElement.dataset.content_root + "_static/vendor/";
const manager = vendor + "html-manager";
requirejs.config({
  paths: {
    anywidget: vendor + "anywidget",
    "@jupyter-widgets": manager,
    "@jupyter-widgets/html-manager/dist": manager,
  },
});
"""


def main() -> None:
    """Fill the folder."""
    stamp = VENDOR / "complete"
    if not ANYWIDGET.is_file():
        sys.exit("anywidget is not installed; run 'make book', which installs it.")
    here = hashlib.sha256(ANYWIDGET.read_bytes()).hexdigest()
    wanted = f"{here}\n{PACKAGES}\n{PATHS}"
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    shutil.rmtree(VENDOR, ignore_errors=True)
    for name, sha256, files in PACKAGES:
        unpack(fetch(name, sha256), files, VENDOR)
        print(f"fetched {name}")
    shutil.copyfile(ANYWIDGET, VENDOR / "anywidget.js")
    (VENDOR / "widget-paths.js").write_text(PATHS)
    stamp.write_text(wanted)


def fetch(name: str, sha256: str) -> bytes:
    """A package of npm; the program ends with a line that tells why if it can't be had."""
    npm = shutil.which("npm")
    if npm is None:
        sys.exit("npm is not here; install Node.js, by which the book fetches three packages once.")
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([npm, "pack", "--silent", name], cwd=folder, capture_output=True, text=True)
        packed = list(Path(folder).glob("*.tgz"))
        if done.returncode or len(packed) != 1:
            said = " ".join(done.stderr.split())[-200:]
            sys.exit(f"{name} could not be fetched ({said}); the book needs npm's packages once.")
        data = packed[0].read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        sys.exit(f"{name} is not the file that it should be; try again, or from another network.")
    return data


def unpack(data: bytes, files: dict[str, str], folder: Path) -> None:
    """Write some files of a package below a folder."""
    with tarfile.open(fileobj=io.BytesIO(data)) as package:
        for member in package.getmembers():
            name = member.name.partition("/")[2]  # below "package/"
            for source, target in files.items():
                if member.isfile() and (name == source or (source.endswith("/") and name.startswith(source))):
                    place = folder / target / Path(name).name
                    place.parent.mkdir(parents=True, exist_ok=True)
                    content = package.extractfile(member)
                    assert content is not None
                    place.write_bytes(content.read())


if __name__ == "__main__":
    main()
