"""Logging in, out and joining through the real routes on a real store; the clock is the test's."""

import asyncio
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from argon2 import PasswordHasher
from argon2.profiles import CHEAPEST
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, func, insert, select

from labeling_app import login, passwords, throttle
from labeling_app.login import current_person, local_path, login_router
from labeling_app.passwords import hash_password
from labeling_app.people import add_person, invite, person_by_name, set_password
from labeling_app.session import COOKIE, Sessions, signing_key
from labeling_app.standing import pause
from labeling_app.store import Store
from labeling_app.store.schema import attempts
from labeling_app.store.schema import people as people_table
from labeling_app.throttle import admit, count_failure, forgive

NOW = 1_800_000_000.0
PASSWORD = "tin can ear"
WRONG = "This name and password do not belong together."


class Door:
    """An app with the login pages only, and what tests do to it."""

    def __init__(self, store: Store, trust_proxy: bool = False) -> None:
        self.store, self.now = store, NOW
        self.sessions = Sessions(store.write(signing_key), trust_proxy)
        self.app = FastAPI()
        self.app.include_router(login_router(store, self.sessions, lambda: self.now))

    def request(
        self, method: str, path: str, address: str = "192.0.2.1", base: str = "http://app", **options: Any
    ) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, client=(address, 5))
            async with httpx.AsyncClient(transport=transport, base_url=base) as client:
                return await client.request(method, path, **options)

        return asyncio.run(send())

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def log_in(
        self, name: str = "Ann", password: str = PASSWORD, next: str = "/rank", **options: Any
    ) -> httpx.Response:
        return self.request("POST", "/login", data={"name": name, "password": password, "next": next}, **options)

    def join(self, secret: str, name: str = "Bob", password: str = PASSWORD, **options: Any) -> httpx.Response:
        return self.request("POST", f"/join/{secret}", data={"name": name, "password": password}, **options)

    def add(self, name: str = "Ann", role: str = "annotator") -> int:
        made = hash_password(PASSWORD)
        return self.store.write(lambda connection: add_person(connection, name, role, made, NOW))

    def who(self, response: httpx.Response) -> str | None:
        person = current_person(self.store, self.sessions, response.cookies.get(COOKIE), self.now)
        return None if person is None else person.name


@pytest.fixture
def door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    cheap = PasswordHasher.from_parameters(CHEAPEST)
    monkeypatch.setattr(passwords, "hasher", lambda: cheap)
    store = Store(str(tmp_path / "labels.db"))
    door = Door(store)
    door.add()
    yield door
    store.close()


def alert(response: httpx.Response) -> str:
    """The sentence that the page says aloud."""
    (sentence,) = re.findall(r'role="alert"[^>]*>([^<]*)<', response.text)
    return sentence


def cookies(response: httpx.Response) -> dict[str, str]:
    return {"Cookie": f"{COOKIE}={response.cookies[COOKIE]}"}


# Log in -----------------------------------------------------------------------------------------


def test_the_right_password_opens(door: Door) -> None:
    response = door.log_in()
    assert (response.status_code, response.headers["location"]) == (303, "/rank")
    assert door.who(response) == "Ann"
    assert "Secure" not in response.headers["set-cookie"]


def test_names_are_taken_as_people_type_them(door: Door) -> None:
    for name in ("ann", "ANN", "  Ann \t", "\uff21nn"):
        assert door.who(door.log_in(name)) == "Ann"


def test_a_wrong_password_does_not_and_the_name_stays_typed(door: Door) -> None:
    response = door.log_in(password="tin can eat")
    assert (response.status_code, alert(response)) == (401, WRONG)
    assert 'value="Ann"' in response.text and 'value="/rank"' in response.text
    assert "tin can" not in response.text
    assert "set-cookie" not in response.headers


HOSTILE = ["Ann\x00", "' OR 1=1 --", "<script>alert(1)</script>", "${7*7}", "{{ 7*7 }}", "\u202eAnn", "x" * 5000]


