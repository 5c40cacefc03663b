"""Accounts, invitations, passwords, pausing; leaving out answers against a model in plain Python."""

import threading
import unicodedata
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, StaticPool, create_engine, select

from labeling_app import passwords as module
from labeling_app.answer import Refused
from labeling_app.form import Form
from labeling_app.handout import Rules, next_turn, return_expired
from labeling_app.loading import SetRules, load_tasks
from labeling_app.passwords import check_password, hash_password, needs_rehash, verify_password
from labeling_app.people import (
    accept_invitation,
    add_person,
    check_name,
    find,
    for_command_line,
    invite,
    list_people,
    name_key,
    open_invitation,
    person_by_id,
    person_by_name,
    rehash,
    set_password,
    tidy_name,
)
from labeling_app.sets import close_set
from labeling_app.standing import Moved, leave_out, pause, put_back, resume
from labeling_app.store import Store
from labeling_app.store.schema import answers, invitations, leases, log, metadata, people, sets, tasks
from labeling_app.submit import submit
from rlhf.errors import UserError
from rlhf.records import Prompt, Response, Task

NOW = 1_800_000_000.0
DAY = 86_400.0
RULES = Rules(lease_seconds=1000.0)
FORM = Form(strength=False)


@pytest.fixture
def in_memory() -> Iterator[Connection]:
    """Tables in memory, for properties of very many examples; each rolls back what it did."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    metadata.create_all(engine)
    with engine.connect() as connection:
        yield connection


def logged(connection: Connection) -> list[tuple[int | None, str, dict[str, Any]]]:
    rows = connection.execute(select(log).order_by(log.c.id)).all()
    return [(row.person_id, row.action, row.body) for row in rows]


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(Refused) as error:
        call()
    return str(error.value)


# Names ------------------------------------------------------------------------------------------

GOOD_NAMES = ["Ann", "Zoë", "李小龙", "محمد علي", "नेहा", "O'Brien", "<b>x</b>", "${7*7}", "{{ 7*7 }}", "x" * 64, "007"]
BAD_NAMES = {
    "": "A name has 1 to 64 characters, this one has 0.",
    "x" * 65: "A name has 1 to 64 characters, this one has 65.",
    " Ann": "The name begins or ends with a space. Leave it out.",
    "Ann ": "The name begins or ends with a space. Leave it out.",
    "   ": "The name begins or ends with a space. Leave it out.",
    "A\x00nn": "The name holds a character that cannot be seen (U+0000). Leave it out.",
    "A\nnn": "The name holds a character that cannot be seen (U+000A). Leave it out.",
    "A\x7fnn": "The name holds a character that cannot be seen (U+007F). Leave it out.",
    "Ann\u00a0Lee": "The name holds a character that cannot be seen (U+00A0). Leave it out.",
    "A\u200bnn": "The name holds a character that cannot be seen (U+200B). Leave it out.",
    "A\u200dnn": "The name holds a character that cannot be seen (U+200D). Leave it out.",
    "\ufeffAnn": "The name holds a character that cannot be seen (U+FEFF). Leave it out.",
    "\u202eAnn": "The name holds a character that cannot be seen (U+202E). Leave it out.",
    "\u2066Ann": "The name holds a character that cannot be seen (U+2066). Leave it out.",
    "Ann\u3164": "The name holds a character that cannot be seen (U+3164). Leave it out.",
    "Ann\ufe0f": "The name holds a character that cannot be seen (U+FE0F). Leave it out.",
    "A\u034fnn": "The name holds a character that cannot be seen (U+034F). Leave it out.",
    "\u2800": "The name holds a character that cannot be seen (U+2800). Leave it out.",
    "\U000e0041nn": "The name holds a character that cannot be seen (U+E0041). Leave it out.",
    "A\ud800": "The name holds a character that cannot be seen (U+D800). Leave it out.",
    "A\ue000": "The name holds a character that cannot be seen (U+E000). Leave it out.",
    "Zoe\u0308": "The name is not in Unicode's form NFC. Type it anew.",
    "\u0301Ann": "A name needs a letter or a digit, and cannot begin with an accent alone.",
    "!?": "A name needs a letter or a digit, and cannot begin with an accent alone.",
}


def test_names_are_kept_as_they_are(store: Store) -> None:
    for number, name in enumerate(GOOD_NAMES, 1):
        assert store.write(lambda connection, name=name: add_person(connection, name, "annotator", None, NOW)) == number
        person = store.read(lambda connection, number=number: person_by_id(connection, number))
        assert person is not None and person.name == name
        assert store.read(lambda connection, name=name: person_by_name(connection, name)) == person


@pytest.mark.parametrize(("name", "sentence"), BAD_NAMES.items())
def test_names_that_could_deceive_are_refused(connection: Connection, name: str, sentence: str) -> None:
    assert refused(lambda: add_person(connection, name, "annotator", None, NOW)) == sentence
    assert connection.execute(select(people)).first() is None
    with pytest.raises(UserError) as error, for_command_line("--name"):
        check_name(name)
    assert str(error.value) == f"--name: {sentence}"


def test_names_of_a_browser_are_tidied_before_the_check() -> None:
    assert tidy_name("  Zoe\u0308 \t") == "Zo\u00eb"
    check_name(tidy_name("  Zoe\u0308 \t"))


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("Ann", "aNN"),
        ("Straße", "STRASSE"),
        ("Finn", "ﬁnn"),
        ("Ann Lee", "ann  lee"),
        ("Ω", "\u03c9"),
        ("Σίσυφος", "ΣΊΣΥΦΟΣ"),
        ("\uff21\uff22\uff23", "abc"),
    ],
)
def test_names_that_read_alike_are_the_same(connection: Connection, name: str, same: str) -> None:
    person_id = add_person(connection, name, "annotator", None, NOW)
    row = find(connection, same)
    assert row is not None and row.id == person_id
    again = refused(lambda: add_person(connection, same, "annotator", None, NOW))
    assert again == f"The name {name} is taken. Please choose another one."
    assert find(connection, name + "x") is None


def test_what_can_be_nobodys_name_is_not_found(store: Store) -> None:
    store.write(lambda connection: add_person(connection, "Ann", "annotator", None, NOW))
    for name in ("", "Ann\x00", "Ann\ud800", "\x00", "x" * 100_000, "%", "Ann' OR '1'='1"):
        assert store.read(lambda connection, name=name: find(connection, name)) is None


@given(st.text(min_size=1, max_size=70))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_text_is_refused_or_kept_and_found(in_memory: Connection, name: str) -> None:
    connection = in_memory
    with connection.begin_nested() as nested:
        try:
            person_id = add_person(connection, name, "annotator", None, NOW)
        except Refused:
            assert name not in GOOD_NAMES
        else:
            assert name == unicodedata.normalize("NFC", name).strip() and name.isprintable() and len(name) <= 64
            person = person_by_id(connection, person_id)
            assert person is not None and person.name == name
            for other in (name, name.upper(), name.lower(), name.swapcase(), unicodedata.normalize("NFD", name)):
                if other.casefold() == name.casefold() and other.isprintable():
                    row = find(connection, other)
                    assert row is not None and row.id == person_id
        nested.rollback()


@given(st.text(max_size=20))
def test_name_keys_are_stable(name: str) -> None:
    assert name_key(name_key(name)) == name_key(name)


# Accounts ---------------------------------------------------------------------------------------


def test_adding_is_logged_and_roles_are_two(connection: Connection) -> None:
    lea = add_person(connection, "Lea", "admin", "hash", NOW)
    ann = add_person(connection, "Ann", "annotator", None, NOW, by=lea)
    assert logged(connection) == [
        (None, "add_person", {"person": lea, "name": "Lea", "role": "admin"}),
        (lea, "add_person", {"person": ann, "name": "Ann", "role": "annotator"}),
    ]
    sentence = refused(lambda: add_person(connection, "Bob", "root", None, NOW))
    assert sentence == "The role 'root' is unknown; it is annotator or admin."


def test_a_new_password_ends_sessions_and_leaves_no_hash_in_the_log(connection: Connection) -> None:
    ann = add_person(connection, "Ann", "annotator", "old", NOW)
    assert set_password(connection, ann, "new", NOW, by=ann) == 1
    assert set_password(connection, ann, "newer", NOW, by=ann) == 2
    row = connection.execute(select(people)).one()
    assert (row.password_hash, row.epoch) == ("newer", 2)
    assert logged(connection)[-1] == (ann, "set_password", {"person": ann})
    assert refused(lambda: set_password(connection, ann + 1, "x", NOW)) == "There is no such person."


def test_a_rehash_ends_no_session_and_undoes_no_change(connection: Connection) -> None:
    ann = add_person(connection, "Ann", "annotator", "old", NOW)
    rehash(connection, ann, "old", "better")
    assert connection.execute(select(people.c.password_hash, people.c.epoch)).one() == ("better", 0)
    rehash(connection, ann, "old", "late")  # the password was changed between
    assert connection.execute(select(people.c.password_hash)).scalar_one() == "better"


def test_the_list_of_people_counts_answers_by_kind(store: Store) -> None:
    def job(connection: Connection) -> list[dict[str, Any]]:
        bob = add_person(connection, "Bob", "annotator", "hash", NOW)
        ann = add_person(connection, "Ann", "admin", None, NOW + 1)
        load(connection, 3)
        for number in range(3):
            vote(connection, bob, 1, NOW + 10 + number)
        connection.execute(answers.update().where(answers.c.at == NOW + 11).values(kind="surplus"))
        pause(connection, bob, "a holiday", None, NOW)
        assert ann
        return list_people(connection)

    ann, bob = store.write(job)
    assert ann == {
        "id": 2,
        "name": "Ann",
        "role": "admin",
        "paused": None,
        "left_out": None,
        "can_log_in": False,
        "created_at": NOW + 1,
        "last_at": None,
        "answers": {},
    }
    assert bob | {"answers": {"task": 2, "surplus": 1}, "last_at": NOW + 12, "paused": "a holiday"} == bob


# Passwords --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("password", "start"),
    [
        ("", "A password has 8 to 1,000 characters"),
        ("seven77", "A password has 8 to 1,000 characters"),
        ("x" * 1001, "A password has 8 to 1,000 characters"),
        ("Annabelle", "The password is your name."),
        ("ANNABELLE", "The password is your name."),
        ("annabelle2026", "The password is your name."),
        ("Password1", "This password is among those that are tried first."),
        ("qwertyuiop", "This password is among those that are tried first."),
        ("aaaaaaaa", "This password is among those that are tried first."),
        ("        ", "This password is among those that are tried first."),
        ("abcdefghij", "This password is among those that are tried first."),
        ("987654321", "This password is among those that are tried first."),
    ],
)
def test_passwords_that_would_be_guessed_are_refused(password: str, start: str) -> None:
    assert refused(lambda: check_password(password, "Annabelle")).startswith(start)


@pytest.mark.parametrize(
    "password", ["eightchr", "tin can ear", "x" * 999 + "y", "пароль-мой", "🐟🐠🐡🦈🐬🐳🐋🦑", "abcdefgi"]
)
def test_length_is_all_that_is_asked_of_a_password(password: str) -> None:
    check_password(password, "Annabelle")


def test_hashes_are_argon2id_and_hold_what_they_are_for() -> None:
    made = hash_password("tin can ear")
    assert made.startswith("$argon2id$v=19$m=12288,t=6,p=1$")
    assert made != hash_password("tin can ear")  # a salt of its own
    assert verify_password(made, "tin can ear")
    assert not verify_password(made, "tin can eat")
    assert not needs_rehash(made)


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Argon2 with the least that it takes."""
    from argon2 import PasswordHasher
    from argon2.profiles import CHEAPEST

    made = PasswordHasher.from_parameters(CHEAPEST)
    monkeypatch.setattr(module, "hasher", lambda: made)


