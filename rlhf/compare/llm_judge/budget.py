"""How much may be asked: requests a minute, and a cost that is never passed."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rlhf.compare.llm_judge.endpoint import JudgeEndpoint, Stopped
from rlhf.errors import UserError
from rlhf.records import Messages

# A token is at least one byte of text. More than the text is in a prompt: a chat template's role names,
# and in some a default system message.
_TEMPLATE_TOKENS = 256


@dataclass
class Bill:
    """What one request may cost at worst, and what is to be counted for it."""

    worst: float
    paid: float = 0.0


class Budget:
    """What was spent, and what requests in flight may still cost, against the endpoint's `max_cost`.

    A request starts only where its worst case still fits. The worst case is a token a byte of the
    question and an answer of `max_tokens`; a request whose cost is never known counts with it.
    """

    def __init__(self, endpoint: JudgeEndpoint, stop: threading.Event) -> None:
        self._endpoint, self._stop = endpoint, stop
        self._spent, self._reserved = 0.0, 0.0
        self._in_flight = 0
        self._changed = threading.Condition()

    def charge(self, cost: float | None) -> None:
        """Count what was paid in an earlier run."""
        with self._changed:
            self._spent += cost or 0.0

    @contextmanager
    def request(self, messages: Messages) -> Iterator[Bill]:
        """Room for one request, as long as it is in flight; waits where others in flight may make room.

        Raises UserError where it may pass the cap though nothing else is in flight.
        """
        worst = self._worst(messages)
        bill = Bill(worst)
        with self._changed:
            while not self._fits(worst):
                if self._stop.is_set():
                    raise Stopped
                if not self._in_flight:
                    raise UserError(
                        f"max_cost: {self._spent:.4f} of {self._endpoint.max_cost:g} is spent, and the next request "
                        f"may cost up to {worst:.4f}; raise it; {self._endpoint.kept}"
                    )
                self._changed.wait()
            self._reserved += worst
            self._in_flight += 1
        try:
            yield bill
        finally:
            with self._changed:
                self._in_flight -= 1
                # Sums of floats do not come back to 0 by themselves.
                self._reserved = self._reserved - worst if self._in_flight else 0.0
                self._spent += bill.paid
                self._changed.notify_all()

    def _fits(self, worst: float) -> bool:
        cap = self._endpoint.max_cost
        return cap is None or self._spent + self._reserved + worst <= cap

    def _worst(self, messages: Messages) -> float:
        size = sum(len(message["content"].encode()) + _TEMPLATE_TOKENS for message in messages)
        return self._endpoint.cost(size, self._endpoint.max_tokens) or 0.0


class Pace:
    """When the next request may start: evenly spaced, and after every pause that a server asked for."""

    def __init__(self, per_minute: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._gap = 60 / per_minute if per_minute else 0.0
        self._clock = clock
        self._next = clock()
        self._lock = threading.Lock()

    def take(self) -> float:
        """0 where a request may start now, which takes the place; else the seconds after which to ask again."""
        with self._lock:
            now = self._clock()
            if now >= self._next:
                self._next = now + self._gap
                return 0.0
            return self._next - now

    def hold(self, seconds: float) -> None:
        """Let no request start within the next `seconds`."""
        with self._lock:
            self._next = max(self._next, self._clock() + seconds)
