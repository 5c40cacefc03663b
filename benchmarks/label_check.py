"""What a store holds beside what its clients were told: nothing lost, nothing doubled, no task asked too often."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool


@dataclass(frozen=True)
class Sent:
    """One submission as its client made it. `ranks` is by response id, dense; empty for a skip."""

    person: str
    task: str
    submission: str
    action: str  # submit, edit, skip
    ranks: dict[str, int] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True)
class StoredAnswer:
    """A row of `answers`."""

    person: str
    task: str
    kind: str  # task, or surplus: its place was taken
    ranks: dict[str, int]
    reason: str
    revision: int


@dataclass
class Stored:
    """A store's rows, read with plain SQL so that the app's own code is not asked about itself."""

    num_needed: dict[str, int]  # by task
    num_done: dict[str, int]
    num_held: dict[str, int]
    answers: list[StoredAnswer]
    log: list[tuple[str, str]]  # action, submission
    submissions: list[str]
    open_leases: Counter[str]  # by task


def read_store(url: str) -> Stored:
    """All that `check` looks at, in one snapshot."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))

        def rows(query: str) -> Sequence[Any]:
            return connection.execute(text(query)).all()

        tasks = rows("SELECT record_id, num_needed, num_done, num_held FROM tasks")
        answers = rows(
            "SELECT p.name, t.record_id, a.kind, a.body, a.revision FROM answers a "
            "JOIN people p ON p.id = a.person_id JOIN tasks t ON t.id = a.task_id"
        )
        log = rows("SELECT action, body FROM log WHERE action IN ('submit', 'edit', 'skip')")
        leases = rows(
            "SELECT t.record_id, count(*) FROM leases l JOIN tasks t ON t.id = l.task_id "
            "WHERE l.state = 'open' GROUP BY t.record_id"
        )
        submissions = [row[0] for row in rows("SELECT id FROM submissions")]
    engine.dispose()
    return Stored(
        num_needed={row[0]: row[1] for row in tasks},
        num_done={row[0]: row[2] for row in tasks},
        num_held={row[0]: row[3] for row in tasks},
        answers=[_answer(*row) for row in answers],
        log=[(action, json.loads(body)["submission"]) for action, body in log],
        submissions=submissions,
        open_leases=Counter({row[0]: row[1] for row in leases}),
    )


def num_counted(url: str) -> int:
    """Answers that count, as they are in the store now."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        count = connection.execute(text("SELECT count(*) FROM answers WHERE kind = 'task'")).scalar_one()
    engine.dispose()
    return count


def check(
    sent: Sequence[Sent], acknowledged: Sequence[Sent], stored: Stored, overlap: int, is_full: bool
) -> dict[str, list[str]]:
    """Everything that is wrong, by kind; empty where all is well.

    Args:
        sent: every submission that ever left a client, whatever became of it.
        acknowledged: those whose receipt arrived, in the order of arrival; each once.
        stored: what is in the store after all clients stopped.
        overlap: answers that were asked of every task.
        is_full: whether the clients worked until nothing was left, so that no task may be short.
    """
    problems: dict[str, list[str]] = defaultdict(list)
    _check_acknowledged(acknowledged, stored, problems)
    _check_rows(sent, acknowledged, stored, problems)
    _check_overlap(stored, overlap, is_full, problems)
    return dict(problems)


def _check_acknowledged(acknowledged: Sequence[Sent], stored: Stored, problems: dict[str, list[str]]) -> None:
    rows = {(row.person, row.task): row for row in stored.answers}
    stands: dict[tuple[str, str], Sent] = {}
    num_firsts: Counter[tuple[str, str]] = Counter()
    for item in acknowledged:
        key = (item.person, item.task)
        stands[key] = item
        num_firsts[key] += item.action == "submit"
    for key, item in stands.items():
        where = f"{item.person} on {item.task}"
        row = rows.get(key)
        if num_firsts[key] > 1:
            problems["doubled"].append(f"{where}: {num_firsts[key]} first answers were acknowledged")
        if item.action == "skip":
            if row is not None:
                problems["altered"].append(f"{where}: skipped, yet there is an answer")
        elif row is None:
            problems["lost"].append(f"{where}: acknowledged, not in the store")
        elif (row.ranks, row.reason) != (item.ranks, item.reason):
            problems["altered"].append(
                f"{where}: {row.ranks} {row.reason!r}, acknowledged {item.ranks} {item.reason!r}"
            )
    logged, known = Counter(submission for _, submission in stored.log), Counter(stored.submissions)
    for item in acknowledged:
        if not logged[item.submission] or not known[item.submission]:
            problems["unlogged"].append(f"{item.person} on {item.task}: {item.action} {item.submission} has no trace")


def _check_rows(
    sent: Sequence[Sent], acknowledged: Sequence[Sent], stored: Stored, problems: dict[str, list[str]]
) -> None:
    contents = {(item.person, item.task, _content(item.ranks, item.reason)) for item in sent}
    num_edits = Counter((item.person, item.task) for item in acknowledged if item.action == "edit")
    for key, count in Counter((row.person, row.task) for row in stored.answers).items():
        if count > 1:
            problems["doubled"].append(f"{key[0]} on {key[1]}: {count} answers")
    for row in stored.answers:
        where = f"{row.person} on {row.task}"
        if (row.person, row.task, _content(row.ranks, row.reason)) not in contents:
            problems["invented"].append(f"{where}: nobody sent {row.ranks} {row.reason!r}")
        if row.revision != 1 + num_edits[row.person, row.task]:
            count = num_edits[row.person, row.task]
            problems["doubled"].append(f"{where}: revision {row.revision} after {count} acknowledged edits")
    for what, ids in (("log", [id for _, id in stored.log]), ("submissions", stored.submissions)):
        for id, count in Counter(ids).items():
            if count > 1:
                problems["doubled"].append(f"submission {id} is in `{what}` {count} times")
    for action, id in stored.log:
        if id not in {item.submission for item in sent}:
            problems["invented"].append(f"{action} {id}: nobody sent it")


def _check_overlap(stored: Stored, overlap: int, is_full: bool, problems: dict[str, list[str]]) -> None:
    counted = Counter(row.task for row in stored.answers if row.kind == "task")
    surplus = Counter(row.task for row in stored.answers if row.kind == "surplus")
    for task, num_needed in stored.num_needed.items():
        if counted[task] > overlap:
            problems["over_overlap"].append(f"{task}: {counted[task]} answers count, {overlap} were asked")
        if counted[task] < overlap and (is_full or surplus[task]):
            problems["short"].append(f"{task}: {counted[task]} of {overlap}, and {surplus[task]} beside them")
        if num_needed != overlap:
            problems["miscounted"].append(f"{task}: num_needed is {num_needed}, {overlap} were asked")
        if stored.num_done[task] != counted[task]:
            problems["miscounted"].append(f"{task}: num_done is {stored.num_done[task]}, there are {counted[task]}")
        if stored.num_held[task] != stored.open_leases[task]:
            held = f"num_held is {stored.num_held[task]}, there are {stored.open_leases[task]} open leases"
            problems["miscounted"].append(f"{task}: {held}")


def _content(ranks: dict[str, int], reason: str) -> tuple[tuple[tuple[str, int], ...], str]:
    return tuple(sorted(ranks.items())), reason


def _answer(person: str, task: str, kind: str, body: str, revision: int) -> StoredAnswer:
    answer = json.loads(body)
    return StoredAnswer(person, task, kind, answer["ranks"], answer["reason"] or "", revision)
