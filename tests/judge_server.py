"""A chat endpoint on this machine that judges, or misbehaves, as a test tells it."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import pytest

from rlhf.compare.llm_judge import JudgeEndpoint, PairItem

# The counts in every answer of `says`, unless told otherwise: with prices of 2 and 8 per million tokens a
# request costs (1000 * 2 + 100 * 8) / 1e6 = 0.0028.
USAGE = {"prompt_tokens": 1000, "completion_tokens": 100}
PRICE = 0.0028


class Answer(NamedTuple):
    """What the server sends; the status 0 hangs up, `pieces` are sent 20 ms apart."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = {}  # noqa: RUF012 (never written to)
    pieces: int = 1


def says(text: Any, finish: str = "stop", usage: Any = USAGE) -> Answer:
    """A chat completion with this text."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return Answer(200, json.dumps({"choices": [choice], "usage": usage}).encode())


class Request(NamedTuple):
    """What came in, and when."""

    body: dict[str, Any]
    headers: dict[str, str]
    at: float

    @property
    def question(self) -> str:
        """The first message."""
        return self.body["messages"][0]["content"]

    @property
    def shown(self) -> tuple[str, str]:
        """The responses in the places A and B, as they stand between their marks."""
        return between_marks(self.question, "response_a"), between_marks(self.question, "response_b")


def between_marks(question: str, place: str) -> str:
    """The text between the marks of a place, of which there must be one pair."""
    code = question.rpartition("two marks with the code ")[2][:16]
    before, start, rest = question.partition(f"<{place} {code}>\n")
    text, end, after = rest.partition(f"\n</{place} {code}>")
    assert start and end and f"{place} {code}" not in before + text + after
    return text


class JudgeServer(ThreadingHTTPServer):
    """A real server on a free port; `answer(request, number)` makes each answer, the first number is 1."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, answer: Callable[[Request, int], Answer]) -> None:
        self.answer = answer
        self.requests: list[Request] = []
        self.lock = threading.Lock()
        self.closing = threading.Event()
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        """Serve no more."""
        self.closing.set()
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: JudgeServer  # type: ignore[assignment]  # declared wider in the standard library
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        request = Request(body, {key.lower(): value for key, value in self.headers.items()}, time.monotonic())
        assert self.path == "/v1/chat/completions"
        with self.server.lock:
            self.server.requests.append(request)
            number = len(self.server.requests)
        answer = self.server.answer(request, number)
        if answer.status == 0:
            self.close_connection = True
            return
        try:
            self.send_response(answer.status)
            for key, value in {"content-length": str(len(answer.body)), **answer.headers}.items():
                self.send_header(key, value)
            self.end_headers()
            size = -(-len(answer.body) // answer.pieces)
            for start in range(0, len(answer.body), size or 1):
                self.wfile.write(answer.body[start : start + size])
                if answer.pieces > 1 and self.server.closing.wait(0.02):
                    return
        except OSError:
            self.close_connection = True  # the client has given up already

    def send_response(self, code: int, message: str | None = None) -> None:
        self.send_response_only(code, message)  # without Server and Date: a test gives its own Date

    def log_message(self, format: str, *args: Any) -> None:
        pass


def by_number(request: Request, _: int = 0) -> Answer:
    """A judge without fault: the response with the larger number is better."""
    a, b = (int(re.findall(r"\d+", text)[0]) for text in request.shown)
    return says(f"{a} against {b}.\n\n[[{'A' if a > b else 'B' if b > a else 'C'}]]")


def pair(a: int, b: int, prompt: str = "How many?") -> PairItem:
    """A pair for `by_number`; two equal numbers are written unlike."""
    return PairItem([{"role": "user", "content": prompt}], f"It is {a}.", f"I say {b}.")


def endpoint(url: str, **settings: Any) -> JudgeEndpoint:
    """One without patience."""
    return JudgeEndpoint(url, "judge-1", **{"backoff": 0.001, "num_retries": 2, "api_key_env": "JUDGE_KEY", **settings})


@pytest.fixture(name="serve")
def serve_fixture(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., JudgeServer]]:
    """Start servers that stop with the test."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    servers: list[JudgeServer] = []

    def start(answer: Callable[[Request, int], Answer]) -> JudgeServer:
        servers.append(JudgeServer(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
