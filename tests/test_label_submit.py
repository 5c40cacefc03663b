"""What annotators do: submit once whatever is sent, edit, skip, draft, look back. On both databases."""

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Connection, select, update

from labeling_app.answer import MAX_TEXT, Refused
from labeling_app.handout import Rules, Turn, next_turn, open_turn, return_expired
from labeling_app.loading import SetRules, load_tasks
from labeling_app.progress import history, progress
from labeling_app.store import Store
from labeling_app.store.schema import answers, drafts, leases, log, sets, submissions
from labeling_app.submit import NUM_EDITABLE, Conflict, Receipt, save_draft, skip, submit
from tests.label_cases import FORM, add_people, check_store, count, known, load, prefer, send, task

RULES = Rules(lease_seconds=100.0)


def take(connection: Connection, person: int, now: float = 0.0, rules: Rules = RULES) -> Turn:
    turn = next_turn(connection, person, rules, now)
    assert turn is not None
    return turn


def refused(call: Callable[[], Any], kind: type[Refused] = Refused) -> str:
    with pytest.raises(Refused) as error:
        call()
    assert type(error.value) is kind
    return str(error.value)


def rows(connection: Connection) -> dict[str, int]:
    return {table.name: count(connection, table) for table in (answers, submissions, log, drafts)}


# --- submit -------------------------------------------------------------------------------------


def test_all_of_an_answer_is_stored(connection: Connection) -> None:
    load(connection, 1)
    (person,) = add_people(connection, 1)
    turn = take(connection, person)
    sent = {
        "ranks": [2, 1],
        "strength": 3,
        "flags": [["harmful"], []],
        "ratings": [{}, {"helpful": 4}],
        "reason": "because \0 \ud800 \u202e ${x}",
        "better_answer": "c",
    }
    receipt = submit(connection, person, turn.lease_id, "s", sent, FORM, 2.5, 7.0)
    assert receipt == Receipt("task", 1)
    worse, better = (f"set-0-{text}" for text in turn.responses)
    row = connection.execute(select(answers)).one()
    said = {
        "ranks": {worse: 2, better: 1},
        "strength": 3,
        "both_bad": False,
        "flags": {worse: ["harmful"]},
        "ratings": {better: {"helpful": 4}},
        "reason": "because \0 \ud800 \u202e ${x}",
        "better_answer": "c",
    }
    assert row.body == said
    assert (row.person_id, row.kind, row.seconds, row.revision, row.at, row.turn) == (person, "task", 2.5, 1, 7.0, 0)
    entry = connection.execute(select(log).where(log.c.action == "submit")).one()
    assert (entry.at, entry.person_id) == (7.0, person)
    told = {"lease": turn.lease_id, "task": row.task_id, "turn": 0, "submission": "s", "kind": "task", "revision": 1}
    assert entry.body == told | said


@pytest.mark.parametrize("seconds", [None, -1.0, math.nan, math.inf])
def test_seconds_that_cannot_be_are_not_kept(connection: Connection, seconds: float | None) -> None:
    load(connection, 1)
    (person,) = add_people(connection, 1)
    turn = take(connection, person)
    submit(connection, person, turn.lease_id, "s", prefer(turn), FORM, seconds, 0.0)
    assert connection.execute(select(answers.c.seconds)).scalar_one() is None


def test_the_same_submission_again_is_the_same_submission(connection: Connection) -> None:
    load(connection, 1)
    (person,) = add_people(connection, 1)
    turn = take(connection, person)
    assert send(connection, person, turn, "a", id="s") == Receipt("task", 1)
    before = rows(connection)
    # Whatever it holds now: what was acknowledged stands.
    for best in "ab":
        assert send(connection, person, turn, best, now=5.0, id="s") == Receipt("task", 1, repeated=True)
    assert submit(connection, person, turn.lease_id, "s", None, FORM, None, 5.0).repeated
    assert rows(connection) == before == {"answers": 1, "submissions": 1, "log": 2, "drafts": 0}
    send(connection, person, turn, "b", edit=True, id="edit")
    assert send(connection, person, turn, "a", id="s") == Receipt("task", 2, repeated=True)
    check_store(connection)


