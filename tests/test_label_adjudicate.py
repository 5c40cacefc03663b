"""Disputed tasks: which they are, what the lead sees of them, and how their word is kept."""

import itertools
from typing import Any

import pytest
from sqlalchemy import Connection, select

from labeling_app.adjudicate import MAX_REASON, Case, adjudicate, disputes, open_case, withdraw
from labeling_app.answer import Refused
from labeling_app.export import ExportConfig, assemble
from labeling_app.handout import Rules, next_turn
from labeling_app.loading import SetRules, load_tasks
from labeling_app.standing import leave_out
from labeling_app.store.schema import adjudications, answers, leases, log, people, tasks
from labeling_app.stored import read_labels
from labeling_app.submit import submit
from rlhf.records import Prompt, Response, Task
from tests.label_cases import FORM, add_people, load, task

_numbers = itertools.count()


def say(connection: Connection, person: int, now: float = 0.0, lease_seconds: float = 100, **ranks: int) -> None:
    """Take the next task, and rank its texts."""
    turn = next_turn(connection, person, Rules(lease_seconds=lease_seconds), now)
    assert turn is not None
    send(connection, person, turn, now, **ranks)


def send(connection: Connection, person: int, turn: Any, now: float = 0.0, **said: Any) -> None:
    ranks = {text: said.pop(text) for text in turn.responses}
    order = [ranks[text] for text in turn.responses]
    if len(order) == 2:
        said.setdefault("strength", 0 if len(set(order)) == 1 else 2)
    submit(connection, person, turn.lease_id, f"a{next(_numbers)}", {"ranks": order} | said, FORM, 4.5, now)


def add(connection: Connection, rows: list[Task], name: str = "set", **rules: Any) -> None:
    load_tasks(connection, name, rows, "task", SetRules(**rules), 0.0)


def ids(connection: Connection) -> dict[str, int]:
    """The store's id of each task of a file."""
    return {row.record_id: row.id for row in connection.execute(select(tasks.c.record_id, tasks.c.id))}


def opened(connection: Connection, task_id: int) -> Case:
    case = open_case(connection, task_id)
    assert case is not None
    return case


def in_order(case: Case, **ranks: int) -> list[int]:
    """Ranks by text as the lead's browser sends them."""
    return [ranks[text] for text in case.responses]


def lead(connection: Connection) -> int:
    done = connection.execute(people.insert().values(name="Lea", role="admin", epoch=0, created_at=0.0))
    assert done.inserted_primary_key is not None
    return done.inserted_primary_key[0]


# ---- Which tasks are disputed


def test_the_most_disputed_come_first(connection: Connection) -> None:
    rows = [task(name) for name in ("agreed", "torn", "tied", "majority", "alone")]
    add(connection, rows, overlap=3)
    one, two, three = add_people(connection, 3)
    a, b, tie = {"a": 1, "b": 2}, {"a": 2, "b": 1}, {"a": 1, "b": 1}
    for person, said in ((one, [a, a, a, a, a]), (two, [a, b, tie, b]), (three, [a])):
        for ranks in said:
            say(connection, person, **ranks)
    turn = next_turn(connection, three, Rules(), 0.0)  # torn: kept in hand, so that the next one is majority
    assert turn is not None
    send(connection, three, turn, a=1, b=1)
    found = disputes(connection)
    # torn: a, b and a tie: pairs at 1, 1/2, 1/2. majority: a against b. tied: a against a tie.
    assert [(row.task, round(row.score, 3), row.num_answers) for row in found] == [
        ("majority", 1.0, 2),
        ("torn", 0.667, 3),
        ("tied", 0.5, 2),
    ]
    assert found[0].prompt == "prompt of majority"
    assert found[0].set_name == "set"
    assert not any(row.is_settled for row in found)


