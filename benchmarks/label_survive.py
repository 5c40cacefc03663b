"""A hundred annotators at a server that is killed again and again, and a check of what it kept.

They send the same submission twice at once, answer one task in two tabs, hang up before the receipt, come back
after their lease ran out, change and skip; what nobody answered is sent again until somebody does.
"""

import asyncio
import contextlib
import random
import secrets
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from label_check import Sent, check, num_counted, read_store
from label_clients import Browser, Lost, Reply, run_loop
from label_ours import Annotator, desk_server, durability, expect, make_people, marked_tasks, marks, task_of
from label_servers import Server
from sqlalchemy import create_engine, make_url, text

from labeling_app.store.database import parse_url

# How often each thing happens to a task; the rest is one plain submit.
CHANCES = {"twice_at_once": 0.12, "two_tabs": 0.06, "hang_up": 0.08, "too_late": 0.04, "change": 0.06, "skip": 0.02}
# What text has to come through: a null byte, a lone surrogate, right-to-left, a template.
HARD_TEXT = "\x00 ü 🙂 \ud83d \u202e ${1+1} {{7*7}}"


@dataclass(frozen=True)
class Plan:
    """How hard it is made."""

    num_clients: int = 100
    num_tasks: int = 1000
    overlap: int = 5
    num_kills: int = 10
    lease_seconds: float = 2.0
    deadline: float = 600.0  # seconds after which it is given up
    seed: int = 0


@dataclass
class Book:
    """What the clients sent, were told, and had to put up with."""

    sent: list[Sent] = field(default_factory=list)
    acknowledged: list[Sent] = field(default_factory=list)
    num_firsts: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    is_done: asyncio.Event = field(default_factory=asyncio.Event)

    def acknowledge(self, item: Sent) -> None:
        """Write down that a receipt arrived."""
        self.acknowledged.append(item)
        self.num_firsts += item.action == "submit"


class Trouble(Annotator):
    """An annotator to whom everything happens."""

    def __init__(self, name: str, port: int, cookies: dict[str, str], plan: Plan, book: Book) -> None:
        super().__init__(port, cookies, f"{plan.seed}/{name}")
        self.name, self.plan, self.book = name, plan, book
        self.second = Browser(port, cookies)
        self.second.headers = self.browser.headers  # the same session, so the same token

    async def work(self) -> None:
        """Answer until the tasks are done."""
        await self._enter()
        while not self.book.is_done.is_set():
            turn = await self._next()
            if turn is None:
                await asyncio.sleep(0.2)
                continue
            what = self.random.choices([*CHANCES, "plain"], [*CHANCES.values(), 1 - sum(CHANCES.values())])[0]
            self.book.counts[what] += 1
            await getattr(self, f"_{what}")(turn)

    async def _plain(self, turn: dict[str, Any]) -> None:
        await self._submit(turn)

    async def _twice_at_once(self, turn: dict[str, Any]) -> None:
        body, item = self._made(turn)
        both = [self._post("/api/submit", body, browser) for browser in (self.browser, self.second)]
        if any(reply.status == 200 for reply in await asyncio.gather(*both)):
            self.book.acknowledge(item)

    async def _two_tabs(self, turn: dict[str, Any]) -> None:
        made = [self._made(turn) for _ in range(2)]
        tabs = zip(made, (self.browser, self.second), strict=True)
        replies = await asyncio.gather(*(self._post("/api/submit", body, tab, 409) for (body, _), tab in tabs))
        for reply, (_, item) in zip(replies, made, strict=True):
            if reply.status == 200:
                self.book.acknowledge(item)
        if all(reply.status != 200 for reply in replies):
            self.book.refusals["two tabs: neither was taken"] += 1

    async def _hang_up(self, turn: dict[str, Any]) -> None:
        body, item = self._made(turn)
        with contextlib.suppress(Lost):
            await self.browser.post_and_leave("/api/submit", body)
        if (await self._post("/api/submit", body)).status == 200:
            self.book.acknowledge(item)

    async def _too_late(self, turn: dict[str, Any]) -> None:
        await asyncio.sleep(self.plan.lease_seconds * self.random.uniform(1.0, 2.0))
        await self._submit(turn)

    async def _change(self, turn: dict[str, Any]) -> None:
        if await self._submit(turn):
            body, item = self._made(turn, "edit")
            both = [self._post("/api/submit", body, browser) for browser in (self.browser, self.second)]
            if any(reply.status == 200 for reply in await asyncio.gather(*both)):
                self.book.acknowledge(item)

    async def _skip(self, turn: dict[str, Any]) -> None:
        item = Sent(self.name, task_of(marks(turn)[0]), secrets.token_hex(16), "skip")
        self.book.sent.append(item)
        body = {
            "submission": item.submission,
            "lease": turn["lease"],
            "reason": self.form["skip_reasons"][0],
            "note": "",
        }
        if (await self._post("/api/skip", body)).status == 200:
            self.book.acknowledge(item)

    async def _submit(self, turn: dict[str, Any]) -> bool:
        body, item = self._made(turn)
        if (await self._post("/api/submit", body)).status == 200:
            self.book.acknowledge(item)
            return True
        return False

    def _made(self, turn: dict[str, Any], action: str = "submit") -> tuple[dict[str, Any], Sent]:
        """A submission, and the same as the store should have it."""
        ids = marks(turn)
        answer = self.answer(len(ids), f"{secrets.token_hex(4)} {HARD_TEXT}")
        body = self.submission(turn, answer, action == "edit")
        dense = sorted(set(answer["ranks"]))
        ranks = {id: 1 + dense.index(rank) for id, rank in zip(ids, answer["ranks"], strict=True)}
        item = Sent(self.name, task_of(ids[0]), body["submission"], action, ranks, answer["reason"])
        self.book.sent.append(item)
        return body, item

    async def _enter(self) -> None:
        while True:
            try:
                return await self.enter()
            except Lost:
                await self._pause()

    async def _next(self) -> dict[str, Any] | None:
        return expect(await self._post("/api/next", {}))["turn"]

    async def _post(self, path: str, body: dict[str, Any], browser: Browser | None = None, also: int = 200) -> Reply:
        """Send the same until it is answered. A refusal other than `also` is written down."""
        while True:
            try:
                reply = await (browser or self.browser).post(path, body)
            except Lost:
                self.book.counts["sent_again"] += 1
                await self._pause()
                continue
            if reply.status not in (200, also):
                self.book.refusals[f"{path} {reply.status}: {reply.body[:120].decode(errors='replace')}"] += 1
            if reply.status < 500:
                return reply
            await self._pause()

    async def _pause(self) -> None:
        await asyncio.sleep(self.random.uniform(0.1, 0.4))


