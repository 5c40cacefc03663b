"""Computations at once on a CPU, each in a thread of its own with its share of the cores.

PyTorch cuts every operation into a piece for each core and waits for the last one: an update is 1.6 times as fast on
two cores as on one. Two models that need nothing of each other keep both busy from end to end (docs/decisions.md).
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import cache, partial
from queue import SimpleQueue
from typing import Any, TypeVar

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
        others = [_lane(os.getpid(), at).submit(partial(as_here.call, call)) for at, call in enumerate(calls[1:])]
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


class _Lane:
    """A thread that makes one call after another: the C library gives each new one memory of its own, for good.

    A daemon: it never ends by itself. Where a backward pass fails, PyTorch leaves the rest of its graph in the thread,
    to be freed as the thread ends; as Python ends too, that takes the process down.
    """

    def __init__(self, name: str) -> None:
        self.calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def submit(self, call: Callable[[], T]) -> "Future[T]":
        future = Future[T]()
        self.calls.put((future, call))
        return future

    def _work(self) -> None:
        while True:
            future, call = self.calls.get()
            try:
                future.set_result(call())
            except BaseException as error:  # for who waits for it
                future.set_exception(error)
            del future, call  # and what they hold, until the next one comes


@cache
def _lane(process: int, at: int) -> _Lane:
    """This process's; a fork has not its parent's threads."""
    return _Lane(f"abreast-{at}")
