"""Our labeling app as its benchmark sees it: tasks, people, the server, and one annotator's browser."""

import itertools
import os
import re
import secrets
import sys
import time
from collections.abc import Awaitable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from label_clients import Browser, Lost, Reply
from label_servers import Server
from sqlalchemy import Connection

from labeling_app.people import add_person
from labeling_app.session import COOKIE, Sessions, signing_key
from labeling_app.store import Store
from rlhf.data.readers import read_rows
from rlhf.data.turns import parse_transcript
from rlhf.records import Messages, Prompt, Response, Task, write_jsonl

SYNC_EVERY = 5  # answers after which the widget asks for its numbers anew (ui/static/ranking.js)
PROGRESS = "/api/progress?since=0"
_WORDS = [
    "the",
    "of",
    "a",
    "to",
    "and",
    "in",
    "is",
    "it",
    "you",
    "that",
    "was",
    "for",
    "on",
    "are",
    "with",
    "as",
    "they",
    "be",
    "at",
    "one",
    "have",
    "this",
    "from",
    "or",
    "had",
    "by",
    "not",
]


def pair_tasks(pairs: Path, num: int, seed: int = 0) -> list[Task]:
    """`num` tasks of two real replies (Anthropic HH's file), made up ones of like length where the file is absent."""
    random = Random(seed)
    if not pairs.exists():
        prompts = [[{"role": "user", "content": _text(random, 120)}] for _ in range(num)]
        return [_task(at, prompt, [_text(random, 420), _text(random, 420)]) for at, prompt in enumerate(prompts)]
    real = []
    for row in read_rows(str(pairs)):
        chosen, rejected = parse_transcript(row["chosen"]), parse_transcript(row["rejected"])
        if len(chosen) == len(rejected) and chosen[:-1] == rejected[:-1]:
            real.append((chosen[:-1], [chosen[-1]["content"], rejected[-1]["content"]]))
    turns = itertools.islice(itertools.cycle(real), num)  # from the first again, where the file has fewer
    return [_task(at, prompt, random.sample(texts, 2)) for at, (prompt, texts) in enumerate(turns)]


def marked_tasks(num: int, seed: int = 0) -> list[Task]:
    """Tasks of two to four replies, each with its own id in its text: what was on screen tells what was ranked."""
    random = Random(seed)
    return [
        _task(
            at,
            [{"role": "user", "content": _text(random, 80)}],
            [f"{_id(at, side)} {_text(random, 200)}" for side in range(random.choice((2, 2, 3, 4)))],
        )
        for at in range(num)
    ]


def marks(turn: dict[str, Any]) -> list[str]:
    """The response ids of a turn of marked tasks, in the order on screen."""
    found = [re.findall(r"answer-\d+-\d+", response["html"]) for response in turn["responses"]]
    assert all(len(ids) == 1 for ids in found), f"a response has not one mark: {found}"
    return [ids[0] for ids in found]


def task_of(response_id: str) -> str:
    """The task of a marked response."""
    return f"task-{response_id.split('-')[1]}"


def _id(at: int, side: int) -> str:
    return f"answer-{at:06d}-{side}"


def _task(at: int, prompt: Messages, texts: Sequence[str]) -> Task:
    responses = [Response(_id(at, side), f"prompt-{at:06d}", text, f"run-{side}") for side, text in enumerate(texts)]
    return Task(f"task-{at:06d}", Prompt(f"prompt-{at:06d}", prompt), responses)


def _text(random: Random, length: int) -> str:
    words: list[str] = []
    while sum(map(len, words)) < length * random.uniform(0.6, 0.8):
        words.append(random.choice(_WORDS))
    return " ".join(words).capitalize() + "."


