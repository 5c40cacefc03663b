"""`rlhf chat`: replies that stream and stop, and the page in a real browser."""

import dataclasses
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf import chat, streaming
from rlhf.chat import ChatConfig, Page, chatting, harmless, names
from rlhf.config import parse
from rlhf.data.encode import Encoder
from rlhf.errors import UserError
from rlhf.generate import Sampling, generate
from rlhf.models import load_policy
from rlhf.streaming import Piece, stream
from tests.tiny import tiny_policy

HELLO = [{"role": "user", "content": "Hello"}]
GREEDY = Sampling(temperature=0, max_new_tokens=12)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[str]:
    """Two policies that never end their turn: a random one does so at one token in 300, by chance."""
    folders = []
    for seed, name in enumerate(("sft", "ppo")):
        folder = tiny_policy(tmp_path_factory.getbasetemp() / "chat" / name, max_length=4096, seed=seed)
        generation = json.loads((folder / "generation_config.json").read_text())
        generation["suppress_tokens"] = [generation["eos_token_id"]]
        (folder / "generation_config.json").write_text(json.dumps(generation))
        folders.append(str(folder))
    return folders


@pytest.fixture(scope="module")
def policies(folders):
    return [load_policy(folder) for folder in folders]


def greedy(policy, messages) -> str:
    """The reply by the other way to get one."""
    ((_, (reply,)),) = generate(policy, [messages], 1, GREEDY, batch_size=1)
    return reply.text


def last(pieces) -> dict[int, Piece]:
    return {piece.column: piece for piece in pieces}


# --- replies that grow -------------------------------------------------------------------------


def test_replies_grow_and_end_as_generate_writes_them(policies):
    pieces = list(stream(policies, [HELLO, HELLO], GREEDY, threading.Event()))
    for column, policy in enumerate(policies):
        *growing, final = [piece for piece in pieces if piece.column == column]
        assert final.text == greedy(policy, HELLO)
        assert final.ending == "reached the longest reply after 12 tokens"
        assert all(piece.ending is None for piece in growing)
        assert [len(piece.text) for piece in growing] == sorted(len(piece.text) for piece in growing)


def test_stop_ends_the_writing_at_the_next_token(policies):
    stop = threading.Event()
    replies = stream(policies, [HELLO, HELLO], Sampling(1.0, 2000), stop)
    next(replies)
    stop.set()
    for piece in last(replies).values():
        assert piece.ending is not None
        assert piece.ending.startswith("stopped after ")
        assert int(piece.ending.split()[2]) < 2000


def test_nobody_writes_on_when_the_reader_leaves(policies):
    before = threading.active_count()
    replies = stream(policies, [HELLO, HELLO], Sampling(1.0, 2000), threading.Event())
    next(replies)
    assert threading.active_count() > before
    replies.close()
    assert threading.active_count() == before


def test_a_policy_that_ends_its_turn(policies):
    (policy, _) = policies
    every_token_ends = Encoder(policy.tokenizer, stop_ids=range(len(policy.tokenizer)))
    policy = dataclasses.replace(policy, encoder=every_token_ends)
    pieces = last(stream([policy], [HELLO], GREEDY, threading.Event()))
    assert pieces[0].ending == "ended its turn after 1 token"


def test_a_policy_that_fails_says_so_and_the_other_goes_on(policies):
    class Broken:
        device = "cpu"

        def generate(self, **_):
            raise RuntimeError("out of memory")

    broken = dataclasses.replace(policies[0], model=Broken())
    pieces = last(stream([broken, policies[1]], [HELLO, HELLO], GREEDY, threading.Event()))
    assert pieces[0] == Piece(0, "", "failed: out of memory")
    assert pieces[1].text == greedy(policies[1], HELLO)


def test_a_conversation_that_no_longer_fits_is_said(policies):
    policy = dataclasses.replace(policies[0], max_length=60)
    turns = [*HELLO, {"role": "assistant", "content": "word " * 40}, *HELLO]
    pieces = last(stream([policy], [turns], GREEDY, threading.Event()))
    assert pieces[0].ending == (
        "reached the longest reply after 12 tokens; the start of the conversation no longer fits its context"
    )


def test_half_a_character_waits_for_the_other_half(policies):
    import queue

    import torch

    pieces: queue.Queue[Piece] = queue.Queue()
    feed = streaming._Feed(0, policies[0], pieces)
    feed.put(torch.tensor([[5, 6, 7]]))  # the prompt
    first, second = policies[0].tokenizer("é", add_special_tokens=False)["input_ids"]
    feed.put(torch.tensor([first]))
    assert pieces.empty()
    feed.put(torch.tensor([second]))
    assert pieces.get_nowait() == Piece(0, "é")