@pytest.mark.usefixtures("cheap")
def test_passwords_of_other_keyboards_and_odd_characters() -> None:
    assert verify_password(hash_password("Zoe\u0308 \uff21\uff22"), "Zo\u00eb AB")  # NFKC
    for odd in ("\ud800 lone", "null\x00byte", "null\x00other"):
        made = hash_password(odd)
        assert verify_password(made, odd)
        assert not verify_password(made, "null\x00")


def test_hashes_of_other_parameters_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from argon2 import PasswordHasher
    from argon2.profiles import CHEAPEST

    old = PasswordHasher.from_parameters(CHEAPEST).hash("tin can ear")
    assert needs_rehash(old)
    assert verify_password(old, "tin can ear")  # still good


def test_hashes_are_made_one_at_a_time_whoever_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight threads, each of which would meet another inside if it could."""

    class Fake:
        def __init__(self) -> None:
            self.meeting = threading.Barrier(2)

        def hash(self, _: bytes) -> str:
            with pytest.raises(threading.BrokenBarrierError):
                self.meeting.wait(timeout=0.05)
            self.meeting.reset()
            return "hash"

        def verify(self, _: str, password: bytes) -> bool:
            return self.hash(password) == "hash"

    fake = Fake()
    monkeypatch.setattr(module, "hasher", lambda: fake)
    with ThreadPoolExecutor(8) as pool:
        made = [pool.submit(hash_password, "x") for _ in range(4)]
        verified = [pool.submit(verify_password, "x", "x") for _ in range(4)]
        assert [job.result() for job in made + verified] == ["hash"] * 4 + [True] * 4


def test_nobodys_password_costs_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is verified for an unknown name is a hash of the same cost, and never right."""
    import argon2

    seen: list[str | bytes] = []
    real = argon2.PasswordHasher.verify

    def verify(self: argon2.PasswordHasher, hash: str | bytes, password: str | bytes) -> bool:
        seen.append(hash)
        return real(self, hash, password)

    monkeypatch.setattr(argon2.PasswordHasher, "verify", verify)
    assert not verify_password(None, "tin can ear")
    (dummy,) = seen
    assert argon2.extract_parameters(str(dummy)) == argon2.extract_parameters(hash_password("x"))
    assert not verify_password("no hash", "x")


