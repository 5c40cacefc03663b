"""Task files into the store: as often as one likes, with nothing doubled and nothing changed under people's hands."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

from sqlalchemy import Connection, func, insert, select

from labeling_app.store.schema import log, sets, tasks
from rlhf.errors import UserError
from rlhf.records import Prompt, Response, Task

KINDS = ("task", "gold", "practice")


@dataclass(frozen=True)
class KnownTask:
    """A task whose right answer is known, for practice or as a check: a Task and its `ranks`, with why."""

    id: str
    prompt: Prompt
    responses: list[Response]
    ranks: dict[str, int]
    explanation: str = ""


@dataclass(frozen=True)
class SetRules:
    """How a set of tasks is asked.

    Args:
        overlap: annotators a task.
        extra_vote: one more annotator where those disagree.
        priority: sets with a higher one come first.
        order: `file`, or `random`: the same shuffle every time, so that what is done first is a fair sample.
        kind: `ranking`, or `comparison` of policies.
    """

    overlap: int = 1
    extra_vote: bool = False
    priority: float = 0.0
    order: str = "file"
    kind: str = "ranking"

    def __post_init__(self) -> None:
        if self.overlap < 1:
            raise UserError(f"overlap: is {self.overlap}, should be at least 1")
        if self.order not in ("file", "random"):
            raise UserError(f"order: is {self.order!r}, should be file or random")
        if self.kind not in ("ranking", "comparison"):
            raise UserError(f"kind: is {self.kind!r}, should be ranking or comparison")
        if not math.isfinite(self.priority):
            raise UserError(f"priority: is {self.priority}, should be a number; sets with a higher one come first")


def load_tasks(
    connection: Connection, name: str, rows: Sequence[Task | KnownTask], kind: str, rules: SetRules, now: float
) -> tuple[int, int]:
    """Put tasks into the set `name`, made where it is new: `(added, there already)`.

    A task that is there already stays as it is. Raises UserError, and adds nothing, for a task that
    reads otherwise now, for fewer than two responses, for ids that are there twice or that a database
    cannot hold, for a known task without whole ranks, and for other rules than the set was made with.
    """
    assert kind in KINDS
    _check_text(name, "the set's name", name, 512)
    bodies = {row.id: _body(row) for row in rows}
    if len(bodies) < len(rows):
        ids = [row.id for row in rows]
        raise UserError(f"{name}: task {next(id for id in ids if ids.count(id) > 1)} is there twice; keep one of them")
    for row in rows:
        _check(name, row)
    set_id = _set(connection, name, rules, now)
    there = {
        record_id: as_loaded
        for record_id, *as_loaded in connection.execute(
            select(tasks.c.record_id, tasks.c.kind, tasks.c.body, tasks.c.known).where(tasks.c.set_id == set_id)
        )
    }
    for row in rows:
        if row.id in there and there[row.id] != [kind, bodies[row.id], _known(row)]:
            raise UserError(
                f"{name}: task {row.id} reads otherwise than when it was loaded; "
                "give it a new id, or give the set another name"
            )
    new = [row for row in rows if row.id not in there]
    if rules.order == "random":
        Random(f"{name}/order").shuffle(new)
    first = connection.execute(select(func.coalesce(func.max(tasks.c.position), -1))).scalar_one() + 1
    if new:
        connection.execute(
            insert(tasks),
            [
                {
                    "set_id": set_id,
                    "record_id": row.id,
                    "kind": kind,
                    "priority": rules.priority,
                    "position": first + at,
                    "body": bodies[row.id],
                    "known": _known(row),
                    "num_needed": rules.overlap,
                    "num_done": 0,
                    "num_held": 0,
                    "is_free": True,
                }
                for at, row in enumerate(new)
            ],
        )
        body = {"set": name, "kind": kind, "num_tasks": len(new), "rules": asdict(rules)}
        connection.execute(insert(log).values(at=now, person_id=None, action="load", body=body))
    return len(new), len(rows) - len(new)


def _set(connection: Connection, name: str, rules: SetRules, now: float) -> int:
    there = connection.execute(select(sets).where(sets.c.name == name)).first()
    values = {"kind": rules.kind, "overlap": rules.overlap, "extra_vote": rules.extra_vote}
    if there is None:
        done = connection.execute(insert(sets).values(name=name, is_closed=False, created_at=now, **values))
        assert done.inserted_primary_key is not None
        return done.inserted_primary_key[0]
    for key, value in values.items():
        if getattr(there, key) != value:
            raise UserError(
                f"{name}: was loaded with {key} {getattr(there, key)}, now it is {value}; name a new set, or keep it"
            )
    return there.id


def _body(row: Task | KnownTask) -> dict[str, Any]:
    body = asdict(row)
    return json.loads(json.dumps({key: body[key] for key in body if key not in ("ranks", "explanation")}))


def _known(row: Task | KnownTask) -> dict[str, Any] | None:
    return {"ranks": dict(row.ranks), "explanation": row.explanation} if isinstance(row, KnownTask) else None


def _check(name: str, row: Task | KnownTask) -> None:
    _check_text(name, "a task's id", row.id, 128)
    ids = [response.id for response in row.responses]
    if len(set(ids)) != len(ids) or len(ids) < 2:
        raise UserError(f"{name}: task {row.id} should have two or more responses, each with an id of its own")
    if not row.prompt.messages:
        raise UserError(f"{name}: task {row.id} has an empty prompt; give it at least one message")
    if any(not {"role", "content"} <= message.keys() for message in row.prompt.messages):
        raise UserError(f"{name}: task {row.id} has a message without `role` or `content`; give it both")
    if isinstance(row, KnownTask) and (set(row.ranks) != set(ids) or not all(rank >= 1 for rank in row.ranks.values())):
        raise UserError(f"{name}: task {row.id} should have a rank, 1 or more, for each of its responses and no other")


def _check_text(name: str, what: str, text: str, longest: int) -> None:
    """What stands outside of a `Json` column has to be text that PostgreSQL can hold."""
    if not 1 <= len(text) <= longest or not text.isprintable():
        raise UserError(f"{name!a:.80}: {what} is {text!a:.80}; it should be 1 to {longest} printable characters")