def test_the_same_answer_under_another_id_is_taken_once_and_another_answer_is_a_conflict(
    connection: Connection,
) -> None:
    load(connection, 1)
    (person,) = add_people(connection, 1)
    turn = take(connection, person)
    send(connection, person, turn, "a", id="tab-1")
    assert send(connection, person, turn, "a", id="tab-2") == Receipt("task", 1, repeated=True)
    told = refused(lambda: send(connection, person, turn, "b", id="tab-3"), Conflict)
    assert told == "You have answered this task already. Open it from “My answers” to change it."
    assert rows(connection) == {"answers": 1, "submissions": 2, "log": 2, "drafts": 0}


def test_a_double_submit_at_once_is_stored_once(store: Store) -> None:
    store.write(lambda connection: load(connection, 1))
    (person,) = store.write(lambda connection: add_people(connection, 1))
    turn = store.write(lambda connection: take(connection, person))
    ready = threading.Barrier(8)

    def press(number: int) -> Receipt:
        ready.wait()
        return store.write(lambda connection: send(connection, person, turn, id=f"press-{number % 2}"))

    with ThreadPoolExecutor(8) as pool:
        receipts = list(pool.map(press, range(8)))
    assert sorted(receipt.repeated for receipt in receipts) == [False] + [True] * 7
    assert store.read(rows) == {"answers": 1, "submissions": 2, "log": 2, "drafts": 0}
    store.read(check_store)


@pytest.mark.parametrize("id", ["", "x" * 65, "a b", "\0", "\ud800", "é", "new\nline"])
def test_ids_that_no_client_makes_are_refused(connection: Connection, id: str) -> None:
    load(connection, 1)
    (person,) = add_people(connection, 1)
    turn = take(connection, person)
    not_whole = "The answer did not arrive whole. Please send it again."
    assert refused(lambda: submit(connection, person, turn.lease_id, id, prefer(turn), FORM, 1.0, 0.0)) == not_whole
    assert refused(lambda: skip(connection, person, turn.lease_id, id, "no", None, 0.0)) == not_whole
    assert refused(lambda: save_draft(connection, person, id, 1.0, {}, 100.0, 0.0)).startswith("This task is not in")


def test_a_lease_of_another_or_of_nobody_is_refused(connection: Connection) -> None:
    load(connection, 1, overlap=2)
    a, b = add_people(connection, 2)
    turn = take(connection, a)
    for person, lease in ((b, turn.lease_id), (a, "0" * 32), (a, "x"), (a, "\ud800")):
        for call in (
            lambda p=person, id=lease: submit(connection, p, id, "s", prefer(turn), FORM, 1.0, 0.0),
            lambda p=person, id=lease: skip(connection, p, id, "s", "no", None, 0.0),
            lambda p=person, id=lease: save_draft(connection, p, id, 1.0, {}, 100.0, 0.0),
        ):
            assert refused(call) == "This task is not in your hands. Please reload the page."
    assert rows(connection) == {"answers": 0, "submissions": 0, "log": 1, "drafts": 0}


def test_a_submission_that_was_for_another_task_is_refused(connection: Connection) -> None:
    load(connection, 2, overlap=2)
    a, b = add_people(connection, 2)
    send(connection, a, take(connection, a), id="s")
    second, theirs = take(connection, a), take(connection, b)
    told = "This answer was sent before, for another task."
    assert refused(lambda: send(connection, a, second, id="s")) == told
    assert refused(lambda: send(connection, b, theirs, id="s")) == told
    assert refused(lambda: skip(connection, b, theirs.lease_id, "s", "no", None, 0.0)) == told
    check_store(connection)


def test_practice_tells_what_was_right(connection: Connection) -> None:
    load_tasks(connection, "practice", [known("p", "a", "b", "c")], "practice", SetRules(), 0.0)
    a, b, c = add_people(connection, 3)
    for person, wanted, right in ((a, "abc", True), (b, "acb", False), (c, "same", False)):
        turn = take(connection, person)
        ranks = [1 if wanted == "same" else 1 + wanted.index(text) for text in turn.responses]
        sent = {"ranks": ranks}
        receipt = submit(connection, person, turn.lease_id, f"s{person}", sent, FORM, 1.0, 0.0)
        told = {
            "is_right": right,
            "ranks": [1 + "abc".index(text) for text in turn.responses],
            "explanation": "because",
        }
        assert (receipt.kind, receipt.known) == ("practice", told)
        again = submit(connection, person, turn.lease_id, f"s{person}", sent, FORM, 1.0, 0.0)
        assert (again.known, again.repeated) == (told, True)
        other = {"ranks": [2 if rank == 1 else 1 for rank in ranks]}
        with pytest.raises(Refused, match=r"Practice answers stay as they are\."):
            submit(connection, person, turn.lease_id, "e", other, FORM, 1.0, 0.0, edit=True)


