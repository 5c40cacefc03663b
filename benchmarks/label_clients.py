"""Browsers that cost little: a lean HTTP client, since a hundred of them share two cores with the server they load.

python benchmarks/label_clients.py 8123     a server that does nothing, to measure what the clients cost
"""

import asyncio
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

TIMEOUT = 60.0  # seconds that a reply may take
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_CHUNKED = re.compile(rb"(?i)\r\ntransfer-encoding: *chunked")
_CLOSES = re.compile(rb"(?i)\r\nconnection: *close|^HTTP/1\.0")
_COOKIE = re.compile(rb"(?i)\r\nset-cookie: *([^=\r]+)=([^;\r]*)")


class Lost(Exception):
    """The connection ended before the whole reply was there: nobody knows what became of the request."""


@dataclass(frozen=True)
class Reply:
    """An HTTP reply; `seconds` is from the sending (connecting included) to its last byte."""

    status: int
    head: bytes
    body: bytes
    seconds: float

    def json(self) -> Any:
        """The body's JSON."""
        return json.loads(self.body)


class _Wire(asyncio.Protocol):
    """One connection, and at most one request on it."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.waiting: asyncio.Future[tuple[int, bytes, bytes]] | None = None
        self.buffer = bytearray()
        self.is_open = False

    def connection_made(self, transport: Any) -> None:
        self.transport, self.is_open = transport, True

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        self._answer(at_end=False)

    def eof_received(self) -> None:
        self._answer(at_end=True)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        self.fail("the connection was closed")

    def fail(self, why: str) -> None:
        """Tell who waits that no reply comes, and close."""
        if self.waiting is not None and not self.waiting.done():
            self.waiting.set_exception(Lost(why))
        self.close()

    def close(self) -> None:
        self.is_open = False
        self.transport.abort()

    def _answer(self, at_end: bool) -> None:
        if self.waiting is None or self.waiting.done():
            return
        reply = parse_reply(self.buffer, at_end)
        if reply is not None:
            self.buffer.clear()
            self.waiting.set_result(reply)
            if _CLOSES.search(reply[1]):
                self.close()


def parse_reply(buffer: bytes | bytearray, at_end: bool) -> tuple[int, bytes, bytes] | None:
    """Status, head and body of a whole HTTP/1 reply; None where more has to come."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        return None
    head, body = bytes(buffer[:end]), bytes(buffer[end + 4 :])
    status = int(head[9:12])
    if (length := _LENGTH.search(head)) is not None:
        return (status, head, body) if len(body) >= int(length[1]) else None
    if _CHUNKED.search(head):
        whole = _unchunked(body)
        return None if whole is None else (status, head, whole)
    return (status, head, body) if at_end or status in (204, 304) else None


def _unchunked(body: bytes) -> bytes | None:
    parts, at = [], 0
    while (line := body.find(b"\r\n", at)) >= 0:
        size = int(body[at:line].split(b";")[0], 16)
        end = line + 2 + size
        if len(body) < end + 2:
            return None
        if size == 0:
            return b"".join(parts)
        parts.append(body[line + 2 : end])
        at = end + 2
    return None


