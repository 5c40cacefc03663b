"""Who gets what: order, overlap, leases that run out, practice, gold, repeats, extra votes, races. Both databases."""

import math
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from sqlalchemy import Connection, select, text, update
from sqlalchemy.dialects import sqlite

from labeling_app import handout
from labeling_app.handout import Rules, Turn, next_turn, open_turn, return_expired
from labeling_app.loading import SetRules, load_tasks
from labeling_app.store import Store
from labeling_app.store.schema import answers, leases, sets, tasks
from labeling_app.submit import save_draft, skip
from tests.label_cases import add_people, check_store, count, load, prefer, record_ids, send, task

RULES = Rules(lease_seconds=100.0)


def take(connection: Connection, person: int, now: float = 0.0, rules: Rules = RULES) -> Turn:
    turn = next_turn(connection, person, rules, now)
    assert turn is not None
    return turn


def took(connection: Connection, person: int, now: float = 0.0, rules: Rules = RULES) -> str | None:
    """The id in its file of the task that is handed out."""
    turn = next_turn(connection, person, rules, now)
    return turn and record_ids(connection)[turn.lease_id]


def places(connection: Connection) -> list[tuple[int, int, int]]:
    """Of each task: answers that count, open leases, answers needed."""
    check_store(connection)
    rows = connection.execute(select(tasks.c.num_done, tasks.c.num_held, tasks.c.num_needed).order_by(tasks.c.position))
    return [tuple(row) for row in rows]


# --- which comes next ---------------------------------------------------------------------------


def test_the_highest_priority_first_then_the_order_of_loading(connection: Connection) -> None:
    load(connection, 2, "low")
    load(connection, 2, "high", priority=2.5)
    load(connection, 1, "higher", priority=3.0)
    load(connection, 1, "last")
    (person,) = add_people(connection, 1)
    seen = []
    while (turn := next_turn(connection, person, RULES, 0.0)) is not None:
        seen.append(record_ids(connection)[turn.lease_id])
        send(connection, person, turn)
    assert seen == ["higher-0", "high-0", "high-1", "low-0", "low-1", "last-0"]


def test_the_task_in_hand_stays_until_it_is_answered_and_its_time_begins_anew(connection: Connection) -> None:
    load(connection, 2)
    (person,) = add_people(connection, 1)
    first, again = take(connection, person, now=10.0), take(connection, person, now=60.0)
    assert (first.lease_id, first.expires_at) == (again.lease_id, 110.0)
    assert again.expires_at == 160.0
    # Nobody took it back meanwhile: it is still theirs after its time, too.
    assert take(connection, person, now=500.0).lease_id == first.lease_id
    assert places(connection) == [(0, 1, 1), (0, 0, 1)]
    send(connection, person, again, now=501.0)
    assert places(connection) == [(1, 0, 1), (0, 0, 1)]
    assert take(connection, person).lease_id != first.lease_id


def test_what_is_on_screen(connection: Connection) -> None:
    load_tasks(connection, "set", [task("t", "a", "b", "c")], "task", SetRules(overlap=2), 0.0)
    (person,) = add_people(connection, 1)
    turn = take(connection, person)
    assert turn.messages == [{"role": "user", "content": "prompt of t"}]
    assert (turn.kind, turn.draft, turn.is_answered) == ("task", None, False)
    shown = connection.execute(select(leases.c.shown).where(leases.c.id == turn.lease_id)).scalar_one()
    assert [f"t-{text}" for text in turn.responses] == shown
    assert sorted(shown) == ["t-a", "t-b", "t-c"]
    assert len(turn.lease_id) == 32


def test_the_order_on_screen_is_random_and_the_same_each_time(connection: Connection) -> None:
    """Each of the 6 orders of 3 responses: 240 tasks, 40 expected, standard deviation 5.8."""
    rows = [task(f"t{number}", "a", "b", "c") for number in range(240)]
    load_tasks(connection, "set", rows, "task", SetRules(), 0.0)
    (person,) = add_people(connection, 1, first=4711)
    orders = Counter()
    for _ in rows:
        turn = take(connection, person)
        orders["".join(turn.responses)] += 1
        if sum(orders.values()) % 20 == 0:
            assert take(connection, person).responses == turn.responses
        send(connection, person, turn)
    assert len(orders) == 6
    assert all(abs(number - 40) < 26 for number in orders.values())


