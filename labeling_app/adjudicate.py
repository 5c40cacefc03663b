"""The lead's word on disputed tasks: which they are, what people said, and the ranking that settles one.

Votes are never changed by it; the export takes the lead's ranking in their place.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from random import Random
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from labeling_app.answer import Refused, disagree, read_answer
from labeling_app.form import Form
from labeling_app.store.schema import adjudications, answers, log, people, sets, tasks
from rlhf.records import Prompt, Ranking, Response, Task

MAX_REASON = 5000  # characters
# Independent looks at a task: `surplus` came late, but is somebody's opinion all the same.
_OPINIONS = ("task", "surplus")


@dataclass(frozen=True)
class Dispute:
    """A task that people disagree on, or that the lead has settled.

    `score` is the mean distance of two people's verdicts on a pair of its responses, from 0 (the same)
    over one half (a tie to one of them) to 1 (each prefers another).
    """

    task_id: int
    task: str
    set_name: str
    prompt: str  # its last message
    num_answers: int
    score: float
    is_settled: bool


@dataclass(frozen=True)
class Opinion:
    """What one person said; lists are in the order of the case's responses."""

    person: str
    ranks: list[int]
    strength: int | None
    both_bad: bool
    flags: list[list[str]]
    ratings: list[dict[str, int]]
    reason: str | None
    better_answer: str | None
    seconds: float | None
    at: float
    is_late: bool


@dataclass(frozen=True)
class Ruling:
    """What the lead has said."""

    person: str
    ranks: list[int]
    reason: str | None
    at: float


@dataclass(frozen=True)
class Case:
    """One task with all that was said about it. `responses` are texts, in the same order whenever it is opened."""

    task_id: int
    task: str
    set_name: str
    messages: list[dict[str, str]]
    responses: list[str]
    opinions: list[Opinion]
    ruling: Ruling | None


def disputes(connection: Connection) -> list[Dispute]:
    """Tasks on which two people contradict each other (`answer.disagree`) and settled ones, the most disputed first.

    People whose answers are left out do not count.
    """
    several = (
        select(answers.c.task_id)
        .join(people, people.c.id == answers.c.person_id)
        .where(answers.c.kind.in_(_OPINIONS), people.c.left_out.is_(None))
        .group_by(answers.c.task_id)
        .having(func.count() > 1)
    )
    settled = set(connection.execute(select(adjudications.c.task_id)).scalars())
    rows = connection.execute(
        select(tasks.c.id, tasks.c.body, sets.c.name)
        .join(sets, sets.c.id == tasks.c.set_id)
        .where(tasks.c.kind == "task", tasks.c.id.in_(several.union(select(adjudications.c.task_id))))
        .order_by(tasks.c.id)
    ).all()
    votes = _votes(connection)
    scores = _scores(rows, votes)
    found = [
        Dispute(
            task_id=row.id,
            task=row.body["id"],
            set_name=row.name,
            prompt=row.body["prompt"]["messages"][-1]["content"],
            num_answers=len(votes.get(row.id, {})),
            score=scores.get(row.id, 0.0),
            is_settled=row.id in settled,
        )
        for row in rows
        if row.id in settled or any(disagree(a, b) for a, b in combinations(votes[row.id].values(), 2))
    ]
    return sorted(found, key=lambda dispute: (-dispute.score, -dispute.num_answers, dispute.task_id))


def _votes(connection: Connection) -> dict[int, dict[str, dict[str, int]]]:
    """Ranks by response, by person, by task."""
    rows = connection.execute(
        select(answers.c.task_id, people.c.name, answers.c.body)
        .join(people, people.c.id == answers.c.person_id)
        .where(answers.c.kind.in_(_OPINIONS), people.c.left_out.is_(None))
    )
    votes: dict[int, dict[str, dict[str, int]]] = {}
    for task_id, name, body in rows:
        votes.setdefault(task_id, {})[name] = body["ranks"]
    return votes


def _scores(rows: Sequence[Row], votes: dict[int, dict[str, dict[str, int]]]) -> dict[int, float]:
    from labeling_app.quality.disputes import disputed
    from labeling_app.quality.votes import collect

    # By the store's own ids: those of the files may be the same in two sets.
    records = [_record(row.id, row.body) for row in rows]
    rankings = [Ranking(str(row.id), name, ranks) for row in rows for name, ranks in votes.get(row.id, {}).items()]
    return {int(str(found["task_id"])): float(str(found["score"])) for found in disputed(collect(records, rankings))}


def _record(task_id: int, body: dict[str, Any]) -> Task:
    responses = [Response(**response) for response in body["responses"]]
    return Task(str(task_id), Prompt(**body["prompt"]), responses)