class Browser:
    """One person's connection to 127.0.0.1, kept open, with cookies and headers of their own.

    `keep_alive` is off for a server that hangs up after each reply without saying so.
    """

    def __init__(self, port: int, cookies: Mapping[str, str] | None = None, keep_alive: bool = True) -> None:
        self.port, self.keep_alive = port, keep_alive
        self.cookies = dict(cookies or {})
        self.headers: dict[str, str] = {}
        self.num_requests = 0
        self._wire: _Wire | None = None

    async def get(self, path: str) -> Reply:
        """GET. Raises Lost."""
        return await self.send("GET", path)

    async def post(self, path: str, content: Any) -> Reply:
        """POST of JSON. Raises Lost."""
        return await self.send("POST", path, json.dumps(content).encode())

    async def send(self, method: str, path: str, body: bytes = b"", kind: str = "application/json") -> Reply:
        """One request and its whole reply; cookies that come with it are kept. Raises Lost."""
        start = time.perf_counter()
        wire = await self._connected()
        loop = asyncio.get_running_loop()
        waiting = wire.waiting = loop.create_future()
        timer = loop.call_later(TIMEOUT, wire.fail, f"no reply in {TIMEOUT:.0f} s")
        self.num_requests += 1
        try:
            wire.transport.write(self._request(method, path, body, kind))
            status, head, content = await waiting
        finally:
            timer.cancel()
            wire.waiting = None
        if not self.keep_alive:
            self.close()
        for name, value in _COOKIE.findall(head):
            self.cookies[name.decode()] = value.decode()
        return Reply(status, head, content, time.perf_counter() - start)

    async def post_and_leave(self, path: str, content: Any) -> None:
        """POST, and hang up without the reply. Raises Lost where nobody listens."""
        wire = await self._connected()
        wire.transport.write(self._request("POST", path, json.dumps(content).encode(), "application/json"))
        self._wire = None
        wire.transport.close()  # once the request is sent

    def close(self) -> None:
        """Hang up."""
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    async def _connected(self) -> _Wire:
        if self._wire is None or not self._wire.is_open:
            loop = asyncio.get_running_loop()
            try:
                _, self._wire = await loop.create_connection(_Wire, "127.0.0.1", self.port)
            except OSError as error:
                raise Lost(f"nobody listens ({error.strerror})") from None
        return self._wire

    def _request(self, method: str, path: str, body: bytes, kind: str) -> bytes:
        lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}"]
        if self.cookies:
            lines.append("Cookie: " + "; ".join(f"{name}={value}" for name, value in self.cookies.items()))
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        if method == "POST":
            lines += [f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
        return "\r\n".join([*lines, "", ""]).encode() + body


# A step is what one client does over and over: its last status and its seconds, or None where nothing is left.
Step = Callable[[], Awaitable[tuple[int, float] | None]]


@dataclass
class Tally:
    """What a crowd of clients saw: seconds of each step that succeeded, and all steps by status."""

    length: float = 0.0  # seconds that were counted
    cpu: float = 0.0  # seconds of CPU that the clients took meanwhile
    seconds: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)

    def summary(self) -> dict[str, Any]:
        """Steps a second, their latency, what went wrong, and the clients' own share of a core."""
        return {
            "per_second": round(len(self.seconds) / self.length, 1) if self.length else 0.0,
            "num": len(self.seconds),
            **{f"p{share}_ms": milliseconds(percentile(self.seconds, share)) for share in (50, 95, 99)},
            "statuses": dict(sorted(self.statuses.items())),
            "clients_core_share": round(self.cpu / self.length, 2) if self.length else 0.0,
        }


async def crowd(steps: Sequence[Step], warm: float, seconds: float, most: int) -> Tally:
    """Every client does its step as often as it can, for `seconds` after `warm`, or until `most` are done in all.

    What ends in the warm-up is not counted. A step whose connection was lost counts under "lost". Where the clients
    have not done two steps each by then, they get up to five times as long.
    """
    tally = Tally()
    begin = time.perf_counter() + warm
    last = begin
    cpu = None
    num = 0

    def is_time(now: float) -> bool:
        is_slow = tally.statuses.total() < 2 * len(steps)
        return now < begin + seconds * (5 if is_slow else 1)

    async def client(step: Step) -> None:
        nonlocal last, cpu, num
        while num < most and is_time(time.perf_counter()):
            try:
                done = await step()
            except Lost:
                done = (0, 0.0)
                await asyncio.sleep(0.02)
            if done is None:
                return
            num += 1
            now = time.perf_counter()
            if now < begin or not is_time(now):
                continue
            cpu = time.process_time() if cpu is None else cpu
            last = max(last, now)
            tally.statuses[str(done[0]) if done[0] else "lost"] += 1
            if 200 <= done[0] < 400:
                tally.seconds.append(done[1])

    await asyncio.gather(*(client(step) for step in steps))
    tally.length, tally.cpu = last - begin, time.process_time() - (cpu or time.process_time())
    return tally


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that at least `share` percent of the values do not pass; None for none."""
    if not values:
        return None
    rank = -(-len(values) * share // 100)
    return sorted(values)[max(0, int(rank) - 1)]


def milliseconds(seconds: float | None) -> float | None:
    """Seconds in milliseconds, as tables show them."""
    return None if seconds is None else round(1000 * seconds, 1)


def run_loop(work: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`, on uvloop where it is installed: half the cost."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


class _Nothing(asyncio.Protocol):
    """A server that reads a request and says four kilobytes, as much as a turn has."""

    REPLY = b"HTTP/1.1 200 OK\r\nContent-Length: 4096\r\n\r\n" + b"x" * 4096

    def connection_made(self, transport: Any) -> None:
        self.transport, self.seen = transport, bytearray()

    def data_received(self, data: bytes) -> None:
        self.seen += data
        length = _LENGTH.search(self.seen)
        end = self.seen.find(b"\r\n\r\n")
        if end >= 0 and len(self.seen) >= end + 4 + (int(length[1]) if length else 0):
            self.seen.clear()
            self.transport.write(self.REPLY)


async def _serve_nothing(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Nothing, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    run_loop(_serve_nothing(int(sys.argv[1])))
