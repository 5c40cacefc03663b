"""What annotators do: submit, edit, skip, draft. Each is one write, and safe to send twice."""

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, func, insert, select, update

from labeling_app.answer import MAX_TEXT, Refused, is_right, read_answer
from labeling_app.form import Form
from labeling_app.handout import LEASE_ID, ask_one_more, hold
from labeling_app.store.schema import answers, drafts, leases, log, sets, submissions, tasks

MAX_DRAFT = 200_000  # characters of JSON
NUM_EDITABLE = 50  # how far back one may change one's answers
_SUBMISSION_ID = re.compile("[!-~]{1,64}")  # made by the client; visible ASCII, as every database can hold it


class Conflict(Refused):
    """The same person answered the same task in another tab: what is stored stays."""


@dataclass(frozen=True)
class Receipt:
    """What became of a submission. It is on disk.

    `kind` is task, gold, repeat, practice, or surplus: taken after its place had gone to another.
    `known` is what a practice task's right answer is: `{"is_right", "ranks" (in the order shown), "explanation"}`.
    """

    kind: str
    revision: int
    repeated: bool = False
    known: dict[str, Any] | None = None


def submit(
    connection: Connection,
    person_id: int,
    lease_id: str,
    submission_id: str,
    sent: Any,
    form: Form,
    seconds: float | None,
    now: float,
    edit: bool = False,
) -> Receipt:
    """Take an answer. The same `submission_id` again gets the same receipt and changes nothing.

    An answer whose lease ran out counts where its place is still free, else it is kept as `surplus`:
    nothing that somebody wrote is refused for being late.

    Raises Refused where the answer is not one, the lease not theirs, or (Conflict) the task answered
    already without `edit`.
    """
    work = _look_up(connection, person_id, lease_id, submission_id)
    if work.sent_by is not None:
        if work.stands is None:
            raise Refused("You have skipped this task since.")
        return Receipt(work.stands_as, work.revision, True, _known(work, work.stands))
    answer = read_answer(sent, work.shown, form)
    body = answer.to_dict()
    if work.stands is not None and not edit:
        if work.stands != body:
            raise Conflict("You have answered this task already. Open it from “My answers” to change it.")
        _acknowledge(connection, submission_id, work, now)
        return Receipt(work.stands_as, work.revision, True, _known(work, body))
    if work.stands is not None:
        _check_editable(connection, work)
    _acknowledge(connection, submission_id, work, now)
    if work.stands is None:
        kind, revision = _add(connection, work, body, _seconds(seconds), now), 1
    else:
        kind, revision = work.stands_as, work.revision + 1
        connection.execute(_CHANGE, {"lease": lease_id, "said": body, "newer": revision})
    if work.has_draft:
        connection.execute(_FORGET_DRAFT, {"lease": lease_id})
    if kind == "task" and work.extra_vote:
        ask_one_more(connection, work.task_id)
    _write_log(
        connection,
        work,
        "submit" if work.stands is None else "edit",
        now,
        {"submission": submission_id, "kind": kind, "revision": revision} | body,
    )
    return Receipt(kind, revision, False, _known(work, body))


def skip(
    connection: Connection, person_id: int, lease_id: str, submission_id: str, reason: str, note: str | None, now: float
) -> None:
    """Give a task back, and do not get it again; an answer that stood is withdrawn (the log keeps it).

    Raises Refused for a practice task, for a lease that is not theirs, and for an answer that is too
    old to be changed.
    """
    work = _look_up(connection, person_id, lease_id, submission_id)
    if work.sent_by is not None:
        return
    if work.kind == "practice":
        raise Refused("Practice tasks cannot be skipped.")
    if len(reason) > MAX_TEXT or len(note or "") > MAX_TEXT:
        raise Refused(f"A reason can have {MAX_TEXT:,} characters.")
    if work.stands is not None:
        _check_editable(connection, work)
    _acknowledge(connection, submission_id, work, now)
    if work.stands is not None:
        connection.execute(_WITHDRAW, {"lease": lease_id})
    if work.has_draft:
        connection.execute(_FORGET_DRAFT, {"lease": lease_id})
    connection.execute(_END, {"lease": lease_id, "as": "skipped", "why": {"reason": reason, "note": note}})
    if work.kind == "task" and work.state == "open":
        hold(connection, work.task_id, -1)
    if work.stands_as == "task":
        hold(connection, work.task_id, 0, -1)
    if work.kind == "task" and work.extra_vote:
        ask_one_more(connection, work.task_id)
    said = {"submission": submission_id, "reason": reason, "note": note, "withdrawn": work.stands}
    _write_log(connection, work, "skip", now, said)


def save_draft(
    connection: Connection, person_id: int, lease_id: str, version: float, body: Any, lease_seconds: float, now: float
) -> bool:
    """Keep what somebody has begun, and the task in their hands; False where a newer draft is there already.

    Raises Refused for what is no draft, or too long, and for a lease that is not theirs.
    """
    if not isinstance(body, dict) or not math.isfinite(version):
        raise Refused("The draft did not arrive whole.")
    try:
        length = len(json.dumps(body, allow_nan=False))
    except ValueError:
        raise Refused("The draft did not arrive whole.") from None
    if length > MAX_DRAFT:
        raise Refused(f"A draft can have {MAX_DRAFT:,} characters.")
    known = LEASE_ID.fullmatch(lease_id)
    lease = _own(connection.execute(_DRAFT, {"lease": lease_id}).first() if known else None, person_id)
    if lease.state == "open":
        connection.execute(_STAY, {"lease": lease_id, "until": now + lease_seconds})
    if lease.version is not None and version <= lease.version:
        return False
    if lease.version is None:
        connection.execute(_NEW_DRAFT, {"lease_id": lease_id, "version": version, "body": body, "at": now})
    else:
        connection.execute(_NEWER_DRAFT, {"lease": lease_id, "newer": version, "begun": body, "now": now})
    return True


