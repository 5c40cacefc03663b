"""Label stores for tests: tasks, people, answers, and what has to hold of every store at every moment."""

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, func, insert, select

from labeling_app.form import Choice, Form
from labeling_app.handout import Turn
from labeling_app.loading import KnownTask, SetRules, load_tasks
from labeling_app.store.schema import answers, leases, log, people, sets, submissions, tasks
from labeling_app.submit import Receipt, submit
from rlhf.records import Prompt, Response, Task

FORM = Form(flags=(Choice("harmful", "Harmful"),), attributes=(Choice("helpful", "Helpful"),))
_numbers = itertools.count()


def task(id: str, *texts: str) -> Task:
    """A task whose response to text `t` has the id `ID-t`."""
    responses = [Response(f"{id}-{text}", f"p-{id}", text, "run") for text in texts or ("a", "b")]
    return Task(id, Prompt(f"p-{id}", [{"role": "user", "content": f"prompt of {id}"}]), responses)


def known(id: str, *texts: str) -> KnownTask:
    """A task whose right answer is the order of its texts."""
    shown = task(id, *texts)
    ranks = {response.id: rank for rank, response in enumerate(shown.responses, 1)}
    return KnownTask(id, shown.prompt, shown.responses, ranks, "because")


def load(
    connection: Connection, num: int, name: str = "set", kind: str = "task", now: float = 0.0, **rules: Any
) -> None:
    """A set of `num` tasks with the ids NAME-0, NAME-1, ..."""
    rows = [(task if kind == "task" else known)(f"{name}-{number}") for number in range(num)]
    load_tasks(connection, name, rows, kind, SetRules(**rules), 0.0)


def add_people(connection: Connection, num: int, first: int | None = None) -> list[int]:
    """Annotators who cannot log in; their ids, from `first` on where chance, which they seed, should be the same.

    Their names sort as they were added, however many people came before.
    """
    ids = []
    for number in range(num):
        row = {"name": f"person {next(_numbers):06}", "role": "annotator", "epoch": 0, "created_at": 0.0}
        if first is not None:
            row["id"] = first + number
        done = connection.execute(insert(people).values(row))
        assert done.inserted_primary_key is not None
        ids.append(done.inserted_primary_key[0])
    return ids


def prefer(turn: Turn, best: str = "a") -> dict[str, Any]:
    """What a browser sends for a pair where this text is better; of more, it is first and the others are tied."""
    ranks = [1 if text == best else 2 for text in turn.responses]
    return {"ranks": ranks, "strength": 2} if len(ranks) == 2 else {"ranks": ranks}


def send(
    connection: Connection, person: int, turn: Turn, best: str = "a", now: float = 0.0, edit: bool = False, id: str = ""
) -> Receipt:
    """Submit `prefer(turn, best)`."""
    id = id or f"sent-{next(_numbers)}"
    return submit(connection, person, turn.lease_id, id, prefer(turn, best), FORM, 3.0, now, edit)


def record_ids(connection: Connection) -> dict[str, str]:
    """The task's id in its file by lease."""
    joined = select(leases.c.id, tasks.c.record_id).join(tasks, tasks.c.id == leases.c.task_id)
    return dict(connection.execute(joined).tuples().all())


def count(connection: Connection, table: Any) -> int:
    """How many rows a table has."""
    return connection.execute(select(func.count()).select_from(table)).scalar_one()


def check_store(connection: Connection) -> None:
    """Assert what holds of every store between two jobs. Answers of people who are left out do not count."""
    counting = select(people.c.id).where(people.c.left_out.is_(None))
    counted = _by_task(connection, answers, answers.c.kind == "task", answers.c.person_id.in_(counting))
    held = _by_task(connection, leases, leases.c.kind == "task", leases.c.state == "open")
    for row in connection.execute(select(tasks, sets.c.overlap, sets.c.extra_vote).join(sets)):
        assert row.num_done == counted[row.id]
        assert row.num_held == held[row.id]
        assert row.num_done + row.num_held <= row.num_needed <= row.overlap + row.extra_vote
        assert row.is_free == (row.num_done + row.num_held < row.num_needed)
    in_hand = Counter(connection.execute(select(leases.c.person_id).where(leases.c.state == "open")).scalars())
    assert all(number == 1 for number in in_hand.values())

    turns = connection.execute(select(leases.c.task_id, leases.c.person_id, leases.c.turn)).all()
    assert len(set(turns)) == len(turns)
    joined = select(answers, leases.c.state, leases.c.task_id.label("of"), leases.c.person_id.label("by")).join(leases)
    standing = {row.lease_id: row for row in connection.execute(joined)}
    assert all((row.state, row.of, row.by) == ("answered", row.task_id, row.person_id) for row in standing.values())
    assert (
        len(standing)
        == connection.execute(select(func.count()).select_from(leases).where(leases.c.state == "answered")).scalar_one()
    )
    _check_log(connection, standing)


def _check_log(connection: Connection, standing: dict[str, Any]) -> None:
    """The log alone tells what stands, and each submission that changed something is in it once."""
    told: dict[str, tuple[int, dict[str, Any]]] = {}
    logged = []
    for row in connection.execute(select(log).where(log.c.action.in_(["submit", "edit", "skip"])).order_by(log.c.id)):
        logged.append(row.body["submission"])
        if row.action == "skip":
            told.pop(row.body["lease"], None)
        else:
            told[row.body["lease"]] = row.body["revision"], row.body["ranks"]
    assert told == {id: (row.revision, row.body["ranks"]) for id, row in standing.items()}
    assert len(set(logged)) == len(logged)
    assert set(logged) <= set(connection.execute(select(submissions.c.id)).scalars())


def _by_task(connection: Connection, table: Any, *where: Any) -> Counter[int]:
    rows: Sequence[Any] = connection.execute(
        select(table.c.task_id, func.count()).where(*where).group_by(table.c.task_id)
    ).all()
    return Counter(dict(tuple(row) for row in rows))
