"""The browser's part of a widget: its own script, behind what the scripts of all widgets share.

A widget's script is one module without a bundler, which can import no file beside it; so the shared part is put
before it.
"""

from pathlib import Path

HERE = Path(__file__).parent


def script(name: str) -> str:
    """JavaScript of a widget.

    Args:
        name: of its file beside this one, without ``.js``.
    """
    return "\n".join((HERE / f"{part}.js").read_text(encoding="utf-8") for part in ("shared", name))
