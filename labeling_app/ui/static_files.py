"""The widget's files, each under an address that changes with its content, so that browsers may keep it for good."""

import hashlib
from pathlib import Path

STATIC = Path(__file__).parent / "static"
KINDS = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


def address(name: str) -> str:
    """Where a browser finds the file; the version is that of all files, since scripts import one another."""
    content = b"".join(path.read_bytes() for path in sorted(STATIC.iterdir()) if path.suffix in KINDS)
    return f"/static/{hashlib.sha256(content).hexdigest()[:12]}/{name}"


def find(name: str) -> Path | None:
    """The file of that name, if it is one of ours."""
    path = STATIC / name
    return path if path.parent == STATIC and path.suffix in KINDS and path.is_file() else None
