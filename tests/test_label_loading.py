"""Task files into the store: nothing doubled, nothing changed, all or nothing. On both databases."""

import dataclasses
from typing import Any

import pytest
from sqlalchemy import Connection, select

from labeling_app.loading import KnownTask, SetRules, load_tasks
from labeling_app.store import Store
from labeling_app.store.schema import log, sets, tasks
from rlhf.errors import UserError
from rlhf.records import Prompt, Response, Task
from tests.label_cases import add_people, check_store, count, known, send, task

RULES = SetRules()


def put(connection: Connection, rows: list[Any], kind: str = "task", rules: SetRules = RULES, name: str = "set") -> Any:
    return load_tasks(connection, name, rows, kind, rules, 5.0)


def refused(connection: Connection, rows: list[Any], kind: str = "task", rules: SetRules = RULES) -> str:
    """The message, after which everything is as it was."""
    before = count(connection, tasks), count(connection, sets), count(connection, log)
    with pytest.raises(UserError) as error:
        put(connection, rows, kind, rules)
    assert (count(connection, tasks), count(connection, sets), count(connection, log)) == before
    return str(error.value)


def ids(connection: Connection) -> list[str]:
    return list(connection.execute(select(tasks.c.record_id).order_by(tasks.c.position)).scalars())


def test_all_of_a_task_is_kept(connection: Connection) -> None:
    hostile = "\0 \ud800 \u202e {{ x }} ${y} <script>\r\n\t \U0001f600"
    prompt = Prompt("p", [{"role": "user", "content": hostile, "name": "x"}], {"source": [1, None, {"a": 0.5}]})
    responses = [Response("r1", "p", hostile, "run", {"temperature": 0.7}), Response("r2", "p", "", "run")]
    row = Task("t", prompt, responses, "variance", 0.25)
    rules = SetRules(overlap=3, extra_vote=True, priority=1.5, kind="comparison")
    assert put(connection, [row], rules=rules) == (1, 0)
    assert put(connection, [row], rules=rules) == (0, 1)
    stored = connection.execute(select(tasks)).one()
    assert stored.body == dataclasses.asdict(row)
    assert (stored.record_id, stored.kind, stored.known, stored.priority) == ("t", "task", None, 1.5)
    assert (stored.num_needed, stored.num_done, stored.num_held, stored.is_free) == (3, 0, 0, True)
    made = connection.execute(select(sets)).one()
    assert (made.name, made.kind, made.overlap, made.extra_vote, made.is_closed, made.created_at) == (
        *("set", "comparison", 3, True, False),
        5.0,
    )
    (entry,) = connection.execute(select(log)).all()
    assert (entry.at, entry.person_id, entry.action) == (5.0, None, "load")
    assert entry.body == {"set": "set", "kind": "task", "num_tasks": 1, "rules": dataclasses.asdict(rules)}


def test_what_is_known_of_a_task_stands_beside_it(connection: Connection) -> None:
    put(connection, [known("g", "a", "b")], "gold")
    stored = connection.execute(select(tasks)).one()
    assert stored.known == {"ranks": {"g-a": 1, "g-b": 2}, "explanation": "because"}
    assert set(stored.body) == {"id", "prompt", "responses"}


def test_more_tasks_come_after_those_that_are_there(connection: Connection) -> None:
    assert put(connection, [task("a"), task("b")]) == (2, 0)
    assert put(connection, [task("c"), task("a"), task("d")]) == (2, 1)
    assert put(connection, [task("a")], name="other") == (1, 0)
    assert ids(connection) == ["a", "b", "c", "d", "a"]
    assert put(connection, []) == (0, 0)


def test_random_order_is_a_shuffle_that_is_always_the_same(connection: Connection) -> None:
    rows = [task(f"{number:02}") for number in range(30)]
    put(connection, rows, rules=SetRules(order="random"))
    first = ids(connection)
    assert sorted(first) == [row.id for row in rows] != first
    connection.execute(tasks.delete())
    put(connection, rows, rules=SetRules(order="random"))
    assert ids(connection) == first