def test_nobody_gets_more_than_the_overlap_and_what_is_skipped_goes_to_another(connection: Connection) -> None:
    load(connection, 1, overlap=2)
    a, b, c = add_people(connection, 3)
    first, second = take(connection, a), take(connection, b)
    assert took(connection, c) is None
    send(connection, a, first)
    assert took(connection, c) is None
    skip(connection, b, second.lease_id, "skip", "too hard", None, 0.0)
    assert places(connection) == [(1, 0, 2)]
    assert took(connection, b) is None
    assert took(connection, c) == "set-0"
    assert places(connection) == [(1, 1, 2)]


def test_no_tasks_of_a_closed_set_are_handed_out(connection: Connection) -> None:
    load(connection, 4, "closing", overlap=3)
    load(connection, 1, "open")
    load(connection, 3, "practice", "practice")
    load(connection, 3, "gold", "gold")
    a, b, c = add_people(connection, 3)
    rules = Rules(lease_seconds=100.0, repeat_share=0.5, repeat_after=0, gold_share=0.5)
    connection.execute(update(sets).where(sets.c.name != "closing").values(is_closed=True))
    in_hand, late = take(connection, a), take(connection, b)
    for _ in range(2):
        send(connection, c, take(connection, c))
    connection.execute(update(sets).values(is_closed=sets.c.name != "open"))
    assert took(connection, c, 100.0, rules) == "open-0"  # and b's time has run out
    assert next_turn(connection, b, rules, 101.0) is None
    # What people have in hand may be answered, late too.
    assert send(connection, a, in_hand, now=101.0).kind == "task"
    assert send(connection, b, late, now=101.0).kind == "task"
    check_store(connection)


# --- leases that run out ------------------------------------------------------------------------


def test_a_lease_ends_at_its_second_and_the_place_goes_to_another(connection: Connection) -> None:
    load(connection, 1)
    a, b = add_people(connection, 2)
    take(connection, a, now=0.0)
    assert took(connection, b, now=99.99) is None
    assert places(connection) == [(0, 1, 1)]
    assert took(connection, b, now=100.0) == "set-0"
    assert places(connection) == [(0, 1, 1)]
    assert took(connection, a, now=100.0) is None


def test_a_late_answer_counts_where_its_place_is_free_and_is_kept_where_it_is_not(connection: Connection) -> None:
    load(connection, 1, overlap=2)
    a, b, c = add_people(connection, 3)
    late_a, late_b = take(connection, a), take(connection, b)
    assert return_expired(connection, 100.0) == 2
    assert return_expired(connection, 100.0) == 0
    assert places(connection) == [(0, 0, 2)]
    assert took(connection, c, now=100.0) == "set-0"
    assert send(connection, a, late_a, now=101.0).kind == "task"
    assert places(connection) == [(1, 1, 2)]
    assert send(connection, b, late_b, now=102.0).kind == "surplus"
    assert places(connection) == [(1, 1, 2)]
    assert count(connection, answers) == 2
    # A surplus answer can be changed and taken back, and never counts.
    assert send(connection, b, late_b, "b", now=103.0, edit=True).kind == "surplus"
    skip(connection, b, late_b.lease_id, "skip", "no", None, 104.0)
    assert places(connection) == [(1, 1, 2)]


def test_a_late_answer_counts_while_nobody_has_noticed(connection: Connection) -> None:
    load(connection, 1)
    (person,) = add_people(connection, 1)
    turn = take(connection, person)
    assert send(connection, person, turn, now=1000.0).kind == "task"
    assert places(connection) == [(1, 0, 1)]


def test_who_comes_back_gets_what_they_worked_on_last_while_its_place_is_free(connection: Connection) -> None:
    load(connection, 3, overlap=2)
    a, b, c = add_people(connection, 3)
    first = take(connection, a, now=0.0)
    save_draft(connection, a, first.lease_id, 1.0, {"ranks": [2, 1]}, 100.0, now=50.0)
    assert return_expired(connection, 149.0) == 0  # the draft was a sign of them
    back = take(connection, a, now=200.0)
    assert (back.lease_id, back.draft, back.expires_at) == (first.lease_id, {"ranks": [2, 1]}, 300.0)
    return_expired(connection, 300.0)
    for person in (b, c):
        send(connection, person, take(connection, person, now=300.0), now=300.0)
    assert took(connection, a, now=301.0) == "set-1"  # both places of the first are taken
    assert places(connection) == [(2, 0, 2), (0, 1, 2), (0, 0, 2)]
    skip(connection, b, _lease_of(connection, b, "set-0"), "skip", "no", None, 302.0)
    return_expired(connection, 401.0)
    # Both are free: the one with the draft at 50 s, and the one issued at 301 s.
    assert took(connection, a, now=402.0) == "set-1"
    return_expired(connection, 502.0)
    save_draft(connection, a, first.lease_id, 2.0, {"ranks": [1, 2]}, 100.0, now=503.0)
    assert take(connection, a, now=504.0).lease_id == first.lease_id
    send(connection, a, first, now=505.0)
    assert took(connection, a, now=506.0) == "set-1"


