"""`--open true`: the finished page in the reader's browser, or its path where there is no display."""

import os
import sys
import webbrowser
from pathlib import Path


def show_page(path: Path) -> None:
    """Open a page with the standard library's webbrowser; print its path where there is no display or no browser."""
    # Without a display webbrowser starts a browser of the terminal, which would hold it.
    if not (_has_display() and webbrowser.open(path.resolve().as_uri())):
        print(f"report: {path.resolve()}")


def _has_display() -> bool:
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