# What a submission needs to know of its lease, its task, and of itself: one row.
_WORK = (
    select(
        leases,
        (tasks.c.num_needed > tasks.c.num_done + tasks.c.num_held).label("has_place"),
        tasks.c.known,
        sets.c.extra_vote,
        answers.c.body.label("stands"),
        answers.c.kind.label("stands_as"),
        answers.c.revision,
        answers.c.at.label("answered_at"),
        drafts.c.lease_id.is_not(None).label("has_draft"),
        submissions.c.person_id.label("sent_by"),
        submissions.c.lease_id.label("sent_for"),
    )
    .join(tasks, tasks.c.id == leases.c.task_id)
    .join(sets, sets.c.id == tasks.c.set_id)
    .outerjoin(answers, answers.c.lease_id == leases.c.id)
    .outerjoin(drafts, drafts.c.lease_id == leases.c.id)
    .outerjoin(submissions, submissions.c.id == bindparam("submission"))
    .where(leases.c.id == bindparam("lease"))
)
_ADD = insert(answers)
_CHANGE = (
    update(answers)
    .where(answers.c.lease_id == bindparam("lease"))
    .values(body=bindparam("said"), revision=bindparam("newer"))
)
_WITHDRAW = delete(answers).where(answers.c.lease_id == bindparam("lease"))
_NUM_NEWER = (
    select(func.count())
    .select_from(answers)
    .where(answers.c.person_id == bindparam("person"), answers.c.kind != "practice", answers.c.at > bindparam("at"))
)
_END = update(leases).where(leases.c.id == bindparam("lease")).values(state=bindparam("as"), skipped=bindparam("why"))
_ACKNOWLEDGE = insert(submissions)
_LOG = insert(log).inline()
_DRAFT = (
    select(leases.c.person_id, leases.c.state, drafts.c.version)
    .outerjoin(drafts, drafts.c.lease_id == leases.c.id)
    .where(leases.c.id == bindparam("lease"))
)
_NEW_DRAFT = insert(drafts)
_NEWER_DRAFT = (
    update(drafts)
    .where(drafts.c.lease_id == bindparam("lease"))
    .values(version=bindparam("newer"), body=bindparam("begun"), at=bindparam("now"))
)
_FORGET_DRAFT = delete(drafts).where(drafts.c.lease_id == bindparam("lease"))
_STAY = update(leases).where(leases.c.id == bindparam("lease")).values(expires_at=bindparam("until"))


def _look_up(connection: Connection, person_id: int, lease_id: str, submission_id: str) -> Row:
    """The row of _WORK. Raises Refused where the lease is not theirs, or the submission was for another one."""
    if not _SUBMISSION_ID.fullmatch(submission_id):
        raise Refused("The answer did not arrive whole. Please send it again.")
    known = LEASE_ID.fullmatch(lease_id)
    work = connection.execute(_WORK, {"lease": lease_id, "submission": submission_id}).first() if known else None
    work = _own(work, person_id)
    if work.sent_by is not None and (work.sent_by, work.sent_for) != (person_id, lease_id):
        raise Refused("This answer was sent before, for another task.")
    return work


def _own(lease: Row | None, person_id: int) -> Row:
    if lease is None or lease.person_id != person_id:
        raise Refused("This task is not in your hands. Please reload the page.")
    return lease


def _acknowledge(connection: Connection, submission_id: str, work: Row, now: float) -> None:
    row = {"id": submission_id, "person_id": work.person_id, "lease_id": work.id, "at": now}
    connection.execute(_ACKNOWLEDGE, row)


def _add(connection: Connection, work: Row, body: dict[str, Any], seconds: float | None, now: float) -> str:
    """Store a first answer, and return as what."""
    kind = work.kind
    if kind == "task":
        if work.state == "open":
            hold(connection, work.task_id, -1, +1)
        elif work.has_place:
            hold(connection, work.task_id, 0, +1)
        else:
            kind = "surplus"
    connection.execute(_END, {"lease": work.id, "as": "answered", "why": None})
    row = {"lease_id": work.id, "task_id": work.task_id, "person_id": work.person_id, "turn": work.turn}
    row |= {"kind": kind, "body": body, "seconds": seconds, "revision": 1, "at": now}
    connection.execute(_ADD, row)
    return kind


def _check_editable(connection: Connection, work: Row) -> None:
    if work.kind == "practice":
        raise Refused("Practice answers stay as they are.")
    newer = connection.execute(_NUM_NEWER, {"person": work.person_id, "at": work.answered_at}).scalar_one()
    if newer >= NUM_EDITABLE:
        raise Refused(f"Only your last {NUM_EDITABLE} answers can be changed; ask the lead about older ones.")


def _known(work: Row, answer: dict[str, Any]) -> dict[str, Any] | None:
    if work.kind != "practice":
        return None
    return {
        "is_right": is_right(work.known["ranks"], answer["ranks"]),
        "ranks": [work.known["ranks"][id] for id in work.shown],
        "explanation": work.known["explanation"],
    }


def _seconds(sent: float | None) -> float | None:
    return sent if sent is not None and 0 <= sent < math.inf else None


def _write_log(connection: Connection, work: Row, action: str, now: float, body: dict[str, Any]) -> None:
    body = {"lease": work.id, "task": work.task_id, "turn": work.turn} | body
    connection.execute(_LOG, {"at": now, "person_id": work.person_id, "action": action, "body": body})
