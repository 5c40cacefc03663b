"""Cookies and CSRF tokens: what a browser changes is worth nothing, and restarts end no session."""

import hashlib
import hmac
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from itsdangerous import URLSafeSerializer
from sqlalchemy import update
from starlette.requests import Request
from starlette.responses import Response

from labeling_app.people import add_person, person_of, set_password
from labeling_app.session import COOKIE, Session, Sessions, signing_key
from labeling_app.standing import leave_out, pause
from labeling_app.store import Store
from labeling_app.store.schema import people

NOW = 1_800_000_000.0
DAY = 86_400.0
SESSIONS = Sessions("key")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(str(tmp_path / "labels.db"))
    yield store
    store.close()


def request(scheme: str = "http", client: tuple[str, int] | None = ("10.0.0.1", 5), **headers: str) -> Request:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "scheme": scheme, "path": "/", "query_string": b"", "headers": pairs, "client": client}
    return Request(scope | {"server": ("testserver", 80)})


def test_a_cookie_comes_back_as_the_session_it_was() -> None:
    session = SESSIONS.start(7, 2, NOW)
    assert (session.person_id, session.epoch, session.issued) == (7, 2, 1_800_000_000)
    assert SESSIONS.read(SESSIONS.cookie(session), NOW) == session
    assert SESSIONS.start(7, 2, NOW).id != session.id


def test_a_session_lasts_fourteen_days() -> None:
    cookie = SESSIONS.cookie(SESSIONS.start(7, 0, NOW))
    assert SESSIONS.read(cookie, NOW + 14 * DAY) is not None
    assert SESSIONS.read(cookie, NOW + 14 * DAY + 1) is None
    assert SESSIONS.read(cookie, NOW - 300) is not None  # another process's clock
    assert SESSIONS.read(cookie, NOW - 301) is None


@given(position=st.integers(0, 98), character=st.sampled_from("aA0-_.~ \x00é"))
def test_no_character_of_a_cookie_can_be_changed(position: int, character: str) -> None:
    session = Session(7, 0, "0123456789abcdefghijkl", 1_800_000_000)
    cookie = SESSIONS.cookie(session)
    changed = cookie[:position] + character + cookie[position + 1 :]
    if changed == cookie:
        assert SESSIONS.read(changed, NOW) == session
    elif position < len(cookie) - 1:
        assert SESSIONS.read(changed, NOW) is None
    else:  # two bits of it are no part of the signature: at most the same cookie again
        assert SESSIONS.read(changed, NOW) in (None, session)


@given(st.one_of(st.none(), st.text(max_size=600)))
def test_what_is_no_cookie_of_ours_is_none(cookie: str | None) -> None:
    assert SESSIONS.read(cookie, NOW) is None


def test_cookies_signed_otherwise_are_none() -> None:
    values = [7, 0, "id", 1_800_000_000]

    def signed(key: str, salt: str, content: Any) -> str:
        options = {"key_derivation": "hmac", "digest_method": hashlib.sha256}
        return str(URLSafeSerializer(key, salt=salt, signer_kwargs=options).dumps(content))

    assert SESSIONS.read(signed("key", "rlhf.session", values), NOW) == Session(7, 0, "id", 1_800_000_000)
    assert SESSIONS.read(signed("another", "rlhf.session", values), NOW) is None
    assert SESSIONS.read(signed("key", "another", values), NOW) is None
    assert SESSIONS.read(str(URLSafeSerializer("key", salt="rlhf.session").dumps(values)), NOW) is None  # SHA-1
    assert SESSIONS.read(signed("key", "rlhf.session", values[:3]), NOW) is None  # an older version's
    assert SESSIONS.read(signed("key", "rlhf.session", 5), NOW) is None
    assert SESSIONS.read(SESSIONS.cookie(Session(7, 0, os.urandom(600).hex(), 1_800_000_000)), NOW) is None  # too long


def test_the_key_is_made_once_and_shared_by_processes(tmp_path: Path) -> None:
    stores = [Store(str(tmp_path / "labels.db")) for _ in range(2)]
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda number: stores[number % 2].write(signing_key), range(16)))
    for store in stores:
        store.close()
    assert len(set(keys)) == 1
    assert len(keys[0]) >= 43  # 32 bytes in base64
    again = Store(str(tmp_path / "labels.db"))
    assert again.write(signing_key) == keys[0]
    again.close()


def test_csrf_tokens_are_bound_to_their_session() -> None:
    mine, other = SESSIONS.start(7, 0, NOW), SESSIONS.start(7, 0, NOW)
    derived = hmac.new(b"key", b"rlhf.csrf", "sha256").digest()
    assert SESSIONS.csrf(mine) == hmac.new(derived, mine.id.encode(), "sha256").hexdigest()
    assert SESSIONS.check_csrf(SESSIONS.csrf(mine), mine)
    for wrong in (
        None,
        "",
        "x",
        "é",
        "\ud800",
        SESSIONS.csrf(other),
        SESSIONS.csrf(mine).upper(),
        SESSIONS.cookie(mine),
    ):
        assert not SESSIONS.check_csrf(wrong, mine)
    assert not Sessions("another").check_csrf(SESSIONS.csrf(mine), mine)