# Invitations ------------------------------------------------------------------------------------


def test_an_invitation_is_used_once_and_its_secret_is_nowhere(store: Store) -> None:
    lea = store.write(lambda connection: add_person(connection, "Lea", "admin", "hash", NOW))
    secret = store.write(lambda connection: invite(connection, "annotator", lea, NOW, days=2))
    assert len(secret) == 43  # 32 bytes in base64
    assert store.read(lambda connection: open_invitation(connection, secret, NOW)) == "annotator"
    ann = store.write(lambda connection: accept_invitation(connection, secret, "Ann", "hash", NOW + 2 * DAY - 1))

    def stored(connection: Connection) -> tuple[str, list[Any], list[Any]]:
        everything = str([connection.execute(select(table)).all() for table in (invitations, log, people)])
        return everything, logged(connection), list_people(connection)

    everything, entries, (person, _) = store.read(stored)
    assert secret not in everything
    assert (person["id"], person["name"], person["role"], person["can_log_in"]) == (ann, "Ann", "annotator", True)
    assert [(by, action) for by, action, _ in entries[1:]] == [(lea, "invite"), (None, "add_person"), (ann, "join")]
    assert entries[1][2]["invitation"] == entries[3][2]["invitation"]
    again = refused(lambda: store.write(lambda connection: accept_invitation(connection, secret, "Bob", "h", NOW)))
    assert again == "This invitation has been used. Please log in, or ask for another one."