def test_loading_again_leaves_work_alone(connection: Connection) -> None:
    from labeling_app.handout import Rules, next_turn

    rows = [task("a"), task("b")]
    put(connection, rows)
    (person,) = add_people(connection, 1)
    for _ in range(2):
        turn = next_turn(connection, person, Rules(), 0.0)
        assert turn is not None
        if turn.responses and count(connection, log) == 1:
            send(connection, person, turn)
    assert put(connection, rows) == (0, 2)
    check_store(connection)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (task("t", "a"), "set: task t should have two or more responses, each with an id of its own"),
        (task("t", "a", "a"), "set: task t should have two or more responses, each with an id of its own"),
        (
            Task("t", Prompt("p", []), task("t").responses),
            "set: task t has an empty prompt; give it at least one message",
        ),
        (
            Task("t", Prompt("p", [{"role": "user"}]), task("t").responses),
            "set: task t has a message without `role` or `content`; give it both",
        ),
        (task(""), "'set': a task's id is ''; it should be 1 to 128 printable characters"),
        (task("t\0"), r"'set': a task's id is 't\x00'; it should be 1 to 128 printable characters"),
        (task("\ud800"), r"'set': a task's id is '\ud800'; it should be 1 to 128 printable characters"),
        (task("x" * 129), f"'set': a task's id is '{'x' * 79}; it should be 1 to 128 printable characters"),
    ],
)
def test_tasks_that_cannot_be_ranked_are_refused(connection: Connection, row: Task, message: str) -> None:
    assert refused(connection, [task("fine"), row]) == message


@pytest.mark.parametrize("ranks", [{}, {"t-a": 1}, {"t-a": 1, "t-b": 0}, {"t-a": 1, "t-b": 2, "t-c": 3}])
def test_known_tasks_need_a_rank_for_each_response(connection: Connection, ranks: dict[str, int]) -> None:
    row = dataclasses.replace(known("t"), ranks=ranks)
    assert isinstance(row, KnownTask)
    assert refused(connection, [row], "gold") == (
        "set: task t should have a rank, 1 or more, for each of its responses and no other"
    )


def test_an_id_that_is_there_twice_is_refused(connection: Connection) -> None:
    assert refused(connection, [task("t"), task("u"), task("t")]) == "set: task t is there twice; keep one of them"


def test_a_task_that_changed_is_refused_with_all_of_its_file(connection: Connection) -> None:
    put(connection, [task("t"), task("u")])
    put(connection, [known("g")], "gold")
    changed = "reads otherwise than when it was loaded; give it a new id, or give the set another name"
    for row, kind in (
        (task("u", "a", "c"), "task"),
        (task("u", "b", "a"), "task"),
        (dataclasses.replace(task("u"), probability=0.5), "task"),
        (known("u"), "gold"),
        (known("g", "b", "a"), "gold"),
        (dataclasses.replace(known("g"), explanation="other"), "gold"),
        (known("g"), "practice"),
    ):
        assert refused(connection, [task("new") if kind == "task" else known("new"), row], kind) == (
            f"set: task {row.id} {changed}"
        )


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        (SetRules(overlap=2), "overlap 1, now it is 2"),
        (SetRules(extra_vote=True), "extra_vote False, now it is True"),
        (SetRules(kind="comparison"), "kind ranking, now it is comparison"),
    ],
)
def test_a_set_keeps_its_rules(connection: Connection, rules: SetRules, told: str) -> None:
    put(connection, [task("t")])
    assert refused(connection, [task("u")], rules=rules) == (f"set: was loaded with {told}; name a new set, or keep it")
    assert put(connection, [task("u")], rules=SetRules(priority=2.0, order="random")) == (1, 0)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"overlap": 0}, "overlap: is 0, should be at least 1"),
        ({"order": "best"}, "order: is 'best', should be file or random"),
        ({"kind": "other"}, "kind: is 'other', should be ranking or comparison"),
        ({"priority": float("nan")}, "priority: is nan, should be a number; sets with a higher one come first"),
    ],
)
def test_rules_that_cannot_be_are_refused(rules: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        SetRules(**rules)
    assert str(error.value) == message


def test_names_of_sets_have_bounds(connection: Connection) -> None:
    put(connection, [task("t")], name="x" * 512)
    for name in ("", "x" * 513, "a\nb"):
        with pytest.raises(UserError, match=r"the set's name is .* 1 to 512 printable characters"):
            put(connection, [task("t")], name=name)


def test_two_who_load_the_same_file_at_once_load_it_once(store_url: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    stores = [Store(store_url), Store(store_url)]
    rows = [task(f"t{number}") for number in range(50)]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda store: store.write(lambda connection: put(connection, rows)), stores))
    assert sorted(results) == [(0, 50), (50, 0)]
    assert stores[0].read(lambda connection: count(connection, tasks)) == 50
    for store in stores:
        store.close()
