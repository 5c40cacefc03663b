"""What the store holds comes out as records: whole, of every kind, with the sets apart."""

import pytest

from labeling_app.form import Form
from labeling_app.handout import Rules, next_turn
from labeling_app.standing import leave_out
from labeling_app.store import Store
from labeling_app.stored import Skip, read_labels, read_store
from labeling_app.submit import skip, submit
from rlhf.errors import UserError
from rlhf.records import Ranking, Task
from tests.postgres import postgres_server, store, store_url  # noqa: F401
from tests.stored_cases import FORM, START, adjudicate, answer, known, load, memory, person, send, task


def test_every_part_of_an_answer_comes_back(store: Store) -> None:  # noqa: F811
    shown = task("t", "a", "b")

    def job(connection):
        load(connection, "set", [shown])
        ann = person(connection, "ann")
        turn = next_turn(connection, ann, Rules(), START)
        assert turn is not None
        order = turn.responses
        sent = {
            "ranks": [1 if text == "b" else 2 for text in order],
            "strength": 3,
            "flags": [["harmful"] if text == "a" else [] for text in order],
            "ratings": [{"helpful": 4} if text == "b" else {} for text in order],
            "reason": "why",
            "better_answer": "c",
        }
        submit(connection, ann, turn.lease_id, "s1", sent, FORM, 12.25, START + 0.5)
        return [f"p-{text}" for text in order]

    order = store.write(job)
    labels = store.read(read_labels)
    assert labels.tasks == [shown]
    assert labels.rankings == [
        Ranking(
            "t",
            "ann",
            {"p-a": 2, "p-b": 1},
            strength=3,
            flags={"p-a": ["harmful"]},
            shown=order,
            seconds=12.25,
            at="2023-11-14T22:13:20.500+00:00",
            ratings={"p-b": {"helpful": 4}},
            reason="why",
            better_answer="c",
        )
    ]
    assert (labels.left_out, labels.skips, labels.elsewhere) == ({}, [], {})


def test_how_a_task_was_chosen_comes_back() -> None:
    chosen = Task("t", task("t", "a", "b").prompt, task("t", "a", "b").responses, "variance", 0.25)
    with memory() as connection:
        load(connection, "set", [chosen])
        assert read_labels(connection).tasks == [chosen]


def test_an_edit_replaces_and_a_withdrawn_answer_is_a_skip() -> None:
    with memory() as connection:
        load(connection, "set", [task("t1", "a", "b"), task("t2", "a", "b", prompt="q")])
        ann = person(connection, "ann")
        turn = next_turn(connection, ann, Rules(), START)
        assert turn is not None
        send(connection, ann, turn, {"a": 1, "b": 2})
        sent = {"ranks": [1, 1], "strength": 0, "both_bad": True}
        submit(connection, ann, turn.lease_id, "edit", sent, FORM, None, START, edit=True)
        (ranking,) = read_labels(connection).rankings
        assert ranking.both_bad
        assert set(ranking.ranks.values()) == {1}
        skip(connection, ann, turn.lease_id, "skip", "too hard", "sorry", START)
        labels = read_labels(connection)
        assert labels.rankings == []
        assert labels.skips == [Skip("t1", "ann", "too hard", "sorry")]


def test_every_kind_of_answer_says_what_it_is() -> None:
    rules = Rules(lease_seconds=10, repeat_share=1.0, repeat_after=0)
    with memory() as connection:
        load(connection, "practice", [known("x", "a", "b", prompt="x")], "practice")
        load(connection, "main", [task("t", "a", "b")])
        ann, bob = person(connection, "ann"), person(connection, "bob")
        for number, who in enumerate((ann, bob)):
            assert answer(connection, who, START + number, a=1, b=2) == "practice"
        late = next_turn(connection, ann, rules, START + 2)
        assert late is not None
        assert answer(connection, bob, START + 20, a=2, b=1) == "task"
        assert send(connection, ann, late, {"a": 1, "b": 2}, START + 21) == "surplus"
        again = next_turn(connection, bob, rules, START + 22)
        assert again is not None
        assert send(connection, bob, again, {"a": 1, "b": 2}, START + 23) == "repeat"
        load(connection, "gold", [known("g", "a", "b", prompt="g"), known("h", "a", "b", prompt="h")], "gold")
        gold = next_turn(connection, bob, Rules(gold_share=1.0), START + 24)
        assert gold is not None
        assert send(connection, bob, gold, {"a": 1, "b": 2}, START + 25) == "gold"
        labels = read_labels(connection)
    found = {(row.task_id, row.annotator, row.kind) for row in labels.rankings}
    golds = {row.task_id for row in labels.rankings if row.kind == "gold"}
    assert found == {
        ("x", "ann", "practice"),
        ("x", "bob", "practice"),
        ("t", "bob", "task"),
        ("t", "ann", "surplus"),
        ("t", "bob", "repeat"),
        (golds.copy().pop(), "bob", "gold"),
    }
    # Of the tasks with a known answer those that somebody answered: what a ranking is about is always there.
    assert {row.id for row in labels.tasks} == {"x", "t"} | golds
    assert len(golds) == 1