def _lease_of(connection: Connection, person: int, record_id: str) -> str:
    joined = select(leases.c.id).join(tasks, tasks.c.id == leases.c.task_id)
    return connection.execute(joined.where(tasks.c.record_id == record_id, leases.c.person_id == person)).scalar_one()


def test_practice_and_gold_come_back_too(connection: Connection) -> None:
    load(connection, 1, "practice", "practice")
    load(connection, 5, "gold", "gold")
    load(connection, 1)
    (person,) = add_people(connection, 1)
    rules = Rules(lease_seconds=100.0, gold_share=1.0)
    for kind in ("practice", "gold"):
        turn = take(connection, person, 0.0, rules)
        assert turn.kind == kind
        return_expired(connection, 100.0)
        assert take(connection, person, 100.0, rules).lease_id == turn.lease_id
        send(connection, person, turn)
    check_store(connection)


# --- practice, gold, repeats --------------------------------------------------------------------


def test_practice_comes_before_all_else(connection: Connection) -> None:
    load(connection, 3, priority=9.0)
    load(connection, 3, "practice", "practice")
    load(connection, 3, "gold", "gold")
    (person,) = add_people(connection, 1)
    kinds = []
    for _ in range(5):
        turn = take(connection, person, 0.0, Rules(gold_share=1.0))
        kinds.append((turn.kind, record_ids(connection)[turn.lease_id][:-2]))
        send(connection, person, turn)
    assert kinds == [("practice", "practice")] * 3 + [("gold", "gold")] * 2


@pytest.mark.parametrize(("gold", "repeat"), [(0.2, 0.1), (0.0, 0.3), (0.5, 0.2), (0.0, 0.0)])
def test_gold_and_repeated_tasks_come_as_often_as_set(connection: Connection, gold: float, repeat: float) -> None:
    """Each is a draw of its own: of 280, within 4 standard deviations."""
    load(connection, 70, overlap=4)
    load(connection, 70, "gold", "gold")
    rules = Rules(gold_share=gold, repeat_share=repeat, repeat_after=2, seed=7)
    kinds = []
    for person in add_people(connection, 4, first=4711):
        for number in range(70):
            turn = take(connection, person, float(number), rules)
            kinds.append(turn.kind)
            send(connection, person, turn, now=float(number))
    counts = Counter(kinds)
    assert abs(counts["gold"] - 280 * gold) <= 4 * math.sqrt(280 * gold * (1 - gold))
    # In the first turns there is nothing to repeat yet: up to 6 of each person's.
    assert -24 * repeat <= 280 * repeat - counts["repeat"] + 4 * math.sqrt(280 * repeat * (1 - repeat))
    assert 280 * repeat - counts["repeat"] <= 24 * repeat + 4 * math.sqrt(280 * repeat * (1 - repeat))
    if gold == 0.2:
        # After one another as often as by chance: 0.04 of 279 pairs, 11 with a standard deviation of about 4.
        assert 0 < sum(one == other == "gold" for one, other in pairwise(kinds)) < 27
    check_store(connection)


def test_gold_tasks_come_in_another_order_to_each(connection: Connection) -> None:
    load(connection, 12, "gold", "gold")
    load(connection, 40, overlap=6)
    orders = []
    for person in add_people(connection, 6):
        turns = [take(connection, person, 0.0, Rules(gold_share=1.0))]
        for _ in range(11):
            send(connection, person, turns[-1])
            turns.append(take(connection, person, 0.0, Rules(gold_share=1.0)))
        ids = record_ids(connection)
        orders.append(tuple(ids[turn.lease_id] for turn in turns))
        assert len(set(orders[-1])) == 12
    assert len({order[0] for order in orders}) > 1
    assert len(set(orders)) == 6