def make_people(url: str, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Annotators straight into a store, made where it is new: their cookies by name. No password is hashed."""
    store = Store(url)
    try:
        now = time.time()
        sessions = Sessions(store.write(signing_key))

        def job(connection: Connection) -> dict[str, int]:
            return {name: add_person(connection, name, "annotator", None, now) for name in names}

        ids = store.write(job)
        return {name: {COOKIE: sessions.cookie(sessions.start(id, 0, now))} for name, id in ids.items()}
    finally:
        store.close()


def durability(url: str) -> str:
    """What a commit means in this store, asked of the store itself."""
    store = Store(url)
    try:
        if store.url.drivername != "sqlite":
            setting = store.read(lambda connection: connection.exec_driver_sql("SHOW synchronous_commit").scalar())
            return f"PostgreSQL, synchronous_commit={setting}"
        names = {0: "OFF", 1: "NORMAL", 2: "FULL", 3: "EXTRA"}
        level = store.read(lambda connection: connection.exec_driver_sql("PRAGMA synchronous").scalar())
        mode = store.read(lambda connection: connection.exec_driver_sql("PRAGMA journal_mode").scalar())
        return f"SQLite, journal_mode={mode}, synchronous={names[int(level or 0)]}"
    finally:
        store.close()


def desk_server(folder: Path, url: str, tasks: Sequence[Task], overlap: int, lease_seconds: float) -> Server:
    """`rlhf label` on the tasks, not started yet."""
    write_jsonl(folder / "tasks.jsonl", tasks)
    flags = {
        "tasks": folder / "tasks.jsonl",
        "store": url,
        "host": "127.0.0.1",
        "port": "{port}",
        "overlap": overlap,
        "extra_vote": False,
        "order": "file",
        "lease_minutes": lease_seconds / 60,
    }
    command = [sys.executable, "-m", "rlhf", "label"]
    for name, value in flags.items():
        command += [f"--{name}", str(value)]
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return Server(command, folder, "/health", {"PYTHONPATH": path})


class Annotator:
    """One person at the widget: what it sends, in its order."""

    def __init__(self, port: int, cookies: dict[str, str], seed: object) -> None:
        self.browser = Browser(port, cookies)
        self.random = Random(str(seed))
        self.turn: dict[str, Any] | None = None
        self.form: dict[str, Any] = {}
        self.num_since = 0

    async def enter(self) -> None:
        """What the widget fetches when the page opens, up to the first task. Raises Lost."""
        me = expect(await self.browser.get("/api/me"))
        self.browser.headers["X-CSRF-Token"] = me["csrf"]
        self.form = expect(await self.browser.get("/api/form"))
        if not me["guidelines_read"]:
            expect(await self.browser.post("/api/guidelines", {"sha256": self.form["guidelines_sha256"]}))
        expect(await self.browser.get(PROGRESS))
        self.turn = expect(await self.browser.post("/api/next", {}))["turn"]

    async def submit(self) -> tuple[int, float] | None:
        """Submit the task on screen; the next one comes with the receipt. None where nothing is left."""
        if self.turn is None:
            self.turn = expect(await self.browser.post("/api/next", {}))["turn"]
            if self.turn is None:
                return None
        answer = self.answer(len(self.turn["responses"]))
        reply = await self.browser.post("/api/submit", self.submission(self.turn, answer))
        self.turn = reply.json()["turn"] if reply.status == 200 else None
        return reply.status, reply.seconds

    async def one_turn(self) -> tuple[int, float] | None:
        """A submit, and after every fifth, as the widget does, a look at who they are and how far."""
        done = await self.submit()
        self.num_since += 1
        if done is None or self.num_since < SYNC_EVERY:
            return done
        self.num_since = 0
        looks = [await self.browser.get("/api/me"), await self.browser.get(PROGRESS)]
        return max(done[0], *(look.status for look in looks)), done[1] + sum(look.seconds for look in looks)

    async def turn_with_draft(self) -> tuple[int, float] | None:
        """A turn of somebody who takes their time: what they have begun is saved once on the way."""
        if self.turn is None:
            return await self.one_turn()
        draft = {**self.answer(len(self.turn["responses"])), "seconds": 12.5, "saved_at": time.time() * 1000}
        body = {"lease": self.turn["lease"], "version": draft["saved_at"], "draft": draft}
        saved = await self.browser.post("/api/draft", body)
        if saved.status != 200:
            return saved.status, saved.seconds
        done = await self.one_turn()
        return None if done is None else (done[0], done[1] + saved.seconds)

    def submission(self, turn: dict[str, Any], answer: dict[str, Any], edit: bool = False) -> dict[str, Any]:
        """The body of a submit."""
        seconds = round(self.random.uniform(5, 90), 1)
        return {
            "submission": secrets.token_hex(16),
            "lease": turn["lease"],
            "answer": answer,
            "seconds": seconds,
            "edit": edit,
        }

    def answer(self, num: int, reason: str | None = None) -> dict[str, Any]:
        """Some answer to `num` responses; a fifth have a flag, a fifth a written reason."""
        random = self.random
        ranks = [random.randint(1, num) for _ in range(num)]
        is_tie = len(set(ranks)) == 1
        flags: list[list[str]] = [[] for _ in range(num)]
        if self.form.get("flags") and random.random() < 0.2:
            flags[0] = [self.form["flags"][0]["id"]]
        if reason is None:
            reason = _text(random, 80) if random.random() < 0.2 else ""
        return {
            "ranks": ranks,
            "strength": (0 if is_tie else random.randint(1, 3)) if num == 2 and self.form.get("strength") else None,
            "both_bad": False,
            "flags": flags,
            "ratings": [{} for _ in range(num)],
            "reason": reason,
            "better_answer": "",
        }


async def open_page(port: int, cookies: dict[str, str]) -> dict[str, float]:
    """Seconds that each part of opening the page takes, on a new connection and up to the first task on screen."""
    annotator = Annotator(port, cookies, "page")
    browser = annotator.browser
    begin = time.perf_counter()
    page = await browser.get("/rank")
    if page.status in (302, 303, 307):  # to where the page really is
        page = await browser.get(_location(page))
    assert page.status == 200, f"GET /rank: {page.status}"
    shell = time.perf_counter()
    me = expect(await browser.get("/api/me"))
    browser.headers["X-CSRF-Token"] = me["csrf"]
    expect(await browser.get("/api/form"))
    expect(await browser.get(PROGRESS))
    begin_next = time.perf_counter()
    assert expect(await browser.post("/api/next", {}))["turn"], "no task came with the page"
    end = time.perf_counter()
    browser.close()
    return {"page": shell - begin, "me_form_progress": begin_next - shell, "next": end - begin_next, "all": end - begin}


def _location(reply: Reply) -> str:
    found = re.search(rb"(?i)\r\nlocation: *(?:https?://[^/\r]+)?(/[^\r]*)", reply.head)
    assert found, f"a redirect without a place: {reply.head!r}"
    return found[1].decode()


def expect(reply: Reply) -> Any:
    """A reply's JSON. Raises Lost where the server could not answer, RuntimeError where it refused."""
    if reply.status >= 500:
        raise Lost(f"the server answered {reply.status}")
    if reply.status != 200:
        raise RuntimeError(f"{reply.status}: {reply.body[:300].decode(errors='replace')}")
    return reply.json()


async def under_400(asked: Awaitable[Reply]) -> Reply:
    """A reply that is no error; Lost where it is one."""
    reply = await asked
    if reply.status >= 400:
        raise Lost(f"{reply.status}: {reply.body[:200].decode(errors='replace')}")
    return reply


def prompt_text(task: Task) -> str:
    """A task's conversation as plain text."""
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in task.prompt.messages)