def test_gold_and_repeated_answers_tell_nothing_and_hold_no_place(connection: Connection) -> None:
    load(connection, 1, "gold", "gold")
    load(connection, 2)
    (person,) = add_people(connection, 1)
    kinds = []
    for number in range(4):
        turn = take(connection, person, float(number), Rules(gold_share=0.0 if number else 1.0, repeat_share=0.0))
        if number == 3:
            break
        receipt = send(connection, person, turn, now=float(number))
        kinds.append((receipt.kind, receipt.known))
        check_store(connection)
        if number == 2:
            break
    assert kinds == [("gold", None), ("task", None), ("task", None)]
    turn = take(connection, person, 9.0, Rules(repeat_share=1.0, repeat_after=0))
    assert send(connection, person, turn, now=9.0) == Receipt("repeat", 1)
    check_store(connection)


# --- edit ---------------------------------------------------------------------------------------


def test_an_edit_replaces_the_answer_and_the_log_keeps_both(connection: Connection) -> None:
    load(connection, 1)
    (person,) = add_people(connection, 1)
    turn = take(connection, person)
    send(connection, person, turn, "a", now=1.0)
    assert send(connection, person, turn, "b", now=5.0, edit=True, id="e") == Receipt("task", 2)
    assert send(connection, person, turn, "b", now=6.0, edit=True, id="e") == Receipt("task", 2, repeated=True)
    row = connection.execute(select(answers)).one()
    assert (row.body["ranks"], row.revision, row.at, row.seconds) == ({"set-0-a": 2, "set-0-b": 1}, 2, 1.0, 3.0)
    entries = connection.execute(select(log.c.action, log.c.body).where(log.c.action != "load").order_by(log.c.id))
    told = [(action, body["revision"], body["ranks"]["set-0-a"]) for action, body in entries]
    assert told == [("submit", 1, 1), ("edit", 2, 2)]
    check_store(connection)


def test_an_edit_of_what_was_never_answered_is_an_answer(connection: Connection) -> None:
    load(connection, 1)
    (person,) = add_people(connection, 1)
    assert send(connection, person, take(connection, person), edit=True) == Receipt("task", 1)
    check_store(connection)


def test_only_the_last_answers_can_be_changed_or_withdrawn(connection: Connection) -> None:
    load(connection, NUM_EDITABLE + 1)
    (person,) = add_people(connection, 1)
    turns = []
    for number in range(NUM_EDITABLE + 1):
        turns.append(take(connection, person, float(number)))
        send(connection, person, turns[-1], now=float(number))
    told = "Only your last 50 answers can be changed; ask the lead about older ones."
    assert refused(lambda: send(connection, person, turns[0], "b", edit=True, id="late")) == told
    assert refused(lambda: skip(connection, person, turns[0].lease_id, "skip", "no", None, 99.0)) == told
    check_store(connection)
    assert send(connection, person, turns[1], "b", edit=True).revision == 2


# --- skip ---------------------------------------------------------------------------------------


def test_a_skipped_task_never_comes_back_and_what_was_said_of_it_is_in_the_log(connection: Connection) -> None:
    load(connection, 1, overlap=2)
    (person,) = add_people(connection, 1)
    turn = take(connection, person)
    save_draft(connection, person, turn.lease_id, 1.0, {"ranks": [1, 1]}, 100.0, 0.0)
    skip(connection, person, turn.lease_id, "s", "too hard", "about law \0", 3.0)
    skip(connection, person, turn.lease_id, "s", "too hard", "about law \0", 4.0)
    assert next_turn(connection, person, RULES, 1e6) is None
    lease = connection.execute(select(leases)).one()
    assert (lease.state, lease.skipped) == ("skipped", {"reason": "too hard", "note": "about law \0"})
    (entry,) = connection.execute(select(log).where(log.c.action == "skip")).all()
    assert entry.body == {
        "lease": turn.lease_id,
        "task": lease.task_id,
        "turn": 0,
        "submission": "s",
        "reason": "too hard",
        "note": "about law \0",
        "withdrawn": None,
    }
    assert rows(connection) == {"answers": 0, "submissions": 1, "log": 2, "drafts": 0}
    check_store(connection)