def test_a_task_is_repeated_once_and_after_enough_others(connection: Connection) -> None:
    load(connection, 20)
    (person,) = add_people(connection, 1)
    rules = Rules(repeat_share=1.0, repeat_after=3)
    seen = []
    for number in range(12):
        turn = take(connection, person, float(number), rules)
        seen.append((record_ids(connection)[turn.lease_id], turn.kind))
        send(connection, person, turn, now=float(number))
    # The oldest first: set-0 has three answers after it, and so on.
    assert [name for name, _ in seen[:6]] == ["set-0", "set-1", "set-2", "set-3", "set-0", "set-1"]
    for at, (name, kind) in enumerate(seen):
        if kind == "repeat":
            first = seen.index((name, "task"))
            assert at - first > 3
    assert all(number == 1 for number in Counter(seen).values())
    assert {kind for _, kind in seen} == {"task", "repeat"}


def test_neither_surplus_nor_gold_nor_skipped_tasks_are_repeated(connection: Connection) -> None:
    load(connection, 2)
    load(connection, 1, "gold", "gold")
    a, b = add_people(connection, 2)
    late = take(connection, a)
    assert took(connection, b, 100.0) == "set-0"
    assert send(connection, a, late, now=101.0).kind == "surplus"
    gold = take(connection, a, 102.0, Rules(gold_share=1.0))
    send(connection, a, gold, now=102.0)
    last = take(connection, a, 103.0)
    send(connection, a, last, now=103.0)
    skip(connection, a, last.lease_id, "skip", "no", None, 104.0)
    send(connection, b, take(connection, b, 104.0), now=104.0)
    send(connection, b, take(connection, b, 104.0), now=104.0)
    assert gold.kind == "gold"
    assert next_turn(connection, a, Rules(repeat_share=1.0, repeat_after=0), 105.0) is None
    assert take(connection, b, 105.0, Rules(repeat_share=1.0, repeat_after=0)).kind == "repeat"


# --- the extra vote -----------------------------------------------------------------------------


def vote(connection: Connection, person: int, best: str) -> Turn:
    turn = take(connection, person)
    send(connection, person, turn, best)
    return turn


def test_a_third_vote_only_where_two_disagree(connection: Connection) -> None:
    load(connection, 2, overlap=2, extra_vote=True)
    a, b, c = add_people(connection, 3)
    for person, votes in ((a, "aa"), (b, "ab")):
        for best in votes:
            vote(connection, person, best)
    assert places(connection) == [(2, 0, 2), (2, 0, 3)]
    assert took(connection, c) == "set-1"
    vote(connection, c, "a")
    assert places(connection) == [(2, 0, 2), (3, 0, 3)]
    assert took(connection, c) is None


def test_one_vote_of_one_is_no_disagreement_and_sets_without_it_ask_no_third(connection: Connection) -> None:
    load(connection, 1, "one", extra_vote=True)
    load(connection, 1, "two", overlap=2)
    a, b = add_people(connection, 2)
    vote(connection, a, "a")
    vote(connection, a, "a")
    vote(connection, b, "b")
    assert places(connection) == [(1, 0, 1), (2, 0, 2)]


def test_the_third_place_comes_and_goes_with_the_disagreement(connection: Connection) -> None:
    load(connection, 1, overlap=2, extra_vote=True)
    a, b, c = add_people(connection, 3)
    vote(connection, a, "a")
    second = vote(connection, b, "b")
    assert places(connection) == [(2, 0, 3)]
    send(connection, b, second, "a", edit=True)
    assert places(connection) == [(2, 0, 2)]
    send(connection, b, second, "b", edit=True)
    take(connection, c, now=0.0)
    assert places(connection) == [(2, 1, 3)]
    # While somebody works on it, it stays; when they let it go, there is nothing left to settle.
    send(connection, b, second, "a", edit=True)
    assert places(connection) == [(2, 1, 3)]
    return_expired(connection, 100.0)
    assert places(connection) == [(2, 0, 2)]
    assert took(connection, c) is None


def test_a_withdrawn_vote_takes_the_third_place_with_it(connection: Connection) -> None:
    load(connection, 1, overlap=2, extra_vote=True)
    a, b, c, d = add_people(connection, 4)
    vote(connection, a, "a")
    second = vote(connection, b, "b")
    skip(connection, b, second.lease_id, "skip", "no", None, 0.0)
    assert places(connection) == [(1, 0, 2)]
    vote(connection, c, "a")
    assert places(connection) == [(2, 0, 2)]
    assert took(connection, d) is None


# --- looking at a turn again --------------------------------------------------------------------


