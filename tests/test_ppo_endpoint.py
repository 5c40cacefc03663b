"""Reward endpoints, on a real server: asked in batches, tried again, given up with one line."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from rlhf.ppo.endpoint import HTTPReward, RewardError
from rlhf.ppo.rewards import load_rewards
from rlhf.ppo.scores import score
from tests.reward_cases import COMPLETIONS, PROMPTS, ask


class Server(ThreadingHTTPServer):
    """A real server on a free port; `reply(body, number)` gives status and answer of each request."""

    daemon_threads = True

    def __init__(self, reply: Callable[[Any, int], tuple[int, Any]]) -> None:
        self.reply = reply
        self.bodies: list[Any] = []
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/score"


class _Handler(BaseHTTPRequestHandler):
    server: Server  # type: ignore[assignment]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.bodies.append(body)
        status, answer = self.server.reply(body, len(self.server.bodies))
        if status == 0:  # hang up
            self.close_connection = True
            return
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        try:
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except BrokenPipeError:
            pass  # the client has given up already

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    servers = []

    def start(reply: Callable[[Any, int], tuple[int, Any]]) -> Server:
        server = Server(reply)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def _lengths(body: Any) -> list[int]:
    return [len(completion[-1]["content"]) for completion in body["completions"]]


def endpoint(url: str, **settings: Any) -> HTTPReward:
    return HTTPReward(url, **{"backoff": 0.001, "num_retries": 2, **settings})


@pytest.mark.parametrize("bare", [True, False])
def test_an_endpoint_is_asked_in_batches(serve: Callable[..., Server], bare: bool) -> None:
    server = serve(lambda body, _: (200, _lengths(body) if bare else {"scores": _lengths(body)}))
    rewards = load_rewards([server.url], batch_size=2)
    assert score(rewards, PROMPTS, COMPLETIONS, {"topic": ["x", "y", None]}, 60) == [[9, 19, 1]]
    assert server.bodies == [
        {"prompts": PROMPTS[:2], "completions": COMPLETIONS[:2], "columns": {"topic": ["x", "y"]}},
        {"prompts": PROMPTS[2:], "completions": COMPLETIONS[2:], "columns": {"topic": [None]}},
    ]


@pytest.mark.parametrize("status", [0, 429, 500, 503])
def test_a_flaky_endpoint_is_tried_again(serve: Callable[..., Server], status: int) -> None:
    server = serve(lambda body, number: (200, _lengths(body)) if number == 3 else (status, {"error": "busy"}))
    assert ask(endpoint(server.url)) == [[9, 19, 1]]
    assert len(server.bodies) == 3


def test_the_wait_doubles_between_tries(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("rlhf.ppo.endpoint.time.sleep", waits.append)
    server = serve(lambda *_: (500, {}))
    with pytest.raises(RewardError):
        HTTPReward(server.url, num_retries=4, backoff=0.5)(PROMPTS, COMPLETIONS)
    assert waits == [0.5, 1, 2, 4]
    assert len(server.bodies) == 5


def _message(function: HTTPReward, **columns: Any) -> str:
    with pytest.raises(RewardError) as error:
        ask(function, columns=columns)
    return str(error.value)


def test_an_endpoint_that_stays_broken_is_given_up(serve: Callable[..., Server]) -> None:
    server = serve(lambda *_: (500, b"no memory left"))
    assert _message(endpoint(server.url)) == (
        f"reward `127.0.0.1`: {server.url}: failed 3 times, at last with HTTP 500 'no memory left'; "
        "check that the server runs and can be reached from here"
    )
    assert len(server.bodies) == 3


def test_a_refusal_is_final(serve: Callable[..., Server]) -> None:
    for status in (400, 404, 307):
        server = serve(lambda *_, status=status: (status, {"error": "no topic"}))
        assert _message(endpoint(server.url)) == (
            f'reward `127.0.0.1`: {server.url}: answered HTTP {status} \'{{"error": "no topic"}}\'; '
            "mend the URL, or the server"
        )
        assert len(server.bodies) == 1


def test_an_endpoint_that_is_not_there_is_an_error(serve: Callable[..., Server]) -> None:
    server = serve(lambda *_: (200, []))
    server.shutdown()
    server.server_close()
    message = _message(endpoint(server.url))
    assert f"{server.url}: failed 3 times, at last with ConnectError: " in message


def test_a_slow_answer_is_a_failed_try(serve: Callable[..., Server]) -> None:
    go = threading.Event()

    def slow_once(body: Any, number: int) -> tuple[int, Any]:
        if number == 1:
            go.wait(60)
        return 200, _lengths(body)

    server = serve(slow_once)
    assert ask(endpoint(server.url, timeout=0.2, num_retries=50)) == [[9, 19, 1]]
    go.set()

    halt = threading.Event()
    server = serve(lambda *_: (200 if halt.wait(60) else 500, []))
    assert "failed 1 times, at last with ReadTimeout: timed out" in _message(
        endpoint(server.url, timeout=0.05, num_retries=0)
    )
    with pytest.raises(RewardError, match=r"reward `127.0.0.1`: no answer within 0.05 seconds"):
        ask(endpoint(server.url, num_retries=0), timeout=0.05)
    halt.set()


def test_an_answer_that_is_no_list_of_scores_is_an_error(serve: Callable[..., Server]) -> None:
    right = 'it should answer {"scores": [...]} or a list'
    for answer, told in [
        ({"score": 1}, "'{\"score\": 1}'"),
        (b"<html>", "'<html>'"),
        (3, "'3'"),
        (b"\xff", "'\ufffd'"),
    ]:
        server = serve(lambda *_, answer=answer: (200, answer))
        assert _message(endpoint(server.url)) == f"reward `127.0.0.1`: {server.url}: answered {told}; {right}"
    # Two batches whose wrong lengths add up to the right one: each is counted.
    server = serve(lambda body, number: (200, [0] if number == 1 else [0, 0]))
    assert "gave 1 scores for 2 completions; give one for each" in _message(endpoint(server.url, batch_size=2))
    server = serve(lambda *_: (200, b'{"scores": [1, NaN, 2]}'))
    assert "returned nan for 1 of 3 completions (the first at index 1)" in _message(endpoint(server.url))


def test_a_column_that_json_does_not_know_is_named() -> None:
    message = _message(endpoint("http://127.0.0.1:9/score"), good=[1, 2, 3], seen=[object()] * 3)
    assert "http://127.0.0.1:9/score: column `seen` cannot be sent (Object of type object is not JSON" in message
    message = _message(endpoint("http://127.0.0.1:9/score"), seen=[1.0, float("nan"), 2.0])
    assert "column `seen` cannot be sent (Out of range float values are not JSON compliant" in message
    assert message.endswith("; store it as text, or drop it")


def test_errors_do_not_show_the_password_of_a_url(serve: Callable[..., Server]) -> None:
    server = serve(lambda *_: (400, {}))
    message = _message(endpoint(server.url.replace("//", "//me:secret@")))
    assert server.url in message
    assert "secret" not in message