def test_a_renewed_session_keeps_its_csrf_token() -> None:
    session = SESSIONS.start(7, 0, NOW)
    young, old = Response(), Response()
    SESSIONS.renew(young, request(), session, NOW + DAY)
    SESSIONS.renew(old, request(), session, NOW + DAY + 1)
    assert "set-cookie" not in young.headers
    cookie = old.headers["set-cookie"].partition(f"{COOKIE}=")[2].partition(";")[0]
    renewed = SESSIONS.read(cookie, NOW + 15 * DAY)
    assert renewed is not None and renewed.issued == NOW + DAY + 1
    assert SESSIONS.csrf(renewed) == SESSIONS.csrf(session)


def test_cookie_flags() -> None:
    response = Response()
    SESSIONS.set_cookie(response, request(), SESSIONS.start(7, 0, NOW))
    flags = set(response.headers["set-cookie"].split("; ")[1:])
    assert flags == {"HttpOnly", "Max-Age=1209600", "Path=/", "SameSite=lax"}
    response = Response()
    SESSIONS.set_cookie(response, request("https"), SESSIONS.start(7, 0, NOW))
    assert set(response.headers["set-cookie"].split("; ")[1:]) == flags | {"Secure"}
    response = Response()
    SESSIONS.clear_cookie(response, request("https"))
    assert {"Max-Age=0", "Path=/", "HttpOnly", "Secure"} <= set(response.headers["set-cookie"].split("; "))


def test_https_and_address_behind_a_proxy_only_where_it_is_trusted() -> None:
    forwarded = request(x_forwarded_proto="http, https", x_forwarded_for="6.6.6.6, 192.0.2.7")
    assert not SESSIONS.is_https(forwarded)
    assert SESSIONS.address(forwarded) == "10.0.0.1"
    behind = Sessions("key", trust_proxy=True)
    assert behind.is_https(forwarded)
    assert behind.address(forwarded) == "192.0.2.7"  # the proxy's own word is the last one
    assert not behind.is_https(request(x_forwarded_proto="https, http"))
    assert behind.address(request()) == "10.0.0.1"


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("x" * 500, "x" * 64),
    ],
)
def test_addresses_are_counted_by_customer(host: str, address: str) -> None:
    assert SESSIONS.address(request(client=(host, 1))) == address


def test_a_socket_has_no_address() -> None:
    assert SESSIONS.address(request(client=None)) == "unknown"


def test_a_session_ends_with_its_epoch(store: Store) -> None:
    ann = store.write(lambda connection: add_person(connection, "Ann", "annotator", "hash", NOW))
    session = SESSIONS.start(ann, 0, NOW)
    person = store.read(lambda connection: person_of(connection, session))
    assert person is not None and (person.id, person.name, person.role, person.paused) == (
        ann,
        "Ann",
        "annotator",
        None,
    )
    epoch = store.write(lambda connection: set_password(connection, ann, "new", NOW))
    assert epoch == 1
    assert store.read(lambda connection: person_of(connection, session)) is None
    assert store.read(lambda connection: person_of(connection, SESSIONS.start(ann, epoch, NOW))) is not None
    assert store.read(lambda connection: person_of(connection, SESSIONS.start(ann + 1, 0, NOW))) is None


def test_the_person_of_a_session_says_who_may_work_and_who_may_lead(store: Store) -> None:
    def role(name: str, role: str) -> int:
        return store.write(lambda connection: add_person(connection, name, role, "hash", NOW))

    ann, eve, leads = role("Ann", "annotator"), role("Eve", "annotator"), [role("Lea", "admin"), role("Leo", "admin")]

    def may(person_id: int) -> tuple[str | None, bool]:
        person = store.read(lambda connection: person_of(connection, SESSIONS.start(person_id, 0, NOW)))
        assert person is not None
        return person.paused, person.may_lead

    assert may(ann) == (None, False)
    assert may(leads[0]) == (None, True)
    store.write(lambda connection: pause(connection, ann, "a holiday", leads[0], NOW))
    store.write(lambda connection: pause(connection, leads[1], "has left", leads[0], NOW))
    assert may(ann) == ("a holiday", False)
    assert may(leads[1]) == ("has left", False)
    store.write(lambda connection: leave_out(connection, eve, "clicks at random", leads[0], NOW))
    store.write(lambda connection: leave_out(connection, leads[0], "only tried it", leads[0], NOW))
    assert may(eve) == ("the project's lead is looking at your answers.", False)  # not the reason: it is not for them
    assert may(leads[0])[1]  # else nobody could put them back


def test_person_of_is_one_read_by_primary_key(store: Store) -> None:
    from sqlalchemy import event, text

    ann = store.write(lambda connection: add_person(connection, "Ann", "annotator", "hash", NOW))
    statements: list[str] = []

    def job(connection: Any) -> list[str]:
        event.listen(connection, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
        person_of(connection, SESSIONS.start(ann, 0, NOW))
        (asked,) = statements
        plan = connection.execute(text(f"EXPLAIN QUERY PLAN {asked}".replace("?", "1")))
        return [row[3] for row in plan]

    assert store.read(job) == ["SEARCH people USING INTEGER PRIMARY KEY (rowid=?)"]


def test_an_epoch_from_the_future_is_no_session(store: Store) -> None:
    """A restored backup: the cookie is newer than the database."""
    ann = store.write(lambda connection: add_person(connection, "Ann", "annotator", "hash", NOW))
    store.write(lambda connection: connection.execute(update(people).values(epoch=3)) and None)
    assert store.read(lambda connection: person_of(connection, SESSIONS.start(ann, 4, NOW))) is None
    assert store.read(lambda connection: person_of(connection, SESSIONS.start(ann, 3, NOW))) is not None
