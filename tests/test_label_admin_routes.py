"""The lead's JSON: disputes and export files, for leads only, with nothing in it that could run or that tells ids."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update
from starlette.applications import Starlette
from starlette.testclient import TestClient

from labeling_app import admin_routes
from labeling_app.admin_routes import find_file
from labeling_app.session import COOKIE
from labeling_app.standing import pause
from labeling_app.store.schema import adjudications, log, tasks
from tests.label_project import HOSTILE, NOW, Project

pytest_plugins = ("tests.label_project",)


@pytest.fixture
def exports(tmp_path: Path) -> Path:
    run = tmp_path / "runs" / "export-20260101-120000"
    run.mkdir(parents=True)
    (run / "preferences.train.jsonl").write_text('{"id": 1}\n')
    (run / "run.json").write_text("{}")
    (run / "secret.txt").write_text("no")
    (tmp_path / "runs" / "sft").mkdir()
    (tmp_path / "runs" / "sft" / "run.json").write_text("no")
    (tmp_path / "outside.jsonl").write_text("no")
    (run / "link.jsonl").symlink_to(tmp_path / "outside.jsonl")
    return tmp_path / "runs"


def visit(made: Project, exports: Path | None = None, name: str | None = "Lea") -> TestClient:
    """A browser of somebody's."""
    client = TestClient(Starlette(routes=admin_routes.admin_routes(made.desk, exports)), raise_server_exceptions=False)
    if name is not None:
        cookie = made.cookie(name)
        client.cookies.set(COOKIE, cookie)
        client.headers["X-CSRF-Token"] = made.csrf(cookie)
    return client


def of(client: TestClient, task_id: int) -> dict[str, Any]:
    reply = client.get(f"/api/admin/disputes/{task_id}")
    assert reply.status_code == 200, reply.text
    return reply.json()


def bare(html: str) -> str:
    """The text of some HTML."""
    return re.sub("<[^>]*>", "", html).strip()


# ---- Who may


ROUTES = [
    ("GET", "/api/admin/disputes"),
    ("GET", "/api/admin/disputes/2"),
    ("POST", "/api/admin/disputes/2"),
    ("POST", "/api/admin/disputes/2/withdraw"),
    ("GET", "/api/admin/exports/export-20260101-120000/run.json"),
]


def test_these_are_all_routes(made: Project) -> None:
    there = [(method, route.path) for route in admin_routes.admin_routes(made.desk) for method in route.methods or ()]
    patterns = {(method, re.sub(r"\{[^}]*\}", "[^/]+", path)) for method, path in there if method != "HEAD"}
    assert len(patterns) == len(ROUTES)
    assert all(any(m == method and re.fullmatch(p, path) for m, p in patterns) for method, path in ROUTES)


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    ("name", "status", "sentence"),
    [
        (None, 401, "Please log in again."),
        ("Ana", 403, "This page is for the project's lead."),
        ("Leo", 403, "This page is for the project's lead."),  # a lead who is paused
    ],
)
def test_only_leads_get_in(
    made: Project, exports: Path, method: str, path: str, name: str | None, status: int, sentence: str
) -> None:
    made.desk.store.write(lambda c: pause(c, made.people["Leo"], "on leave", None, NOW))
    reply = visit(made, exports, name).request(method, path, json={"ranks": [1, 2]} if method == "POST" else None)
    assert (reply.status_code, reply.json()) == (status, {"error": sentence})
    assert made.desk.store.read(lambda c: c.execute(select(adjudications)).first()) is None


@pytest.mark.parametrize("token", ["", "x", "of another"])
@pytest.mark.parametrize("path", [path for method, path in ROUTES if method == "POST"])
def test_what_changes_something_needs_the_token(made: Project, path: str, token: str) -> None:
    client = visit(made)
    client.headers["X-CSRF-Token"] = made.csrf(made.cookie("Leo")) if token == "of another" else token
    reply = client.post(path, json={"ranks": [1, 2]})
    assert (reply.status_code, reply.json()) == (403, {"error": "This page is out of date. Please reload it."})
    assert made.desk.store.read(lambda c: c.execute(select(adjudications)).first()) is None


