import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

PROGRAM = """
from pathlib import Path
import rsseglab
from rsseglab.assignments import NAMES
from rsseglab.evaluation import published_rest
from rsseglab.experiments.presets import preset_names
from rsseglab.scenes.manifest import load_manifest, manifest_names
print(Path(rsseglab.__file__).parent)
print(*(f"{name}:{len(load_manifest(name).classes)}" for name in manifest_names()))
print(len(published_rest("window curve")))
print(*preset_names())
print(*NAMES)
"""


def test_an_installed_wheel_finds_its_manifests(tmp_path):
    """Builds the wheel, installs it alone in a folder, and lists the manifests from there, far from the checkout."""
    run(tmp_path, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT))
    (wheel,) = (tmp_path / "dist").glob("rsseglab-*.whl")
    target = tmp_path / "site"
    run(tmp_path, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(target), str(wheel))
    package, manifests, published, presets, assignments = run(
        tmp_path, "-c", PROGRAM, PYTHONPATH=str(target)
    ).splitlines()
    assert Path(package) == target / "rsseglab"
    assert {entry.split(":")[0] for entry in manifests.split()} == {
        path.stem for path in (ROOT / "data_manifests").glob("*.toml")
    }
    assert int(published) > 100
    assert set(presets.split()) == {path.stem for path in ROOT.glob("rsseglab/*/presets/*.toml")}
    for name in assignments.split():
        assert (target / "rsseglab" / "assignments" / "sources" / f"{name}.py").is_file()
    scripts = {path.name for path in ROOT.glob("rsseglab/widgets/*.*s")}
    assert scripts == {path.name for path in target.glob("rsseglab/widgets/*.*s")} and len(scripts) >= 6
    assert (target / "rsseglab" / "py.typed").exists()
    assert not (target / "tests").exists()


def run(folder: Path, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