def open_case(connection: Connection, task_id: int) -> Case | None:
    """A task with all that was said about it; None where there is no such task to settle."""
    row = _task(connection, task_id)
    if row is None:
        return None
    ids = _order(row.body)
    texts = {response["id"]: response["text"] for response in row.body["responses"]}
    said = connection.execute(
        select(answers, people.c.name)
        .join(people, people.c.id == answers.c.person_id)
        .where(answers.c.task_id == task_id, answers.c.kind.in_(_OPINIONS), people.c.left_out.is_(None))
        .order_by(people.c.name)
    ).all()
    ruling = connection.execute(
        select(adjudications, people.c.name)
        .join(people, people.c.id == adjudications.c.person_id)
        .where(adjudications.c.task_id == task_id)
    ).first()
    return Case(
        task_id,
        row.body["id"],
        row.name,
        row.body["prompt"]["messages"],
        [texts[id] for id in ids],
        [_opinion(answer, ids) for answer in said],
        None if ruling is None else Ruling(ruling.name, [ruling.ranks[id] for id in ids], ruling.reason, ruling.at),
    )


def adjudicate(
    connection: Connection, person_id: int, task_id: int, ranks: Any, reason: str | None, now: float
) -> None:
    """Settle a task, or settle it otherwise.

    Args:
        ranks: as a browser sent them, in the order of the case's responses: 1 is best, equal is a tie.
        reason: why, for whoever reads the log; none is needed.

    Raises Refused for a task that nobody has answered, and for what is no ranking of its responses.
    """
    row = _task(connection, task_id)
    if row is None:
        raise Refused("There is no such task to settle.")
    if reason is not None and len(reason) > MAX_REASON:
        raise Refused(f"The reason has {len(reason):,} characters; at most {MAX_REASON:,} can be kept.")
    answer = read_answer({"ranks": ranks}, _order(row.body), Form(strength=False))
    values = {"person_id": person_id, "ranks": answer.ranks, "reason": reason or None, "at": now}
    this = adjudications.c.task_id == task_id
    before = connection.execute(select(adjudications.c.ranks).where(this)).scalar()
    if before is None:
        connection.execute(insert(adjudications).values(task_id=task_id, **values))
    else:
        connection.execute(update(adjudications).where(this).values(values))
    body = {"task": task_id, "ranks": answer.ranks, "reason": reason or None, "before": before}
    connection.execute(insert(log).values(at=now, person_id=person_id, action="adjudicate", body=body))


def withdraw(connection: Connection, person_id: int, task_id: int, now: float) -> None:
    """Let the votes decide again; the log keeps what was said. Raises Refused where nothing was."""
    this = adjudications.c.task_id == task_id
    before = connection.execute(select(adjudications).where(this)).first()
    if before is None:
        raise Refused("This task has not been settled.")
    connection.execute(delete(adjudications).where(this))
    body = {"task": task_id, "ranks": before.ranks, "reason": before.reason, "by": before.person_id, "at": before.at}
    connection.execute(insert(log).values(at=now, person_id=person_id, action="withdraw", body=body))


def _task(connection: Connection, task_id: int) -> Row | None:
    """The task, if it is one to settle: not of those with a known answer, and with an opinion or a ruling on it."""
    if not 0 < task_id < 2**31:  # more than PostgreSQL's integers hold
        return None
    opinions = select(answers.c.task_id).where(answers.c.kind.in_(_OPINIONS))
    return connection.execute(
        select(tasks.c.body, sets.c.name)
        .join(sets, sets.c.id == tasks.c.set_id)
        .where(tasks.c.id == task_id, tasks.c.kind == "task")
        .where(tasks.c.id.in_(opinions.union(select(adjudications.c.task_id))))
    ).first()


def _order(body: dict[str, Any]) -> list[str]:
    """The task's response ids as the lead sees them: the same each time, and by chance which policy's is first."""
    ids = [response["id"] for response in body["responses"]]
    Random(f"{body['id']}/adjudicate").shuffle(ids)
    return ids


def _opinion(answer: Row, ids: list[str]) -> Opinion:
    body = answer.body
    return Opinion(
        person=answer.name,
        ranks=[body["ranks"][id] for id in ids],
        strength=body["strength"],
        both_bad=body["both_bad"],
        flags=[body["flags"].get(id, []) for id in ids],
        ratings=[body["ratings"].get(id, {}) for id in ids],
        reason=body["reason"],
        better_answer=body["better_answer"],
        seconds=answer.seconds,
        at=answer.at,
        is_late=answer.kind == "surplus",
    )
