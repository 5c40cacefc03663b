"""What a lead sees of the work, by hand: progress and forecast, labels a day, what is in hand, skips, flags; sets."""

from datetime import UTC, date, timedelta, timezone
from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, select, update

from labeling_app.answer import Refused
from labeling_app.handout import Rules, next_turn
from labeling_app.overview import (
    DAY,
    Forecast,
    answers_per_day,
    flag_counts,
    forecast,
    in_hand,
    last_change,
    project,
    set_progress,
    skips,
)
from labeling_app.sets import close_set, reopen_set, set_priority
from labeling_app.standing import leave_out, pause
from labeling_app.store.schema import answers, log, people, sets
from labeling_app.submit import save_draft, skip, submit
from tests.label_cases import FORM, add_people, load, prefer, send

# Student's t that 80% lie within, from a printed table: by degrees of freedom.
T_80 = {1: 3.078, 3: 1.638, 6: 1.440}


def label(connection: Connection, person: int, now: float = 0.0, best: str = "a", **more: object) -> None:
    """Take the next task, and answer it at once."""
    turn = next_turn(connection, person, Rules(), now)
    assert turn is not None
    submit(connection, person, turn.lease_id, f"{person}-{turn.lease_id}", prefer(turn, best) | more, FORM, 3.0, now)


def name_of(connection: Connection, person: int) -> str:
    return connection.execute(select(people.c.name).where(people.c.id == person)).scalar_one()


# ---- Sets


def test_progress_of_every_set(connection: Connection) -> None:
    load(connection, 3, "late", overlap=2)
    load(connection, 2, "soon", priority=1.0, overlap=2, extra_vote=True)
    load(connection, 4, "gold", kind="gold")
    load(connection, 1, "shut", priority=9.0)
    one, two, three = add_people(connection, 3)
    shut = connection.execute(select(sets.c.id).where(sets.c.name == "shut")).scalar_one()
    close_set(connection, shut, one, 0.0)
    label(connection, one)
    label(connection, two, best="b")  # the same task, otherwise: a third one is asked for
    label(connection, one)  # the other task of `soon`
    assert next_turn(connection, three, Rules(), 0.0)

    soon, late, gold, closed = set_progress(connection)
    assert (soon.name, soon.num_tasks, soon.num_done, soon.labels_in, soon.labels_left) == ("soon", 2, 0, 3, 2)
    assert (soon.overlap, soon.extra_vote, soon.priority, soon.num_held, soon.is_closed) == (2, True, 1.0, 1, False)
    assert (late.name, late.num_tasks, late.labels_in, late.labels_left) == ("late", 3, 0, 6)
    assert (gold.name, gold.num_tasks, gold.num_known, gold.labels_left) == ("gold", 0, 4, 0)
    assert (closed.name, closed.is_closed, closed.priority) == ("shut", True, 9.0)

    label(connection, two)
    label(connection, three)  # the third vote
    soon = set_progress(connection)[0]
    assert (soon.num_done, soon.labels_in, soon.labels_left, soon.num_held) == (2, 5, 0, 0)


def test_a_set_without_tasks_is_shown(connection: Connection) -> None:
    connection.execute(
        sets.insert().values(name="bare", kind="ranking", overlap=1, extra_vote=False, is_closed=False, created_at=0.0)
    )
    (bare,) = set_progress(connection)
    assert (bare.num_tasks, bare.num_done, bare.labels_left, bare.priority) == (0, 0, 0, 0.0)


def test_a_closed_set_is_not_handed_out_until_it_is_open_again(connection: Connection) -> None:
    load(connection, 2)
    person, lead = add_people(connection, 2)
    (row,) = set_progress(connection)
    close_set(connection, row.id, lead, 1.0)
    assert next_turn(connection, person, Rules(), 1.0) is None
    with pytest.raises(Refused, match=r"^The set is closed already\.$"):
        close_set(connection, row.id, lead, 2.0)
    reopen_set(connection, row.id, lead, 3.0)
    assert next_turn(connection, person, Rules(), 3.0) is not None
    with pytest.raises(Refused, match=r"^The set is open already\.$"):
        reopen_set(connection, row.id, lead, 4.0)
    logged = connection.execute(select(log.c.action, log.c.person_id, log.c.at, log.c.body).order_by(log.c.id)).all()
    assert [tuple(entry) for entry in logged if entry.action.endswith("_set")] == [
        ("close_set", lead, 1.0, {"set": "set"}),
        ("reopen_set", lead, 3.0, {"set": "set"}),
    ]


def test_a_higher_priority_comes_first(connection: Connection) -> None:
    load(connection, 1, "first", priority=1.0)
    load(connection, 1, "second")
    person, other = add_people(connection, 2)
    second = next(row for row in set_progress(connection) if row.name == "second")
    set_priority(connection, second.id, 2.5, person, 1.0)
    assert [(row.name, row.priority) for row in set_progress(connection)] == [("second", 2.5), ("first", 1.0)]
    turn = next_turn(connection, other, Rules(), 1.0)
    assert turn is not None
    assert turn.messages[0]["content"] == "prompt of second-0"
    assert connection.execute(select(log.c.body).where(log.c.action == "set_priority")).scalar_one() == {
        "set": "second",
        "priority": 2.5,
    }


