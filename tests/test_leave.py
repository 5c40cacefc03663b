"""How a rank ends whose work is done: what was to run at the end has run, and nothing can abort it any more."""

import subprocess
import sys
from pathlib import Path

import pytest

_RANK = """
import atexit, sys, threading, torch
from rlhf.training import _leave_group, leave

if sys.argv[1] == "rank":
    torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=0, world_size=1)
atexit.register(_leave_group)
atexit.register(lambda: print("at the end, in a group:", torch.distributed.is_initialized()))

def compute():  # as Gloo's threads it takes and gives the interpreter's lock, whatever the main thread does
    ones = torch.ones(100)
    while True:
        ones = ones + ones

if sys.argv[1] == "rank":
    for _ in range(4):
        threading.Thread(target=compute, daemon=True).start()
leave()
print("is no rank")
"""


@pytest.mark.parametrize(
    ("kind", "said"),
    [("rank", ["at the end, in a group: True"]), ("alone", ["is no rank", "at the end, in a group: False"])],
)
def test_a_rank_ends_with_0_whatever_its_threads_do(tmp_path: Path, kind: str, said: list[str]) -> None:
    """Without `leave` it ends with SIGABRT, six times of six: a thread asks for the lock of a Python that ends."""
    for turn in range(5 if kind == "rank" else 1):
        command = [sys.executable, "-c", _RANK, kind, str(tmp_path / f"meet-{turn}")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode, done.stdout.splitlines()) == (0, said), done.stderr
