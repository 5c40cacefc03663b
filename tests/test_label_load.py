"""The load benchmark's own logic: its clients read HTTP, and its checker sees what is lost, doubled or too many."""

import asyncio
import contextlib
import dataclasses
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, create_engine, text

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))

from label_check import Sent, Stored, StoredAnswer, check, num_counted, read_store  # noqa: E402
from label_clients import Browser, Lost, crowd, parse_reply, percentile  # noqa: E402
from label_ours import make_people, marked_tasks, marks, pair_tasks, task_of  # noqa: E402
from label_servers import Server  # noqa: E402
from label_survive import HARD_TEXT, Book, Plan, Trouble, survive  # noqa: E402
from label_table import ratios, table  # noqa: E402

from labeling_app.form import Form  # noqa: E402
from labeling_app.handout import Rules, next_turn  # noqa: E402
from labeling_app.loading import SetRules, load_tasks  # noqa: E402
from labeling_app.session import COOKIE, Sessions, signing_key  # noqa: E402
from labeling_app.store import Store  # noqa: E402
from labeling_app.submit import submit  # noqa: E402

# Clients ----------------------------------------------------------------------------------------


def test_a_reply_with_a_length_is_whole_with_its_last_byte():
    raw = b"HTTP/1.1 201 Created\r\nContent-Length: 5\r\n\r\nhello"
    assert parse_reply(raw[:-1], at_end=False) is None
    assert parse_reply(raw[:20], at_end=False) is None
    assert parse_reply(raw, at_end=False) == (201, raw[:-9], b"hello")


def test_chunks_are_put_together():
    raw = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nWiki\r\n7;x=y\r\npedia i\r\n0\r\n\r\n"
    for cut in range(len(raw)):
        assert parse_reply(raw[:cut], at_end=False) is None
    reply = parse_reply(raw, at_end=False)
    assert reply is not None and reply[2] == b"Wikipedia i"


def test_a_reply_without_a_length_ends_with_its_connection():
    raw = b"HTTP/1.0 200 OK\r\n\r\npart"
    assert parse_reply(raw, at_end=False) is None
    assert parse_reply(raw, at_end=True) == (200, b"HTTP/1.0 200 OK", b"part")
    assert parse_reply(b"HTTP/1.1 204 No Content\r\n\r\n", at_end=False) == (204, b"HTTP/1.1 204 No Content", b"")


def talk(replies: list[bytes], say: Callable[[Browser], Awaitable[Any]]) -> tuple[list[bytes], int]:
    """What a browser sent to a server that answers with `replies` (b"" hangs up), and over how many connections."""
    seen: list[bytes] = []
    num_connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_connections
        num_connections += 1
        while data := await reader.read(65536):
            seen.append(data)
            reply = replies.pop(0) if replies else b""
            if not reply:
                break
            writer.write(reply)
            await writer.drain()
        writer.close()

    async def run() -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            browser = Browser(server.sockets[0].getsockname()[1], {"a": "1"})
            await say(browser)
            browser.close()

    asyncio.run(run())
    return seen, num_connections


def reply(*headers: str) -> bytes:
    return "\r\n".join(["HTTP/1.1 200 OK", *headers, "Content-Length: 2", "", "{}"]).encode()


def test_a_browser_keeps_its_connection_and_its_cookies():
    async def say(browser: Browser) -> None:
        browser.headers["X-CSRF-Token"] = "T"
        assert (await browser.get("/one")).json() == {}
        await browser.post("/two", {"ranks": [1, 2]})

    seen, num_connections = talk([reply("Set-Cookie: b=XyZ; Path=/"), reply()], say)
    assert num_connections == 1
    assert seen[0].startswith(b"GET /one HTTP/1.1\r\n") and b"\r\nCookie: a=1\r\n" in seen[0]
    assert seen[1].startswith(b"POST /two HTTP/1.1\r\n") and seen[1].endswith(b'\r\n\r\n{"ranks": [1, 2]}')
    assert b"\r\nCookie: a=1; b=XyZ\r\n" in seen[1] and b"\r\nX-CSRF-Token: T\r\n" in seen[1]


def test_a_browser_connects_anew_where_the_server_said_it_closes():
    async def say(browser: Browser) -> None:
        await browser.get("/")
        await browser.get("/")

    assert talk([reply("Connection: close"), reply()], say)[1] == 2


