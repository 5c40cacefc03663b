"""Asking one reward function, a user's in a thread with a time limit, and what goes wrong in it told with its place."""

import asyncio
import inspect
import threading
import traceback
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from types import CodeType
from typing import Any, ClassVar

import torch

from rlhf.errors import UserError
from rlhf.hardware import end_thread_team, flushes_denormals
from rlhf.ppo import rewards
from rlhf.ppo.endpoint import RewardError
from rlhf.ppo.rewards import Reward, unwrapped

_OURS = (__file__, rewards.__file__)  # whose frames, `call`'s and text_reward's, a user did not write


def ask(
    reward: Reward, prompts: Sequence[Any], completions: Sequence[Any], columns: dict[str, Any], timeout: float
) -> Any:
    """What the function answers, unchecked.

    A model in this process scores in the calling thread: it takes as long as it takes, and in a second thread it would
    compute a third slower on a CPU (docs/decisions.md).

    Raises:
        RewardError: it raised, or took more than `timeout` seconds.
    """
    if reward.is_model:
        try:
            with torch.no_grad():
                return reward.function(**{**columns, "prompts": prompts, "completions": completions})
        except Exception as error:  # not Ctrl-C, which this thread is the one to hear of
            raise _failed(reward, error, columns) from error
    # A thread starts on GPU 0 and with gradients, whatever its maker has.
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
    answers: list[Any] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            if device is not None:
                torch.cuda.set_device(device)
            with torch.no_grad():
                answer = reward.function(**{**columns, "prompts": prompts, "completions": completions})
                answers.append(asyncio.run(answer) if inspect.iscoroutine(answer) else answer)
        except BaseException as error:  # a SystemExit too: nobody else would hear of it
            errors.append(error)

    _Worker.run(call, timeout)
    if errors:
        raise _failed(reward, errors[0], columns) from errors[0]
    if not answers:
        raise RewardError(
            f"reward `{reward.name}`: no answer within {timeout:g} seconds for {len(completions)} completions; "
            "make it faster, or raise --reward_timeout"
        )
    return answers[0]


class _Worker:
    """A thread that runs one call after another, and is left behind where a call hangs.

    One thread and not one a call: the C library gives each new one memory of its own, which it then keeps
    (2.5 GB over 27 rounds of a 3-million-weight model). A daemon: what hangs must not keep the process
    from its end.
    """

    current: ClassVar["_Worker | None"] = None

    def __init__(self) -> None:
        self.calls: SimpleQueue[tuple[Callable[[], None], threading.Event]] = SimpleQueue()
        self.thread = threading.Thread(target=self._work, name="rewards", daemon=True)
        self.thread.start()

    def _work(self) -> None:
        while True:
            call, done = self.calls.get()
            call()
            end_thread_team()
            done.set()
            if _Worker.current is not self:  # it took too long, and another has its place
                return

    @classmethod
    def run(cls, call: Callable[[], None], timeout: float) -> None:
        """Run `call` in the thread, and return when it has ended or `timeout` seconds have."""
        if cls.current is None or not cls.current.thread.is_alive():  # not alive: this process is a fork
            cls.current = cls()
        done, flushed = threading.Event(), flushes_denormals()

        def as_here() -> None:
            torch.set_flush_denormal(flushed)  # each thread's own, and this one may be older than the training
            call()

        cls.current.calls.put((as_here, done))
        if not done.wait(min(timeout, threading.TIMEOUT_MAX)):
            cls.current = None


def _failed(reward: Reward, error: BaseException, columns: dict[str, Any]) -> RewardError:
    return RewardError(f"reward `{reward.name}`: {_raised(reward.function, error, columns)}")


def _raised(function: Callable[..., Any], error: BaseException, columns: dict[str, Any]) -> str:
    """What went wrong in it, where, and what to do."""
    if isinstance(error, UserError):
        return str(error)
    what = f"{type(error).__name__}: {str(error)[:300]}".rstrip(": ")
    code = _code(unwrapped(function))
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename not in _OURS]
    if not frames:  # it never began
        place = f" ({code.co_filename}:{code.co_firstlineno})" if code else ""
        given = ", ".join(["prompts", "completions", *columns])
        return f"{what}{place}; it is called with the keywords {given}: take those it has no use for as **columns"
    # The line of the user's own file that led there, not one deep inside a library.
    own = [frame for frame in frames if code and frame.filename == code.co_filename]
    last = (own or frames)[-1]
    mend = "score fewer at a time" if isinstance(error, torch.OutOfMemoryError) else "mend it there"
    return f"{what} ({last.filename}:{last.lineno}); {mend}"


def _code(function: Any) -> CodeType | None:
    return getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
