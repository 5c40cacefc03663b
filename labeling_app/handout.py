"""Who gets which task next: leases, overlap, practice, gold and repeated tasks. All of it inside one write.

Statements are built once, at import: SQLAlchemy takes five times as long to build one as to run it.
"""

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from random import Random
from typing import Any

from sqlalchemy import Connection, Row, bindparam, exists, func, insert, or_, select, update

from labeling_app.answer import disagree, sent_form
from labeling_app.store.schema import answers, drafts, leases, people, sets, tasks

# What a browser names a lease by: no database is asked about anything else.
LEASE_ID = re.compile("[0-9a-f]{32}")
_Found = tuple[int, dict[str, Any], str, int]  # a task's id and body, the lease's kind and turn


@dataclass(frozen=True)
class Rules:
    """How tasks are handed out.

    Args:
        lease_seconds: how long a task stays in somebody's hands without a sign of them.
        gold_share: the probability that the next task is one with a known answer.
        repeat_share: the probability that it is one that they have answered before.
        repeat_after: how many answers lie between a task and its repetition, at least.
        seed: of those draws, and of the order on screen.
    """

    lease_seconds: float = 1800.0
    gold_share: float = 0.0
    repeat_share: float = 0.0
    repeat_after: int = 10
    seed: int = 0


@dataclass(frozen=True)
class Turn:
    """A task on one person's screen. `responses` are texts in the order shown."""

    lease_id: str
    kind: str  # task, gold, practice, repeat
    expires_at: float
    messages: list[dict[str, str]]
    responses: list[str]
    draft: dict[str, Any] | None  # what they had begun, else what stands
    is_answered: bool


def next_turn(connection: Connection, person_id: int, rules: Rules, now: float) -> Turn | None:
    """The task in hand, else the next one, leased to this person; None where nothing is left for them.

    A task whose lease ran out on them comes first, where its place is still free; then practice
    tasks; then, by chance, a gold or a repeated one; then the free task with the highest priority
    that they have not seen.
    """
    begun = connection.execute(_BEGUN, {"person": person_id}).all()
    lease = next((lease for lease in begun if lease.state == "open"), None)
    if lease is None:
        return_expired(connection, now)
        lease = connection.execute(_RETURNED, {"person": person_id}).first() if begun else None
        if lease is not None and lease.kind == "task":
            hold(connection, lease.task_id, +1)
    if lease is not None:
        expires_at = now + rules.lease_seconds
        connection.execute(_TAKE, {"lease": lease.id, "until": expires_at})
        return _turn(connection, lease, expires_at)
    found = (
        _unseen(connection, person_id, "practice")
        or _drawn(connection, person_id, rules)
        or _unseen(connection, person_id, "task")
    )
    return None if found is None else _lease(connection, person_id, *found, rules, now)


def open_turn(connection: Connection, person_id: int, lease_id: str) -> Turn | None:
    """A turn of this person's by its lease, as it stands; None where there is none."""
    if not LEASE_ID.fullmatch(lease_id):
        return None
    lease = connection.execute(_LEASE, {"lease": lease_id, "person": person_id}).first()
    return None if lease is None else _turn(connection, lease, lease.expires_at)


def return_expired(connection: Connection, now: float) -> int:
    """Give back the tasks whose time has run out, and return how many."""
    expired = connection.execute(_EXPIRED, {"now": now}).all()
    for lease in expired:
        connection.execute(_GIVE_BACK, {"lease": lease.id})
        if lease.kind == "task":
            hold(connection, lease.task_id, -1)
            ask_one_more(connection, lease.task_id)
    return len(expired)


def hold(connection: Connection, task_id: int, held: int, done: int = 0) -> None:
    """Change how many hold a task and how many have done it, and whether it is free then."""
    connection.execute(_HOLD, {"task": task_id, "held": held, "done": done})