def test_invitations_that_do_not_hold(connection: Connection) -> None:
    lea = add_person(connection, "Lea", "admin", "hash", NOW)
    leo = add_person(connection, "Leo", "admin", "hash", NOW)
    secret = invite(connection, "admin", leo, NOW, days=1)
    late = "This invitation has expired. Please ask for another one."
    assert refused(lambda: accept_invitation(connection, secret, "Ann", "hash", NOW + DAY)) == late
    unknown = "There is no such invitation. Please check that the link is whole."
    for wrong in (secret[:-1], "", "é\ud800\x00"):
        assert refused(lambda wrong=wrong: open_invitation(connection, wrong, NOW)) == unknown
    pause(connection, leo, "has left", lea, NOW + 10)  # who is shut out does not come back by another door
    assert refused(lambda: open_invitation(connection, secret, NOW + 11)) == late
    assert refused(lambda: invite(connection, "root", lea, NOW)).startswith("The role 'root' is unknown")
    for days in (0, -1, 366, float("nan")):
        sentence = refused(lambda days=days: invite(connection, "annotator", lea, NOW, days))
        assert sentence == "An invitation is good for up to 365 days."


def test_a_refused_name_leaves_the_invitation_open(store: Store) -> None:
    secret = store.write(lambda connection: invite(connection, "annotator", None, NOW))
    refused(lambda: store.write(lambda connection: accept_invitation(connection, secret, "\u202e", "hash", NOW)))
    assert store.write(lambda connection: accept_invitation(connection, secret, "Ann", "hash", NOW))


def test_of_many_who_race_for_an_invitation_one_gets_it(store: Store) -> None:
    secret = store.write(lambda connection: invite(connection, "annotator", None, NOW))
    other = Store(store.url.render_as_string(hide_password=False))

    def race(number: int) -> int | None:
        where = (store, other)[number % 2]
        try:
            return where.write(lambda connection: accept_invitation(connection, secret, f"P{number}", "hash", NOW))
        except Refused:
            return None

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(race, range(16)))
    other.close()
    (winner,) = [outcome for outcome in outcomes if outcome is not None]
    assert [row["id"] for row in store.read(list_people)] == [winner]


# Pausing ----------------------------------------------------------------------------------------


