"""What this machine's processor can do in bf16.

Processors with AMX multiply bf16 matrices faster than float32 ones, those with avx512_bf16 alone do not
(docs/results.md). Some virtual machines advertise AMX, and end with SIGILL the process that uses it: so it is
tried in a process of its own.
"""

import subprocess
import sys
import warnings
from functools import cache

import torch

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


def _amx_is_advertised() -> bool:
    return torch.cpu._is_amx_tile_supported()


def _try_amx() -> bool:
    return subprocess.run([sys.executable, "-c", _TRY], stderr=subprocess.DEVNULL).returncode == 0