@pytest.mark.parametrize("priority", [float("nan"), float("inf"), -1e10])
def test_a_priority_is_a_number(connection: Connection, priority: float) -> None:
    load(connection, 1)
    (row,) = set_progress(connection)
    with pytest.raises(Refused, match=r"^A priority is a number; sets with a higher one come first\.$"):
        set_priority(connection, row.id, priority, add_people(connection, 1)[0], 0.0)


def test_a_set_that_is_not_there_cannot_be_changed(connection: Connection) -> None:
    (lead,) = add_people(connection, 1)
    for change in (
        lambda: close_set(connection, 1, lead, 0.0),
        lambda: reopen_set(connection, -1, lead, 0.0),
        lambda: set_priority(connection, 1, 0.0, lead, 0.0),
    ):
        with pytest.raises(Refused, match=r"^There is no such set\. Please reload the page\.$"):
            change()


# ---- The forecast


@pytest.mark.parametrize(
    ("labels_left", "counts"), [(100, [10, 10, 10, 10]), (400, [40, 20]), (1000, [50, 80, 20, 60, 40, 0, 100])]
)
def test_the_range_is_where_the_labels_left_are_on_the_edge(labels_left: int, counts: list[int]) -> None:
    found = project(labels_left, counts)
    n, mean = len(counts), sum(counts) / len(counts)
    spread = max(mean, sum((count - mean) ** 2 for count in counts) / (n - 1))  # of a day, at least a Poisson's
    assert found.pace == pytest.approx(mean)
    assert found.days == pytest.approx(labels_left / mean)

    def off(days: float) -> float:
        return T_80[n - 1] * sqrt(spread * (days + days**2 / n))

    assert found.earliest is not None
    assert found.earliest * mean + off(found.earliest) == pytest.approx(labels_left, rel=2e-3)
    assert found.days is not None
    if found.latest is None:
        assert mean <= T_80[n - 1] * sqrt(spread / n)  # the pace itself may be nothing
    else:
        assert found.latest * mean - off(found.latest) == pytest.approx(labels_left, rel=2e-3)
        assert found.earliest < found.days < found.latest


def test_two_unlike_days_bound_nothing_above() -> None:
    found = project(400, [40, 20])
    assert found.latest is None
    assert found.earliest is not None
    assert 0 < found.earliest < 400 / 30


def test_the_range_holds_four_times_in_five() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(600):
        counts = generator.poisson(generator.gamma(8, 2.5, 40))  # overdispersed, 20 a day
        found = project(200, counts[:7].tolist())
        total = np.concatenate([[0], np.cumsum(counts[7:])])
        end = float(np.interp(200, total, np.arange(len(total))))
        held += found.earliest is not None and found.earliest <= end <= (found.latest or np.inf)
    assert 0.75 < held / 600 < 0.88


@given(labels_left=st.integers(1, 100_000), counts=st.lists(st.integers(0, 500), min_size=2, max_size=7).filter(any))
def test_the_range_is_around_the_expected_end(labels_left: int, counts: list[int]) -> None:
    found = project(labels_left, counts)
    assert found.days is not None and found.earliest is not None
    assert 0 < found.earliest < found.days < (found.latest or float("inf"))


@pytest.mark.parametrize(
    ("labels_left", "counts", "reason"),
    [
        (0, [5, 5], "nothing is left to label"),
        (9, [5], "work began less than two days ago, too little to tell a pace from"),
        (9, [], "work began less than two days ago, too little to tell a pace from"),
        (9, [0, 0, 0], "nobody who works now has labelled in the last 3 days"),
    ],
)
def test_why_there_is_no_forecast(labels_left: int, counts: list[int], reason: str) -> None:
    found = project(labels_left, counts)
    assert found.reason == reason
    assert found.days is found.earliest is found.latest is None


def test_days_are_counted_back_from_now(connection: Connection) -> None:
    load(connection, 20, overlap=3)
    load(connection, 5, "shut", overlap=3)
    shut = set_progress(connection)[1]
    one, two = add_people(connection, 2)
    close_set(connection, shut.id, one, 0.0)
    now = 100 * DAY
    # Ages in days: 3.5 begins the work, so that three whole days are looked at.
    for age in (3.5, 2.5, 1.5, 1.4, 0.5, 0.4, 0.3):
        label(connection, one, now - age * DAY)
    label(connection, two, now - 0.1 * DAY)
    left = 20 * 3 - 8
    assert forecast(connection, now) == project(left, [4, 2, 1])
    pause(connection, two, "ill", None, now)
    assert forecast(connection, now) == project(left, [3, 2, 1])
    pause(connection, one, "ill", None, now)
    assert forecast(connection, now) == Forecast(
        left, 3, 0.0, reason="nobody who works now has labelled in the last 3 days"
    )