def test_pausing_gives_back_what_is_in_hand_and_resuming_hands_it_out_again(connection: Connection) -> None:
    lea, ann = (add_person(connection, name, "annotator", "hash", NOW) for name in ("Lea", "Ann"))
    load(connection, 1)
    turn = next_turn(connection, ann, RULES, NOW)
    assert turn is not None and next_turn(connection, lea, RULES, NOW) is None
    pause(connection, ann, "a holiday", lea, NOW)
    assert connection.execute(select(tasks.c.num_held, tasks.c.is_free)).one() == (0, True)
    assert connection.execute(select(people.c.paused).where(people.c.id == ann)).scalar_one() == "a holiday"
    resume(connection, ann, lea, NOW + 1)
    back = next_turn(connection, ann, RULES, NOW + 2)
    assert back is not None and back.lease_id == turn.lease_id
    assert logged(connection)[-2:] == [
        (lea, "pause", {"person": ann, "reason": "a holiday"}),
        (lea, "resume", {"person": ann}),
    ]
    assert refused(lambda: resume(connection, ann, lea, NOW)) == "Ann is not paused."


def test_the_last_admin_cannot_be_paused(connection: Connection) -> None:
    lea = add_person(connection, "Lea", "admin", "hash", NOW)
    sentence = "Lea is the only admin who can log in. Make another one first."
    assert refused(lambda: pause(connection, lea, "why", lea, NOW)) == sentence
    add_person(connection, "Robot", "admin", None, NOW)  # cannot log in
    add_person(connection, "Ann", "annotator", "hash", NOW)
    assert refused(lambda: pause(connection, lea, "why", lea, NOW)) == sentence
    leo = add_person(connection, "Leo", "admin", "hash", NOW)
    pause(connection, leo, "why", lea, NOW)
    assert refused(lambda: pause(connection, lea, "why", lea, NOW)) == sentence
    resume(connection, leo, lea, NOW)
    pause(connection, lea, "why", leo, NOW)


@pytest.mark.parametrize("reason", ["", "  ", "x" * 2001])
def test_pausing_and_leaving_out_need_a_reason(connection: Connection, reason: str) -> None:
    ann = add_person(connection, "Ann", "annotator", "hash", NOW)
    for change in (pause, leave_out):
        sentence = refused(lambda change=change: change(connection, ann, reason, None, NOW))
        assert sentence == "Please say why, in up to 2,000 characters."


# Leaving out, putting back ----------------------------------------------------------------------


def load(connection: Connection, num: int, overlap: int = 1, extra_vote: bool = False) -> None:
    rows = [
        Task(
            f"t{n}",
            Prompt(f"p{n}", [{"role": "user", "content": "?"}]),
            [Response(f"{n}{x}", f"p{n}", x, "run") for x in "ab"],
        )
        for n in range(num)
    ]
    load_tasks(connection, "set", rows, "task", SetRules(overlap, extra_vote), NOW)


def sent(connection: Connection, lease_id: str, verdict: int) -> dict[str, Any]:
    """What a browser sends for a verdict: 1 the response a, -1 b, 0 a tie."""
    shown = connection.execute(select(leases.c.shown).where(leases.c.id == lease_id)).scalar_one()
    ranks = {"a": 2 if verdict < 0 else 1, "b": 2 if verdict > 0 else 1}
    return {"ranks": [ranks[id[-1]] for id in shown]}


def give(connection: Connection, person_id: int, lease_id: str, verdict: int, now: float) -> str:
    answer = sent(connection, lease_id, verdict)
    return submit(connection, person_id, lease_id, f"{lease_id}/{now}", answer, FORM, 5.0, now).kind


def vote(connection: Connection, person_id: int, verdict: int, now: float) -> str | None:
    turn = next_turn(connection, person_id, RULES, now)
    return None if turn is None else give(connection, person_id, turn.lease_id, verdict, now)


def standing(connection: Connection) -> list[tuple[int, int, bool]]:
    """Of each task: answers that count, answers needed, whether it is free."""
    rows = connection.execute(select(tasks.c.num_done, tasks.c.num_needed, tasks.c.is_free).order_by(tasks.c.id))
    return [tuple(row) for row in rows]


def kinds(connection: Connection, person_id: int) -> list[str]:
    rows = connection.execute(
        select(answers.c.kind).where(answers.c.person_id == person_id).order_by(answers.c.task_id)
    )
    return list(rows.scalars())


def team(connection: Connection, names: str = "ABCD") -> list[int]:
    return [add_person(connection, name, "annotator", "hash", NOW) for name in names]