def test_nobodys_name_is_refused_after_as_much_work(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    verified: list[str | None] = []

    def verify(password_hash: str | None, password: str) -> bool:
        verified.append(password_hash)
        return passwords.verify_password(password_hash, password)

    monkeypatch.setattr(login, "verify_password", verify)
    assert alert(door.log_in("Ann", "wrong one")) == WRONG
    assert verified.pop() is not None
    for name in ("Eve", *HOSTILE):
        response = door.log_in(name)
        assert (response.status_code, alert(response)) == (401, WRONG)
        assert verified == [None]
        verified.clear()
        assert "<script" not in response.text and "49" not in response.text.partition("<main>")[2]


def test_who_has_no_password_cannot_log_in(door: Door) -> None:
    door.store.write(lambda connection: add_person(connection, "Robot", "annotator", None, NOW))
    for password in ("", "None", PASSWORD):
        assert door.log_in("Robot", password).status_code in (400, 401)


def test_an_empty_field_is_no_try(door: Door) -> None:
    for name, password in (("", PASSWORD), ("  ", PASSWORD), ("Ann", "")):
        response = door.log_in(name, password)
        assert (response.status_code, alert(response)) == (400, "Please give your name and your password.")
    assert door.store.read(lambda connection: connection.execute(select(attempts)).first()) is None


def test_a_huge_password_is_wrong_and_not_hashed(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login, "verify_password", lambda *_: pytest.fail("hashed"))
    assert alert(door.log_in(password="x" * 1001)) == WRONG


def test_forms_that_are_none(door: Door) -> None:
    def post(content: bytes) -> tuple[int, str]:
        response = door.request("POST", "/login", content=content)
        return response.status_code, alert(response)

    assert post(b"name=" + b"x" * 16_384) == (413, "This is too long to be a name and a password.")
    whole = "The form did not arrive whole. Please send it again."
    assert post("name=\u00e9".encode()) == (400, whole)
    assert post(b"&".join(b"a%d=1" % number for number in range(11))) == (400, whole)
    assert post(b"") == (400, "Please give your name and your password.")
    assert post(b"name=%ff%00&password=%ff") == (401, WRONG)


def test_old_hashes_are_renewed_at_a_login(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    def stored() -> tuple[str, int]:
        columns = select(people_table.c.password_hash, people_table.c.epoch)
        return door.store.read(lambda connection: tuple(connection.execute(columns).one()))

    before, _ = stored()
    door.log_in(password="wrong one")
    assert stored() == (before, 0)
    stronger = PasswordHasher(time_cost=2, memory_cost=16, parallelism=1)
    monkeypatch.setattr(passwords, "hasher", lambda: stronger)
    assert door.log_in(password="wrong one").status_code == 401
    assert stored() == (before, 0)
    session = door.log_in()
    after, epoch = stored()
    assert "m=16,t=2,p=1" in after and epoch == 0
    assert door.who(session) == door.who(door.log_in()) == "Ann"
    assert stored()[0] == after


def test_a_paused_person_may_come_in_to_read_why(door: Door) -> None:
    door.store.write(lambda connection: pause(connection, 1, "a holiday", None, NOW))
    response = door.log_in()
    person = current_person(door.store, door.sessions, response.cookies[COOKIE], NOW)
    assert person is not None and person.paused == "a holiday"


def test_who_is_logged_in_is_sent_on(door: Door) -> None:
    mine = cookies(door.log_in())
    response = door.get("/login?next=/admin", headers=mine)
    assert (response.status_code, response.headers["location"]) == (303, "/admin")
    door.store.write(lambda connection: set_password(connection, 1, "new", NOW))
    assert door.get("/login", headers=mine).status_code == 200


def test_sessions_end_with_time_a_new_password_and_another_key(door: Door, tmp_path: Path) -> None:
    response = door.log_in()
    door.now = NOW + 14 * 86_400
    assert door.who(response) == "Ann"
    door.now += 1
    assert door.who(response) is None
    door.now = NOW
    again = Door(door.store)  # after a restart
    assert again.who(response) == "Ann"
    elsewhere = Store(str(tmp_path / "other.db"))
    assert Door(elsewhere).who(response) is None
    elsewhere.close()
    door.store.write(lambda connection: set_password(connection, 1, "new", NOW))
    assert door.who(response) is None


def test_passwords_are_hashed_one_at_a_time_and_off_the_event_loop(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[str] = set()
    at_once, most = 0, 0
    lock = threading.Lock()

    def verify(password_hash: str | None, password: str) -> bool:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        threads.add(threading.current_thread().name)
        right = passwords.verify_password(password_hash, password)
        with lock:
            at_once -= 1
        return right

    monkeypatch.setattr(login, "verify_password", verify)
    with ThreadPoolExecutor(8) as pool:  # eight event loops, as eight processes' would be
        statuses = list(pool.map(lambda number: door.log_in(f"P{number}").status_code, range(8)))
    assert statuses == [401] * 8
    assert threads == {"label-password_0"} and most == 1


def test_too_many_who_wait_are_asked_to_come_back(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login, "MAX_WAITING", 0)
    secret = door.store.write(lambda connection: invite(connection, "annotator", None, NOW))
    for response in (door.log_in(), door.join(secret)):
        assert (response.status_code, response.headers["retry-after"]) == (503, "5")
        assert alert(response).startswith("Very many people are logging in just now.")
    assert door.store.read(lambda connection: connection.execute(select(attempts)).first()) is None


def test_a_store_that_does_not_answer_is_said(door: Door) -> None:
    door.store.close()
    response = door.log_in()
    assert (response.status_code, alert(response)) == (503, "This did not work. Please try again.")


# Throttle ---------------------------------------------------------------------------------------


def test_after_five_failures_each_one_doubles_the_wait(door: Door) -> None:
    for _ in range(5):
        assert door.log_in(password="wrong one").status_code == 401
    waits = []
    for _ in range(12):
        refused = door.log_in()  # the right one, which is refused too
        assert refused.status_code == 429 and "set-cookie" not in refused.headers
        waits.append(int(refused.headers["retry-after"]))
        door.now += waits[-1] - 0.001
        assert door.log_in().status_code == 429
        door.now += 0.001
        assert door.log_in(password="wrong one").status_code == 401
    assert waits == [4, 8, 16, 32, 64, 128, 256, 512, 900, 900, 900, 900]


def test_the_sentence_says_how_long(door: Door) -> None:
    for _ in range(5):
        door.log_in(password="wrong one")
    assert alert(door.log_in()) == "Too many tries. Please wait 4 seconds, then try again."
    door.now += 3.5
    assert alert(door.log_in()) == "Too many tries. Please wait 1 second, then try again."
    door.store.write(lambda connection: connection.execute(attempts.update().values(until=door.now + 130)) and None)
    assert alert(door.log_in()) == "Too many tries. Please wait 3 minutes, then try again."


def test_success_clears_the_name(door: Door) -> None:
    for _ in range(3):
        for _ in range(4):
            assert door.log_in(password="wrong one").status_code == 401
        assert door.log_in().status_code == 303


def test_the_wait_is_for_the_name_however_it_is_written_and_from_wherever(door: Door) -> None:
    for number, name in enumerate(["Ann", "ann", "ANN", " Ann", "\uff21nn"]):
        door.log_in(name, "wrong one", address=f"192.0.2.{number}")
    assert door.log_in("aNN", address="198.51.100.1").status_code == 429
    door.add("Bob")
    assert door.log_in("Bob").status_code == 303


def test_unknown_names_wait_just_as_long(door: Door) -> None:
    for _ in range(5):
        assert door.log_in("Eve").status_code == 401
    response = door.log_in("Eve")
    assert (response.status_code, response.headers["retry-after"]) == (429, "4")


def test_a_restart_and_a_second_process_forgive_nothing(door: Door) -> None:
    for _ in range(5):
        door.log_in(password="wrong one")
    store = Store(str(door.store.url.database))
    assert Door(store).log_in().status_code == 429
    store.close()


def test_many_tries_at_once_are_as_few_as_one_after_another(door: Door) -> None:
    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(lambda _: door.log_in(password="wrong one").status_code, range(32)))
    assert sorted(statuses) == [401] * 5 + [429] * 27


def test_an_address_waits_after_fifty_failures_over_all_names(door: Door) -> None:
    def job(connection: Connection) -> list[float]:
        waits = []
        for number in range(52):
            waits.append(admit(connection, f"P{number}", "192.0.2.1", NOW + 100 * number))
            count_failure(connection, "192.0.2.1", NOW + 100 * number)
        return [*waits, admit(connection, "Ann", "192.0.2.1", NOW + 5101), admit(connection, "Ann", "::", NOW + 5101)]

    *before, now, elsewhere = door.store.write(job)
    assert before == [0.0] * 52  # each time its wait was over
    assert now == 15.0  # of the 16 seconds after the 52nd
    assert elsewhere == 0.0


def test_successes_from_an_address_make_good_for_failures(door: Door) -> None:
    """An office of many people, each with a slip now and then, is never made to wait."""

    def job(connection: Connection) -> list[float]:
        waits = []
        for number in range(100):
            waits.append(admit(connection, f"P{number}", "192.0.2.1", NOW + number))
            count_failure(connection, "192.0.2.1", NOW + number)
            waits.append(admit(connection, f"P{number}", "192.0.2.1", NOW + number + 0.5))
            forgive(connection, f"P{number}", "192.0.2.1")
        return waits

    assert door.store.write(job) == [0.0] * 200


def test_failures_are_forgotten_after_an_hour(door: Door) -> None:
    for _ in range(4):
        door.log_in(password="wrong one")
    door.now += 3601
    for _ in range(5):
        assert door.log_in(password="wrong one").status_code == 401
    assert door.log_in().status_code == 429


def test_the_table_of_failures_stays_small_and_keeps_the_worst(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "MAX_ATTEMPTS", 100)

    def job(connection: Connection) -> tuple[int, float]:
        for _ in range(5):
            admit(connection, "Ann", "192.0.2.1", NOW)
        for number in range(300):
            admit(connection, f"nobody {number}", "192.0.2.1", NOW + 1 + number / 1000)
        num_rows = connection.execute(select(func.count()).select_from(attempts)).scalar_one()
        return num_rows, admit(connection, "Ann", "192.0.2.1", NOW + 2)

    assert door.store.write(job) == (pytest.approx(95, abs=5), 2.0)

    def old(connection: Connection) -> int:
        connection.execute(insert(attempts).values(key="name:old", failures=99, until=NOW - 3601))
        admit(connection, "Eve", "192.0.2.1", NOW)
        return connection.execute(select(func.count()).where(attempts.c.key == "name:old")).scalar_one()

    assert door.store.write(old) == 0


def test_what_was_typed_is_not_in_the_table(door: Door) -> None:
    door.log_in("my password in the wrong field")
    rows = door.store.read(lambda connection: str(connection.execute(select(attempts)).all()))
    assert "my password" not in rows and "name:" in rows


def test_addresses_behind_a_trusted_proxy_are_the_clients(door: Door) -> None:
    behind = Door(door.store, trust_proxy=True)
    for client in ("198.51.100.1", "198.51.100.2"):
        behind.log_in("Eve", headers={"X-Forwarded-For": f"6.6.6.6, {client}"})
    door.log_in("Eve", headers={"X-Forwarded-For": "203.0.113.9"})
    keys = door.store.read(lambda connection: set(connection.execute(select(attempts.c.key)).scalars()))
    assert {key for key in keys if key.startswith("address:")} == {
        "address:198.51.100.1",
        "address:198.51.100.2",
        "address:192.0.2.1",
    }


# Where a login leads ----------------------------------------------------------------------------

FOREIGN = [
    "//evil.example", "///evil.example", "/\\evil.example", "\\\\evil.example", "/\t/evil.example", "/\n/evil.example",
    "\t//evil.example", " //evil.example", "https:evil.example", "https://evil.example", "HTTPS:/evil.example",
    "javascript:alert(1)", "data:text/html,x", "evil.example", "/rank\r\nSet-Cookie: a=b", "/\x00/evil", "/é", "/a b",
    "@evil.example", "/\u2028/evil", "/rank\\..\\x", "", "x" * 3000, "/" + "x" * 3000, "/login", "/login?next=/login",
    "/logout", "/join/secret",
]  # fmt: skip


def test_a_login_leads_nowhere_else(door: Door) -> None:
    for path in FOREIGN:
        assert door.log_in(next=path).headers["location"] == "/"
        page = door.get("/login", params={"next": path})
        assert re.findall(r'name="next" value="([^"]*)"', page.text) == ["/"]


def test_a_login_leads_to_pages_of_this_site(door: Door) -> None:
    for path in ("/", "/rank", "/admin?tab=people#x", "/api/history", "/a//b", "/loginx", "/%2f%2fevil"):
        response = door.log_in(next=path)
        assert response.headers["location"] == path
        assert httpx.URL("http://app/login").join(response.headers["location"]).host == "app"


@given(st.text(alphabet="/\\:.@?#%ab\t\n \x00é", max_size=12))
def test_no_text_leads_to_another_host(path: str) -> None:
    found = local_path(path)
    assert found in ("/", path)
    # As browsers do (the WHATWG URL standard): `\` is `/`, tabs and line ends are dropped.
    seen = re.sub(r"[\t\n\r]", "", found).replace("\\", "/")
    assert seen.startswith("/") and not seen.startswith("//")


# Other sites ------------------------------------------------------------------------------------


ORIGINS: list[tuple[dict[str, str], bool]] = [
    ({"Sec-Fetch-Site": "same-origin"}, True),
    ({"Sec-Fetch-Site": "none"}, True),
    ({"Sec-Fetch-Site": "same-origin", "Origin": "https://behind-a-proxy.example"}, True),
    ({"Origin": "http://app"}, True),
    ({"Origin": "https://APP"}, True),
    ({}, True),
    ({"Sec-Fetch-Site": "cross-site"}, False),
    ({"Sec-Fetch-Site": "same-site"}, False),
    ({"Sec-Fetch-Site": ""}, False),
    ({"Sec-Fetch-Site": "cross-site", "Origin": "http://app"}, False),
    ({"Origin": "http://evil.example"}, False),
    ({"Origin": "http://app.evil.example"}, False),
    ({"Origin": "http://app:81"}, False),
    ({"Origin": "null"}, False),
    ({"Origin": ""}, False),
    ({"Origin": "http://[", "Host": "app"}, False),
    ({"Origin": "null", "Host": ""}, False),
]


def test_forms_of_other_sites_are_refused(door: Door) -> None:
    sentence = "This form was sent from another site. Please send it from this page."
    for number, (headers, is_own) in enumerate(ORIGINS):
        secret = door.store.write(lambda connection: invite(connection, "annotator", None, NOW))
        responses = [door.log_in(headers=headers), door.join(secret, f"P{number}", headers=headers)]
        responses.append(door.request("POST", "/logout", headers=headers))
        assert [response.status_code for response in responses] == ([303] * 3 if is_own else [403] * 3), headers
        if not is_own:
            assert {alert(response) for response in responses} == {sentence}
            assert not any("set-cookie" in response.headers for response in responses)


def test_logging_out_needs_the_sessions_own_token(door: Door) -> None:
    first, second = door.log_in(), door.log_in()
    mine, theirs = (door.sessions.read(response.cookies[COOKIE], NOW) for response in (first, second))
    assert mine is not None and theirs is not None
    wrong = [{}, {"X-CSRF-Token": "x"}, {"X-CSRF-Token": door.sessions.csrf(theirs)}]
    for headers in wrong:
        response = door.request("POST", "/logout", headers=cookies(first) | headers)
        assert response.status_code == 403 and "set-cookie" not in response.headers
        assert alert(response) == "This page is out of date. Please reload it, then log out."
    token = door.sessions.csrf(mine)
    by_form = door.request("POST", "/logout", headers=cookies(first), data={"csrf": token})
    by_script = door.request("POST", "/logout", headers=cookies(first) | {"X-CSRF-Token": token})
    for response in (by_form, by_script):
        assert (response.status_code, response.headers["location"]) == (303, "/login")
        assert f'{COOKIE}=""' in response.headers["set-cookie"] and "Max-Age=0" in response.headers["set-cookie"]


def test_cookies_are_for_https_where_the_login_was(door: Door) -> None:
    assert "Secure" in door.log_in(base="https://app").headers["set-cookie"]
    forwarded = {"X-Forwarded-Proto": "https"}
    assert "Secure" not in door.log_in(headers=forwarded).headers["set-cookie"]
    assert "Secure" in Door(door.store, trust_proxy=True).log_in(headers=forwarded).headers["set-cookie"]


# Join -------------------------------------------------------------------------------------------


def test_an_invitation_makes_an_account_and_logs_in(door: Door) -> None:
    secret = door.store.write(lambda connection: invite(connection, "admin", None, NOW))
    page = door.get(f"/join/{secret}")
    assert page.status_code == 200 and f'action="/join/{secret}"' in page.text
    assert door.get(f"/join/{secret}").status_code == 200  # looking at it, as chat programs do, uses nothing
    response = door.join(secret, "  Bob ")
    assert (response.status_code, response.headers["location"]) == (303, "/")
    assert door.who(response) == "Bob" == door.who(door.log_in("bob"))
    person = door.store.read(lambda connection: person_by_name(connection, "Bob"))
    assert person is not None and person.may_lead
    used = "This invitation has been used. Please log in, or ask for another one."
    for again, status in ((door.get(f"/join/{secret}"), 404), (door.join(secret, "Eve"), 400)):
        assert (again.status_code, alert(again)) == (status, used)
        assert "<form" not in again.text and 'href="/login"' in again.text


def test_nobody_comes_in_without_an_invitation(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login, "hash_password", lambda *_: pytest.fail("hashed for a stranger"))
    for secret in ("x", "x" * 500, "%00", "é"):
        for response, status in ((door.get(f"/join/{secret}"), 404), (door.join(secret), 400)):
            assert response.status_code == status
            assert alert(response) == "There is no such invitation. Please check that the link is whole."
    assert door.get("/join/..%2flogin").status_code == 404


def test_an_invitation_ends(door: Door) -> None:
    secret = door.store.write(lambda connection: invite(connection, "annotator", None, NOW, days=1))
    door.now += 86_400
    for response in (door.get(f"/join/{secret}"), door.join(secret)):
        assert alert(response) == "This invitation has expired. Please ask for another one."


MISTAKES = [
    ("", PASSWORD, "A name has 1 to 64 characters"),
    ("A\u200bnn", PASSWORD, "The name holds a character that cannot be seen (U+200B)."),
    ("ann", PASSWORD, "The name Ann is taken."),
    ("Bob", "short", "A password has 8 to 1,000 characters"),
    ("Bobby Tables", "bobby tables", "The password is your name."),
    ("Bob", "password1", "This password is among those that are tried first."),
]


def test_what_is_wrong_is_said_and_can_be_mended(door: Door) -> None:
    secret = door.store.write(lambda connection: invite(connection, "annotator", None, NOW))
    for name, password, start in MISTAKES:
        response = door.join(secret, name, password)
        assert response.status_code == 400 and alert(response).startswith(start)
        assert "<form" in response.text and f'value="{password}"' not in response.text
    assert door.join(secret).status_code == 303


def test_two_who_race_for_an_invitation(door: Door) -> None:
    secret = door.store.write(lambda connection: invite(connection, "annotator", None, NOW))
    with ThreadPoolExecutor(4) as pool:
        statuses = list(pool.map(lambda number: door.join(secret, f"P{number}").status_code, range(4)))
    assert sorted(statuses) == [303, 400, 400, 400]


# Pages ------------------------------------------------------------------------------------------


def pages(door: Door) -> list[httpx.Response]:
    secret = door.store.write(lambda connection: invite(connection, "annotator", None, NOW))
    return [door.get("/login"), door.log_in("Eve"), door.get(f"/join/{secret}"), door.get("/join/x"), door.log_in("")]


def test_pages_let_nothing_else_in(door: Door) -> None:
    import hashlib
    from base64 import b64encode

    for page in pages(door):
        (style,) = re.findall(r"<style>(.*?)</style>", page.text, re.S)
        digest = b64encode(hashlib.sha256(style.encode()).digest()).decode()
        policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
        assert policy == {
            "default-src": "'none'",
            "style-src": f"'sha256-{digest}'",
            "img-src": "'self'",
            "form-action": "'self'",
            "base-uri": "'none'",
            "frame-ancestors": "'none'",
        }
        wanted = {"x-frame-options": "DENY", "x-content-type-options": "nosniff", "referrer-policy": "same-origin"}
        assert wanted.items() <= dict(page.headers).items()
        assert page.headers["cache-control"] == "no-store"
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert "<script" not in page.text and " style=" not in page.text and "http" not in page.text
    assert door.log_in().headers["cache-control"] == "no-store"


def test_pages_can_be_heard(door: Door) -> None:
    for page in pages(door):
        assert '<html lang="en">' in page.text and len(re.findall("<h1>", page.text)) == 1
        ids = re.findall(r'<input id="([^"]*)"', page.text)
        assert re.findall(r'<label for="([^"]*)"', page.text) == ids
        for described in re.findall(r'aria-describedby="([^"]*)"', page.text):
            assert all(f'id="{id}"' in page.text for id in described.split())
        if 'role="alert"' in page.text:
            assert "<title>Not done: " in page.text
    first, _, join, *_ = pages(door)
    assert 'autocomplete="username"' in first.text and 'autocomplete="current-password"' in first.text
    assert 'autocomplete="username"' in join.text and 'autocomplete="new-password"' in join.text


def contrast(one: str, other: str) -> float:
    """WCAG 2.2's contrast ratio of two colours like #0f172a."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_colours_are_told_apart_by_day_and_night() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)  # WCAG's own example of just enough
    style = (Path(login.__file__).parent / "templates" / "style.css").read_text()
    themes = [dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", part)) for part in style.split("@media")]
    assert len(themes) == 2 and themes[0].keys() == themes[1].keys()
    for theme in themes:
        for text, back in (
            ("text", "card"),
            ("hint", "card"),
            ("on-accent", "accent"),
            ("error", "error-back"),
            ("accent", "card"),
        ):
            assert contrast(theme[text], theme[back]) >= 4.5
        assert contrast(theme["edge"], theme["card"]) >= 3  # of a field
        assert contrast(theme["accent"], theme["page"]) >= 3  # of the focus ring
