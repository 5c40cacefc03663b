"""Label stores with something in them, made by the same calls as the app makes."""

import itertools
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import Connection, StaticPool, create_engine, insert

from labeling_app.form import Choice, Form
from labeling_app.handout import Rules, Turn, next_turn
from labeling_app.loading import KnownTask, SetRules, load_tasks
from labeling_app.people import add_person
from labeling_app.standing import leave_out
from labeling_app.store.schema import adjudications, metadata
from labeling_app.submit import Conflict, skip, submit
from rlhf.records import Prompt, Response, Task

FORM = Form(flags=(Choice("harmful", "Harmful"),), attributes=(Choice("helpful", "Helpful"),))
START = 1_700_000_000.0  # 2023-11-14T22:13:20 UTC
_numbers = itertools.count()


def task(id: str, *texts: str, prompt: str = "p") -> Task:
    """A task whose response to text `t` has the id `PROMPT-t`."""
    responses = [Response(f"{prompt}-{text}", prompt, text, "run") for text in texts]
    return Task(id, Prompt(prompt, [{"role": "user", "content": prompt}]), responses)


def known(id: str, *texts: str, prompt: str) -> KnownTask:
    """A task with a known answer: the first text is best, the second next, and so on."""
    shown = task(id, *texts, prompt=prompt)
    ranks = {response.id: rank for rank, response in enumerate(shown.responses, 1)}
    return KnownTask(id, shown.prompt, shown.responses, ranks, "because")


@contextmanager
def memory() -> Iterator[Connection]:
    """The tables in memory: quick enough for a property test."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    with engine.connect() as connection:
        metadata.create_all(connection)
        yield connection
    engine.dispose()


def load(
    connection: Connection, name: str, rows: list[Any], kind: str = "task", of: str = "ranking", **rules: Any
) -> None:
    """Put tasks of a kind into a set `of` ranking or comparison."""
    load_tasks(connection, name, rows, kind, SetRules(kind=of, **rules), START)


def person(connection: Connection, name: str, role: str = "annotator") -> int:
    """Somebody who cannot log in."""
    return add_person(connection, name, role, None, START)


def send(
    connection: Connection, person_id: int, turn: Turn, ranks: dict[str, int], now: float = START, **more: Any
) -> str:
    """Submit ranks by text, and return the kind that the answer has in the store."""
    order = [ranks[text] for text in turn.responses]
    if len(order) == 2:
        more.setdefault("strength", 0 if order[0] == order[1] else 1)
    sent = {"ranks": order} | more
    return submit(connection, person_id, turn.lease_id, f"s{next(_numbers)}", sent, FORM, 2.5, now).kind


def answer(connection: Connection, person_id: int, now: float = START, /, **ranks: int) -> str:
    """Take the next task and rank its texts."""
    turn = next_turn(connection, person_id, Rules(), now)
    assert turn is not None
    return send(connection, person_id, turn, ranks, now)


def adjudicate(connection: Connection, person_id: int, task_id: int, ranks: dict[str, int], reason: str = "so") -> None:
    """The lead's word, by response id."""
    row = {"task_id": task_id, "person_id": person_id, "ranks": ranks, "reason": reason, "at": START}
    connection.execute(insert(adjudications).values(row))


def work_at_random(connection: Connection, seed: int) -> None:
    """A store as it is after some days: every kind of task, answer, skip and verdict, in any mixture."""
    rng = random.Random(seed)
    texts = "abcd"
    rows = [task(f"t{n}", *(rng.choice(texts) for _ in range(rng.randint(2, 4))), prompt=f"p{n % 3}") for n in range(5)]
    # Texts may be there twice in a task, which is two responses that read the same.
    for row in rows:
        for at, response in enumerate(row.responses):
            object.__setattr__(response, "id", f"{row.id}-{at}")
    load(connection, "sure", [task("t0", "a", "b", prompt="sure")], priority=9.0)
    zoe = person(connection, "zoe")
    answer(connection, zoe, a=1, b=2)
    load(connection, "main", rows, overlap=rng.randint(1, 3), extra_vote=rng.random() < 0.5)
    load(connection, "again", rows[:2])
    load(connection, "arena", [task("v", "a", "b", prompt="arena")], of="comparison", overlap=2)
    load(connection, "gold", [known(f"g{n}", "a", "b", prompt=f"gold{n}") for n in range(2)], "gold")
    load(connection, "practice", [known("x", "a", "b", prompt="practice")], "practice")
    crowd = [person(connection, name) for name in ("ann", "bob", "cho", "dan")]
    rules = Rules(lease_seconds=100, gold_share=0.2, repeat_share=0.2, repeat_after=0, seed=seed)
    now, late = START, []
    for _ in range(rng.randint(5, 40)):
        now += rng.choice((1, 1, 60))
        who = rng.choice(crowd)
        turn = next_turn(connection, who, rules, now)
        if turn is None:
            continue
        draw = rng.random()
        if draw < 0.15:
            late.append((who, turn))
            now += 101
        elif draw < 0.25 and turn.kind != "practice":
            skip(connection, who, turn.lease_id, f"s{next(_numbers)}", rng.choice(("hard", "sad")), None, now)
        else:
            _rank(connection, who, turn, rng, now)
    for who, turn in late:
        if rng.random() < 0.7:
            _rank(connection, who, turn, rng, now)
    if rng.random() < 0.5:
        leave_out(connection, rng.choice(crowd), "careless", None, now)
    lead = person(connection, "lead", "admin")
    for number, row in enumerate(rows, 2):  # after the one that is sure
        if rng.random() < 0.2:
            adjudicate(connection, lead, number, {r.id: rng.randint(1, 2) for r in row.responses})


def _rank(connection: Connection, who: int, turn: Turn, rng: random.Random, now: float) -> None:
    num = len(turn.responses)
    ranks = [rng.randint(1, num) for _ in range(num)]
    sent: dict[str, Any] = {"ranks": ranks}
    if num == 2:
        sent["strength"] = 0 if ranks[0] == ranks[1] else rng.randint(1, 3)
    if len(set(ranks)) == 1:
        sent["both_bad"] = rng.random() < 0.5
    sent["better_answer"] = rng.choice(("", "", " ", "a", "new", "newer"))
    with suppress(Conflict):  # answered since
        submit(connection, who, turn.lease_id, f"s{next(_numbers)}", sent, FORM, None, now)
