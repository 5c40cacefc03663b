"""What a label store holds, as records: nothing is left out here, everything says what it is."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, func, select

from labeling_app.check_labels import ADJUDICATION
from labeling_app.store import open_store
from labeling_app.store.schema import adjudications, answers, leases, people, sets, tasks
from rlhf.errors import UserError, nearest
from rlhf.records import Prompt, Ranking, Response, Task


@dataclass(frozen=True)
class Skip:
    """A task that somebody gave back unanswered."""

    task_id: str
    annotator: str
    reason: str
    note: str | None


@dataclass(frozen=True)
class Labels:
    """Labels and the tasks they are about.

    Args:
        tasks: every task that is asked, and those with a known answer that somebody answered.
        rankings: every answer as it stands now, of whatever kind, then the adjudications. What somebody
            who is left out answered has the kind `left_out` where it would be a vote.
        left_out: annotator to the reason why their labels are not to be used.
        skips: tasks given back, with the reason.
        elsewhere: how many answers there are in sets that were not asked for, by why they were not.
    """

    tasks: list[Task]
    rankings: list[Ranking]
    left_out: dict[str, str] = field(default_factory=dict)
    skips: list[Skip] = field(default_factory=list)
    elsewhere: dict[str, int] = field(default_factory=dict)


def read_store(url: str, set_names: Sequence[str] = ()) -> Labels:
    """The labels of a store by path or URL. Raises UserError where there is none, and for unknown sets."""
    with open_store(url) as store:
        return store.read(lambda connection: read_labels(connection, set_names))


def read_labels(connection: Connection, set_names: Collection[str] = (), kind: str = "ranking") -> Labels:
    """The labels of the sets of one kind (ranking, or comparison of policies), or of those named.

    Where two sets have a task of the same id, the later one's gets its set's name before it.
    Raises UserError for a set that is not there.
    """
    rows = connection.execute(select(sets.c.id, sets.c.name, sets.c.kind).order_by(sets.c.id)).all()
    names = [row.name for row in rows if row.kind == kind]
    for name in set_names:
        if name not in names:
            raise UserError(f"sets: there is no {kind} set {name!r}{nearest(name, names)}; there are {len(names)} sets")
    wanted = {row.id: row.name for row in rows if row.kind == kind and (not set_names or row.name in set_names)}
    given = _answers(connection, list(wanted))
    left_out = _left_out(connection)
    found, task_ids = _tasks(connection, wanted, {row.task_id for row in given})
    return Labels(
        found,
        [_ranking(row, task_ids[row.task_id], left_out) for row in given] + _adjudications(connection, task_ids),
        left_out,
        _skips(connection, list(wanted), task_ids),
        _elsewhere(connection, set(wanted), kind),
    )


def _tasks(connection: Connection, wanted: dict[int, str], answered: set[int]) -> tuple[list[Task], dict[int, str]]:
    """The tasks, and the id that each row's record has among them."""
    found: list[Task] = []
    ids: dict[int, str] = {}
    taken: set[str] = set()
    query = select(tasks.c.id, tasks.c.set_id, tasks.c.record_id, tasks.c.kind, tasks.c.body)
    for row in connection.execute(
        query.where(tasks.c.set_id.in_(wanted)).order_by(tasks.c.set_id, tasks.c.position, tasks.c.id)
    ):
        id = row.record_id
        while id in taken:
            id = f"{wanted[row.set_id]}/{id}"
        taken.add(id)
        ids[row.id] = id
        if row.kind == "task" or row.id in answered:
            found.append(_task(id, row.body))
    return found, ids


def _task(id: str, body: dict[str, Any]) -> Task:
    responses = [Response(**response) for response in body["responses"]]
    chosen = {key: body[key] for key in ("chosen_by", "probability") if key in body}
    return Task(id, Prompt(**body["prompt"]), responses, **chosen)


def _answers(connection: Connection, wanted: list[int]) -> Sequence[Row]:
    columns = (answers.c.task_id, answers.c.kind, answers.c.body, answers.c.seconds, answers.c.at)
    return connection.execute(
        select(*columns, people.c.name, leases.c.shown)
        .join(people, people.c.id == answers.c.person_id)
        .join(leases, leases.c.id == answers.c.lease_id)
        .join(tasks, tasks.c.id == answers.c.task_id)
        .where(tasks.c.set_id.in_(wanted))
        .order_by(tasks.c.set_id, tasks.c.position, tasks.c.id, answers.c.turn, people.c.id)
    ).all()


def _ranking(row: Row, task_id: str, left_out: Collection[str]) -> Ranking:
    body = row.body
    return Ranking(
        task_id,
        row.name,
        body["ranks"],
        strength=body["strength"],
        flags=body["flags"],
        shown=row.shown,
        seconds=row.seconds,
        at=_time(row.at),
        both_bad=body["both_bad"],
        ratings=body["ratings"],
        reason=body["reason"],
        better_answer=body["better_answer"],
        kind="left_out" if row.kind == "task" and row.name in left_out else row.kind,
    )


def _adjudications(connection: Connection, task_ids: dict[int, str]) -> list[Ranking]:
    rows = connection.execute(
        select(adjudications, people.c.name)
        .join(people, people.c.id == adjudications.c.person_id)
        .order_by(adjudications.c.task_id)
    )
    return [
        Ranking(task_ids[row.task_id], row.name, row.ranks, at=_time(row.at), reason=row.reason, kind=ADJUDICATION)
        for row in rows
        if row.task_id in task_ids
    ]


def _left_out(connection: Connection) -> dict[str, str]:
    rows = connection.execute(select(people.c.name, people.c.left_out).order_by(people.c.id))
    return {row.name: row.left_out for row in rows if row.left_out is not None}


def _skips(connection: Connection, wanted: list[int], task_ids: dict[int, str]) -> list[Skip]:
    rows = connection.execute(
        select(leases.c.task_id, leases.c.skipped, people.c.name)
        .join(people, people.c.id == leases.c.person_id)
        .join(tasks, tasks.c.id == leases.c.task_id)
        .where(tasks.c.set_id.in_(wanted), leases.c.state == "skipped")
        .order_by(leases.c.task_id, leases.c.turn, people.c.id)
    )
    return [Skip(task_ids[row.task_id], row.name, row.skipped["reason"], row.skipped["note"]) for row in rows]


def _elsewhere(connection: Connection, wanted: set[int], kind: str) -> dict[str, int]:
    rows = connection.execute(
        select(sets.c.id, sets.c.kind, func.count())
        .join(tasks, tasks.c.set_id == sets.c.id)
        .join(answers, answers.c.task_id == tasks.c.id)
        .group_by(sets.c.id, sets.c.kind)
    )
    counts: Counter[str] = Counter()
    for id, set_kind, number in rows:
        if id not in wanted:
            counts["other_set" if set_kind == kind else set_kind] += number
    return dict(counts)


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
