"""A small labeling project whose every number can be counted by hand: for tests of the lead's page."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, select

from labeling_app.form import Choice, Form
from labeling_app.handout import Rules, next_turn
from labeling_app.loading import SetRules, load_tasks
from labeling_app.passwords import hash_password
from labeling_app.people import add_person
from labeling_app.routes import Desk
from labeling_app.session import COOKIE, Sessions, signing_key
from labeling_app.store import Store
from labeling_app.store.schema import people, tasks
from labeling_app.submit import skip, submit
from tests.label_cases import known, prefer, task

NOW = 1_700_049_600.0  # 2023-11-15T12:00:00 UTC
DAY = 86_400.0
HOSTILE = "Ben <img src=x onerror=window.hacked=1> ${window.hacked=2}"
FORM = Form(flags=(Choice("harmful", "Harmful"),), attributes=(Choice("helpful", "Helpful"),))


@dataclass
class Project:
    """The desk of a store, and who is who."""

    desk: Desk
    people: dict[str, int]
    now: float = NOW

    def cookie(self, name: str) -> str:
        """A session of somebody's."""
        row = self.desk.store.read(lambda c: c.execute(select(people).where(people.c.name == name)).one())
        return self.desk.sessions.cookie(self.desk.sessions.start(row.id, row.epoch, self.desk.clock()))

    def csrf(self, cookie: str) -> str:
        """The token that belongs to it."""
        session = self.desk.sessions.read(cookie, self.desk.clock())
        assert session is not None
        return self.desk.sessions.csrf(session)

    def request(self, name: str | None = None, origin: str = "https://label.example") -> Any:
        """What Gradio hands to a handler, from somebody's browser."""
        import gradio as gr
        from starlette.requests import Request

        headers = [(b"origin", origin.encode())]
        if name is not None:
            headers.append((b"cookie", f"{COOKIE}={self.cookie(name)}".encode()))
        return gr.Request(Request({"type": "http", "method": "POST", "path": "/", "headers": headers}))

    def task_id(self, record_id: str) -> int:
        """The store's id of a task of the files."""
        return self.desk.store.read(
            lambda c: c.execute(select(tasks.c.id).where(tasks.c.record_id == record_id)).scalar_one()
        )


@pytest.fixture
def made(tmp_path: Path) -> "Iterator[Project]":
    """The project below, at the time NOW."""
    with project(tmp_path / "labels.db") as made:
        yield made


@pytest.fixture
def lead(made: Project, tmp_path: Path) -> Any:
    """What the tabs share."""
    from labeling_app.ui.lead import Lead

    return Lead(made.desk, tmp_path / "runs")


@pytest.fixture
def call(made: Project, lead: Any) -> Any:
    """An event of Lea's."""
    return lead._call(made.request("Lea"))


@contextmanager
def project(path: Path, now: float = NOW, password: str | None = None) -> Iterator[Project]:
    """A store with two annotators, one of them with a hostile name, and two leads.

    Over the last three days Ana preferred `a` on p-0 to p-3, and on the three responses of k-0 said a, b, c.
    Ben preferred `a` on p-0, `b` on p-1, and said c, b, a on k-0; he skipped p-2. So p-1 and k-0 are
    disputed and ask for a third vote. Of the gold tasks Ana has one right, Ben one wrong. Ben holds p-3.
    """
    store = Store(str(path))
    hashed = None if password is None else hash_password(password)
    hashes = {"annotator": hashed, "admin": hashed or "no password fits this"}
    ids = {}
    for name, role in (("Ana", "annotator"), (HOSTILE, "annotator"), ("Lea", "admin"), ("Leo", "admin")):
        ids[name] = store.write(lambda c, n=name, r=role: add_person(c, n, r, hashes[r], now - 4 * DAY))
    desk = Desk(store, Sessions(store.write(signing_key)), lambda: FORM, Rules(), lambda: now)
    store.write(lambda connection: _fill(connection, ids["Ana"], ids[HOSTILE], now))
    yield Project(desk, ids, now)
    store.close()


def _fill(connection: Connection, ana: int, ben: int, now: float) -> None:
    pairs = [task(f"p-{number}") for number in range(4)]
    rules = SetRules(overlap=2, extra_vote=True, priority=1.0)
    load_tasks(connection, "pairs.jsonl", pairs, "task", rules, now)
    load_tasks(connection, "many.jsonl", [task("k-0", "a", "b", "c")], "task", SetRules(2, True, 2.0), now)
    load_tasks(connection, "gold.jsonl", [known("g-0"), known("g-1")], "gold", SetRules(), now)
    start = now - 3 * DAY

    def say(person: int, at: float, gold_share: float = 0.0, **ranks: int) -> None:
        turn = next_turn(connection, person, Rules(gold_share=gold_share), at)
        assert turn is not None
        sent: dict[str, Any] = {"ranks": [ranks[text] for text in turn.responses]}
        if len(turn.responses) == 2:
            sent["strength"] = 2
        submit(connection, person, turn.lease_id, f"{person}-{turn.lease_id}", sent, FORM, 30.0, at)

    say(ana, start, a=1, b=2, c=3)
    for day in range(3):
        say(ana, start + day * DAY + 60, a=1, b=2)
    say(ben, start + 60, a=3, b=2, c=1)
    say(ben, start + DAY, a=1, b=2)
    turn = next_turn(connection, ben, Rules(), start + DAY + 60)
    assert turn is not None
    flags = [["harmful"] if text == "a" else [] for text in turn.responses]
    answer = prefer(turn, "b") | {"flags": flags, "reason": "it is **plain** <script>window.hacked=3</script>"}
    submit(connection, ben, turn.lease_id, "ben-1", answer, FORM, 45.0, start + DAY + 60)
    turn = next_turn(connection, ben, Rules(), start + 2 * DAY)
    assert turn is not None
    skip(connection, ben, turn.lease_id, "ben-2", "too hard", "I am no ${lawyer}", start + 2 * DAY)
    say(ana, now - 60, 0.999, a=1, b=2)
    say(ben, now - 60, 0.999, a=2, b=1)
    say(ana, now - 50, a=1, b=2)
    assert next_turn(connection, ben, Rules(), now - 40) is not None


def rows(update: dict[str, Any]) -> list[list[str]]:
    """What a table of the page shows."""
    return update["value"]["data"]


def texts(shown: Any) -> list[str]:
    """Every string that a handler gives to the page."""
    if isinstance(shown, dict):
        return [text for value in shown.values() for text in texts(value)]
    if isinstance(shown, list | tuple):
        return [text for value in shown for text in texts(value)]
    return [shown] if isinstance(shown, str) else []


def act(page: Any, what: str, request: Any, *values: Any) -> Any:
    """Call the handler of an event of the page by its name."""
    handler = next(function.fn for function in page.fns.values() if function.name == what)
    assert handler is not None
    return handler(request, *values)


def values_for(function: Any) -> list[Any]:
    """What a browser sends first for the inputs of an event."""
    first = {"slider": 0.0, "number": 1}
    return [first.get(part.get_block_name(), getattr(part, "value", None)) for part in function.inputs]
