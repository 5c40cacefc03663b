"""`rlhf chat`: the page in a real browser."""

import dataclasses
import threading
from collections.abc import Iterator

import pytest

from rlhf import chat
from rlhf.chat import ChatConfig, chatting
from rlhf.generate import Sampling
from rlhf.streaming import Piece, stream
from tests.tiny import endless_policies

PATIENCE = 60_000  # milliseconds an expectation may take on a busy machine


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[str]:
    return endless_policies(tmp_path_factory.mktemp("chat"), ("sft", "ppo"))


@pytest.fixture(scope="module")
def url(folders):
    with chatting(ChatConfig(folders, port=0, max_new_tokens=48)) as url:
        yield url


class Visitor:
    """A browser window on the page, and what the tests do in it."""

    def __init__(self, browser, url: str, width: int, height: int) -> None:
        from playwright.sync_api import expect

        expect.set_options(timeout=PATIENCE)
        self.expect = expect
        self.page = browser.new_page(viewport={"width": width, "height": height})
        self.page.set_default_timeout(PATIENCE)
        self.asked_for: list[str] = []
        self.page.on("request", lambda request: self.asked_for.append(request.url))
        self.page.goto(url)
        self.columns = self.page.locator(".conversation")
        self.endings = self.page.locator(".ending p")
        self.expect(self.button("Send")).to_be_enabled()

    def button(self, name: str):
        return self.page.get_by_role("button", name=name, exact=True)

    def send(self, message: str) -> None:
        box = self.page.get_by_role("textbox", name="Message")
        box.fill(message)
        box.press("Enter")

    def until_replied(self) -> None:
        self.expect(self.endings).to_have_count(self.columns.count())
        self.expect(self.button("Send")).to_be_enabled()

    def sideways(self) -> int:
        """By how many pixels the page is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


@pytest.fixture
def visit(browser, url) -> Iterator:
    visitors = []

    def open(width: int = 1280, height: int = 860) -> Visitor:
        visitors.append(Visitor(browser, url, width, height))
        return visitors[-1]

    yield open
    for visitor in visitors:
        visitor.page.close()


def pretend(monkeypatch, text: str) -> None:
    """Makes every policy reply with `text`."""

    def replies(policies, conversations, sampling, stop):
        for column in range(len(policies)):
            yield Piece(column, text, "ended its turn after 9 tokens")

    monkeypatch.setattr(chat, "stream", replies)


def test_two_policies_stream_and_finish_side_by_side(visit):
    visitor = visit()
    for name in ("sft", "ppo"):
        visitor.expect(visitor.page.get_by_role("heading", name=name, exact=True)).to_be_visible()
    # What each column shows, every time that it changes.
    visitor.page.evaluate("""() => {
        window.seen = [];
        document.querySelectorAll(".conversation").forEach((column, index) => {
            window.seen.push(new Set());
            new MutationObserver(() => window.seen[index].add(column.innerText))
                .observe(column, {subtree: true, childList: true, characterData: true});
        });
    }""")
    visitor.send("Hello there")
    visitor.until_replied()
    for column, grew in enumerate(visitor.page.evaluate("window.seen.map(texts => texts.size)")):
        visitor.expect(visitor.columns.nth(column)).to_contain_text("Hello there")
        assert grew > 3
    left, right = (visitor.columns.nth(column).bounding_box() for column in (0, 1))
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]
    assert visitor.sideways() == 0

    visitor.send("And a second time")
    visitor.expect(visitor.columns.first).to_contain_text("And a second time")
    visitor.until_replied()
    for column in (0, 1):
        visitor.expect(visitor.columns.nth(column).get_by_test_id("user")).to_have_count(2)
        visitor.expect(visitor.columns.nth(column).get_by_test_id("bot")).to_have_count(2)
    assert [url for url in visitor.asked_for if not url.startswith(("http://127.0.0.1", "data:"))] == []


def test_stop_ends_both_replies_and_clear_forgets(visit, monkeypatch):
    asked = []

    def spy(policies, conversations, sampling, stop):
        asked.append((conversations[0], sampling))
        yield from stream(policies, conversations, sampling, stop)

    monkeypatch.setattr(chat, "stream", spy)
    visitor = visit()
    for control, value in (("Temperature", "0.5"), ("Longest reply", "2000")):
        box = visitor.page.get_by_role("spinbutton", name=control)
        box.fill(value)
        box.press("Tab")
        visitor.expect(visitor.page.get_by_role("slider", name=control)).to_have_value(value)
    visitor.expect(visitor.button("Stop")).to_be_disabled()
    visitor.send("Hello there")
    visitor.button("Stop").click()  # waits until it can be clicked
    visitor.until_replied()
    for column in (0, 1):
        visitor.expect(visitor.endings.nth(column)).to_contain_text("stopped after")
    visitor.expect(visitor.button("Stop")).to_be_disabled()

    visitor.button("Clear").click()
    visitor.expect(visitor.page.get_by_test_id("user")).to_have_count(0)
    visitor.expect(visitor.endings).to_have_count(0)
    pretend(monkeypatch, "fine")
    visitor.send("Anew")
    visitor.until_replied()
    visitor.expect(visitor.page.get_by_test_id("user")).to_have_count(2)
    assert asked == [([{"role": "user", "content": "Hello there"}], Sampling(0.5, 2000))]


def test_a_closed_window_ends_its_replies(visit, monkeypatch):
    started, ended, endings = threading.Event(), threading.Event(), []

    def spy(policies, conversations, sampling, stop):
        try:
            for piece in stream(policies, conversations, dataclasses.replace(sampling, max_new_tokens=4000), stop):
                started.set()
                endings.append(piece.ending)
                yield piece
        finally:
            ended.set()

    monkeypatch.setattr(chat, "stream", spy)
    visitor = visit()
    visitor.send("Hello there")
    visitor.expect(visitor.button("Stop")).to_be_enabled()
    assert started.wait(60)
    visitor.page.close()
    assert ended.wait(60)
    assert "reached the longest reply after 4000 tokens" not in endings


HOSTILE = """
<script>window.hacked = 1</script> <img src=x onerror="window.hacked = 2"> ${7*7} {{7+7}} <b>not bold</b>
![spy](http://example.org/spy.png) <iframe src="http://example.org"></iframe> <style>body { display: none }</style>
<div style="position: fixed; inset: 0; background: red">over the page</div> $$x$$ [click](javascript:window.hacked=3)
``<div style="position: fixed; inset: 0">`` \\`<u>\\` not a fence ```
<u>either</u>
"""


def test_hostile_text_is_shown_as_text(visit, monkeypatch):
    pretend(monkeypatch, HOSTILE)
    visitor = visit()
    visitor.send("Hello ${7*7} <img src=x onerror='window.hacked = 4'>")
    visitor.until_replied()
    reply = visitor.columns.first.get_by_test_id("bot")
    for text in (
        "<script>window.hacked = 1</script>",
        '<img src=x onerror="window.hacked = 2">',
        "${7*7} {{7+7}} <b>not bold</b>",
        "<style>body { display: none }</style>",
        '<div style="position: fixed; inset: 0; background: red">over the page</div>',
        "$$x$$",
        "<u>either</u>",
    ):
        visitor.expect(reply).to_contain_text(text)
    asked = visitor.columns.first.get_by_test_id("user")
    visitor.expect(asked).to_contain_text("Hello ${7*7} <img src=x onerror='window.hacked = 4'>")
    alive = "script, img, iframe, style, b, u, [style*=fixed], [onerror], [href^=javascript], .katex"
    visitor.expect(visitor.columns.locator(".message-content").locator(alive)).to_have_count(0)
    assert visitor.page.evaluate("window.hacked") is None
    assert not [url for url in visitor.asked_for if "example.org" in url]


def test_markdown_is_shown_as_markdown(visit, monkeypatch):
    pretend(monkeypatch, "some **bold** and `<code>`\n\n```\n<fenced> & more\n```\n")
    visitor = visit()
    visitor.send("Hello")
    visitor.until_replied()
    reply = visitor.columns.first.get_by_test_id("bot")
    visitor.expect(reply.locator("strong")).to_have_text("bold")
    visitor.expect(reply.locator("p code")).to_have_text("<code>")
    visitor.expect(reply.locator("pre code")).to_contain_text("<fenced> & more")


def test_on_a_phone_columns_stack_and_nothing_scrolls_sideways(visit, monkeypatch):
    visitor = visit(width=360, height=740)
    assert visitor.sideways() <= 0
    visitor.send("Hello there")
    visitor.until_replied()
    first, second = (visitor.columns.nth(column).bounding_box() for column in (0, 1))
    assert first["x"] == second["x"]
    assert first["y"] + first["height"] <= second["y"]
    assert visitor.sideways() <= 0
    pretend(monkeypatch, "w" * 200 + "\n```\n" + "a long line of code " * 20 + "\n```\n" + "|a|b|\n|-|-|\n|" + "x" * 99)
    visitor.send("Something wide")
    visitor.expect(visitor.columns.nth(1)).to_contain_text("a long line of code")
    visitor.until_replied()
    assert visitor.sideways() <= 0
    for name in ("Send", "Stop", "Clear"):
        box = visitor.button(name).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360