def survive(folder: Path, url: str, plan: Plan) -> dict[str, Any]:
    """Run the plan on a new store; its figures, and what is wrong by kind."""
    names = [f"person-{at:03d}" for at in range(plan.num_clients)]
    cookies = make_people(url, names)
    server = desk_server(folder, url, marked_tasks(plan.num_tasks, plan.seed), plan.overlap, plan.lease_seconds)
    book, begin = Book(), time.perf_counter()
    with server:
        everybody = [Trouble(name, server.port, cookies[name], plan, book) for name in names]
        starts, is_full = run_loop(_drive(server, url, everybody, plan, book))
    stored = read_store(parse_url(url).render_as_string(hide_password=False))
    problems = check(book.sent, book.acknowledged, stored, plan.overlap, is_full)
    if not is_full:
        problems["short"] = [f"not done after {plan.deadline:.0f} s", *problems.get("short", [])]
    return {
        "store": durability(url),
        "clients": plan.num_clients,
        "tasks": plan.num_tasks,
        "overlap": plan.overlap,
        "kills": len(starts),
        "seconds": round(time.perf_counter() - begin, 1),
        "restart_seconds": round(median(starts), 2) if starts else None,
        "acknowledged_rankings": book.num_firsts,
        "acknowledged_submissions": len(book.acknowledged),
        "submissions_sent": len(book.sent),
        "counted": sum(row.kind == "task" for row in stored.answers),
        "surplus": sum(row.kind == "surplus" for row in stored.answers),
        "happened": dict(sorted(book.counts.items())),
        "refusals": dict(book.refusals.most_common(5)),
        "problems": {kind: len(found) for kind, found in problems.items()},
        "examples": {kind: found[:3] for kind, found in problems.items()},
    }


async def _drive(
    server: Server, url: str, everybody: list[Trouble], plan: Plan, book: Book
) -> tuple[list[float], bool]:
    """Let them work, kill the server at even steps of the work, and stop when every place is taken."""
    dice = random.Random(plan.seed)
    num_places = plan.num_tasks * plan.overlap
    work = [asyncio.create_task(one.work()) for one in everybody]
    read_url = parse_url(url).render_as_string(hide_password=False)
    starts: list[float] = []
    end = time.perf_counter() + plan.deadline
    is_full = False
    while not is_full and time.perf_counter() < end:
        for done in work:
            if done.done():
                done.result()  # a client that fell over says why
        if len(starts) < plan.num_kills and book.num_firsts >= num_places * (len(starts) + 1) / (plan.num_kills + 1):
            await asyncio.sleep(dice.uniform(0, 0.1))
            server.kill()
            starts.append(await asyncio.to_thread(server.start))
        elif book.num_firsts >= num_places * 0.98:
            await asyncio.sleep(0.2)
            is_full = await asyncio.to_thread(num_counted, read_url) >= num_places
        else:
            await asyncio.sleep(0.01)
    book.is_done.set()
    _, waiting = await asyncio.wait(work, timeout=30)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*work, return_exceptions=True)
    for one in everybody:
        one.browser.close()
        one.second.close()
    return starts, is_full


@contextlib.contextmanager
def own_postgres() -> Iterator[str]:
    """A PostgreSQL server as the tests start one (Debian's programs, a socket under /tmp), gone afterwards."""
    sys.path.append(str(Path(__file__).parents[1]))
    from tests.postgres import PostgresServer

    programs = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parts[4]))
    server = PostgresServer(programs)
    try:
        yield server.create_database()
    finally:
        server.stop()
        shutil.rmtree(server.folder)


@contextlib.contextmanager
def scratch_database(url: str) -> Iterator[str]:
    """A new database on a PostgreSQL server, dropped afterwards."""
    name = f"label_load_{secrets.token_hex(4)}"
    engine = create_engine(parse_url(url), isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        try:
            yield make_url(url).set(database=name).render_as_string(hide_password=False)
        finally:
            with engine.connect() as connection:
                connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    finally:
        engine.dispose()