def test_who_is_left_out_is_named_with_the_reason_and_their_votes_say_so() -> None:
    with memory() as connection:
        load(connection, "practice", [known("x", "a", "b", prompt="x")], "practice")
        load(connection, "main", [task("t", "a", "b")], overlap=2)
        ann, bob = person(connection, "ann"), person(connection, "bob")
        for who in (ann, ann, bob, bob):
            answer(connection, who, a=1, b=2)
        leave_out(connection, bob, "answers in two seconds", None, START)
        labels = read_labels(connection)
    assert labels.left_out == {"bob": "answers in two seconds"}
    kinds = {(row.annotator, row.kind) for row in labels.rankings}
    assert kinds == {("ann", "practice"), ("bob", "practice"), ("ann", "task"), ("bob", "left_out")}


def test_an_adjudication_is_a_ranking_of_its_own_kind() -> None:
    with memory() as connection:
        load(connection, "main", [task("t", "a", "b")])
        answer(connection, person(connection, "ann"), a=1, b=2)
        adjudicate(connection, person(connection, "lead", "admin"), 1, {"p-a": 2, "p-b": 1}, "b is true")
        *_, last = read_labels(connection).rankings
    assert last == Ranking(
        "t", "lead", {"p-a": 2, "p-b": 1}, at="2023-11-14T22:13:20.000+00:00", reason="b is true", kind="adjudication"
    )


def test_sets_are_kept_apart_and_what_is_elsewhere_is_counted() -> None:
    with memory() as connection:
        ann = person(connection, "ann")
        load(connection, "one", [task("t", "a", "b")], priority=3.0)
        load(connection, "two", [task("t", "a", "b", prompt="q")], priority=2.0)
        load(connection, "arena", [task("v", "a", "b", prompt="r")], of="comparison", priority=1.0)
        for _ in range(3):
            answer(connection, ann, a=1, b=2)
        every, two = read_labels(connection), read_labels(connection, ["two"])
        arena = read_labels(connection, kind="comparison")
    # The second set's task has the id of another: it is told apart by its set.
    assert [(row.task_id, list(row.ranks)) for row in every.rankings] == [
        ("t", list(every.rankings[0].ranks)),
        ("two/t", list(every.rankings[1].ranks)),
    ]
    assert [row.id for row in every.tasks] == ["t", "two/t"]
    assert every.elsewhere == {"comparison": 1}
    assert [row.task_id for row in two.rankings] == ["t"]
    assert set(two.rankings[0].ranks) == {"q-a", "q-b"}
    assert two.elsewhere == {"other_set": 1, "comparison": 1}
    assert [row.task_id for row in arena.rankings] == ["v"]
    assert arena.elsewhere == {"ranking": 2}


def test_an_unknown_set_is_named() -> None:
    with memory() as connection:
        load(connection, "tasks.jsonl", [task("t", "a", "b")])
        with pytest.raises(UserError, match=r"there is no ranking set 'task.jsonl', did you mean `tasks.jsonl`\?"):
            read_labels(connection, ["task.jsonl"])


def test_a_store_that_is_not_there_is_not_made(tmp_path) -> None:
    with pytest.raises(UserError, match=r"labls.db: no such label store; `rlhf label --tasks FILE` makes one"):
        read_store(str(tmp_path / "labls.db"))
    assert list(tmp_path.iterdir()) == []


def test_read_store_reads_by_path(tmp_path) -> None:
    made = Store(str(tmp_path / "labels.db"))
    made.write(lambda connection: load(connection, "main", [task("t", "a", "b")]))
    assert [row.id for row in read_store(str(tmp_path / "labels.db")).tasks] == ["t"]  # while another has it open
    made.close()


def test_the_forms_of_old_answers_do_not_matter() -> None:
    """A form without strength leaves it None; nothing is made up."""
    with memory() as connection:
        load(connection, "main", [task("t", "a", "b")])
        ann = person(connection, "ann")
        turn = next_turn(connection, ann, Rules(), START)
        assert turn is not None
        submit(connection, ann, turn.lease_id, "s", {"ranks": [1, 2]}, Form(strength=False), None, START)
        (ranking,) = read_labels(connection).rankings
    assert (ranking.strength, ranking.seconds, ranking.reason, ranking.better_answer) == (None, None, None, None)
