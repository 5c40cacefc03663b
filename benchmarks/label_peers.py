"""Potato 2.12 and Label Studio 1.23 in virtual environments of their own, doing the same job on the same pairs.

Each is measured as its own documents say to run it for real work ("potato": one gunicorn worker with 8 threads, as
its Docker image; "label-studio": uWSGI with two processes a core, as its image) and as its plain command starts it
("potato-start", "label-studio-start": the development servers of Flask and Django). What their pages send was read
in their source: see each annotator below. Requests that only track behaviour are left out, in their favour.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from label_clients import Browser
from label_peer_potato import potato
from label_peer_studio import label_studio
from label_servers import Server

from rlhf.records import Task

PACKAGES = {
    "potato": ["potato-annotation==2.12.0", "gunicorn==27.0.1"],
    "label-studio": ["label-studio[uwsgi]==1.23.2"],
}
PEERS = ("potato", "label-studio", "potato-start", "label-studio-start")


class PeerAnnotator(Protocol):
    """One person at a peer's page."""

    browser: Browser

    async def enter(self) -> None:
        """Log in, up to the first task."""

    async def submit(self) -> tuple[int, float] | None:
        """Only the request that stores an answer."""

    async def turn(self) -> tuple[int, float] | None:
        """Store an answer, and have the next task on screen."""

    async def page(self) -> float:
        """Seconds to open the page with its task."""
        ...


def install(name: str, venvs: Path) -> Path:
    """The peer's virtual environment, made where it is missing."""
    package = name.removesuffix("-start")
    venv = venvs / package
    if not (venv / "installed").exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        pip = [str(venv / "bin/python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, *PACKAGES[package]], check=True, stdout=sys.stderr)
        (venv / "installed").touch()
    return venv


def peer(
    name: str, venv: Path, folder: Path, tasks: Sequence[Task], num_people: int
) -> tuple[Server, Sequence[PeerAnnotator], str]:
    """A peer's server, not started, with a project of these tasks; its people; and how it is set up, in words."""
    folder.mkdir(parents=True)
    if name.startswith("potato"):
        return potato(name, venv, folder, tasks, num_people)
    return label_studio(name, venv, folder, tasks, num_people)