def test_nobody_else_makes_the_server_read_much(made: Project) -> None:
    path, much = f"/api/admin/disputes/{made.task_id('p-1')}", b" " * 1_100_000
    assert visit(made, name="Ana").post(path, content=much).status_code == 403
    assert visit(made).post(path, content=much).status_code == 413


# ---- The list


def test_disputes_are_listed(made: Project) -> None:
    reply = visit(made).get("/api/admin/disputes")
    assert reply.headers["cache-control"] == "no-store"
    found = reply.json()
    assert (found["num_open"], found["num_settled"]) == (2, 0)
    assert sorted(row["task"] for row in found["disputes"]) == ["k-0", "p-1"]
    row = next(row for row in found["disputes"] if row["task"] == "p-1")
    assert row == {
        "task_id": made.task_id("p-1"),
        "task": "p-1",
        "set_name": "pairs.jsonl",
        "prompt": "prompt of p-1",
        "num_answers": 2,
        "score": 1.0,
        "is_settled": False,
    }
    assert visit(made).get("/api/admin/disputes?settled=true").json()["disputes"] == []


def test_a_long_list_is_cut_and_says_so(made: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_routes, "NUM_LISTED", 1)
    found = visit(made).get("/api/admin/disputes").json()
    assert (len(found["disputes"]), found["num_open"]) == (1, 2)


# ---- One of them


def test_a_dispute_is_shown_without_ids_and_harmless(made: Project) -> None:
    client, task_id = visit(made), made.task_id("p-1")
    reply = client.get(f"/api/admin/disputes/{task_id}")
    found = reply.json()
    assert "p-1-a" not in reply.text and "run" not in reply.text  # response ids, and who wrote them
    assert found.keys() == {"task_id", "task", "set_name", "conversation", "responses", "opinions", "ruling"}
    (message,) = found["conversation"]
    assert (message["role"], bare(message["html"])) == ("user", "prompt of p-1")
    texts = [bare(response["html"]) for response in found["responses"]]
    assert sorted(texts) == ["a", "b"]
    ana, ben = found["opinions"]
    at_a = texts.index("a")
    assert (ana["person"], ana["ranks"][at_a], ana["reason_html"], ana["flags"]) == ("Ana", 1, None, [[], []])
    assert (ben["person"], ben["ranks"][at_a], ben["flags"][at_a]) == (HOSTILE, 2, ["Harmful"])
    assert "<strong>plain</strong>" in ben["reason_html"]
    assert "<script" not in ben["reason_html"] and "better_answer" not in ben and "reason" not in ben
    assert found["ruling"] is None


@pytest.mark.parametrize("task_id", ["99", "0", str(2**31), str(10**30)])
def test_there_is_no_such_dispute(made: Project, task_id: str) -> None:
    client = visit(made)
    reply = client.get(f"/api/admin/disputes/{task_id}")
    assert (reply.status_code, reply.json()) == (404, {"error": "There is no such task to settle."})
    reply = client.post(f"/api/admin/disputes/{task_id}", json={"ranks": [1, 2]})
    assert (reply.status_code, reply.json()) == (400, {"error": "There is no such task to settle."})


def test_gold_tasks_are_not_to_be_settled(made: Project) -> None:
    assert visit(made).get(f"/api/admin/disputes/{made.task_id('g-0')}").status_code == 404


def test_flags_that_the_form_has_no_more_are_shown_by_their_id(made: Project) -> None:
    from labeling_app.form import Form

    made.desk.form = Form
    opinions = of(visit(made), made.task_id("p-1"))["opinions"]
    assert ["harmful"] in opinions[1]["flags"]


# ---- Settling