def test_at_most_a_week_counts_and_only_labels(connection: Connection) -> None:
    load(connection, 50)
    load(connection, 5, "practice", kind="practice")
    (person,) = add_people(connection, 1)
    now = 100 * DAY
    for age in (30, 20, 6.5, 0.7):
        for _ in range(6 if age == 30 else 1):  # five practice tasks, then a label
            label(connection, person, now - age * DAY)
    assert forecast(connection, now) == project(50 - 4, [1, 0, 0, 0, 0, 0, 1])


def test_a_new_store_has_no_forecast(connection: Connection) -> None:
    assert forecast(connection, 0.0) == Forecast(0, reason="nothing is left to label")
    load(connection, 2)
    assert forecast(connection, 0.0).reason == "work began less than two days ago, too little to tell a pace from"


# ---- Who does how much


def test_answers_by_person_and_day(connection: Connection) -> None:
    load(connection, 9)
    load(connection, 1, "practice", kind="practice")
    one, two = add_people(connection, 2)
    noon = 1_700_049_600.0  # 2023-11-15T12:00:00 UTC
    for person, at in ((one, noon), (one, noon), (one, noon + 1), (one, noon + DAY), (two, noon), (two, noon)):
        label(connection, person, at)  # the first of each is practice
    day = date(2023, 11, 15)
    found = answers_per_day(connection, noon, UTC)
    assert found == {
        name_of(connection, one): {day: 2, day + timedelta(days=1): 1},
        name_of(connection, two): {day: 1},
    }
    assert answers_per_day(connection, noon + 1, UTC) == {
        name_of(connection, one): {day: 1, day + timedelta(days=1): 1}
    }
    east = timezone(timedelta(hours=13))
    assert answers_per_day(connection, noon, east)[name_of(connection, two)] == {day + timedelta(days=1): 1}


# ---- What is in hand, what was given back


def test_what_is_in_peoples_hands(connection: Connection) -> None:
    load(connection, 5)
    one, two, three = add_people(connection, 3)
    for person, at in ((two, 10.0), (one, 20.0), (three, 30.0)):
        turn = next_turn(connection, person, Rules(lease_seconds=100), at)
        assert turn is not None
        if person == one:
            save_draft(connection, one, turn.lease_id, 1.0, {"ranks": [1, None]}, 100, 50.0)
        if person == three:
            send(connection, three, turn, now=31.0)
    held = in_hand(connection, 111.0)
    assert [(row.person, row.since, row.has_draft, row.is_over) for row in held] == [
        (name_of(connection, two), 10.0, False, True),
        (name_of(connection, one), 20.0, True, False),
    ]
    assert (held[0].set_name, held[0].task, held[0].kind, held[0].expires_at) == ("set", "set-0", "task", 110.0)


def test_skips_with_their_reasons_the_newest_first(connection: Connection) -> None:
    load(connection, 3)
    one, two = add_people(connection, 2)
    for person, reason, note, at in ((one, "hard", "so <b>hard</b>", 1.0), (two, "sad", None, 2.0)):
        turn = next_turn(connection, person, Rules(), at)
        assert turn is not None
        skip(connection, person, turn.lease_id, f"s{person}", reason, note, at)
    newest, oldest = skips(connection)
    assert (newest.person, newest.reason, newest.note) == (name_of(connection, two), "sad", None)
    assert (oldest.person, oldest.reason, oldest.note) == (name_of(connection, one), "hard", "so <b>hard</b>")
    assert (oldest.set_name, oldest.task) == ("set", "set-0")


# ---- Flags


def test_flags_by_answers_responses_and_people(connection: Connection) -> None:
    load(connection, 2, overlap=3)
    one, two, three = add_people(connection, 3)
    both, first = [["harmful"], ["harmful"]], [["harmful"], []]
    for person, flags in ((one, both), (two, both), (three, first)):
        label(connection, person, flags=flags)
    label(connection, one, flags=first)
    label(connection, two)
    (harmful,) = flag_counts(connection)
    # Task 0: both responses by two people or three; task 1: one response by one.
    assert (harmful.id, harmful.num_answers, harmful.num_responses, harmful.num_shared) == ("harmful", 4, 3, 2)
    leave_out(connection, two, "careless", None, 0.0)
    leave_out(connection, three, "careless", None, 0.0)
    (harmful,) = flag_counts(connection)
    assert (harmful.num_answers, harmful.num_responses, harmful.num_shared) == (2, 3, 0)


def test_flags_of_practice_do_not_count(connection: Connection) -> None:
    load(connection, 1, "practice", kind="practice")
    (person,) = add_people(connection, 1)
    label(connection, person, flags=[["harmful"], []])
    assert connection.execute(select(answers.c.kind)).scalar_one() == "practice"
    assert flag_counts(connection) == []


# ---- Whether anything was done


def test_everything_that_is_done_moves_the_last_change(connection: Connection) -> None:
    assert last_change(connection) == 0
    load(connection, 2)
    (person,) = add_people(connection, 1)
    seen = [last_change(connection)]
    label(connection, person)
    seen.append(last_change(connection))
    leave_out(connection, person, "careless", None, 1.0)
    seen.append(last_change(connection))
    assert seen == sorted(set(seen)) and len(seen) == 3
    connection.execute(update(people).values(name="somebody"))
    assert last_change(connection) == seen[-1]