def ask_one_more(connection: Connection, task_id: int) -> None:
    """In a set with an extra vote, want one more than its overlap where all are in and two disagree, else just that.

    To be called after each change of a task's votes. A vote that somebody is working on stays wanted.
    """
    task = connection.execute(_VOTES_WANTED, {"task": task_id}).one()
    if not task.extra_vote or task.num_needed > task.overlap + 1:
        return
    wanted = task.overlap
    if task.num_done >= task.overlap:
        votes = connection.execute(_VOTES, {"task": task_id}).scalars()
        ranks = [vote["ranks"] for vote in votes]
        wanted += any(disagree(one, other) for one, other in combinations(ranks, 2))
    wanted = max(wanted, task.num_done + task.num_held)
    if wanted != task.num_needed:
        connection.execute(_WANT, {"task": task_id, "wanted": wanted})


_OPEN_SETS = select(sets.c.id).where(~sets.c.is_closed)
_PERSON = leases.c.person_id == bindparam("person")
_LEASE = select(leases).where(leases.c.id == bindparam("lease"), _PERSON)
_BEGUN = select(leases).where(_PERSON, or_(leases.c.state == "open", leases.c.state == "returned"))
# The one they last worked on first.
_RETURNED = (
    select(leases)
    .join(tasks, tasks.c.id == leases.c.task_id)
    .outerjoin(drafts, drafts.c.lease_id == leases.c.id)
    .where(_PERSON, leases.c.state == "returned", tasks.c.set_id.in_(_OPEN_SETS))
    .where(or_(leases.c.kind != "task", tasks.c.is_free))
    .order_by(func.coalesce(drafts.c.at, leases.c.issued_at).desc(), leases.c.id)
    .limit(1)
)
_TAKE = update(leases).where(leases.c.id == bindparam("lease")).values(state="open", expires_at=bindparam("until"))
_EXPIRED = select(leases.c.id, leases.c.task_id, leases.c.kind).where(
    leases.c.state == "open", leases.c.expires_at <= bindparam("now")
)
_GIVE_BACK = update(leases).where(leases.c.id == bindparam("lease")).values(state="returned")
_HELD, _DONE = tasks.c.num_held + bindparam("held"), tasks.c.num_done + bindparam("done")
_HOLD = (
    update(tasks)
    .where(tasks.c.id == bindparam("task"))
    .values(num_held=_HELD, num_done=_DONE, is_free=tasks.c.num_needed > _HELD + _DONE)
)
_VOTES_WANTED = (
    select(tasks.c.num_needed, tasks.c.num_done, tasks.c.num_held, sets.c.overlap, sets.c.extra_vote)
    .join(sets, sets.c.id == tasks.c.set_id)
    .where(tasks.c.id == bindparam("task"))
)
_VOTES = (
    select(answers.c.body)
    .join(people, people.c.id == answers.c.person_id)
    .where(answers.c.task_id == bindparam("task"), answers.c.kind == "task", people.c.left_out.is_(None))
)
_WANT = (
    update(tasks)
    .where(tasks.c.id == bindparam("task"))
    .values(num_needed=bindparam("wanted"), is_free=tasks.c.num_done + tasks.c.num_held < bindparam("wanted"))
)
_SEEN = exists().where(leases.c.task_id == tasks.c.id, _PERSON, leases.c.turn == 0)
_UNSEEN = (
    select(tasks.c.id, tasks.c.body)
    .where(tasks.c.kind == bindparam("kind"), tasks.c.is_free, tasks.c.set_id.in_(_OPEN_SETS), ~_SEEN)
    .order_by(tasks.c.priority.desc(), tasks.c.position)
    .limit(1)
)
_NUM_LEASES = select(func.count()).select_from(leases).where(_PERSON)
_GOLD = (
    select(tasks.c.id)
    .where(tasks.c.kind == "gold", tasks.c.is_free, tasks.c.set_id.in_(_OPEN_SETS), ~_SEEN)
    .order_by(tasks.c.position)
)
_MINE = answers.c.person_id == bindparam("person")
_AGAIN = leases.alias()
_REPEATED = exists().where(
    _AGAIN.c.task_id == answers.c.task_id, _AGAIN.c.person_id == answers.c.person_id, _AGAIN.c.turn == 1
)
_REPEATABLE = (
    select(answers.c.task_id)
    .join(tasks, tasks.c.id == answers.c.task_id)
    .where(_MINE, answers.c.kind == "task", answers.c.at <= bindparam("before"), ~_REPEATED)
    .where(tasks.c.set_id.in_(_OPEN_SETS))
    .order_by(answers.c.at, answers.c.lease_id)
    .limit(1)
)
# When this person gave the answer before their last `num`.
_BEFORE_LAST = (
    select(answers.c.at)
    .where(_MINE, answers.c.kind != "practice")
    .order_by(answers.c.at.desc())
    .offset(bindparam("num"))
    .limit(1)
)
_BODY = select(tasks.c.body).where(tasks.c.id == bindparam("task"))
_BEGUN_AND_SAID = (
    select(tasks.c.body, drafts.c.body.label("draft"), answers.c.body.label("stands"))
    .select_from(leases)
    .join(tasks, tasks.c.id == leases.c.task_id)
    .outerjoin(drafts, drafts.c.lease_id == leases.c.id)
    .outerjoin(answers, answers.c.lease_id == leases.c.id)
    .where(leases.c.id == bindparam("lease"))
)
_NEW_LEASE = insert(leases)


