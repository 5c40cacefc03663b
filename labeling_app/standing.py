"""Whose answers count: pausing somebody, and leaving out their answers or putting them back.

Nobody and nothing is deleted, and every change is in the log.
"""

from dataclasses import dataclass

from sqlalchemy import Connection, Row, and_, bindparam, func, select, update

from labeling_app.answer import Refused
from labeling_app.handout import ask_one_more, hold
from labeling_app.people import row_of, write_log
from labeling_app.store.schema import answers, invitations, leases, people, tasks

MAX_REASON = 2000


@dataclass(frozen=True)
class Moved:
    """How many answers began to count, ceased to, or are kept as `surplus` because their places are taken."""

    num_counted: int = 0
    num_left_out: int = 0
    num_surplus: int = 0


def pause(connection: Connection, person_id: int, reason: str, by: int | None, now: float) -> None:
    """Give them no more tasks until `resume`; the task in hand goes back, invitations they made are void.

    Raises Refused for the last admin who can log in, and without a reason.
    """
    _check_reason(reason)
    row = row_of(connection, person_id)
    others = and_(people.c.role == "admin", people.c.id != person_id, people.c.paused.is_(None))
    able = select(func.count()).select_from(people).where(others, people.c.password_hash.is_not(None))
    if row.role == "admin" and not connection.execute(able).scalar_one():
        raise Refused(f"{row.name} is the only admin who can log in. Make another one first.")
    connection.execute(update(people).where(people.c.id == person_id).values(paused=reason))
    theirs = and_(invitations.c.created_by == person_id, invitations.c.used_by.is_(None))
    connection.execute(update(invitations).where(theirs, invitations.c.expires_at > now).values(expires_at=now))
    _return_open(connection, person_id)
    write_log(connection, by, "pause", now, {"person": person_id, "reason": reason})


def resume(connection: Connection, person_id: int, by: int | None, now: float) -> None:
    """Let them work again. Raises Refused where they are not paused."""
    if (row := row_of(connection, person_id)).paused is None:
        raise Refused(f"{row.name} is not paused.")
    connection.execute(update(people).where(people.c.id == person_id).values(paused=None))
    write_log(connection, by, "resume", now, {"person": person_id})


def leave_out(connection: Connection, person_id: int, reason: str, by: int | None, now: float) -> Moved:
    """Let none of their answers count any more. They stay what and where they are; their places are free again.

    An extra vote that was asked because of them is not asked any more, unless those that remain
    disagree too; where others' answers wait as `surplus`, the earliest takes the place. On somebody
    who is left out already only the reason changes. Raises Refused without a reason.
    """
    _check_reason(reason)
    was_left_out = row_of(connection, person_id).left_out is not None
    connection.execute(update(people).where(people.c.id == person_id).values(left_out=reason))
    _return_open(connection, person_id)
    of_tasks = and_(answers.c.person_id == person_id, answers.c.kind == "task")
    theirs = [] if was_left_out else connection.execute(select(answers.c.task_id).where(of_tasks)).scalars().all()
    for task_id in theirs:
        hold(connection, task_id, 0, -1)
        ask_one_more(connection, task_id)
    waiting = (
        select(answers)
        .join(people, people.c.id == answers.c.person_id)
        .where(answers.c.kind == "surplus", people.c.left_out.is_(None))
        .where(answers.c.task_id.in_(select(answers.c.task_id).where(of_tasks)))
        .order_by(answers.c.at, answers.c.lease_id)
    )
    counted = [row.lease_id for row in connection.execute(waiting).all() if _take_place(connection, row)]
    body = {"person": person_id, "reason": reason, "num_left_out": len(theirs), "counted": counted}
    write_log(connection, by, "leave_out", now, body)
    return Moved(num_counted=len(counted), num_left_out=len(theirs))


def put_back(connection: Connection, person_id: int, by: int | None, now: float) -> Moved:
    """Let their answers count again where there is a place; where others have taken it, theirs is kept as `surplus`.

    In a set with an extra vote an answer that disagrees with those that fill a task opens that place
    for itself. Raises Refused where they are not left out.
    """
    if (row := row_of(connection, person_id)).left_out is None:
        raise Refused(f"{row.name}'s answers are not left out.")
    connection.execute(update(people).where(people.c.id == person_id).values(left_out=None))
    theirs = select(answers).where(answers.c.person_id == person_id, answers.c.kind.in_(["task", "surplus"]))
    counted, surplus = [], []
    for answer in connection.execute(theirs.order_by(answers.c.at, answers.c.lease_id)).all():
        if answer.kind == "task":
            ask_one_more(connection, answer.task_id)  # their vote is among the others' again
        if _take_place(connection, answer):
            counted.append(answer.lease_id)
        elif answer.kind == "task":
            _set_kind(connection, answer.lease_id, "surplus")
            surplus.append(answer.lease_id)
    write_log(connection, by, "put_back", now, {"person": person_id, "counted": counted, "surplus": surplus})
    return Moved(num_counted=len(counted), num_surplus=len(surplus))


# Built once: of somebody's thousands of answers each is asked about.
_HAS_PLACE = select(tasks.c.num_done + tasks.c.num_held < tasks.c.num_needed).where(tasks.c.id == bindparam("task"))


def _take_place(connection: Connection, answer: Row) -> bool:
    """Let an answer count if its task has a place for it, be its set closed or not."""
    if not connection.execute(_HAS_PLACE, {"task": answer.task_id}).scalar_one():
        return False
    if answer.kind != "task":
        _set_kind(connection, answer.lease_id, "task")
    hold(connection, answer.task_id, 0, +1)
    ask_one_more(connection, answer.task_id)
    return True


def _set_kind(connection: Connection, lease_id: str, kind: str) -> None:
    connection.execute(update(answers).where(answers.c.lease_id == lease_id).values(kind=kind))


def _return_open(connection: Connection, person_id: int) -> None:
    """Give back the task in their hands; what they have begun is kept."""
    theirs = and_(leases.c.person_id == person_id, leases.c.state == "open")
    held = connection.execute(select(leases.c.task_id).where(theirs, leases.c.kind == "task")).scalars().all()
    connection.execute(update(leases).where(theirs).values(state="returned"))
    for task_id in held:
        hold(connection, task_id, -1)
        ask_one_more(connection, task_id)


def _check_reason(reason: str) -> None:
    if not reason.strip() or len(reason) > MAX_REASON:
        raise Refused(f"Please say why, in up to {MAX_REASON:,} characters.")
