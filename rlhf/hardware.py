"""What this machine's processor can do in bf16, how its threads compute, and how its memory is handed out.

Processors with AMX multiply bf16 matrices faster than float32 ones, those with avx512_bf16 alone do not
(docs/results.md). Some virtual machines advertise AMX, and end with SIGILL the process that uses it: so it is
tried in a process of its own.
"""

import ctypes
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_OMP_PAUSE_HARD = 2  # of omp.h
_LARGE = 16 * 2**20  # bytes; what a whole round holds is larger, what a micro-batch on a CPU makes is not
_SPARE = 64 * 2**20  # bytes at its heap's end that a process keeps: less, and it asks for them again all the time
_TRY = "import torch; a = torch.ones(64, 64, dtype=torch.bfloat16); a @ a"


@cache
def cpu_runs_amx() -> bool:
    """Whether AMX is there and works. Takes two seconds, once, where it is advertised."""
    return _amx_is_advertised() and _try_amx()


def spare_broken_amx() -> None:
    """To be called before bf16 is used on a CPU: keep PyTorch off an AMX that would end the process."""
    if torch.backends.mkldnn.enabled and _amx_is_advertised() and not cpu_runs_amx():
        torch._C._set_mkldnn_enabled(False)
        warnings.warn("bf16 is slow here: this machine advertises AMX, which does not work; use float32", stacklevel=2)


def end_thread_team() -> None:
    """End the threads that OpenMP keeps for the calling thread's parallel operations; the next one starts them anew.

    Each thread that computes has a team of its own. While all teams together are more threads than there are cores,
    GNU OpenMP's no longer wait for work awake, and every other thread's operations take a fifth longer, for good
    (docs/results.md). Does nothing where PyTorch was built without OpenMP 5.
    """
    pause = getattr(_torch_libraries(), "omp_pause_resource_all", None)
    if pause is not None:
        pause(_OMP_PAUSE_HARD)


def flushes_denormals() -> bool:
    """Whether numbers under 1e-38 count as 0 in the calling thread."""
    return (torch.tensor(1e-38) * 0.01).item() == 0.0


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """Meanwhile numbers under 1e-38 count as 0 in all threads that compute for the calling one.

    CPUs take up to seventy times as long with them, and training is full of them: a sure policy's probabilities and
    gradients, Adam's averages of a weight that had no gradient for 700 steps. The setting is each thread's own,
    handed on when one starts: `torch.set_flush_denormal` by itself leaves alone those that already compute here.
    """
    before = flushes_denormals()
    torch.set_flush_denormal(True)
    end_thread_team()
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
        end_thread_team()


@cache
def _torch_libraries() -> ctypes.CDLL:
    return ctypes.CDLL(torch._C.__file__)


def _amx_is_advertised() -> bool:
    return torch.cpu._is_amx_tile_supported()


def _try_amx() -> bool:
    return subprocess.run([sys.executable, "-c", _TRY], stderr=subprocess.DEVNULL).returncode == 0


def give_back_holes() -> None:
    """Give the system what was freed and lies between what is in use, now: some milliseconds. Needs glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def give_back_freed_memory() -> None:
    """Have tensors of 16 MiB and more go back to the system when they are freed, from now on in this process.

    glibc does so too, until the first such block is freed: then it keeps blocks of up to 32 MiB in its heap, where
    what is freed stays behind whatever was allocated after it. On a CPU a PPO round then holds a sixth more than
    it uses (docs/results.md). Does nothing without glibc, and where the environment sets MALLOC_MMAP_THRESHOLD_.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
        mallopt(_M_TRIM_THRESHOLD, _SPARE)