def test_with_more_than_two_responses_a_tie_alone_is_no_dispute(connection: Connection) -> None:
    add(connection, [task("tied", "a", "b", "c"), task("turned", "a", "b", "c")], overlap=2)
    one, two = add_people(connection, 2)
    for _ in range(2):
        say(connection, one, a=1, b=2, c=3)
    say(connection, two, a=1, b=1, c=2)
    say(connection, two, a=2, b=1, c=3)
    assert [(row.task, round(row.score, 3)) for row in disputes(connection)] == [("turned", 0.333)]


def test_late_answers_are_opinions_and_those_left_out_are_none(connection: Connection) -> None:
    add(connection, [task("t")])
    one, two, three = add_people(connection, 3)
    late = next_turn(connection, one, Rules(lease_seconds=10), 0.0)
    assert late is not None
    say(connection, two, now=20.0, a=1, b=2)
    send(connection, one, late, 30.0, a=2, b=1)
    assert set(connection.execute(select(answers.c.kind)).scalars()) == {"task", "surplus"}
    (dispute,) = disputes(connection)
    assert (dispute.num_answers, dispute.score) == (2, 1.0)
    assert [row.is_late for row in opened(connection, dispute.task_id).opinions] == [True, False]
    leave_out(connection, two, "careless", None, 40.0)
    assert disputes(connection) == []
    assert [row.ranks for row in opened(connection, dispute.task_id).opinions] == [
        in_order(opened(connection, dispute.task_id), a=2, b=1)
    ]
    assert three  # who has said nothing


def test_tasks_of_two_sets_with_the_same_id_are_told_apart(connection: Connection) -> None:
    add(connection, [task("t")], "one", overlap=2)
    add(connection, [task("t")], "two", overlap=2)
    first, second = add_people(connection, 2)
    for ranks in ({"a": 1, "b": 2}, {"a": 1, "b": 2}):
        say(connection, first, **ranks)
    for ranks in ({"a": 1, "b": 2}, {"a": 2, "b": 1}):
        say(connection, second, **ranks)
    assert [(row.task, row.set_name) for row in disputes(connection)] == [("t", "two")]


def test_gold_repeated_and_practice_tasks_are_no_disputes(connection: Connection) -> None:
    load(connection, 1, "practice", kind="practice")
    load(connection, 1, "gold", kind="gold")
    one, two = add_people(connection, 2)
    for person, best in ((one, "a"), (two, "b")):
        say(connection, person, a=1 + (best == "b"), b=1 + (best == "a"))
        turn = next_turn(connection, person, Rules(gold_share=0.999), 0.0)
        assert turn is not None and turn.kind == "gold"
        send(connection, person, turn, a=1 + (best == "b"), b=1 + (best == "a"))
    assert disputes(connection) == []
    assert all(open_case(connection, task_id) is None for task_id in ids(connection).values())


# ---- What the lead sees


def test_a_case_has_everything_that_was_said(connection: Connection) -> None:
    add(connection, [task("t")], overlap=2)
    one, two = add_people(connection, 2)
    turn = next_turn(connection, one, Rules(), 5.0)
    assert turn is not None
    more = {
        "flags": [["harmful"] if text == "b" else [] for text in turn.responses],
        "ratings": [{"helpful": 4} if text == "a" else {} for text in turn.responses],
        "reason": "b is <harmful>",
        "better_answer": "c",
        "strength": 3,
    }
    send(connection, one, turn, 6.0, a=1, b=2, **more)
    turn = next_turn(connection, two, Rules(), 7.0)
    assert turn is not None
    send(connection, two, turn, 8.0, a=1, b=1, both_bad=True)

    case = opened(connection, ids(connection)["t"])
    assert (case.task, case.set_name, sorted(case.responses)) == ("t", "set", ["a", "b"])
    assert case.messages == [{"role": "user", "content": "prompt of t"}]
    assert case.ruling is None
    first, second = case.opinions
    assert first.person < second.person
    assert first.ranks == in_order(case, a=1, b=2)
    assert first.flags == [["harmful"] if text == "b" else [] for text in case.responses]
    assert first.ratings == [{"helpful": 4} if text == "a" else {} for text in case.responses]
    assert (first.strength, first.both_bad, first.reason, first.better_answer) == (3, False, "b is <harmful>", "c")
    assert (first.seconds, first.at, first.is_late) == (4.5, 6.0, False)
    assert (second.ranks, second.strength, second.both_bad, second.reason) == ([1, 1], 0, True, None)


