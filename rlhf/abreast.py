"""Computations at once on a CPU, each in a thread of its own with its share of the cores.

PyTorch cuts every operation into a piece for each core and waits for the last one: an update is 1.6 times as fast on
two cores as on one. Two models that need nothing of each other keep both busy from end to end (docs/decisions.md).
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

from rlhf.hardware import end_thread_team, flushes_denormals

T = TypeVar("T")


def can_run_abreast(device: torch.device, number: int = 2) -> bool:
    """Whether `number` computations at once are of use: on a CPU, with a core for each."""
    return device.type == "cpu" and torch.get_num_threads() >= number


def abreast(calls: Sequence[Callable[[], T]]) -> list[T]:
    """What the calls return, in their order: the first is made here, each other one in a thread of its own.

    They must not write to the same tensors, nor call this. Each has the caller's autograd mode and autocast, and as
    many compute threads as come to it: so its result is the same however far the others are. One alone keeps all.

    Where one raises, the others are waited for, and the first error in their order is raised.
    """
    if len(calls) == 1:
        return [calls[0]()]
    threads = torch.get_num_threads()
    share = max(1, threads // len(calls))
    as_here = _Surroundings(share)
    torch.set_num_threads(share)
    try:
        others = [_pool(os.getpid(), at).submit(as_here.call, call) for at, call in enumerate(calls[1:])]
        try:
            first = calls[0]()
        finally:
            for other in others:
                other.exception()  # waits
        return [first, *(other.result() for other in others)]
    finally:
        torch.set_num_threads(threads)


class _Surroundings:
    """What a thread has for itself and a new one has not: the calling one's."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.grad, self.flushed = torch.is_grad_enabled(), flushes_denormals()
        self.autocast, self.dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    def call(self, call: Callable[[], T]) -> T:
        torch.set_num_threads(self.threads)
        torch.set_flush_denormal(self.flushed)
        with torch.set_grad_enabled(self.grad), torch.autocast("cpu", self.dtype, self.autocast):
            try:
                return call()
            finally:
                if self.threads > 1:
                    end_thread_team()


@cache
def _pool(process: int, at: int) -> ThreadPoolExecutor:
    """One thread, kept: the C library gives each new one memory of its own. Not a parent's, which a fork has not."""
    return ThreadPoolExecutor(1, thread_name_prefix=f"abreast-{at}")