def test_skipping_what_was_answered_withdraws_it_and_frees_its_place(connection: Connection) -> None:
    load(connection, 1)
    a, b = add_people(connection, 2)
    turn = take(connection, a)
    send(connection, a, turn, "b", id="answer")
    assert next_turn(connection, b, RULES, 0.0) is None
    skip(connection, a, turn.lease_id, "s", "no", None, 3.0)
    check_store(connection)
    (withdrawn,) = connection.execute(select(log.c.body).where(log.c.action == "skip")).scalars()
    assert withdrawn["withdrawn"]["ranks"] == {"set-0-a": 2, "set-0-b": 1}
    told = "You have skipped this task since."
    assert refused(lambda: send(connection, a, turn, "b", id="answer")) == told
    theirs = take(connection, b)
    # Who thinks better of it may answer after all; the place is with another now.
    assert send(connection, a, turn, "a") == Receipt("surplus", 1)
    assert connection.execute(select(leases.c.state, leases.c.skipped).where(leases.c.id == turn.lease_id)).one() == (
        "answered",
        None,
    )
    assert send(connection, b, theirs) == Receipt("task", 1)
    check_store(connection)


def test_practice_cannot_be_skipped_gold_can(connection: Connection) -> None:
    load(connection, 1, "practice", "practice")
    load(connection, 1, "gold", "gold")
    load(connection, 1)
    (person,) = add_people(connection, 1)
    turn = take(connection, person)
    told = refused(lambda: skip(connection, person, turn.lease_id, "s", "no", None, 0.0))
    assert told == "Practice tasks cannot be skipped."
    send(connection, person, turn)
    turn = take(connection, person, 0.0, Rules(gold_share=1.0))
    send(connection, person, turn)
    skip(connection, person, turn.lease_id, "s", "no", None, 0.0)
    assert count(connection, answers) == 1
    check_store(connection)


def test_a_reason_has_bounds(connection: Connection) -> None:
    load(connection, 1)
    (person,) = add_people(connection, 1)
    turn = take(connection, person)
    for reason, note in (("x" * (MAX_TEXT + 1), None), ("no", "x" * (MAX_TEXT + 1))):
        told = refused(lambda r=reason, n=note: skip(connection, person, turn.lease_id, "s", r, n, 0.0))
        assert told == "A reason can have 50,000 characters."
    check_store(connection)


# --- drafts -------------------------------------------------------------------------------------


def test_the_newest_draft_wins_and_an_answer_ends_it(connection: Connection) -> None:
    load(connection, 1)
    (person,) = add_people(connection, 1)
    turn = take(connection, person)

    def draft(version: float, text: str) -> bool:
        return save_draft(connection, person, turn.lease_id, version, {"reason": text}, 100.0, 1.0)

    assert [draft(5.0, "five"), draft(4.0, "four"), draft(5.0, "again"), draft(6.5, "six \0\ud800")] == [
        True,
        False,
        False,
        True,
    ]
    assert take(connection, person, 2.0).draft == {"reason": "six \0\ud800"}
    send(connection, person, turn)
    assert count(connection, drafts) == 0
    assert draft(7.0, "of an edit")
    opened = open_turn(connection, person, turn.lease_id)
    assert opened is not None
    assert opened.draft == {"reason": "of an edit"}
    send(connection, person, turn, "b", edit=True)
    assert count(connection, drafts) == 0


def test_a_draft_keeps_the_task_in_hand(connection: Connection) -> None:
    load(connection, 1)
    a, b = add_people(connection, 2)
    turn = take(connection, a, 0.0)
    for version, now in ((1.0, 90.0), (1.0, 180.0)):  # an old one is a sign of them too
        save_draft(connection, a, turn.lease_id, version, {}, 100.0, now)
    assert next_turn(connection, b, RULES, 279.0) is None
    assert take(connection, b, 280.0)
    assert save_draft(connection, a, turn.lease_id, 2.0, {"late": 1}, 100.0, 281.0)  # kept, but the task is gone
    assert next_turn(connection, a, RULES, 282.0) is None
    check_store(connection)


