import subprocess
import sys

HEAVY = ("torch", "torchgeo", "lightning", "rasterio", "segmentation_models_pytorch", "numpy", "matplotlib")


def test_importing_the_package_pulls_nothing_heavy():
    code = f"import sys, rsseglab, rsseglab.cli; print([m for m in {HEAVY} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