def test_leaving_out_frees_places_and_putting_back_takes_those_that_are_left(store: Store) -> None:
    def job(connection: Connection) -> None:
        a, b, _, lead = team(connection)
        load(connection, 3)
        for number in range(3):
            assert vote(connection, a, 1, NOW + number) == "task"
        assert vote(connection, b, 1, NOW) is None  # all are taken
        assert leave_out(connection, a, "clicks at random", lead, NOW + 9) == Moved(num_left_out=3)
        assert standing(connection) == [(0, 1, True)] * 3
        assert kinds(connection, a) == ["task"] * 3  # nothing of theirs is touched
        assert vote(connection, b, -1, NOW + 10) == "task"
        assert put_back(connection, a, lead, NOW + 11) == Moved(num_counted=2, num_surplus=1)
        assert kinds(connection, a) == ["surplus", "task", "task"]
        assert standing(connection) == [(1, 1, False)] * 3
        ids = list(
            connection.execute(
                select(answers.c.lease_id).where(answers.c.person_id == a).order_by(answers.c.at)
            ).scalars()
        )
        (out, back) = [entry for entry in logged(connection) if entry[1] in ("leave_out", "put_back")]
        assert out == (lead, "leave_out", {"person": a, "reason": "clicks at random", "num_left_out": 3, "counted": []})
        assert back == (lead, "put_back", {"person": a, "counted": ids[1:], "surplus": ids[:1]})
        sentence = refused(lambda: put_back(connection, a, lead, NOW))
        assert sentence == "A's answers are not left out."

    store.write(job)


def test_a_freed_place_goes_to_the_answer_that_waits_for_it(connection: Connection) -> None:
    """Two people, one place: whoever is left out, the other's answer counts, and no task is stuck."""
    a, b = team(connection, "AB")
    load(connection, 1)
    vote(connection, a, 1, NOW)
    leave_out(connection, a, "why", None, NOW + 1)
    vote(connection, b, -1, NOW + 2)
    put_back(connection, a, None, NOW + 3)
    assert (kinds(connection, a), kinds(connection, b)) == (["surplus"], ["task"])
    assert leave_out(connection, b, "why", None, NOW + 4) == Moved(num_counted=1, num_left_out=1)
    assert (kinds(connection, a), kinds(connection, b)) == (["task"], ["task"])
    assert standing(connection) == [(1, 1, False)]
    leave_out(connection, a, "why", None, NOW + 5)
    assert standing(connection) == [(0, 1, True)]


def test_of_answers_that_wait_the_earliest_moves_up(connection: Connection) -> None:
    a, b, c = team(connection, "ABC")
    load(connection, 1)
    for number, person in enumerate((a, b)):
        vote(connection, person, 1, NOW + number)
        leave_out(connection, person, "why", None, NOW + number)
    vote(connection, c, 1, NOW + 2)
    for person in (b, a):
        assert put_back(connection, person, None, NOW + 3) == Moved(num_surplus=1)
    assert leave_out(connection, c, "why", None, NOW + 4) == Moved(num_counted=1, num_left_out=1)
    assert [kinds(connection, person) for person in (a, b, c)] == [["task"], ["surplus"], ["task"]]


def test_what_is_left_out_itself_does_not_move_up(connection: Connection) -> None:
    a, b = team(connection, "AB")
    load(connection, 1)
    vote(connection, a, 1, NOW)
    leave_out(connection, a, "why", None, NOW + 1)
    vote(connection, b, -1, NOW + 2)
    put_back(connection, a, None, NOW + 3)
    leave_out(connection, a, "why", None, NOW + 4)
    assert leave_out(connection, b, "why", None, NOW + 5) == Moved(num_left_out=1)
    assert (kinds(connection, a), standing(connection)) == (["surplus"], [(0, 1, True)])
    assert put_back(connection, a, None, NOW + 6) == Moved(num_counted=1)  # the place has become free meanwhile
    assert put_back(connection, b, None, NOW + 7) == Moved(num_surplus=1)


def test_a_place_that_somebody_works_on_is_not_taken_from_them(connection: Connection) -> None:
    a, b = team(connection, "AB")
    load(connection, 1)
    vote(connection, a, 1, NOW)
    leave_out(connection, a, "why", None, NOW + 1)
    turn = next_turn(connection, b, RULES, NOW + 2)
    assert turn is not None
    assert put_back(connection, a, None, NOW + 3) == Moved(num_surplus=1)
    assert give(connection, b, turn.lease_id, -1, NOW + 4) == "task"
    assert standing(connection) == [(1, 1, False)]