def test_a_browser_says_so_where_no_reply_came():
    async def say(browser: Browser) -> None:
        with pytest.raises(Lost, match="the connection was closed"):
            await browser.post("/", {})

    assert talk([b""], say)[1] == 1

    async def nobody() -> None:
        with pytest.raises(Lost, match="nobody listens"):
            await Browser(1).get("/")

    asyncio.run(nobody())


def test_who_hangs_up_has_still_sent():
    async def say(browser: Browser) -> None:
        await browser.post_and_leave("/", {"a": 1})
        await browser.get("/after")  # over a connection of its own, answered when the first was read

    seen, num_connections = talk([reply(), reply()], say)
    assert num_connections == 2
    assert sorted(seen)[1].endswith(b'{"a": 1}')


def test_percentiles_by_nearest_rank():
    hundred = [float(number) for number in range(100, 0, -1)]
    assert [percentile(hundred, share) for share in (1, 50, 95, 99, 100)] == [1, 50, 95, 99, 100]
    assert percentile([4.0, 1.0, 3.0, 2.0], 50) == 2.0
    assert percentile([7.0], 99) == 7.0
    assert percentile([], 50) is None


def test_a_crowd_counts_what_succeeded_and_all_statuses():
    outcomes: list[Any] = [(200, 0.1), (500, 9.0), Lost("gone"), (201, 0.3), (409, 9.0), None]

    async def step() -> tuple[int, float] | None:
        await asyncio.sleep(0)
        outcome = outcomes.pop(0)
        if isinstance(outcome, Lost):
            raise outcome
        return outcome

    tally = asyncio.run(crowd([step], warm=0, seconds=30, most=100))
    assert tally.seconds == [0.1, 0.3]
    assert tally.statuses == Counter({"200": 1, "500": 1, "lost": 1, "201": 1, "409": 1})
    summary = tally.summary()
    assert (summary["num"], summary["p50_ms"], summary["p99_ms"]) == (2, 100.0, 300.0)


def test_a_crowd_ends_in_time_and_leaves_its_warm_up_out():
    async def step() -> tuple[int, float]:
        await asyncio.sleep(0.01)
        return 200, 0.01

    tally = asyncio.run(crowd([step, step], warm=0.1, seconds=0.2, most=10**9))
    assert 0.1 < tally.length <= 0.2
    assert 2 <= len(tally.seconds) <= 42  # two clients, at most a hundred steps a second each

    async def slow() -> tuple[int, float]:
        await asyncio.sleep(0.1)
        return 200, 0.1

    # None ends in the 0.05 s that were asked: it goes on until both did two, for five times as long at most.
    tally = asyncio.run(crowd([slow, slow], warm=0, seconds=0.05, most=10**9))
    assert 2 <= len(tally.seconds) <= 4 and 0.05 < tally.length <= 0.25
    assert len(asyncio.run(crowd([step], warm=0, seconds=60, most=3)).seconds) == 3


# The checker ------------------------------------------------------------------------------------


def sent(person: str, task: str, action: str = "submit", ranks: tuple[int, int] = (1, 2), number: int = 0) -> Sent:
    by_id = {} if action == "skip" else {f"{task}-a": ranks[0], f"{task}-b": ranks[1]}
    reason = "" if action == "skip" else f"{person} {task} {ranks}"
    return Sent(person, task, f"{person}/{task}/{action}/{number}", action, by_id, reason)


def row(item: Sent, kind: str = "task", revision: int = 1) -> StoredAnswer:
    return StoredAnswer(item.person, item.task, kind, item.ranks, item.reason, revision)


def world() -> tuple[list[Sent], Stored]:
    """Two tasks for two each: ann changed hers, cy was too late for the first, dee skipped the second."""
    items = [
        sent("ann", "t1"),
        sent("ann", "t1", "edit", (2, 1)),
        sent("bob", "t1"),
        sent("cy", "t1", ranks=(2, 1)),
        sent("ann", "t2"),
        sent("bob", "t2", ranks=(1, 1)),
        sent("dee", "t2", "skip"),
    ]
    rows = [row(items[1], revision=2), row(items[2]), row(items[3], "surplus"), row(items[4]), row(items[5])]
    return items, Stored(
        num_needed={"t1": 2, "t2": 2},
        num_done={"t1": 2, "t2": 2},
        num_held={"t1": 0, "t2": 0},
        answers=rows,
        log=[(item.action, item.submission) for item in items],
        submissions=[item.submission for item in items],
        open_leases=Counter(),
    )


