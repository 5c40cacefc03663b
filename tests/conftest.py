"""Fixtures that many tests share: the shared data, a tiny policy, records made by hand."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import browser  # noqa: F401
from tests.postgres import connection, postgres_server, shared_store, store, store_url  # noqa: F401

pytest.register_assert_rewrite("tests.label_desk", "tests.label_project")

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Two test processes on two cores: with two threads each they would wait for one another, ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches a network
os.environ.setdefault("DS_ACCELERATOR", "cpu")

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and models beside the checkout; tests that need it skip where it is not."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is absent: this test reads real data or a real model from there")
    return SHARED


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random policy, shared by all tests of a process: do not write into it."""
    from tests.tiny import tiny_policy

    return tiny_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Compute as on a machine with two cores that the process has for itself."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of one megabyte (tmpfs); skips where this process may not mount one."""
    place = tmp_path / "small-disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"no small disk to fill: mount says {done.stderr.strip()!r}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)
