"""The whole app as people meet it: a real server, a real browser, power cuts in between."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from labeling_app.stored import read_store
from labeling_app.tend import main as tend
from rlhf.records import Prompt, Response, Task, to_json, write_jsonl
from tests.label_server import LabelServer

PATIENCE = 60_000  # milliseconds an expectation may take on a busy machine
PASSWORD = "correct horse battery"


def tasks(num: int) -> list[Task]:
    """The response that says `good` is the better one."""
    return [
        Task(
            f"t{number}",
            Prompt(f"p{number}", [{"role": "user", "content": f"Question {number}?"}]),
            [
                Response(f"{word}-{number}", f"p{number}", f"A {word} answer to {number}.", "run")
                for word in ("good", "bad")
            ],
        )
        for number in range(num)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "tasks.jsonl", tasks(20))
    practice = asdict(tasks(101)[100]) | {"ranks": {"good-100": 1, "bad-100": 2}, "explanation": "It says so."}
    (tmp_path / "practice.jsonl").write_text(json.dumps(practice) + "\n")
    return tmp_path


def join(page: Any, link: str, name: str) -> None:
    page.goto(link)
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Join").click()


class Annotator:
    """Somebody before the ranking page."""

    def __init__(self, page: Any) -> None:
        from playwright.sync_api import expect

        expect.set_options(timeout=PATIENCE)
        self.page, self.expect = page, expect
        self.submit = page.get_by_role("button", name=re.compile("^Submit"))

    def question(self) -> str:
        """The text of the task on screen."""
        return self.page.get_by_text(re.compile(r"^Question \d+\?$")).inner_text()

    def good(self) -> str:
        """The letter of the response that says `good`."""
        first = self.page.get_by_text(re.compile("^A (good|bad) answer")).first.inner_text()
        return "A" if first.startswith("A good") else "B"

    def until_not(self, question: str) -> None:
        self.expect(self.page.get_by_text(question, exact=True)).to_have_count(0)


def by_keyboard(person: Annotator) -> None:
    question = person.question()
    person.page.keyboard.press("1" if person.good() == "A" else "7")
    person.page.keyboard.press("Enter")
    person.until_not(question)


def by_mouse(person: Annotator) -> None:
    question = person.question()
    person.page.get_by_role("radio", name=re.compile(f"^{person.good()} much better")).click()
    person.submit.click()
    person.until_not(question)


@pytest.mark.slow
def test_from_the_invitation_to_the_export(browser: Any, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = {"tasks": folder / "tasks.jsonl", "practice": folder / "practice.jsonl", "overlap": 1, "exports": folder}
    with LabelServer(folder, **flags) as server:
        tend(["invite", "--store", server.store, "--address", server.url])
        invitation = capsys.readouterr().out.strip()
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        join(page, invitation, "Ana")
        page.get_by_role("button", name="I have read them").click()
        person = Annotator(page)
        assert person.question() == "Question 100?"  # practice first
        page.keyboard.press("1" if person.good() == "A" else "7")
        page.keyboard.press("Enter")
        person.expect(page.get_by_text("It says so.")).to_be_visible()
        page.get_by_role("button", name=re.compile("^Next")).click()
        person.until_not("Question 100?")

        for _ in range(5):
            by_keyboard(person)
        server.kill()
        begun = person.question()
        page.keyboard.press("1" if person.good() == "A" else "7")
        page.keyboard.press("Enter")  # nobody there: kept in the browser
        person.expect(page.get_by_text(re.compile("kept here", re.I)).first).to_be_visible()
        server.start()
        person.until_not(begun)  # sent by itself
        for _ in range(4):
            by_keyboard(person)

        for _ in range(4):
            by_mouse(person)
        context.set_offline(True)
        begun = person.question()
        page.get_by_role("radio", name=re.compile(f"^{person.good()} much better")).click()
        page.get_by_role("textbox", name=re.compile("^Why")).fill("because")
        person.submit.click()
        person.expect(page.get_by_text(re.compile("kept here", re.I)).first).to_be_visible()
        context.set_offline(False)
        person.until_not(begun)

        page.get_by_role("textbox", name=re.compile("^Why")).fill("a draft that is long enough")
        begun = person.question()
        person.expect(page.get_by_text(begun, exact=True)).to_be_visible()
        server.kill()
        server.start()
        page.reload()
        person.expect(page.get_by_text(begun, exact=True)).to_be_visible()
        person.expect(page.get_by_role("textbox", name=re.compile("^Why"))).to_have_value("a draft that is long enough")
        for _ in range(5):
            by_mouse(person)
        person.expect(person.submit).to_have_count(0)  # nothing left

        labels = [row for row in read_store(server.store).rankings if row.kind == "task"]
        assert sorted(row.task_id for row in labels) == sorted(f"t{number}" for number in range(20))
        assert all(row.ranks[f"good-{row.task_id[1:]}"] == 1 and row.strength == 3 for row in labels)
        assert sorted(row.reason for row in labels if row.reason) == ["a draft that is long enough", "because"]
        assert len({tuple(word.split("-")[0] for word in row.shown) for row in labels}) == 2  # either one came first

        lead = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
        lead.set_default_timeout(PATIENCE)
        join(lead, server.first_link(), "Lea")
        person.expect(lead.get_by_text("of 20 tasks")).to_be_visible()
        lead.get_by_role("tab", name="Agreement").click()
        person.expect(lead.get_by_role("gridcell", name=re.compile("Krippendorff")).first).to_be_visible()
        lead.get_by_role("tab", name="Export").click()
        lead.get_by_role("button", name=re.compile("^(Write|Make|Export)")).first.click()
        person.expect(lead.get_by_text(re.compile(r"preferences\.train\.jsonl")).first).to_be_visible()
        written = list(folder.rglob("preferences.*.jsonl"))
        assert sum(len(path.read_text().splitlines()) for path in written) == 20


@pytest.mark.slow
def test_hostile_texts_run_nowhere_and_come_back_byte_for_byte(browser: Any, tmp_path: Path) -> None:
    from tests import hostile

    # Without the huge ones, which a browser takes seconds to lay out (test_label_render.py has them).
    texts = [(name, text) for name, text in hostile.HOSTILE if len(text) < 20_000]
    assert len(texts) >= 200
    rows = [
        Task(
            f"t{number}",
            Prompt(f"p{number}", [{"role": "user", "content": text or "empty"}]),
            [Response(f"a{number}", f"p{number}", text, "run"), Response(f"b{number}", f"p{number}", "plain", "run")],
        )
        for number, (_, text) in enumerate(texts)
    ]
    # ASCII escapes: a file that any of these texts can be in.
    lines = [json.dumps(json.loads(to_json(row)), ensure_ascii=True) + "\n" for row in rows]
    (tmp_path / "tasks.jsonl").write_text("".join(lines), encoding="ascii")
    with LabelServer(tmp_path, tasks=tmp_path / "tasks.jsonl", overlap=1, order="file") as server:
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        ran: list[str] = []
        asked: list[str] = []
        page.on("dialog", lambda dialog: (ran.append(dialog.message), dialog.dismiss()))
        page.on("pageerror", lambda error: ran.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        join(page, server.first_link(), "Ana")
        page.goto(f"{server.url}/rank/")
        page.get_by_role("button", name="I have read them").click()
        submit = page.get_by_role("button", name=re.compile("^Submit"))
        submit.wait_for()
        for number in range(len(texts)):
            done = page.evaluate(
                """async ([number, reason]) => {
                    const desk = document.querySelector("ranking-desk");
                    const me = await (await fetch("/api/me")).json();
                    const headers = {"X-CSRF-Token": me.csrf, "Content-Type": "application/json"};
                    const post = async (path, body) =>
                        (await fetch("/api/" + path, {method: "POST", headers, body: JSON.stringify(body)})).json();
                    const {turn} = await post("next", {});
                    const answer = {ranks: [1, 2], strength: 1, reason, better_answer: reason};
                    const sent = {submission: "s" + number, lease: turn.lease, answer, seconds: 1};
                    return {saved: (await post("submit", sent)).saved, html: turn.conversation[0].html,
                            globals: [window.hacked, window.xss, window.pwned].filter(Boolean)};
                }""",
                [number, texts[number][1]],
            )
            assert done["saved"] and done["globals"] == [], texts[number][0]
            # On screen too: where the widget puts it, and after every tenth the page still works.
            page.evaluate(
                "html => { document.body.appendChild(document.createElement('div')).innerHTML = html }", done["html"]
            )
            if number % 10 == 0:
                page.reload()
                submit.wait_for()
        assert ran == []
        assert {url.split("/")[2] for url in asked if url.startswith("http")} == {server.url.split("/")[2]}
    labels = read_store(server.store)
    assert {task.id: task.responses[0].text for task in labels.tasks} == {row.id: row.responses[0].text for row in rows}
    assert {task.id: task.prompt.messages for task in labels.tasks} == {row.id: row.prompt.messages for row in rows}
    reasons = {row.task_id: row.reason for row in labels.rankings}
    assert reasons == {f"t{number}": text if text.strip() else None for number, (_, text) in enumerate(texts)}
