"""What a lead sees of the work: progress with a forecast, who does how much, what is in hand, skips, flags.

Each function is a read: a connection first, then what it asks. Only what is stored is counted here;
how good the labels are is `labeling_app.quality`'s.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, tzinfo
from math import sqrt
from statistics import variance

from sqlalchemy import ColumnElement, Connection, and_, case, func, literal, select

from labeling_app.store.schema import answers, drafts, leases, log, people, sets, tasks

DAY = 86_400.0
WINDOW_DAYS = 7  # a whole week, so that weekends weigh as much as they do
RANGE_SHARE = 0.8  # of forecasts whose range should hold the true end
_FEWEST_DAYS = 2
_WORKING = (people.c.paused.is_(None)) & (people.c.left_out.is_(None))


@dataclass(frozen=True)
class SetProgress:
    """One set of tasks. `num_done` tasks have all answers that they need; labels are answers that count.

    `num_known` are its tasks with a known answer (gold, practice), which are asked of everybody and
    never done. `priority` is that of its first task: all have the same, unless a file was added to later.
    """

    id: int
    name: str
    kind: str
    overlap: int
    extra_vote: bool
    is_closed: bool
    priority: float
    num_tasks: int
    num_done: int
    labels_in: int
    labels_left: int
    num_held: int
    num_known: int


@dataclass(frozen=True)
class Forecast:
    """When the open sets will be done, in days from now; `reason` says in words why a number is missing.

    `earliest` and `latest` hold the end in RANGE_SHARE of cases, if the days to come are as alike as the
    last `num_days` were. `latest` is None where a pace of almost nothing is within what may come.
    """

    labels_left: int
    num_days: int = 0
    pace: float | None = None  # labels a day
    days: float | None = None
    earliest: float | None = None
    latest: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Held:
    """A task in somebody's hands. Times are seconds since 1970; `is_over`: its time ran out, it can go to others."""

    person: str
    set_name: str
    task: str
    kind: str
    since: float
    expires_at: float
    has_draft: bool
    is_over: bool


@dataclass(frozen=True)
class Skip:
    """A task that somebody gave back."""

    person: str
    set_name: str
    task: str
    reason: str
    note: str | None


@dataclass(frozen=True)
class FlagCount:
    """How often a flag was set: answers that set it at all, and responses that any or several people set it on."""

    id: str
    num_answers: int
    num_responses: int
    num_shared: int


def set_progress(connection: Connection) -> list[SetProgress]:
    """Every set, the next to be handed out first, closed ones last."""
    is_task = tasks.c.kind == "task"
    left = tasks.c.num_needed - tasks.c.num_done
    counts = (
        select(
            tasks.c.set_id,
            _count_if(is_task).label("num_tasks"),
            _count_if(and_(is_task, left <= 0)).label("num_done"),
            _sum_if(is_task, tasks.c.num_done).label("labels_in"),
            _sum_if(and_(is_task, left > 0), left).label("labels_left"),
            _sum_if(is_task, tasks.c.num_held).label("num_held"),
            _count_if(~is_task).label("num_known"),
            func.max(tasks.c.priority).label("priority"),
        )
        .group_by(tasks.c.set_id)
        .subquery()
    )
    rows = connection.execute(
        select(sets, counts)
        .outerjoin(counts, counts.c.set_id == sets.c.id)
        .order_by(sets.c.is_closed, func.coalesce(counts.c.priority, 0.0).desc(), sets.c.id)
    ).mappings()
    return [
        SetProgress(**{key: row[key] or 0 for key in _NUMBERS}, **{key: row[key] for key in _PLAIN}) for row in rows
    ]


_PLAIN = ("id", "name", "kind", "overlap", "extra_vote", "is_closed")
_NUMBERS = ("num_tasks", "num_done", "labels_in", "labels_left", "num_held", "num_known", "priority")


