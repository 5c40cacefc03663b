"""bf16 on a CPU: by default only where it is faster, and never the end of the process. What is given back."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rlhf import hardware, sft
from rlhf.config import from_values
from rlhf.models import load_causal


@pytest.fixture
def broken_amx(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A processor that advertises AMX and ends with SIGILL whoever uses it."""
    monkeypatch.setattr(hardware, "_amx_is_advertised", lambda: True)
    monkeypatch.setattr(hardware, "_TRY", "import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    enabled = torch.backends.mkldnn.enabled
    torch._C._set_mkldnn_enabled(True)
    hardware.cpu_runs_amx.cache_clear()
    yield
    hardware.cpu_runs_amx.cache_clear()
    torch._C._set_mkldnn_enabled(bool(enabled))


def test_amx_that_ends_the_process_is_not_used(broken_amx: None) -> None:
    assert not hardware.cpu_runs_amx()
    with pytest.warns(UserWarning, match="advertises AMX, which does not work; use float32"):
        hardware.spare_broken_amx()
    assert not torch.backends.mkldnn.enabled
    square = torch.full((64, 64), 0.5, dtype=torch.bfloat16)
    assert (square @ square).float().eq(16.0).all()  # 64 times a quarter: and the process lives


def test_amx_that_works_is_used(broken_amx: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_TRY", "pass")
    assert hardware.cpu_runs_amx()
    hardware.spare_broken_amx()
    assert torch.backends.mkldnn.enabled


def test_without_amx_nothing_is_tried(broken_amx: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_amx_is_advertised", lambda: False)
    monkeypatch.setattr(hardware, "_try_amx", lambda: pytest.fail("tried"))
    assert not hardware.cpu_runs_amx()
    hardware.spare_broken_amx()
    assert torch.backends.mkldnn.enabled


@pytest.mark.parametrize(
    ("works", "given", "expected"), [(True, {}, True), (False, {}, False), (False, {"bf16": True}, True)]
)
def test_a_trainer_asks_for_bf16_only_where_it_is_faster(
    works: bool, given: dict[str, bool], expected: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(hardware, "cpu_runs_amx", lambda: works)
    values = {"demonstrations": "a.jsonl", "output_dir": str(tmp_path / "run"), **given}
    assert from_values(sft.Config, values, "sft.yaml").training.bf16 is expected


def test_a_model_in_bf16_loads_beside_broken_amx(broken_amx: None, policy_folder: Path) -> None:
    with pytest.warns(UserWarning, match="advertises AMX"):
        model = load_causal(str(policy_folder), "bfloat16")
    assert model(input_ids=torch.ones(2, 5, dtype=torch.long)).logits.isfinite().all()


_CHURN = """
import ctypes, sys
from pathlib import Path
from rlhf.hardware import give_back_freed_memory
if sys.argv[1] == "given back":
    give_back_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
size = 24 * 2**20
for turn in range(2):  # the first one teaches glibc to keep blocks of this size
    blocks, pins = [], []
    for _ in range(10):
        blocks.append(libc.malloc(size))
        ctypes.memset(blocks[-1], 1, size)
        pins.append(libc.malloc(64 * 1024))  # what was allocated after it
    for block in blocks:
        libc.free(block)
pages = int(Path("/proc/self/statm").read_text().split()[1])
print(pages * 4096 // 2**20)
"""


def test_freed_memory_goes_back_to_the_system() -> None:
    """Ten blocks of 24 MiB, each with a small one behind it that stays."""
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("this C library is not glibc")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}

    def resident(how: str) -> int:
        command = [sys.executable, "-c", _CHURN, how]
        return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    kept, given_back = resident("kept"), resident("given back")
    assert kept - given_back > 150  # MiB, of 240


_HOLES = """
import ctypes
from pathlib import Path
from rlhf.hardware import give_back_freed_memory, give_back_holes
give_back_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 // 2**20

blocks, pins = [], []
for _ in range(40):
    blocks.append(libc.malloc(4 * 2**20))
    ctypes.memset(blocks[-1], 1, 4 * 2**20)
    pins.append(libc.malloc(64 * 1024))  # what was allocated after it
for block in blocks:
    libc.free(block)
before = resident()
give_back_holes()
print(before - resident())
"""


def test_holes_between_what_is_in_use_go_back_to_the_system() -> None:
    """Forty blocks of 4 MiB, too small to go back by themselves, each with a small one behind it that stays."""
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("this C library is not glibc")
    done = subprocess.run([sys.executable, "-c", _HOLES], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 120  # MiB, of 160


_TEAMS = """
import os, sys, threading, torch
from rlhf.hardware import end_thread_team
from rlhf.ppo.asking import _Worker

def compute():
    torch.ones(2**20).exp()  # large enough for all threads

torch.set_num_threads(3)
compute()
before = len(os.listdir("/proc/self/task"))

def count():
    compute()
    print(len(os.listdir("/proc/self/task")) - before)

if "reward" in sys.argv[1]:
    if "ended" in sys.argv[1]:
        end_thread_team()
    _Worker.run(count, 60)
else:
    done, go = threading.Event(), threading.Event()
    threading.Thread(target=lambda: (compute(), done.set(), go.wait()), daemon=True).start()
    done.wait()
count()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_a_reward_that_computes_leaves_no_threads_behind() -> None:
    """A thread that computes has a team of its own; two teams on the same cores slow each other down for good."""

    def more(how: str) -> list[int]:
        command = [sys.executable, "-c", _TEAMS, how]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return [int(line) for line in done.stdout.split()]

    assert more("as usual") == [1 + 2]  # the thread, and its team's other two
    assert more("reward") == [1 + 2, 1]  # while it computes, and afterwards
    assert more("reward, this thread's team ended before") == [1, 1]


_DENORMALS = """
import torch
from rlhf.hardware import denormals_flushed

def kept():
    return ((torch.full((2**21,), 1e-38) * 0.01) != 0).float().mean().item()

torch.set_num_threads(3)
print(kept())  # the threads are there before it begins
with denormals_flushed():
    print(kept())
    try:
        with denormals_flushed():
            raise KeyError
    except KeyError:
        print(kept())  # as the outer one has it
print(kept())
"""


def test_denormals_are_flushed_in_all_threads_that_compute() -> None:
    done = subprocess.run([sys.executable, "-c", _DENORMALS], capture_output=True, text=True, check=True)
    assert [float(line) for line in done.stdout.split()] == [1.0, 0.0, 0.0, 1.0]