def test_a_dispute_is_settled_changed_and_opened_again(made: Project) -> None:
    client, task_id = visit(made), made.task_id("k-0")
    path = f"/api/admin/disputes/{task_id}"
    # Half of an emoji travels as its escape.
    reply = client.post(path, content=json.dumps({"ranks": [2, 1, 2], "reason": "b \ud83d is <best>"}))
    assert (reply.status_code, reply.json()) == (200, {"saved": True})
    ruling = of(client, task_id)["ruling"]
    assert ruling == {"person": "Lea", "ranks": [2, 1, 2], "reason": "b \ud83d is <best>", "at": NOW}
    listed = client.get("/api/admin/disputes?settled=true").json()
    assert [row["task"] for row in listed["disputes"]] == ["k-0"] and listed["num_open"] == 1

    other = visit(made, name="Leo")
    assert other.post(path, json={"ranks": [1, 1, 1]}).status_code == 200
    ruling = of(client, task_id)["ruling"]
    assert (ruling["person"], ruling["ranks"], ruling["reason"]) == ("Leo", [1, 1, 1], "")

    assert client.post(f"{path}/withdraw", json={}).json() == {"saved": True}
    assert of(client, task_id)["ruling"] is None
    reply = client.post(f"{path}/withdraw", json={})
    assert (reply.status_code, reply.json()) == (400, {"error": "This task has not been settled."})
    logged = made.desk.store.read(lambda c: c.execute(select(log.c.action, log.c.person_id).order_by(log.c.id)).all())
    lea, leo = made.people["Lea"], made.people["Leo"]
    assert [tuple(entry) for entry in logged[-3:]] == [("adjudicate", lea), ("adjudicate", leo), ("withdraw", lea)]


@pytest.mark.parametrize(
    ("sent", "sentence"),
    [
        ({"ranks": [1]}, "Please give each of the 2 responses a place."),
        ({}, "Please give each of the 2 responses a place."),
        ({"ranks": [1, 2], "reason": 5}, "`reason` should be text of at most 5,000 characters."),
        ({"ranks": [1, 2], "reason": "x" * 5001}, "`reason` should be text of at most 5,000 characters."),
        ([1, 2], "The request did not arrive whole. Please send it again."),
    ],
)
def test_what_is_no_ranking_is_refused(made: Project, sent: Any, sentence: str) -> None:
    reply = visit(made).post(f"/api/admin/disputes/{made.task_id('p-1')}", json=sent)
    assert (reply.status_code, reply.json()) == (400, {"error": sentence})


def test_texts_of_every_kind_reach_the_lead_as_text(made: Project) -> None:
    hostile = "<img src=x onerror=hacked()> ${7*7} \u202egnp.exe \x00 <script>hacked()</script>"

    def put(connection: Any) -> None:
        body = connection.execute(select(tasks.c.body).where(tasks.c.record_id == "p-1")).scalar_one()
        body["responses"][0]["text"] = body["prompt"]["messages"][0]["content"] = hostile
        connection.execute(update(tasks).where(tasks.c.record_id == "p-1").values(body=body))

    made.desk.store.write(put)
    found = of(visit(made), made.task_id("p-1"))
    shown = [found["conversation"][0]["html"], *(response["html"] for response in found["responses"])]
    assert all("<img" not in text and "<script" not in text and "${" not in text for text in shown)
    assert [len(hostile), 1] == sorted((row["length"] for row in found["responses"]), reverse=True)
    (row,) = [row for row in visit(made).get("/api/admin/disputes").json()["disputes"] if row["task"] == "p-1"]
    assert "[U+202E]" in row["prompt"]


# ---- Files of an export


def test_files_of_an_export_come_as_files(made: Project, exports: Path) -> None:
    reply = visit(made, exports).get("/api/admin/exports/export-20260101-120000/preferences.train.jsonl")
    assert (reply.status_code, reply.text) == (200, '{"id": 1}\n')
    assert reply.headers["content-disposition"] == 'attachment; filename="preferences.train.jsonl"'
    assert reply.headers["content-type"] == "application/octet-stream"
    assert visit(made, exports).get("/api/admin/exports/export-20260101-120000/run.json").status_code == 200


@pytest.mark.parametrize(
    ("run", "name"),
    [
        ("export-20260101-120000", "secret.txt"),
        ("export-20260101-120000", "none.jsonl"),
        ("export-20260101-120000", "link.jsonl"),
        ("export-20260101-120000", ".."),
        ("export-20260101-120000", "..%2f..%2foutside.jsonl"),
        ("export-20260101-120001", "run.json"),
        ("sft", "run.json"),
        ("..", "outside.jsonl"),
        (".", "run.json"),
    ],
)
def test_nothing_else_can_be_fetched(made: Project, exports: Path, run: str, name: str) -> None:
    assert visit(made, exports).get(f"/api/admin/exports/{run}/{name}").status_code == 404
    assert find_file(exports, run, name.replace("%2f", "/")) is None
    assert find_file(None, run, name) is None
