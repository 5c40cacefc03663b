"""Who may reach what: every route of the app, as nobody, as an annotator and as the lead."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select
from starlette.routing import Mount, Route

from labeling_app.form import Form
from labeling_app.handout import Rules
from labeling_app.people import add_person
from labeling_app.routes import Desk
from labeling_app.session import COOKIE, Sessions, signing_key
from labeling_app.standing import leave_out, pause
from labeling_app.store import Store
from labeling_app.store.schema import answers, leases
from tests.label_cases import load

# What nobody needs a session for: to find the door, its paint, and whether the house stands.
OPEN = {"/favicon.ico", "/health", "/", "/login", "/logout", "/join/{secret}", "/static/{version}/{name}"}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    store = Store(str(tmp_path_factory.mktemp("roles") / "labels.db"))
    store.write(lambda connection: load(connection, 20, overlap=2))
    yield Desk(store, Sessions(store.write(signing_key)), lambda: Form(strength=False), Rules())
    store.close()


@pytest.fixture(scope="module")
def app(desk: Desk) -> Any:
    from labeling_app.ui.app import make_app

    return make_app(desk)


def visitor(app: Any, desk: Desk, name: str | None = None, role: str = "annotator") -> TestClient:
    """A client with a session of its own, and its CSRF token on every request."""
    client = TestClient(app, base_url="http://testserver", follow_redirects=False)
    if name is not None:
        now = desk.clock()
        person = desk.store.write(lambda connection: add_person(connection, name, role, None, now))
        session = desk.sessions.start(person, 0, now)
        client.cookies.set(COOKIE, desk.sessions.cookie(session))
        client.headers["X-CSRF-Token"] = desk.sessions.csrf(session)
        client.headers["X-Person"] = str(person)
    return client


def _id(client: TestClient) -> int:
    return int(client.headers["X-Person"])


def _routes(app: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    for route in app.routes:
        if isinstance(route, Route):
            for method in sorted((route.methods or {"GET"}) - {"HEAD", "OPTIONS"}):
                yield method, prefix + route.path
        elif isinstance(route, Mount) and hasattr(route.app, "routes"):
            yield from _routes(route.app, prefix + route.path)
        else:
            inner = getattr(route, "original_router", None) or getattr(route, "routes", None)
            if inner is not None and hasattr(inner, "routes"):
                yield from _routes(inner, prefix)


def _status(client: TestClient, method: str, path: str) -> int:
    for name in ("secret", "version", "name", "path", "id", "run", "lease"):
        path = (
            path.replace("{" + name + "}", "x").replace("{" + name + ":path}", "x").replace("{" + name + ":int}", "1")
        )
    path = re.sub(r"\{[^}]*\}", "1", path)
    return client.request(method, path, json={} if method != "GET" else None).status_code


def test_nobody_without_a_session_gets_past_the_door(app: Any, desk: Desk) -> None:
    anonymous = visitor(app, desk)
    closed = [(method, path) for method, path in _routes(app) if path not in OPEN]
    assert len([path for _, path in closed if path.startswith("/api")]) > 12
    assert len([path for _, path in closed if path.startswith(("/rank", "/admin"))]) > 60  # Gradio's own, twice
    assert {path: code for method, path in closed if (code := _status(anonymous, method, path)) != 401} == {}


def test_who_opens_a_page_without_a_session_is_sent_to_the_login(app: Any, desk: Desk) -> None:
    for page in ("/rank/", "/admin/"):
        reply = visitor(app, desk).get(page, headers={"accept": "text/html"})
        assert (reply.status_code, reply.headers["location"]) == (303, f"/login?next={page}")


def test_an_annotator_gets_no_route_of_the_lead_s(app: Any, desk: Desk) -> None:
    ben = visitor(app, desk, "ben")
    lead = [(method, path) for method, path in _routes(app) if path.startswith(("/api/admin", "/admin"))]
    assert len(lead) > 35
    assert {path: code for method, path in lead if (code := _status(ben, method, path)) != 403} == {}
    assert ben.get("/rank/").status_code == 200


def test_the_lead_gets_everything(app: Any, desk: Desk) -> None:
    lena = visitor(app, desk, "lena", "admin")
    assert lena.get("/admin/").status_code == 200
    assert lena.get("/rank/").status_code == 200
    assert lena.get("/", follow_redirects=False).headers["location"] == "/admin"


def test_changing_requests_need_the_token(app: Any, desk: Desk) -> None:
    dev = visitor(app, desk, "dev")
    other = visitor(app, desk, "eve")
    changing = [path for method, path in _routes(app) if method == "POST" and path.startswith("/api")]
    assert {"/api/next", "/api/submit", "/api/skip", "/api/draft", "/api/open"} <= set(changing)
    for token in ("", "x", other.headers["X-CSRF-Token"]):
        dev.headers["X-CSRF-Token"] = token
        # 401/403 before anything is read or written; an admin's route may say 403 for the role.
        assert {_status(dev, "POST", path) for path in changing} == {403}


def test_nobody_reaches_another_s_task_or_answer(app: Any, desk: Desk) -> None:
    flo, gus = visitor(app, desk, "flo"), visitor(app, desk, "gus")
    turn = flo.post("/api/next", json={}).json()["turn"]
    answer = {"ranks": [1, 2]}
    for path, body in (
        ("/api/submit", {"submission": "g1", "lease": turn["lease"], "answer": answer}),
        ("/api/skip", {"submission": "g2", "lease": turn["lease"], "reason": "no"}),
        ("/api/draft", {"lease": turn["lease"], "version": 1, "draft": answer}),
    ):
        reply = gus.post(path, json=body)
        assert (reply.status_code, reply.json()) == (
            400,
            {"error": "This task is not in your hands. Please reload the page."},
        )
    assert gus.post("/api/open", json={"lease": turn["lease"]}).status_code == 404
    sent = {"submission": "f1", "lease": turn["lease"], "answer": answer, "seconds": 2}
    assert flo.post("/api/submit", json=sent).status_code == 200
    assert [row["lease"] for row in flo.get("/api/history").json()["answers"]] == [turn["lease"]]
    assert gus.get("/api/history").json() == {"answers": []}
    assert gus.post("/api/open", json={"lease": turn["lease"]}).status_code == 404
    stored = desk.store.read(lambda connection: connection.execute(select(answers.c.person_id)).scalars().all())
    assert list(stored) == [_id(flo)]


def test_a_turn_says_nothing_of_ids_policies_or_gold(app: Any, desk: Desk) -> None:
    hal = visitor(app, desk, "hal")
    reply = hal.post("/api/next", json={})
    lease = desk.store.read(
        lambda connection: connection.execute(select(leases).where(leases.c.person_id == _id(hal))).one()
    )
    assert all(id not in reply.text for id in lease.shown)
    turn = reply.json()["turn"]
    assert turn.keys() == {"lease", "kind", "expires_at", "conversation", "responses", "draft", "is_answered"}
    assert turn["kind"] == "task"
    assert [response.keys() for response in turn["responses"]] == [{"html", "length"}] * 2
    assert [message.keys() for message in turn["conversation"]] == [{"role", "html"}]


def test_a_pause_and_leaving_out_stop_the_work_at_once(app: Any, desk: Desk) -> None:
    ida, jon = visitor(app, desk, "ida"), visitor(app, desk, "jon")
    now = desk.clock()
    desk.store.write(lambda connection: pause(connection, _id(ida), "please call me", None, now))
    desk.store.write(lambda connection: leave_out(connection, _id(jon), "too fast", None, now))
    for client in (ida, jon):
        assert client.post("/api/next", json={}).status_code == 403
        assert client.get("/api/me").json()["paused"]
    assert ida.post("/api/next", json={}).json() == {"error": "Your work is paused: please call me"}


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"{", 400, "The request did not arrive whole"),
        (b"[]", 400, "The request did not arrive whole"),
        (b"[" * 100_000, 400, "The request did not arrive whole"),
        (b'{"lease": 3, "submission": "a"}', 400, "`lease` should be text"),
        (b'{"lease": "a", "submission": ""}', 400, "`submission` should be text"),
        (b'{"lease": "a", "submission": "a"}', 400, "not in your hands"),
        (b'"' + b"x" * 1_000_001 + b'"', 413, "At most 1,000,000 bytes"),
    ],
)
def test_what_is_no_answer_is_one_sentence(app: Any, desk: Desk, body: bytes, status: int, sentence: str) -> None:
    name = f"kim {hash(body) % 10**8}"
    reply = visitor(app, desk, name).post("/api/submit", content=body)
    assert reply.status_code == status
    assert sentence in reply.json()["error"]


def test_every_answer_has_its_manners(app: Any, desk: Desk) -> None:
    anonymous = visitor(app, desk)
    for path in ("/health", "/login", "/api/me", "/rank/", "/nowhere"):
        headers = anonymous.get(path).headers
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


def test_static_files_are_ours_alone(app: Any, desk: Desk) -> None:
    anonymous = visitor(app, desk)
    assert anonymous.get("/static/x/ranking.js").headers["content-type"].startswith("text/javascript")
    for name in ("../app.py", "%2e%2e%2fapp.py", "..%5capp.py", "nothing.js", "ranking.js%00.css", ".."):
        assert anonymous.get(f"/static/x/{name}").status_code == 404, name


def test_a_store_that_does_not_take_it_says_so(app: Any, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from labeling_app.store import StoreError

    async def fail(_: Any) -> None:
        raise StoreError("the disk is full")

    lou = visitor(app, desk, "lou")
    monkeypatch.setattr(desk.store, "write_async", fail)
    reply = lou.post("/api/next", json={})
    assert reply.status_code == 503
    assert "will be sent again" in reply.json()["error"]


def test_the_form_may_change_while_people_work(tmp_path: Path) -> None:
    from labeling_app.label import FormFile

    path = tmp_path / "form.yaml"
    path.write_text("title: One\n")
    form = FormFile(path)
    for text, title in (("title: Two\n", "Two"), ("titel: Three\n", "Two"), ("title: Four\n", "Four")):
        path.write_text(text)
        form._looked = -10.0  # a second ago and more
        form._stamp = 0
        assert form().title == title
