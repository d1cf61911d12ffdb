"""Execute notebooks side by side, into the cache that Jupyter Book reads.

    python book/execute.py     # before jupyter-book build, which executes what is not there, one after the other

Those that measure seconds are left to the build: beside others they would measure these.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

BOOK = Path(__file__).parent
MEASURING = ("05_spatial", "06_cost", "07_stream")
AT_ONCE = 4  # notebooks, of up to 2 GiB each


def main() -> int:
    """Execute, and name those that failed."""
    import nbformat
    import yaml
    from jupyter_cache import get_cache
    from jupyter_cache.base import CacheBundleIn
    from jupyter_cache.executors.utils import single_nb_execution

    cache, waiting = get_cache(BOOK / "_build" / ".jupyter_cache"), {}
    for path in sorted((BOOK / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        try:
            cache.match_cache_notebook(notebook)
        except KeyError:  # not executed as it is now
            if path.stem not in MEASURING:
                waiting[path] = notebook
    timeout_s = yaml.safe_load((BOOK / "_config.yml").read_text())["execute"]["timeout"]  # of a cell
    failed = 0
    with ThreadPoolExecutor(min(AT_ONCE, os.cpu_count() or 1)) as pool:
        options = {"timeout": timeout_s, "allow_errors": False}
        running = {pool.submit(single_nb_execution, nb, cwd=str(p.parent), **options): p for p, nb in waiting.items()}
        for done in as_completed(running):
            path = running[done]
            try:
                result = done.result()
                said = f"{result.time:.0f} s" if result.err is None else result.exc_string
            except Exception as error:  # a kernel that died, say
                result, said = None, repr(error)
            print(f"{path.name}: {said}", flush=True)
            if result is None or result.err is not None:
                failed += 1
                continue
            bundle = CacheBundleIn(waiting[path], str(path), data={"execution_seconds": result.time})
            cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