def _unseen(connection: Connection, person_id: int, kind: str) -> _Found | None:
    task = connection.execute(_UNSEEN, {"person": person_id, "kind": kind}).first()
    return None if task is None else (task.id, task.body, kind, 0)


def _drawn(connection: Connection, person_id: int, rules: Rules) -> _Found | None:
    """A gold or a repeated task where the dice say so and there is one."""
    if not rules.gold_share + rules.repeat_share:
        return None
    num_leases = connection.execute(_NUM_LEASES, {"person": person_id}).scalar_one()
    # Not the same for all: neighbours would see the same gold task at the same time, and talk.
    dice = Random(f"{rules.seed}/{person_id}/{num_leases}")
    chance = dice.random()
    if chance < rules.gold_share:
        ids = connection.execute(_GOLD, {"person": person_id}).scalars().all()
        task_id, kind, turn = (dice.choice(ids) if ids else None), "gold", 0
    elif chance < rules.gold_share + rules.repeat_share:
        before = connection.execute(_BEFORE_LAST, {"person": person_id, "num": rules.repeat_after}).scalar()
        found = {"person": person_id, "before": -1.0 if before is None else before}
        task_id, kind, turn = connection.execute(_REPEATABLE, found).scalar(), "repeat", 1
    else:
        return None
    return None if task_id is None else (task_id, connection.execute(_BODY, {"task": task_id}).scalar_one(), kind, turn)


def _lease(
    connection: Connection,
    person_id: int,
    task_id: int,
    body: dict[str, Any],
    kind: str,
    turn: int,
    rules: Rules,
    now: float,
) -> Turn:
    shown = [response["id"] for response in body["responses"]]
    Random(f"{rules.seed}/{body['id']}/{person_id}/{turn}").shuffle(shown)
    lease = {
        "id": secrets.token_hex(16),
        "task_id": task_id,
        "person_id": person_id,
        "turn": turn,
        "kind": kind,
        "shown": shown,
        "state": "open",
        "issued_at": now,
        "expires_at": now + rules.lease_seconds,
    }
    connection.execute(_NEW_LEASE, lease)
    if kind == "task":
        hold(connection, task_id, +1)
    return _shown(body, shown, Turn(lease["id"], kind, lease["expires_at"], [], [], None, False))


def _turn(connection: Connection, lease: Row, expires_at: float) -> Turn:
    body, draft, stands = connection.execute(_BEGUN_AND_SAID, {"lease": lease.id}).one()
    if draft is None and stands is not None:
        draft = sent_form(stands, lease.shown)
    return _shown(body, lease.shown, Turn(lease.id, lease.kind, expires_at, [], [], draft, stands is not None))


def _shown(body: dict[str, Any], shown: Sequence[str], turn: Turn) -> Turn:
    texts = {response["id"]: response["text"] for response in body["responses"]}
    return replace(turn, messages=body["prompt"]["messages"], responses=[texts[id] for id in shown])