def test_an_extra_vote_is_not_asked_for_those_who_are_left_out(connection: Connection) -> None:
    a, b, c, d = team(connection)
    load(connection, 1, overlap=2, extra_vote=True)
    vote(connection, a, 1, NOW)
    vote(connection, b, -1, NOW + 1)
    assert standing(connection) == [(2, 3, True)]
    leave_out(connection, b, "why", None, NOW + 2)
    assert standing(connection) == [(1, 2, True)]
    vote(connection, c, 1, NOW + 3)
    assert standing(connection) == [(2, 2, False)]  # a and c agree
    # b disagrees with them, as a third vote may.
    assert put_back(connection, b, None, NOW + 4) == Moved(num_counted=1)
    assert standing(connection) == [(3, 3, False)]
    leave_out(connection, c, "why", None, NOW + 5)
    assert standing(connection) == [(2, 3, True)]
    assert vote(connection, d, 1, NOW + 6) == "task"
    assert standing(connection) == [(3, 3, False)]
    # c agrees with a and d, not with b; but the extra place is taken.
    assert put_back(connection, c, None, NOW + 7) == Moved(num_surplus=1)


def test_putting_back_works_on_a_closed_set_too(connection: Connection) -> None:
    a, lead = team(connection, "AB")
    load(connection, 2)
    vote(connection, a, 1, NOW)
    vote(connection, a, 1, NOW + 1)
    close_set(connection, connection.execute(select(sets.c.id)).scalar_one(), lead, NOW)
    leave_out(connection, a, "why", lead, NOW + 2)
    assert [done for done, _, _ in standing(connection)] == [0, 0]
    assert put_back(connection, a, lead, NOW + 3) == Moved(num_counted=2)
    assert kinds(connection, a) == ["task"] * 2


def test_leaving_out_twice_changes_the_reason_only(connection: Connection) -> None:
    a, lead = team(connection, "AB")
    load(connection, 1)
    vote(connection, a, 1, NOW)
    leave_out(connection, a, "a first look", lead, NOW)
    assert leave_out(connection, a, "clicks at random", lead, NOW) == Moved()
    assert standing(connection) == [(0, 1, True)]
    assert connection.execute(select(people.c.left_out).where(people.c.id == a)).scalar_one() == "clicks at random"


def test_leaving_out_gives_back_what_is_in_hand(connection: Connection) -> None:
    a, _ = team(connection, "AB")
    load(connection, 1)
    assert next_turn(connection, a, RULES, NOW) is not None
    leave_out(connection, a, "why", None, NOW)
    assert connection.execute(select(tasks.c.num_held, tasks.c.is_free)).one() == (0, True)


@dataclass
class Ballot:
    """One answer in the model."""

    person: int
    verdict: int
    at: float
    is_surplus: bool = False


@dataclass
class Model:
    """What should be, told from sets of ballots: places are counted anew each time, nothing is added up."""

    overlap: int
    extra_vote: bool
    ballots: dict[int, list[Ballot]] = field(default_factory=dict)
    needed: dict[int, int] = field(default_factory=dict)
    held: dict[int, set[int]] = field(default_factory=dict)
    out: set[int] = field(default_factory=set)

    def counting(self, task: int) -> list[Ballot]:
        return [ballot for ballot in self.ballots[task] if not ballot.is_surplus and ballot.person not in self.out]

    def settle(self, task: int, candidate: Ballot | None = None) -> None:
        """How many are needed, given those that count and one that asks to."""
        if not self.extra_vote:
            return
        done = self.counting(task)
        verdicts = {ballot.verdict for ballot in (*done, *([candidate] if candidate else []))}
        wanted = self.overlap + (len(done) >= self.overlap and len(verdicts) > 1)
        self.needed[task] = max(wanted, len(done) + len(self.held[task]))

    def has_room(self, task: int) -> bool:
        return len(self.counting(task)) + len(self.held[task]) < self.needed[task]

    def answer(self, task: int, ballot: Ballot) -> str:
        had_it_in_hand = ballot.person in self.held[task]
        self.held[task].discard(ballot.person)
        ballot.is_surplus = not (had_it_in_hand or self.has_room(task))
        self.ballots[task].append(ballot)
        if not ballot.is_surplus:
            self.settle(task)
        return "surplus" if ballot.is_surplus else "task"

    def give_back(self, persons: set[int]) -> None:
        for task, holders in self.held.items():
            if holders & persons:
                holders -= persons
                self.settle(task)

    def leave_out(self, person: int) -> None:
        self.out.add(person)
        self.give_back({person})
        for task, ballots in self.ballots.items():
            if any(ballot.person == person and not ballot.is_surplus for ballot in ballots):
                self.settle(task)
                for ballot in sorted(ballots, key=lambda ballot: ballot.at):
                    if ballot.is_surplus and ballot.person not in self.out and self.has_room(task):
                        ballot.is_surplus = False
                        self.settle(task)

    def put_back(self, person: int) -> None:
        theirs = [(task, b) for task, ballots in self.ballots.items() for b in ballots if b.person == person]
        for task, ballot in theirs:
            if not ballot.is_surplus:
                self.settle(task, ballot)
            fits = self.has_room(task)
            ballot.is_surplus = not fits
        self.out.discard(person)
        for task, ballot in theirs:
            if not ballot.is_surplus:
                self.settle(task)