def _count_if(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return _sum_if(condition, literal(1))


def _sum_if(condition: ColumnElement[bool], value: ColumnElement[int]) -> ColumnElement[int]:
    return func.sum(case((condition, value), else_=0))


def forecast(connection: Connection, now: float) -> Forecast:
    """When the tasks of the open sets will be done, at the pace of those who work now.

    The pace is the mean of the last WINDOW_DAYS times 24 hours, fewer where work began later. Labels of
    people who are paused or left out do not count towards it: they will add no more.
    """
    labels_left = sum(row.labels_left for row in set_progress(connection) if not row.is_closed)
    of_tasks = answers.c.kind == "task"
    first = connection.execute(select(func.min(answers.c.at)).where(of_tasks)).scalar()
    ages = connection.execute(
        select(answers.c.at)
        .join(people, people.c.id == answers.c.person_id)
        .where(of_tasks, answers.c.at > now - WINDOW_DAYS * DAY, _WORKING)
    ).scalars()
    num_days = 0 if first is None else min(WINDOW_DAYS, int((now - first) / DAY))
    counts = Counter(int((now - at) / DAY) for at in ages)
    return project(labels_left, [counts[day] for day in range(num_days)])


def project(labels_left: int, counts: Sequence[int]) -> Forecast:
    """A forecast from labels a day.

    Days are taken as independent draws with the mean m and variance s^2 of the `counts` (n of them;
    s^2 at least m, as of events that fall at random). The sum of D days to come differs from D m by
    t s sqrt(D + D^2 / n), t of Student's distribution with n - 1 degrees of freedom, which is what a
    prediction interval of a sum is. The range's ends are the D at which the labels left are on the edge
    of it: the roots of (m^2 - t^2 s^2 / n) D^2 - (2 m L + t^2 s^2) D + L^2 = 0.
    """
    n = len(counts)
    if labels_left <= 0:
        return Forecast(0, n, reason="nothing is left to label")
    if n < _FEWEST_DAYS:
        return Forecast(labels_left, n, reason="work began less than two days ago, too little to tell a pace from")
    pace = sum(counts) / n
    if not pace:
        return Forecast(labels_left, n, 0.0, reason=f"nobody who works now has labelled in the last {n} days")
    from scipy.special import stdtrit

    t = float(stdtrit(n - 1, (1 + RANGE_SHARE) / 2))
    spread = t**2 * max(variance(counts), pace)
    a, b, c = pace**2 - spread / n, 2 * pace * labels_left + spread, float(labels_left) ** 2
    root = sqrt(b**2 - 4 * a * c)
    # The smaller root in the form that stays right where a is about 0, or below it.
    earliest, latest = 2 * c / (b + root), (b + root) / (2 * a) if a > 1e-9 * pace**2 else None
    return Forecast(labels_left, n, pace, labels_left / pace, earliest, latest)


def answers_per_day(connection: Connection, since: float, zone: tzinfo | None = None) -> dict[str, dict[date, int]]:
    """Answers by person and day since a time, practice left out; days are the server's, or those of `zone`."""
    rows = connection.execute(
        select(people.c.name, answers.c.at)
        .join(people, people.c.id == answers.c.person_id)
        .where(answers.c.at >= since, answers.c.kind != "practice")
    )
    counts = Counter((name, datetime.fromtimestamp(at, zone).date()) for name, at in rows)
    found: dict[str, dict[date, int]] = {}
    for (name, day), count in sorted(counts.items()):
        found.setdefault(name, {})[day] = count
    return found


def in_hand(connection: Connection, now: float) -> list[Held]:
    """What is in people's hands, the longest held first."""
    rows = connection.execute(
        select(
            people.c.name,
            sets.c.name,
            tasks.c.record_id,
            leases.c.kind,
            leases.c.issued_at,
            leases.c.expires_at,
            drafts.c.at,
        )
        .join(people, people.c.id == leases.c.person_id)
        .join(tasks, tasks.c.id == leases.c.task_id)
        .join(sets, sets.c.id == tasks.c.set_id)
        .outerjoin(drafts, drafts.c.lease_id == leases.c.id)
        .where(leases.c.state == "open")
        .order_by(leases.c.issued_at, leases.c.id)
    )
    return [
        Held(person, set_name, task, kind, since, expires_at, draft_at is not None, expires_at <= now)
        for person, set_name, task, kind, since, expires_at, draft_at in rows
    ]


def skips(connection: Connection) -> list[Skip]:
    """Every task that somebody gave back and has not answered since, the newest first."""
    rows = connection.execute(
        select(people.c.name, sets.c.name, tasks.c.record_id, leases.c.skipped)
        .join(people, people.c.id == leases.c.person_id)
        .join(tasks, tasks.c.id == leases.c.task_id)
        .join(sets, sets.c.id == tasks.c.set_id)
        .where(leases.c.state == "skipped")
        .order_by(leases.c.issued_at.desc(), leases.c.id)
    )
    return [
        Skip(person, set_name, task, skipped["reason"], skipped["note"]) for person, set_name, task, skipped in rows
    ]


def flag_counts(connection: Connection) -> list[FlagCount]:
    """How often each flag was set, the most frequent first; practice and people who are left out do not count."""
    bodies = connection.execute(
        select(answers.c.task_id, answers.c.person_id, answers.c.body)
        .join(people, people.c.id == answers.c.person_id)
        .where(answers.c.kind != "practice", people.c.left_out.is_(None))
    )
    num_answers: Counter[str] = Counter()
    who: dict[str, dict[tuple[int, str], set[int]]] = {}
    for task_id, person_id, body in bodies:
        for flag in {flag for flags in body["flags"].values() for flag in flags}:
            num_answers[flag] += 1
        for response, flags in body["flags"].items():
            for flag in flags:
                who.setdefault(flag, {}).setdefault((task_id, response), set()).add(person_id)
    return [
        FlagCount(flag, count, len(who[flag]), sum(len(persons) > 1 for persons in who[flag].values()))
        for flag, count in sorted(num_answers.items(), key=lambda item: (-item[1], item[0]))
    ]


def last_change(connection: Connection) -> int:
    """A number that grows with everything that is done: the log's last entry. What was computed at it still holds."""
    return connection.execute(select(func.coalesce(func.max(log.c.id), 0))).scalar_one()
