"""The judge's endpoint on a real server that misbehaves: tried again, paced, within its cost, resumed after a kill."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf.compare.llm_judge import judge_pairs
from rlhf.compare.llm_judge.budget import Pace
from rlhf.compare.llm_judge.cache import Reply, ReplyCache, request_key
from rlhf.compare.llm_judge.client import ChatClient, retry_after
from rlhf.errors import UserError
from tests.judge_server import PRICE, Answer, JudgeServer, Request, by_number, endpoint, pair, says, serve_fixture

__all__ = ["serve_fixture"]

Serve = Callable[..., JudgeServer]
KEY = "sk-very-secret-0123456789"


def _error(judge: Any, items: Any = None) -> str:
    with pytest.raises(UserError) as error:
        judge_pairs(judge, items or [pair(1, 2)])
    return str(error.value)


# --- tried again


@pytest.mark.parametrize(
    "failure",
    [
        Answer(0),
        Answer(429, b"busy"),
        Answer(500, b"{}"),
        Answer(503),
        Answer(529, b"overloaded"),
        Answer(200, b"<html>"),
        Answer(200, b""),
        Answer(200, b"\xff\xfe"),
        Answer(200, b"[]"),
        Answer(200, b"3"),
        Answer(200, b'{"choices": []}'),
        Answer(200, b'{"choices": [null]}'),
        Answer(200, b'{"choices": [{"message": null}]}'),
        Answer(200, b'{"choices": {"0": 1}}'),
        Answer(200, b'{"error": {"message": "upstream"}}'),
        Answer(200, b"[" * 100_000),
        says([{"type": "text", "text": "[[A]]"}]),
        says(3),
        Answer(200, says("[[A]]").body, {"content-encoding": "gzip"}),
        Answer(200, says("[[A]]").body, {"content-length": "9999", "connection": "close"}),
    ],
)
def test_a_flaky_endpoint_is_tried_again(serve: Serve, failure: Answer) -> None:
    server = serve(lambda request, number: by_number(request) if number > 2 else failure)
    (verdict,) = judge_pairs(endpoint(server.url, concurrency=1), [pair(2, 1)])
    assert verdict.value == 1
    assert len(server.requests) == 4
    assert server.requests[0].body == server.requests[1].body == server.requests[2].body


def test_an_endpoint_that_stays_broken_is_given_up(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda *_: Answer(500, b"no memory left"))
    url = f"{server.url}/chat/completions"
    assert _error(endpoint(server.url, concurrency=1)) == (
        f"{url}: failed 3 times, at last with HTTP 500 'no memory left'; check that the server runs and can be reached "
        "from here; nothing was kept: set `cache` to a file, so that a next run can go on"
    )
    assert len(server.requests) == 3
    server = serve(lambda *_: Answer(200, b"<html>"))
    message = _error(endpoint(server.url, concurrency=1, cache=str(tmp_path / "c.jsonl")))
    assert (
        "at last with an answer '<html>' that is no chat completion "
        '({"choices": [{"message": {"content": ...}}]}); check' in message
    )
    assert message.endswith(f"what was answered is kept in {tmp_path / 'c.jsonl'}: run again to go on")


def test_an_endpoint_that_is_not_there_is_an_error(serve: Serve) -> None:
    server = serve(by_number)
    server.stop()
    server.stop = lambda: None  # type: ignore[method-assign]
    assert "failed 3 times, at last with ConnectError: " in _error(endpoint(server.url))


def test_a_slow_answer_is_a_failed_try(serve: Serve) -> None:
    never = threading.Event()

    def slow_once(request: Request, number: int) -> Answer:
        if number == 1:
            never.wait(60)
        return by_number(request)

    server = serve(slow_once)
    (verdict,) = judge_pairs(endpoint(server.url, timeout=0.3, num_retries=50, concurrency=1), [pair(2, 1)])
    assert verdict.value == 1
    assert server.requests[0].body == server.requests[1].body
    never.set()


def test_an_answer_that_drips_is_cut_off(serve: Serve) -> None:
    server = serve(lambda *_: says("[[A]]" + " " * 20_000)._replace(pieces=10_000))  # 200 seconds of it
    message = _error(endpoint(server.url, timeout=0.3, num_retries=0))
    assert "failed 1 times, at last with ReadTimeout: no whole answer within 0.3 seconds" in message


def test_an_answer_without_end_is_cut_off(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf.compare.llm_judge.client._LONGEST_BODY", 2**20)
    server = serve(lambda *_: Answer(200, b" " * (2**20 + 1)))
    assert "ReadError: an answer of more than 1 MiB" in _error(endpoint(server.url, num_retries=0))


class Waits(list[float]):
    """The waits of the client, which are not waited, and the pauses that it imposes on all requests."""

    def __init__(self) -> None:
        self.holds: list[float] = []


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    seen = Waits()
    sleep = ChatClient._sleep

    def note(client: ChatClient, seconds: float) -> None:
        seen.extend([seconds] if seconds else [])
        sleep(client, 0)

    monkeypatch.setattr(ChatClient, "_sleep", note)
    monkeypatch.setattr(Pace, "hold", lambda _, seconds: seen.holds.append(seconds))
    return seen


def test_the_wait_doubles_with_jitter_up_to_the_longest(serve: Serve, waits: Waits) -> None:
    server = serve(lambda *_: Answer(500))
    _error(endpoint(server.url, concurrency=1, num_retries=6, backoff=0.5, max_wait=6))
    longest = [0.5, 1, 2, 4, 6, 6]
    assert len(waits) == 6
    shares = [wait / most for wait, most in zip(waits, longest, strict=True)]
    assert min(shares) >= 0.5
    assert max(shares) <= 1
    assert len(set(shares)) == 6
    assert waits.holds == [0] * 6


def test_retry_after_is_the_least_wait_and_holds_back_all(serve: Serve, waits: Waits) -> None:
    server = serve(lambda *_: Answer(429, b"", {"retry-after": "7"}))
    _error(endpoint(server.url, concurrency=1, num_retries=2, backoff=0.5))
    assert len(waits) == 2
    assert 7.25 <= waits[0] <= 7.5
    assert 7.5 <= waits[1] <= 8
    assert waits.holds == [7, 7]


def test_retry_after_is_really_waited(serve: Serve) -> None:
    busy = Answer(503, b"", {"retry-after": "0.4"})
    server = serve(lambda request, number: by_number(request) if number > 1 else busy)
    judge_pairs(endpoint(server.url, concurrency=1), [pair(2, 1)])
    assert server.requests[1].at - server.requests[0].at >= 0.4


def test_a_long_wait_ends_where_another_request_fails_for_good(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    both, waiting = threading.Event(), threading.Event()
    monkeypatch.setattr(Pace, "hold", lambda *_: waiting.set())

    def answer(_: Request, number: int) -> Answer:
        if number == 1:
            both.wait(60)
            return Answer(429, b"", {"retry-after": "250"})
        both.set()
        waiting.wait(60)
        return Answer(403)

    server = serve(answer)
    start = time.monotonic()
    assert "answered HTTP 403" in _error(endpoint(server.url, concurrency=2, backoff=250))
    assert time.monotonic() - start < 60


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "12"}, 12),
        ({"retry-after": " 1.5 "}, 1.5),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:57 GMT", "date": "Sun, 06 Nov 1994 08:49:37 GMT"}, 20),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:57 GMT"}, 30),  # by our clock
        ({"retry-after": "Sun, 06 Nov 1994 08:49:57 GMT", "date": "today"}, 30),
        ({"retry-after": "Sun, 06 Nov 1994 08:40:00 GMT"}, 0),  # past
        ({}, 0),
        ({"retry-after": "soon"}, 0),
        ({"retry-after": "-5"}, 0),
        ({"retry-after": "nan"}, 0),
        ({"retry-after": "inf"}, 0),
        ({"retry-after": "Sun, 99 Nov 1994 08:49:57 GMT"}, 0),
    ],
)
def test_retry_after_by_hand(headers: dict[str, str], seconds: float) -> None:
    now = 784111797 - 30  # 784111797 is Sun, 06 Nov 1994 08:49:57 GMT
    assert retry_after(headers, now) == seconds


def test_a_server_that_asks_for_too_long_a_wait_ends_it(serve: Serve) -> None:
    server = serve(lambda *_: Answer(429, b"quota", {"retry-after": "86400"}))
    assert _error(endpoint(server.url, concurrency=1)) == (
        f"{server.url}/chat/completions: asks to wait 86400 seconds (HTTP 429 'quota'), more than max_wait allows; "
        "nothing was kept: set `cache` to a file, so that a next run can go on"
    )
    assert len(server.requests) == 1


# --- refused


def test_a_refusal_is_final(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, status, mend in [
        ("", 401, "set JUDGE_KEY to a key"),
        (KEY, 401, "check the key in JUDGE_KEY"),
        (KEY, 403, "check the key in JUDGE_KEY"),
        ("", 404, "check base_url and that it serves a model `judge-1`"),
        ("", 307, "mend base_url, or the server"),
    ]:
        monkeypatch.setenv("JUDGE_KEY", key)
        server = serve(lambda *_, status=status: Answer(status, b"no", {"location": "http://127.0.0.1:9/"}))
        message = _error(endpoint(server.url, concurrency=1))
        assert message == f"{server.url}/chat/completions: answered HTTP {status} 'no'; {mend}"
        assert len(server.requests) == 1


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_question_that_is_refused_has_no_verdict(serve: Serve, tmp_path: Path, status: int) -> None:
    def filtered(request: Request, _: int) -> Answer:
        return Answer(status, b"too long") if "I say 9." in request.shown else by_number(request)

    server = serve(filtered)
    judge = endpoint(server.url, max_unparsed=0.5, cache=str(tmp_path / "c.jsonl"))
    verdicts = judge_pairs(judge, [pair(1, 9), pair(1, 2)])
    assert [(verdict.value, verdict.verdicts) for verdict in verdicts] == [(0.5, (None, None)), (0.0, ("B", "A"))]
    assert verdicts[0].texts == (f"HTTP {status} 'too long'",) * 2
    assert verdicts[0].num_requests == 0
    assert len(server.requests) == 4  # not tried again
    server.answer = by_number
    assert judge_pairs(judge, [pair(1, 9), pair(1, 2)])[0].value == 0.0  # but asked again in a next run
    assert len(server.requests) == 6
    server.answer = lambda *_: Answer(status, b"too long")
    reason = (
        f"judge-1: 1 of 2 questions got no verdict, more than max_unparsed 0.05 allows, the last one HTTP {status} "
    )
    assert reason in _error(endpoint(server.url))


# --- the key


def test_the_key_goes_into_the_header_and_nowhere_else(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    monkeypatch.setenv("JUDGE_KEY", f" {KEY}\n")
    server = serve(lambda *_: says(f"Your key is {KEY}.\n[[A]]"))
    cache = tmp_path / "c.jsonl"
    judge = endpoint(server.url, cache=str(cache))
    (verdict,) = judge_pairs(judge, [pair(1, 2)])
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert verdict.texts == ("Your key is ***.\n[[A]]",) * 2
    server = serve(lambda *_: Answer(401, f"not a key: {KEY}".encode()))
    message = _error(endpoint(server.url))
    assert "'not a key: ***'" in message
    for text in (cache.read_text(), repr(judge), message, caplog.text):
        assert KEY not in text
    assert KEY not in json.dumps([request.body for request in server.requests])


def test_a_placeholder_for_a_key_may_be_a_word_of_the_answer(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "A")
    (verdict,) = judge_pairs(endpoint(serve(lambda *_: says("[[A]]")).url), [pair(1, 2)])
    assert verdict.verdicts == ("A", "A")


@pytest.mark.parametrize("key", ["sk two", "sk\tx", "sk-\u00e9", "a\nb"])
def test_a_key_that_cannot_be_sent_is_not_shown(serve: Serve, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("JUDGE_KEY", key)
    message = _error(endpoint(serve(by_number).url))
    assert message == "JUDGE_KEY: holds characters that no API key has; set it again"


# --- how hard it is asked


def test_requests_at_a_time(serve: Serve) -> None:
    together = threading.Barrier(3)
    lock, now, most = threading.Lock(), [0], [0]

    def counts(request: Request, _: int) -> Answer:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        together.wait(30)  # broken, and so a failure, unless three are in flight
        with lock:
            now[0] -= 1
        return by_number(request)

    judge_pairs(endpoint(serve(counts).url, concurrency=3), [pair(n, n + 1) for n in range(6)])
    assert most == [3]


def test_a_pace_by_hand() -> None:
    clock = [100.0]
    pace = Pace(30, lambda: clock[0])  # one every two seconds
    assert pace.take() == 0
    assert pace.take() == 2
    clock[0] = 101.5
    assert pace.take() == 0.5
    clock[0] = 102.0
    assert pace.take() == 0
    pace.hold(10)
    assert pace.take() == 10
    pace.hold(1)  # does not shorten it
    clock[0] = 111.0
    assert pace.take() == 1
    clock[0] = 120.0
    assert pace.take() == 0
    assert pace.take() == 2  # a late request does not let the next one catch up
    free = Pace(None, lambda: clock[0])
    assert [free.take() for _ in range(3)] == [0, 0, 0]
    free.hold(3)
    assert free.take() == 3


def test_requests_a_minute(serve: Serve) -> None:
    server = serve(by_number)
    start = time.monotonic()
    judge_pairs(endpoint(server.url, requests_per_minute=1200), [pair(n, n + 1) for n in range(5)])
    assert len(server.requests) == 10
    assert time.monotonic() - start >= 9 * 60 / 1200  # nine gaps between ten requests


# --- cost


def _capped(server: JudgeServer, cap: float, **settings: Any) -> Any:
    # The worst case of a request: a few hundred bytes at 2, and 200 tokens at 8 per million: below 0.01.
    return endpoint(server.url, price_in=2, price_out=8, max_tokens=200, max_cost=cap, **settings)


@pytest.mark.parametrize("concurrency", [1, 8])
def test_the_cost_stops_before_it_is_passed(serve: Serve, tmp_path: Path, concurrency: int) -> None:
    server = serve(by_number)
    cache, items = str(tmp_path / "c.jsonl"), [pair(n, n + 1) for n in range(20)]
    cap = 10 * PRICE
    message = _error(_capped(server, cap, concurrency=concurrency, cache=cache), items)
    asked = len(server.requests)
    assert 7 <= asked <= 10  # stopped for fear of the worst case, one request of up to 0.01, short of ten
    spent = f"max_cost: {asked * PRICE:.4f} of 0.028 is spent"
    assert message.startswith(f"{spent}, and the next request may cost up to 0.00")
    assert message.endswith(f"raise it; what was answered is kept in {cache}: run again to go on")
    # What was paid counts in the next run too, which can ask nothing.
    again = _error(_capped(server, cap, concurrency=concurrency, cache=cache), items)
    assert again.split(",")[0] == message.split(",")[0]
    assert len(server.requests) == asked
    verdicts = judge_pairs(_capped(server, 1, concurrency=concurrency, cache=cache), items)
    assert len(server.requests) == 40  # nothing was asked twice
    assert sum(verdict.cost or 0 for verdict in verdicts) == pytest.approx(40 * PRICE)


def test_a_cap_that_is_just_enough_is_enough(serve: Serve) -> None:
    server = serve(by_number)
    worst = 0.01  # at most, of the last request
    items = [pair(n, n + 1) for n in range(10)]
    assert len(judge_pairs(_capped(server, 19 * PRICE + worst), items)) == 10


def test_an_answer_that_never_comes_may_have_been_billed(serve: Serve) -> None:
    server = serve(lambda *_: Answer(0))
    message = _error(_capped(server, 0.02, concurrency=1, num_retries=100, max_wait=0.01))
    assert message.startswith("max_cost: ")
    assert 2 <= len(server.requests) <= 10  # 0.02 is spent at 0.002 to 0.01 a request
    server = serve(lambda *_: Answer(500))  # an error is not billed
    message = _error(_capped(server, 0.02, concurrency=1, num_retries=20, max_wait=0.01))
    assert "failed 21 times" in message
    server = serve(lambda request, _: says("[[C]]", usage=None))  # an unknown count is
    assert _error(_capped(server, 0.02, concurrency=1), [pair(n, n + 1) for n in range(20)]).startswith("max_cost: ")


# --- the cache


def test_a_second_run_asks_nothing(serve: Serve, tmp_path: Path) -> None:
    server = serve(by_number)
    judge = endpoint(server.url, cache=str(tmp_path / "deep" / "c.jsonl"), price_in=2, price_out=8)
    items = [pair(n, 3) for n in range(6)]
    first = judge_pairs(judge, items)
    server.stop()
    server.stop = lambda: None  # type: ignore[method-assign]
    assert judge_pairs(judge, items) == first
    lines = [json.loads(line) for line in (tmp_path / "deep" / "c.jsonl").read_text().splitlines()]
    assert len({line["key"] for line in lines}) == len(lines) == 12
    assert set(lines[0]) == {"key", "text", "finish", "tokens_in", "tokens_out"}


def test_reminders_are_kept_too(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda request, _: says("Hm.") if len(request.body["messages"]) == 1 else by_number(request))
    judge = endpoint(server.url, cache=str(tmp_path / "c.jsonl"))
    assert judge_pairs(judge, [pair(1, 2)]) == judge_pairs(judge, [pair(1, 2)])
    assert len(server.requests) == 4


def test_what_changes_the_answer_is_asked_again(serve: Serve, tmp_path: Path) -> None:
    server = serve(by_number)
    cache = str(tmp_path / "c.jsonl")
    for number, settings in enumerate(
        [{}, {"temperature": 0.5}, {"max_tokens": 9}, {"extra_body": {"seed": 1}}, {"template": "reference"}], 1
    ):
        item = pair(1, 2)
        item = type(item)(item.prompt, item.a, item.b, reference="2")
        judge_pairs(endpoint(server.url, cache=cache, **settings), [item])
        assert len(server.requests) == 2 * number
    judge_pairs(endpoint(server.url, cache=cache, timeout=5, concurrency=2), [pair(1, 2)])
    assert len(server.requests) == 10


def test_the_key_of_a_request_by_hand() -> None:
    messages = [{"role": "user", "content": "x"}]
    # printf '["m", [{"content": "x", "role": "user"}], {"a": 1}]' | sha256sum
    assert request_key("m", messages, {"a": 1}) == "180468001b9c5958ccdc04507053e6451fb22c1747f2b0302a3ebda4d4a780c4"


@pytest.mark.parametrize("torn", [b'{"key": "k', b"{}", b'{"key": "x", "text": "y", "finish": null}', b"\xff\x00"])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "c.jsonl"
    whole, other = Reply("a\ud800\n", "stop", 1, None), Reply("b", None, None, 2)
    with ReplyCache(str(path)) as cache:
        cache.put("k1", whole)
    before = path.read_bytes()
    path.write_bytes(before + torn)
    with ReplyCache(str(path)) as cache:
        assert cache.get("k1") == whole
        assert cache.get("k2") is None
        cache.put("k2", other)
    assert path.read_bytes().startswith(before)
    with ReplyCache(str(path)) as cache:
        assert (cache.get("k1"), cache.get("k2")) == (whole, other)


def test_a_broken_line_before_the_last_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    line = json.dumps({"key": "k", "text": "x", "finish": None, "tokens_in": 1, "tokens_out": 1})
    path.write_text(f"{line}\n{line[:20]}\n{line}\n")
    with pytest.raises(UserError, match=rf"^cache: {path}, line 2: broken JSON \(.*\); mend or remove the line$"):
        ReplyCache(str(path))
    path.write_text(f"{line}\n")
    ReplyCache(str(path)).close()  # the failed one let go of it


def test_a_cache_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    message = rf"^cache: {tmp_path} cannot be written \(Is a directory\); give another file$"
    with pytest.raises(UserError, match=message):
        ReplyCache(str(tmp_path))
    path = str(tmp_path / "c.jsonl")
    with (
        ReplyCache(path),
        pytest.raises(UserError, match=r"c\.jsonl is in use by another run; wait for it, or give another file$"),
    ):
        ReplyCache(path)


def test_a_full_disk_ends_the_writing(full_disk: Path) -> None:
    path = full_disk / "c.jsonl"
    with ReplyCache(str(path)) as cache:
        cache.put("k1", Reply("a", None, 1, 1))
        message = "c.jsonl: no space left on the disk; free some and run again; all but the last answer is kept"
        with pytest.raises(UserError, match=message):
            cache.put("k2", Reply("b" * 2**21, None, 1, 1))
        size = path.stat().st_size
        cache.put("k3", Reply("c", None, 1, 1))
        assert path.stat().st_size == size > 2**19  # nothing is glued to the torn line
    with ReplyCache(str(path)) as cache:
        assert [cache.get(key) is not None for key in ("k1", "k2", "k3")] == [True, False, False]


def test_an_error_waits_for_what_is_in_flight_and_keeps_it(serve: Serve, tmp_path: Path) -> None:
    failed = threading.Event()

    def second_fails(request: Request, number: int) -> Answer:
        if number == 2:
            failed.set()
            return Answer(403, b"no")
        failed.wait(30)
        return by_number(request)

    server = serve(second_fails)
    cache = tmp_path / "c.jsonl"
    assert "answered HTTP 403" in _error(endpoint(server.url, cache=str(cache), concurrency=2), [pair(1, 2)] * 1)
    assert len(cache.read_text().splitlines()) == 1


CHILD = """
import sys
from rlhf.compare.llm_judge import judge_pairs
from tests.judge_server import endpoint, pair
judge_pairs(endpoint(sys.argv[1], cache=sys.argv[2], concurrency=2), [pair(n, n + 1) for n in range(20)])
"""


def test_after_a_kill_nothing_is_asked_twice(serve: Serve, tmp_path: Path) -> None:
    cache = tmp_path / "c.jsonl"
    child: list[subprocess.Popen[bytes]] = []
    started, dead = threading.Event(), threading.Event()

    def kill(request: Request, number: int) -> Answer:
        if number == 15:
            dead.wait(60)  # so that two requests are in flight
        if number == 16:
            started.wait(60)
            child[0].kill()
            child[0].wait(60)
            dead.set()
        return by_number(request)

    server = serve(kill)
    child.append(subprocess.Popen([sys.executable, "-c", CHILD, server.url, str(cache)], cwd=Path(__file__).parents[1]))
    started.set()
    assert child[0].wait(60) == -signal.SIGKILL
    assert dead.wait(60)
    assert len(server.requests) == 16
    assert len(cache.read_bytes().splitlines()) == 14  # all but those in flight

    verdicts = judge_pairs(endpoint(server.url, cache=str(cache)), [pair(n, n + 1) for n in range(20)])
    assert [verdict.value for verdict in verdicts] == [0.0] * 20
    times = Counter(json.dumps(request.body, sort_keys=True) for request in server.requests)
    in_flight = {json.dumps(request.body, sort_keys=True) for request in server.requests[14:16]}
    assert len(times) == 40
    assert {body for body, count in times.items() if count > 1} == in_flight