def test_a_good_store_has_no_problem():
    items, stored = world()
    assert check(items, items, stored, 2, is_full=True) == {}
    # what was sent and never acknowledged may be there or not
    assert check([*items, sent("eve", "t1")], items, stored, 2, is_full=True) == {}


@given(st.integers(0, 4))
@settings(max_examples=5)
def test_a_lost_label_is_seen(which: int):
    items, stored = world()
    gone = stored.answers.pop(which)
    found = check(items, items, stored, 2, is_full=False)
    assert found["lost"] == [f"{gone.person} on {gone.task}: acknowledged, not in the store"]
    if gone.kind == "task":  # the count beside the tasks is then wrong too
        assert [line.split(":")[0] for line in found["miscounted"]] == [gone.task]


@given(st.integers(0, 4))
@settings(max_examples=5)
def test_a_doubled_label_is_seen(which: int):
    items, stored = world()
    twice = stored.answers[which]
    stored.answers.append(twice)
    assert f"{twice.person} on {twice.task}: 2 answers" in check(items, items, stored, 2, is_full=True)["doubled"]


@given(st.integers(0, 4))
@settings(max_examples=5)
def test_a_label_with_another_content_is_seen(which: int):
    items, stored = world()
    stored.answers[which] = dataclasses.replace(stored.answers[which], reason="else")
    found = check(items, items, stored, 2, is_full=True)
    assert set(found) == {"altered", "invented"}
    where = f"{stored.answers[which].person} on {stored.answers[which].task}"
    assert [line.split(":")[0] for line in found["altered"]] == [where]


def test_a_change_that_was_undone_is_seen():
    items, stored = world()
    stored.answers[0] = row(items[0], revision=2)  # what ann had said before her edit
    assert set(check(items, items, stored, 2, is_full=True)) == {"altered"}


def test_a_change_applied_twice_is_seen():
    items, stored = world()
    stored.answers[0] = dataclasses.replace(stored.answers[0], revision=3)
    found = check(items, items, stored, 2, is_full=True)
    assert found == {"doubled": ["ann on t1: revision 3 after 1 acknowledged edits"]}


def test_one_answer_too_many_is_seen():
    items, stored = world()
    stored.answers[2] = dataclasses.replace(stored.answers[2], kind="task")
    stored.num_done["t1"] = 3
    found = check(items, items, stored, 2, is_full=True)
    assert found == {"over_overlap": ["t1: 3 answers count, 2 were asked"]}


def test_a_short_task_is_seen_where_a_label_lies_beside_it_or_all_was_done():
    items, stored = world()
    stored.answers[1] = dataclasses.replace(stored.answers[1], kind="surplus")
    stored.num_done["t1"] = 1
    for is_full in (False, True):
        assert check(items, items, stored, 2, is_full) == {"short": ["t1: 1 of 2, and 2 beside them"]}
    items, stored = world()
    del stored.answers[4], items[5], stored.log[5], stored.submissions[5]
    stored.num_done["t2"] = 1
    assert check(items, items, stored, 2, is_full=False) == {}
    assert check(items, items, stored, 2, is_full=True) == {"short": ["t2: 1 of 2, and 0 beside them"]}


def test_two_tabs_that_were_both_told_yes_are_seen():
    items, stored = world()
    other = sent("bob", "t1", ranks=(2, 1), number=1)
    stored.log.append(("submit", other.submission))
    stored.submissions.append(other.submission)
    found = check([*items, other], [*items, other], stored, 2, is_full=True)
    assert found["doubled"] == ["bob on t1: 2 first answers were acknowledged"]
    assert "altered" in found


def test_a_skipped_task_with_an_answer_is_seen():
    items, stored = world()
    stored.answers.append(row(sent("dee", "t2"), "surplus"))
    found = check([*items, sent("dee", "t2")], items, stored, 2, is_full=True)
    assert found == {"altered": ["dee on t2: skipped, yet there is an answer"]}


def test_an_answer_that_nobody_sent_is_seen():
    items, stored = world()
    stored.answers.append(row(sent("zoe", "t1"), "surplus"))
    assert set(check(items, items, stored, 2, is_full=True)) == {"invented"}
    items, stored = world()
    stored.log.append(("submit", "zoe/t1"))
    assert check(items, items, stored, 2, is_full=True) == {"invented": ["submit zoe/t1: nobody sent it"]}