def test_open_turn_shows_ones_own_answer_and_nobody_elses(connection: Connection) -> None:
    load(connection, 1, overlap=2)
    a, b = add_people(connection, 2)
    turn = take(connection, a)
    send(connection, a, turn)
    opened = open_turn(connection, a, turn.lease_id)
    assert opened is not None
    assert opened.is_answered
    assert opened.draft == prefer(turn) | {"both_bad": False, "reason": "", "better_answer": ""} | {
        "flags": [[], []],
        "ratings": [{}, {}],
    }
    assert opened.responses == turn.responses
    save_draft(connection, a, turn.lease_id, 5.0, {"ranks": [1, 1]}, 100.0, 0.0)
    opened = open_turn(connection, a, turn.lease_id)
    assert opened is not None
    assert opened.draft == {"ranks": [1, 1]}
    for person, lease in ((b, turn.lease_id), (a, "0" * 32), (a, "\0"), (a, "\ud800"), (a, ""), (a, "' OR 1=1 --")):
        assert open_turn(connection, person, lease) is None


def test_the_next_task_is_found_without_sorting_all_of_them(shared_store: Store) -> None:
    if shared_store.url.drivername != "sqlite":
        pytest.skip("the plan of SQLite")
    asked = handout._UNSEEN.compile(dialect=sqlite.dialect())

    def plan(connection: Connection) -> str:
        rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {asked}", (0,) * len(asked.positiontup or ()))
        return "\n".join(row[3] for row in rows)

    found = shared_store.read(plan)
    assert "USING INDEX tasks_next (kind=? AND is_free=?)" in found
    assert "TEMP B-TREE" not in found


# --- races --------------------------------------------------------------------------------------


def test_many_at_once_never_exceed_the_overlap(store_url: str) -> None:
    """Twelve people on two stores of one database fight for the last places, give up, come late and disagree."""
    stores = [Store(store_url), Store(store_url)]
    stores[0].write(lambda connection: load(connection, 12, overlap=2, extra_vote=True))
    people = stores[0].write(lambda connection: add_people(connection, 12))
    clock = iter(range(10**9))
    ready = threading.Barrier(12)

    def work(person: int) -> None:
        dice, store, late = Random(person), stores[person % 2], []

        def job(connection: Connection) -> bool:
            now = float(next(clock))
            turn = next_turn(connection, person, Rules(lease_seconds=30.0), now)
            if turn is None:
                return False
            chance = dice.random()
            if chance < 0.2:
                late.append(turn)
                return_expired(connection, now + 31.0)
            elif chance < 0.3:
                skip(connection, person, turn.lease_id, f"skip-{turn.lease_id}", "no", None, now)
            elif chance < 0.9:
                send(connection, person, turn, dice.choice("ab"), now, id=f"send-{turn.lease_id}")
            return True

        ready.wait()
        while store.write(job):
            pass
        for turn in late:
            store.write(lambda c, turn=turn: send(c, person, turn, "a", 0.0, edit=True, id=f"late-{turn.lease_id}"))

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(work, people))
    stores[0].read(check_store)

    def finish(connection: Connection) -> None:
        """What came back, or is wanted since a late answer, after most had gone."""
        for person in people * 2:
            while (turn := next_turn(connection, person, Rules(), 1e6)) is not None:
                send(connection, person, turn, now=1e6)

    stores[1].write(finish)
    stores[0].read(check_store)

    def totals(connection: Connection) -> Any:
        kinds = Counter(connection.execute(select(answers.c.kind)).scalars())
        done = connection.execute(select(tasks.c.num_done, tasks.c.num_needed)).all()
        return kinds, done

    kinds, done = stores[1].read(totals)
    assert kinds["task"] == sum(row.num_done for row in done)
    assert set(kinds) <= {"task", "surplus"}
    assert all(row.num_done == row.num_needed in (2, 3) for row in done)
    for store in stores:
        store.close()


def test_the_database_itself_refuses_one_too_many(connection: Connection) -> None:
    from sqlalchemy.exc import IntegrityError

    load(connection, 1)
    (person,) = add_people(connection, 1)
    take(connection, person)
    for held, done in ((+1, 0), (0, +1), (-2, 0), (0, -1)):
        connection.exec_driver_sql("SAVEPOINT try")
        with pytest.raises(IntegrityError, match="tasks_places"):
            handout.hold(connection, connection.execute(select(tasks.c.id)).scalar_one(), held, done)
        connection.exec_driver_sql("ROLLBACK TO SAVEPOINT try")
    row = connection.execute(select(leases)).mappings().one()
    other = dict(row) | {"id": "f" * 32, "turn": 1}
    with pytest.raises(IntegrityError, match=r"leases_open|leases\.person_id"):
        connection.execute(leases.insert().values(other))
    connection.execute(text("ROLLBACK TO SAVEPOINT try"))