def test_responses_stand_in_one_order_that_says_nothing_of_their_policy(connection: Connection) -> None:
    rows = [
        Task(f"t{n}", Prompt(f"p{n}", [{"role": "user", "content": "q"}]), [
            Response(f"{n}-sft", f"p{n}", "of sft", "sft"), Response(f"{n}-ppo", f"p{n}", "of ppo", "ppo")
        ])
        for n in range(40)
    ]  # fmt: skip
    add(connection, rows)
    (person,) = add_people(connection, 1)
    for _ in rows:
        say(connection, person, **{"of sft": 1, "of ppo": 2})
    first = [opened(connection, task_id).responses for task_id in ids(connection).values()]
    assert first == [opened(connection, task_id).responses for task_id in ids(connection).values()]
    assert 8 < sum(order == ["of sft", "of ppo"] for order in first) < 32  # of 40 by chance: 20


@pytest.mark.parametrize("task_id", [0, -1, 99, 2**31, 2**70])
def test_there_is_no_such_case(connection: Connection, task_id: int) -> None:
    load(connection, 1)
    assert open_case(connection, task_id) is None
    with pytest.raises(Refused, match=r"^There is no such task to settle\.$"):
        adjudicate(connection, 1, task_id, [1, 2], None, 0.0)


def test_a_task_that_nobody_answered_is_no_case(connection: Connection) -> None:
    load(connection, 1)
    assert open_case(connection, ids(connection)["set-0"]) is None


# ---- The lead's word


def test_the_leads_word_is_kept_beside_the_votes(connection: Connection) -> None:
    add(connection, [task("t", "a", "b", "c")], overlap=2)
    one, two = add_people(connection, 2)
    say(connection, one, a=1, b=2, c=3)
    say(connection, two, a=3, b=2, c=1)
    boss, task_id = lead(connection), ids(connection)["t"]
    votes = connection.execute(select(answers)).all()
    case = opened(connection, task_id)
    adjudicate(connection, boss, task_id, in_order(case, a=3, b=1, c=3), "b is <right>", 9.0)
    ranks = {"t-a": 2, "t-b": 1, "t-c": 2}  # without gaps
    row = connection.execute(select(adjudications)).one()
    assert (row.task_id, row.person_id, row.ranks, row.reason, row.at) == (task_id, boss, ranks, "b is <right>", 9.0)
    assert connection.execute(select(answers)).all() == votes
    (dispute,) = disputes(connection)
    assert dispute.is_settled

    ruling = opened(connection, task_id).ruling
    assert ruling is not None
    assert (ruling.person, ruling.ranks, ruling.reason) == ("Lea", in_order(case, a=2, b=1, c=2), "b is <right>")

    adjudicate(connection, boss, task_id, in_order(case, a=1, b=2, c=3), "", 10.0)
    withdraw(connection, boss, task_id, 11.0)
    assert connection.execute(select(adjudications)).first() is None
    assert not disputes(connection)[0].is_settled
    last = {"t-a": 1, "t-b": 2, "t-c": 3}
    logged = connection.execute(
        select(log.c.action, log.c.at, log.c.person_id, log.c.body).where(log.c.person_id == boss).order_by(log.c.id)
    ).all()
    assert [tuple(entry) for entry in logged] == [
        ("adjudicate", 9.0, boss, {"task": task_id, "ranks": ranks, "reason": "b is <right>", "before": None}),
        ("adjudicate", 10.0, boss, {"task": task_id, "ranks": last, "reason": None, "before": ranks}),
        ("withdraw", 11.0, boss, {"task": task_id, "ranks": last, "reason": None, "by": boss, "at": 10.0}),
    ]


