"""What annotators see of their own work: how far they are, and their last answers. Reads only."""

from statistics import median
from typing import Any

from sqlalchemy import Connection, bindparam, case, func, select

from labeling_app.store.schema import answers, leases, sets, tasks
from labeling_app.submit import NUM_EDITABLE

_MINE = (answers.c.person_id == bindparam("person")) & (answers.c.kind != "practice")
_NUM_DONE = select(func.count(), func.count(case((answers.c.at >= bindparam("since"), 1)))).where(_MINE)
_PACE = select(answers.c.seconds).where(_MINE, answers.c.seconds.is_not(None)).order_by(answers.c.at.desc()).limit(20)
_IS_FREE = tasks.c.is_free & tasks.c.set_id.in_(select(sets.c.id).where(~sets.c.is_closed))
_NUM_FREE = (
    select(tasks.c.kind, func.count())
    .where(tasks.c.kind.in_(["task", "practice"]), _IS_FREE)  # in the index, which has no texts to read over
    .group_by(tasks.c.kind)
)
_NUM_SEEN = (
    select(tasks.c.kind, func.count())
    .join(leases, leases.c.task_id == tasks.c.id)
    .where(leases.c.person_id == bindparam("person"), leases.c.turn == 0, leases.c.state != "returned", _IS_FREE)
    .group_by(tasks.c.kind)
)
_IN_HAND = select(leases.c.kind).where(leases.c.person_id == bindparam("person"), leases.c.state == "open")


def history(connection: Connection, person_id: int, limit: int = NUM_EDITABLE) -> list[dict[str, Any]]:
    """One's own last answers, the newest first: lease, time, ranks in the order shown, the prompt's last message."""
    rows = connection.execute(
        select(answers.c.lease_id, answers.c.at, answers.c.body, answers.c.revision, leases.c.shown, tasks.c.body)
        .join(leases, leases.c.id == answers.c.lease_id)
        .join(tasks, tasks.c.id == answers.c.task_id)
        .where(answers.c.person_id == person_id, answers.c.kind != "practice")
        .order_by(answers.c.at.desc(), answers.c.lease_id)
        .limit(limit)
    )
    return [
        {
            "lease": lease_id,
            "at": at,
            "ranks": [answer["ranks"][id] for id in shown],
            "both_bad": answer["both_bad"],
            "revision": revision,
            "prompt": task["prompt"]["messages"][-1]["content"][:200],
        }
        for lease_id, at, answer, revision, shown, task in rows
    ]


def progress(connection: Connection, person_id: int, since: float) -> dict[str, Any]:
    """Numbers for one annotator: answers in all and since a time, pace, what is left for them and for practice.

    The task in their hands is among those left.
    """
    done, today = connection.execute(_NUM_DONE, {"person": person_id, "since": since}).one()
    taken = connection.execute(_PACE, {"person": person_id}).scalars().all()
    free = dict(connection.execute(_NUM_FREE).tuples().all())
    seen = dict(connection.execute(_NUM_SEEN, {"person": person_id}).tuples().all())
    left = {kind: free.get(kind, 0) - seen.get(kind, 0) for kind in ("task", "practice")}
    for kind in connection.execute(_IN_HAND, {"person": person_id}).scalars():
        left["practice" if kind == "practice" else "task"] += 1  # a gold task is one like the others
    return {
        "done": done,
        "today": today,
        "left": left["task"],
        "practice_left": left["practice"],
        "pace_seconds": median(taken) if taken else None,
    }