@pytest.mark.parametrize(
    ("version", "body"),
    [(1.0, None), (1.0, [1]), (1.0, "x"), (math.nan, {}), (math.inf, {}), (1.0, {"x": math.nan}), (1.0, {"x": 1e999})],
)
def test_what_is_no_draft_is_refused(connection: Connection, version: float, body: Any) -> None:
    load(connection, 1)
    (person,) = add_people(connection, 1)
    turn = take(connection, person)
    told = refused(lambda: save_draft(connection, person, turn.lease_id, version, body, 100.0, 0.0))
    assert told == "The draft did not arrive whole."


def test_a_draft_has_bounds(connection: Connection) -> None:
    load(connection, 1)
    (person,) = add_people(connection, 1)
    turn = take(connection, person)
    told = refused(lambda: save_draft(connection, person, turn.lease_id, 1.0, {"x": "y" * 200_000}, 100.0, 0.0))
    assert told == "A draft can have 200,000 characters."


# --- looking back -------------------------------------------------------------------------------


def test_history_has_ones_own_last_answers_and_no_practice(connection: Connection) -> None:
    load(connection, 1, "practice", "practice")
    load_tasks(connection, "long", [task("x" * 100)], "task", SetRules(priority=1.0), 0.0)
    load(connection, 3, overlap=2)
    a, b = add_people(connection, 2)
    turns = []
    for number in range(4):
        turns.append(take(connection, a, float(number)))
        send(connection, a, turns[-1], now=float(number))
    send(connection, b, take(connection, b), "b")
    send(connection, a, turns[2], "b", now=9.0, edit=True)
    save_draft(connection, a, turns[3].lease_id, 1.0, {}, 100.0, 10.0)
    found = history(connection, a)
    assert [row["lease"] for row in found] == [turn.lease_id for turn in (turns[3], turns[2], turns[1])]
    assert [row["revision"] for row in found] == [1, 2, 1]
    assert [row["at"] for row in found] == [3.0, 2.0, 1.0]
    assert [row["prompt"] for row in found] == ["prompt of set-1", "prompt of set-0", f"prompt of {'x' * 100}"]
    assert found[1]["ranks"] == [2 if text == "a" else 1 for text in turns[2].responses]
    assert found[1]["both_bad"] is False
    assert [row["lease"] for row in history(connection, a, 1)] == [turns[3].lease_id]


def test_progress(connection: Connection) -> None:
    load(connection, 2, "practice", "practice")
    load(connection, 3, overlap=2)
    load(connection, 2, "closed")
    load(connection, 1, "gold", "gold")
    connection.execute(update(sets).where(sets.c.name == "closed").values(is_closed=True))
    a, b, c = add_people(connection, 3)
    empty = {"done": 0, "today": 0, "left": 3, "practice_left": 2, "pace_seconds": None}
    assert progress(connection, a, 0.0) == empty
    for number, seconds in enumerate((50.0, 60.0, 4.0, 9.0)):
        turn = take(connection, a, float(number))
        submit(connection, a, turn.lease_id, f"s{number}", prefer(turn), FORM, seconds, float(number))
    # Of tasks only: two practice tasks, then 4 and 9 seconds; set-2 is left.
    assert progress(connection, a, 3.0) == {
        "done": 2,
        "today": 1,
        "left": 1,
        "practice_left": 0,
        "pace_seconds": 6.5,
    }
    take(connection, a, 5.0)
    return_expired(connection, 105.0)
    assert progress(connection, a, 0.0)["left"] == 1  # it ran out, and is theirs to come back to
    take(connection, a, 105.0)
    assert progress(connection, a, 9.0) | {"pace_seconds": 0} == {
        "done": 2,
        "today": 0,
        "left": 1,  # the one in hand
        "practice_left": 0,
        "pace_seconds": 0,
    }
    for person in (b, c):
        for _ in range(2):
            send(connection, person, take(connection, person))
    assert progress(connection, b, 0.0)["left"] == 3
    for person in (b, c):
        for _ in range(2):
            turn = next_turn(connection, person, RULES, 6.0)
            if turn is not None:
                send(connection, person, turn)
    # b filled the first two, c the last: nothing is left but what a has in hand.
    assert [progress(connection, person, 0.0)["left"] for person in (a, b, c)] == [1, 0, 0]
    check_store(connection)