def test_a_submission_without_a_trace_or_with_two_is_seen():
    for name in ("log", "submissions"):
        items, stored = world()
        getattr(stored, name).pop(2)
        assert set(check(items, items, stored, 2, is_full=True)) == {"unlogged"}
        items, stored = world()
        getattr(stored, name).append(getattr(stored, name)[2])
        found = check(items, items, stored, 2, is_full=True)
        assert found == {"doubled": [f"submission bob/t1/submit/0 is in `{name}` 2 times"]}


def test_wrong_counts_beside_a_task_are_seen():
    items, stored = world()
    stored.num_done["t1"] = 1
    stored.num_held["t2"] = 1
    assert check(items, items, stored, 2, is_full=True)["miscounted"] == [
        "t1: num_done is 1, there are 2",
        "t2: num_held is 1, there are 0 open leases",
    ]
    stored.num_done["t1"], stored.open_leases["t2"] = 2, 1
    assert check(items, items, stored, 2, is_full=True) == {}


# What it reads and makes ------------------------------------------------------------------------


def turn_of(task: Any, order: list[int]) -> dict[str, Any]:
    """A turn as the browser has it, its responses in another order."""
    return {"lease": "L", "responses": [{"html": f"<p>{task.responses[at].text}</p>"} for at in order]}


def test_what_was_on_screen_tells_what_was_ranked():
    tasks = marked_tasks(30)
    assert {len(task.responses) for task in tasks} == {2, 3, 4}
    three = next(task for task in tasks if len(task.responses) == 3)
    ids = marks(turn_of(three, [2, 0, 1]))
    assert ids == [three.responses[2].id, three.responses[0].id, three.responses[1].id]
    assert {task_of(id) for id in ids} == {three.id}


def test_ranks_are_kept_dense_and_by_response():
    three = next(task for task in marked_tasks(30) if len(task.responses) == 3)
    book = Book()
    person = Trouble("ann", 1, {}, Plan(), book)
    person.answer = lambda num, reason=None: {"ranks": [3, 1, 3], "reason": reason}  # type: ignore[method-assign]
    body, item = person._made(turn_of(three, [2, 0, 1]))
    ids = [response.id for response in three.responses]
    assert item.ranks == {ids[2]: 2, ids[0]: 1, ids[1]: 2}
    assert (item.task, item.submission, body["edit"]) == (three.id, body["submission"], False)
    assert item.reason.endswith(HARD_TEXT)
    assert book.sent == [item]


def test_pairs_are_real_texts_where_the_file_is(shared: Path, tmp_path: Path):
    tasks = pair_tasks(shared / "hh-rlhf/none.gz", 5)
    assert [len(task.responses) for task in tasks] == [2] * 5
    real = pair_tasks(shared / "data/hh-rlhf/harmless-base.test.jsonl.gz", 5)
    assert len(real) == 5
    assert all(task.prompt.messages[-1]["role"] == "user" and len(task.responses) == 2 for task in real)


def filled(url: str) -> list[Sent]:
    """A store with two tasks for two, answered by ann and bob through the app's own jobs."""
    cookies = make_people(url, ["ann", "bob"])
    items = []
    store = Store(url)

    def work(connection: Connection) -> None:
        load_tasks(connection, "set", marked_tasks(2), "task", SetRules(overlap=2), 1.0)
        for person_id, name in enumerate(cookies, 1):
            for number in range(2):
                turn = next_turn(connection, person_id, Rules(), 2.0)
                assert turn is not None
                ids = marks({"responses": [{"html": text} for text in turn.responses]})
                answer = {"ranks": list(range(1, len(ids) + 1)), "reason": HARD_TEXT}
                form = Form(strength=False)
                submit(connection, person_id, turn.lease_id, f"{name}/{number}", answer, form, 1.0, 3.0)
                ranks = {id: rank for rank, id in enumerate(ids, 1)}
                items.append(Sent(name, task_of(ids[0]), f"{name}/{number}", "submit", ranks, HARD_TEXT))

    store.write(work)
    sessions = Sessions(store.write(signing_key))
    read = [sessions.read(cookie[COOKIE], 1e9) for cookie in cookies.values()]
    store.close()
    assert [session.person_id if session else None for session in read] in ([1, 2], [None, None])
    return items