# --- what the page is made of ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["/runs/sft"], ["sft"]),
        (["/runs/sft", "/runs/ppo/"], ["sft", "ppo"]),
        (["/a/run", "/b/run"], ["a/run", "b/run"]),
        (["/a/run", "/a/run"], ["run (1)", "run (2)"]),
    ],
)
def test_names_are_as_short_as_tells_them_apart(paths, expected):
    assert names(paths) == expected


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        ("plain **bold**", "plain **bold**"),
        ("<b>&lt;", "&lt;b>&amp;lt;"),
        ("![pic](http://x) [link](http://x)", "\\![pic](http://x) [link](http://x)"),
        ("`<b>` and <b>", "`<b>` and &lt;b>"),
        ("```html\n<b>\n```\n<b>", "```html\n<b>\n```\n&lt;b>"),
        ("```\n<b> of a reply that still grows", "```\n<b> of a reply that still grows"),
        # No code for markdown, so not for us either.
        ("not a fence ```\n<b>", "not a fence ```\n&lt;b>"),
        ("``<b>`", "``&lt;b>`"),
        ("\\`<b>\\`", "\\`&lt;b>\\`"),
    ],
)
def test_tags_become_text_and_code_stays(text, markdown):
    assert harmless(text) == markdown


def test_each_policy_has_a_history_of_its_own(policies):
    page = Page(policies, ["sft", "ppo"], GREEDY, longest=64)
    page.build()
    first = list(page._reply("Hello", [[], []], GREEDY, "visitor"))[-1][page.histories]
    assert first == [[*HELLO, {"role": "assistant", "content": greedy(policy, HELLO)}] for policy in policies]
    second = list(page._reply(" and then? ", first, GREEDY, "visitor"))[-1][page.histories]
    for policy, before, after in zip(policies, first, second, strict=True):
        asked = [*before, {"role": "user", "content": "and then?"}]
        assert after == [*asked, {"role": "assistant", "content": greedy(policy, asked)}]
    assert not page.stops


def test_an_empty_message_is_not_sent(policies):
    page = Page(policies, ["sft", "ppo"], GREEDY, longest=64)
    page.build()
    assert list(page._reply("  \n", [[], []], GREEDY, "visitor")) == [{page.message: ""}]


def test_the_module_costs_nothing_until_it_runs():
    code = "import rlhf.chat, sys; assert not {'gradio', 'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_config_that_comes_with_rlhf_is_valid():
    config = parse(chat.Config, ["--config", "configs/chat.yaml", "--policies", "a", "b"])
    assert config.chat == ChatConfig(["a", "b"])


@pytest.mark.slow
def test_ctrl_c_ends_the_verb(folders):
    code = "import sys; from rlhf.chat import *; from rlhf.config import parse; run(parse(Config, sys.argv[1:]))"
    flags = ["--policies", *folders, "--port", "0"]
    verb = subprocess.Popen([sys.executable, "-c", code, *flags], stdout=subprocess.PIPE, text=True)
    line = verb.stdout.readline()
    assert line.startswith("chat with sft and ppo at http://127.0.0.1:")
    verb.send_signal(signal.SIGINT)
    assert verb.wait(timeout=60) == 0


# --- errors ------------------------------------------------------------------------------------


def refused(policies: list[str], **settings) -> str:
    with pytest.raises(UserError) as error:
        chat.run(chat.Config(ChatConfig(policies, **({"port": 0} | settings))))
    return str(error.value)


@pytest.mark.parametrize("number", [0, 3])
def test_not_one_or_two_policies(folders, number):
    assert refused(folders[:1] * number) == f"policies: chat takes one policy or two, there are {number}"


def test_a_folder_that_does_not_exist(tmp_path):
    assert f"{tmp_path / 'none'}: no such model folder" in refused([str(tmp_path / "none")])


def test_a_folder_without_tokenizer(tmp_path):
    folder = tiny_policy(tmp_path / "run")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink()
    assert "tokenizer" in refused([str(folder)])


def test_a_folder_without_template_and_the_mend_it_names(tmp_path):
    folder = tiny_policy(tmp_path / "run")
    (folder / "chat_template.jinja").unlink()
    message = refused([str(folder)])
    assert "has no chat template" in message
    assert "--chat_template_path configs/templates/chatml.jinja" in message
    with chatting(ChatConfig([str(folder)], port=0, chat_template_path="configs/templates/chatml.jinja")) as url:
        assert url.startswith("http://127.0.0.1:")


def test_a_port_in_use(folders):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = refused(folders, port=port)
    assert message.startswith(f"port: {port} on 127.0.0.1 cannot be used (Address already in use); choose another")


@pytest.mark.parametrize("length", [0, 2049])
def test_a_reply_that_leaves_no_room(folders, length):
    message = refused(folders, max_new_tokens=length)
    assert message == f"max_new_tokens: {length} should be from 1 to 2048, half the context of the policies"


def test_a_temperature_out_of_range():
    with pytest.raises(UserError, match=r"temperature is 3\.0, should be from 0 to 2"):
        parse(chat.Config, ["--policies", "a", "--temperature", "3"])


# --- the page in a browser ---------------------------------------------------------------------

CHROMIUM = Path("/usr/bin/chromium")
PATIENCE = 60_000  # milliseconds an expectation may take on a busy machine


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is absent: apt-get install chromium")
    with playwright.sync_playwright() as started:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        opened = started.chromium.launch(executable_path=str(CHROMIUM), args=options)
        yield opened
        opened.close()


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
