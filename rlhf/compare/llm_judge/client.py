"""Requests to a chat endpoint: tried again where that may help, given up with one line where it does not."""

import contextlib
import json
import random
import re
import threading
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import httpx

from rlhf.compare.llm_judge.budget import Bill, Budget, Pace
from rlhf.compare.llm_judge.cache import Reply
from rlhf.compare.llm_judge.endpoint import JudgeEndpoint, Refused, Stopped
from rlhf.compare.llm_judge.questions import well_formed
from rlhf.errors import UserError
from rlhf.records import Messages

# Statuses by which a server refuses this one question: it is too long, or its filter took offence.
_REFUSED = {400, 413, 422}
_LONGEST_BODY = 16 * 2**20  # bytes; no chat answer is longer
_SHORTEST_SECRET = 8  # characters; shorter keys, as `EMPTY`, are placeholders and may be words of an answer
# No connection, so nothing can have been billed.
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class _Again(Exception):
    """A try that failed in a way that may pass; `wait` is what the server asked for, in seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class _Answer(NamedTuple):
    status: int
    headers: httpx.Headers
    text: str


class ChatClient:
    """Asks a JudgeEndpoint, from many threads at once.

    Connections that fail or time out, answers that are no chat completion, and the statuses 429 and 5xx
    are tried again after a wait that doubles, with jitter, and is never shorter than Retry-After says
    (RFC 9110, section 10.2.3); that also holds back all other requests.
    """

    def __init__(self, endpoint: JudgeEndpoint, budget: Budget, stop: threading.Event) -> None:
        self._endpoint, self._budget, self._stop = endpoint, budget, stop
        self._pace = Pace(endpoint.requests_per_minute)
        self._key = endpoint.read_key()
        self._http = httpx.Client(
            timeout=endpoint.timeout,
            limits=httpx.Limits(max_connections=endpoint.concurrency),
            headers={"authorization": f"Bearer {self._key}"} if self._key else {},
        )

    def __enter__(self) -> "ChatClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def ask(self, messages: Messages) -> Reply:
        """The endpoint's reply.

        Raises Refused where it will not answer this question, Stopped where another thread has failed,
        and UserError where it cannot be reached, answers nonsense, or the cap on cost is in the way.
        """
        endpoint, reason = self._endpoint, ""
        for attempt in range(endpoint.num_retries + 1):
            with self._budget.request(messages) as bill:
                while (seconds := self._pace.take()) > 0:
                    self._sleep(seconds)
                self._sleep(0)
                try:
                    return self._try(messages, bill)
                except _Again as failure:
                    reason, wait = str(failure), failure.wait
            if wait > endpoint.max_wait:
                raise UserError(
                    f"{endpoint.url}: asks to wait {wait:.0f} seconds ({reason}), more than max_wait allows; "
                    f"{endpoint.kept}"
                )
            if attempt < endpoint.num_retries:
                self._pace.hold(wait)
                self._sleep(wait + self._backoff(attempt))
        raise UserError(
            f"{endpoint.url}: failed {endpoint.num_retries + 1} times, at last with {reason}; "
            f"check that the server runs and can be reached from here; {endpoint.kept}"
        )

    def _try(self, messages: Messages, bill: Bill) -> Reply:
        bill.paid = bill.worst  # until it is known: an answer that never comes may have been billed
        try:
            answer = self._post({"model": self._endpoint.model, "messages": messages, **self._endpoint.sampling})
        except httpx.RequestError as error:
            if isinstance(error, _NOT_SENT):
                bill.paid = 0.0
            raise _Again(f"{type(error).__name__}: {error}") from None
        if not 200 <= answer.status < 300:
            bill.paid = 0.0
            self._raise_for(answer)
        reply = _reply(answer.text)
        if reply is None:
            raise _Again(
                f"an answer {answer.text[:200]!r} that is no chat completion "
                '({"choices": [{"message": {"content": ...}}]})'
            )
        cost = self._endpoint.cost(reply.tokens_in, reply.tokens_out)
        bill.paid = bill.worst if cost is None else cost
        return reply

    def _post(self, body: dict[str, Any]) -> _Answer:
        """The whole answer within `timeout`: httpx counts only the silence between two pieces of it."""
        end = time.monotonic() + self._endpoint.timeout
        parts: list[bytes] = []
        size = 0
        with self._http.stream("POST", self._endpoint.url, json=body) as response:
            for part in response.iter_bytes():
                parts.append(part)
                size += len(part)
                if time.monotonic() > end:
                    raise httpx.ReadTimeout(f"no whole answer within {self._endpoint.timeout:g} seconds")
                if size > _LONGEST_BODY:
                    raise httpx.ReadError(f"an answer of more than {_LONGEST_BODY // 2**20} MiB")
        text = b"".join(parts).decode(errors="replace")
        if self._key and len(self._key) >= _SHORTEST_SECRET:  # some servers quote the key that they do not accept
            text = text.replace(self._key, "***")
        return _Answer(response.status_code, response.headers, text)

    def _raise_for(self, answer: _Answer) -> None:
        endpoint, status = self._endpoint, answer.status
        reason = f"HTTP {status} {answer.text[:200]!r}"
        if status == 429 or status >= 500:
            raise _Again(reason, retry_after(answer.headers, time.time()))
        if status in _REFUSED:
            raise Refused(reason)
        mend = "mend base_url, or the server"
        if status in (401, 403):
            mend = f"check the key in {endpoint.api_key_env}" if self._key else f"set {endpoint.api_key_env} to a key"
        elif status == 404:
            mend = f"check base_url and that it serves a model `{endpoint.model}`"
        raise UserError(f"{endpoint.url}: answered {reason}; {mend}")

    def _backoff(self, attempt: int) -> float:
        longest = min(self._endpoint.backoff * 2**attempt, self._endpoint.max_wait)
        return longest * random.uniform(0.5, 1)

    def _sleep(self, seconds: float) -> None:
        if self._stop.wait(seconds) if seconds > 0 else self._stop.is_set():
            raise Stopped


def retry_after(headers: Mapping[str, str], now: float) -> float:
    """The seconds to wait that Retry-After gives, as a number or as a date; 0 where it gives none.

    Args:
        headers: of the answer.
        now: the time, in seconds since 1970, where the answer has no Date to count from.
    """
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d+)?", value):
        return float(value)
    try:
        until = parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError, OverflowError):
        return 0.0
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        now = parsedate_to_datetime(headers.get("date", "")).timestamp()  # the server's clock, not ours
    return max(until - now, 0.0)


def _reply(text: str) -> Reply | None:
    """The reply that a chat completion holds, None where the text is none."""
    try:
        answer = json.loads(text)
        choice = answer["choices"][0]
        content = choice["message"].get("content")
        usage = answer.get("usage")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    if content is not None and not isinstance(content, str):
        return None
    usage = usage if isinstance(usage, dict) else {}
    finish = choice.get("finish_reason")
    return Reply(
        well_formed(content or ""),
        finish if isinstance(finish, str) else None,
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
    )


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None