def test_a_real_store_is_read_as_it_is_and_broken_as_it_is_broken(tmp_path: Path):
    url = f"sqlite:///{tmp_path}/labels.db"
    items = filled(url)
    assert check(items, items, read_store(url), 2, is_full=True) == {}
    assert num_counted(url) == 4
    engine = create_engine(url)

    def broken(query: str) -> dict[str, list[str]]:
        with engine.begin() as connection:
            assert connection.execute(text(query)).rowcount == 1
        return check(items, items, read_store(url), 2, is_full=True)

    task, person = items[0].task, "(SELECT id FROM people WHERE name = 'ann')"
    found = broken(f"UPDATE answers SET body = replace(body, '1', '2') WHERE person_id = {person} AND kind = 'task' "
                   f"AND task_id = (SELECT id FROM tasks WHERE record_id = '{task}')")  # fmt: skip
    assert set(found) == {"altered", "invented"}
    found = broken(f"DELETE FROM answers WHERE person_id = {person} "
                   f"AND task_id = (SELECT id FROM tasks WHERE record_id = '{task}')")  # fmt: skip
    assert set(found) == {"lost", "miscounted", "short"}
    engine.dispose()
    found = check(items, items, read_store(url), 1, is_full=True)
    assert found["over_overlap"] == [f"{items[1].task}: 2 answers count, 1 were asked"]


def test_ratios_are_in_our_favour_over_one():
    def measured(system: str, rate: float, p95: float, page: float, memory: int) -> dict[str, Any]:
        steps = {"per_second": rate, "p50_ms": 1.0, "p95_ms": p95, "p99_ms": 1.0, "statuses": {"200": 5, "500": 1}}
        steps |= {"per_core_second": rate * 2}
        row = {"system": system, "clients": 10, "submit": steps, "turn": steps}
        return {**row, "page_ms": page, "memory_mb": memory}

    rows = [measured("rlhf label", rate, 50.0, 20.0, 200) for rate in (300.0, 100.0, 200.0)]
    (found,) = ratios([*rows, measured("potato", 50.0, 100.0, 10.0, 400)])
    assert found == {
        "peer": "potato",
        "clients": 10,
        "submits": 4.0,
        "turns": 4.0,
        "submits_per_core": 4.0,
        "turns_per_core": 4.0,
        "submit_p95": 2.0,
        "turn_p95": 2.0,
        "page": 0.5,
        "memory": 2.0,
    }
    alone = {"requests_per_second": 9000.0, "microseconds_of_cpu_per_request": 60}
    shown = table({"clients_alone": alone, "load": rows, "ratios": [found]})
    assert "| rlhf label | 10 | 300.0 | 1.0 | 50.0 | 1.0 | 300.0 | 50.0 | 600.0 | 20.0 | 200 | 2 |" in shown


# Servers ----------------------------------------------------------------------------------------


def test_a_server_is_watched_killed_started_again_and_gone(tmp_path: Path):
    command = [sys.executable, str(BENCHMARKS / "label_clients.py"), "{port}"]
    with Server(command, tmp_path, "/") as server:
        pss, rss = server.memory()
        assert 1 < pss <= rss < 500
        server.kill()
        assert server._pids() == []
        server.start()
        (pid,) = server._pids()
    assert not Path(f"/proc/{pid}").exists()


def test_a_server_that_does_not_start_says_why(tmp_path: Path):
    with (
        pytest.raises(RuntimeError, match="no such thing"),
        Server([sys.executable, "-c", "raise SystemExit('no such thing')"], tmp_path, "/"),
    ):
        pass


@pytest.mark.slow
def test_a_small_crowd_survives_two_kills(tmp_path: Path):
    plan = Plan(num_clients=8, num_tasks=20, overlap=3, num_kills=2, lease_seconds=1.0, deadline=120)
    result = survive(tmp_path, f"sqlite:///{tmp_path}/labels.db", plan)
    assert (result["problems"], result["refusals"]) == ({}, {})
    assert (result["kills"], result["counted"]) == (2, 60)
    assert result["store"] == "SQLite, journal_mode=wal, synchronous=FULL"
    assert not [command for command in running().values() if str(tmp_path).encode() in command]


def running() -> dict[str, bytes]:
    """The command lines of all processes."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found[path.parent.name] = path.read_bytes()
    return found