PEOPLE, TASKS = 4, 3
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["take", "answer", "answer", "answer", "late", "expire", "leave_out", "put_back"]),
        st.integers(0, PEOPLE - 1),
        st.sampled_from([-1, 0, 1]),
    ),
    max_size=40,
)


def check(connection: Connection, model: Model, ids: list[int], num_answered: int) -> None:
    """The store's numbers are the model's, and what must always hold does."""
    for row in connection.execute(select(tasks)):
        done = len(model.counting(row.id))
        assert (row.num_done, row.num_needed, row.num_held) == (done, model.needed[row.id], len(model.held[row.id]))
        assert row.is_free == (done + row.num_held < row.num_needed)
        assert row.num_done + row.num_held <= row.num_needed <= model.overlap + model.extra_vote
    rows = connection.execute(select(answers)).all()
    assert len(rows) == num_answered  # nothing is ever deleted
    stored = {(row.task_id, row.person_id): row.kind == "surplus" for row in rows}
    assert stored == {
        (task, ids[ballot.person]): ballot.is_surplus for task, ballots in model.ballots.items() for ballot in ballots
    }


@given(steps=STEPS, overlap=st.integers(1, 3), extra_vote=st.booleans())
@example([("answer", 0, 1), ("answer", 1, -1), ("leave_out", 1, 0), ("answer", 2, 1), ("put_back", 1, 0)], 2, True)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_the_store_does_what_the_model_does(
    in_memory: Connection, steps: list[tuple[str, int, int]], overlap: int, extra_vote: bool
) -> None:
    connection = in_memory
    with connection.begin_nested() as nested:
        ids = team(connection)
        load(connection, TASKS, overlap, extra_vote)
        model = Model(overlap, extra_vote)
        for task_id in connection.execute(select(tasks.c.id)).scalars():
            model.ballots[task_id], model.needed[task_id], model.held[task_id] = [], overlap, set()
        now, num_answered = NOW, 0
        for step, person, verdict in steps:
            now += 1
            num_answered += take_step(connection, model, ids, step, person, verdict, now)
            now += 2 * RULES.lease_seconds * (step == "expire")
            check(connection, model, ids, num_answered)
        nested.rollback()


def take_step(
    connection: Connection, model: Model, ids: list[int], step: str, person: int, verdict: int, now: float
) -> int:
    """Do the same in the store and in the model; returns how many answers came in."""
    if step == "leave_out" and person not in model.out:
        leave_out(connection, ids[person], "why", None, now)
        model.leave_out(person)
    elif step == "put_back" and person in model.out:
        put_back(connection, ids[person], None, now)
        model.put_back(person)
    elif step == "expire":
        return_expired(connection, now + 2 * RULES.lease_seconds)
        model.give_back(set(range(PEOPLE)))
    elif step == "late" and person not in model.out:  # what was in hand before its time ran out
        theirs = select(leases).where(leases.c.person_id == ids[person], leases.c.state == "returned")
        lease = connection.execute(theirs.order_by(leases.c.issued_at)).first()
        if lease is not None:
            kind = give(connection, ids[person], lease.id, verdict, now)
            assert kind == model.answer(lease.task_id, Ballot(person, verdict, now))
            return 1
    elif step in ("take", "answer") and person not in model.out:  # the routes refuse who is left out
        turn = next_turn(connection, ids[person], RULES, now)
        if turn is None:
            return 0
        task_id = connection.execute(select(leases.c.task_id).where(leases.c.id == turn.lease_id)).scalar_one()
        assert person in model.held[task_id] or model.has_room(task_id)
        model.held[task_id].add(person)
        if step == "answer":
            kind = give(connection, ids[person], turn.lease_id, verdict, now)
            assert kind == model.answer(task_id, Ballot(person, verdict, now)) == "task"
            return 1
    return 0