def test_a_settled_task_stays_on_the_list_when_nobody_disagrees_any_more(connection: Connection) -> None:
    add(connection, [task("t")])
    (one,) = add_people(connection, 1)
    say(connection, one, a=1, b=2)
    assert disputes(connection) == []
    task_id = ids(connection)["t"]
    adjudicate(connection, lead(connection), task_id, [1, 1], None, 1.0)
    leave_out(connection, one, "careless", None, 2.0)
    (dispute,) = disputes(connection)
    assert (dispute.is_settled, dispute.num_answers, dispute.score) == (True, 0, 0.0)
    assert opened(connection, task_id).opinions == []


@pytest.mark.parametrize(
    ("ranks", "reason", "message"),
    [
        ([1], None, r"^Please give each of the 2 responses a place\.$"),
        ([1, 3], None, r"^Please give each of the 2 responses a place\.$"),
        ([1, True], None, r"^Please give each of the 2 responses a place\.$"),
        (None, None, r"^Please give each of the 2 responses a place\.$"),
        ([1, 2], "x" * (MAX_REASON + 1), r"^The reason has 5,001 characters; at most 5,000 can be kept\.$"),
    ],
)
def test_what_is_no_ranking_is_refused(connection: Connection, ranks: Any, reason: str | None, message: str) -> None:
    load(connection, 1)
    (one,) = add_people(connection, 1)
    say(connection, one, a=1, b=2)
    with pytest.raises(Refused, match=message):
        adjudicate(connection, one, ids(connection)["set-0"], ranks, reason, 0.0)
    assert connection.execute(select(adjudications)).first() is None


def test_what_was_not_said_cannot_be_withdrawn(connection: Connection) -> None:
    load(connection, 1)
    with pytest.raises(Refused, match=r"^This task has not been settled\.$"):
        withdraw(connection, 1, ids(connection)["set-0"], 0.0)


def test_the_export_takes_the_leads_word(connection: Connection) -> None:
    add(connection, [task("t")], overlap=2)
    one, two = add_people(connection, 2)
    say(connection, one, a=1, b=2)
    say(connection, two, a=1, b=2)
    task_id = ids(connection)["t"]
    settings = ExportConfig(output_dir="x", store="x")

    def chosen() -> str:
        (preference,) = assemble(read_labels(connection), settings).files["preferences.train.jsonl"]
        return preference.chosen[0]["content"]  # type: ignore[attr-defined]

    assert chosen() == "a"
    boss = lead(connection)
    adjudicate(connection, boss, task_id, in_order(opened(connection, task_id), a=2, b=1), None, 1.0)
    assert chosen() == "b"
    withdraw(connection, boss, task_id, 2.0)
    assert chosen() == "a"


def test_every_ranking_comes_back_as_it_was_given(connection: Connection) -> None:
    add(connection, [task("t", "a", "b", "c")])
    (one,) = add_people(connection, 1)
    say(connection, one, a=1, b=2, c=3)
    task_id = ids(connection)["t"]
    texts = {row["id"]: row["text"] for row in connection.execute(select(tasks.c.body)).scalar_one()["responses"]}
    case = opened(connection, task_id)
    assert connection.execute(select(leases.c.id)).scalar_one()
    for ranks in itertools.product((1, 2, 3), repeat=3):
        adjudicate(connection, one, task_id, list(ranks), None, 0.0)
        dense = [sorted(set(ranks)).index(rank) + 1 for rank in ranks]
        stored = connection.execute(select(adjudications.c.ranks)).scalar_one()
        assert {texts[id]: rank for id, rank in stored.items()} == dict(zip(case.responses, dense, strict=True))
        ruling = opened(connection, task_id).ruling
        assert ruling is not None and ruling.ranks == dense
