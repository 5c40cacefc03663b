"""The lead's page in a real browser: every tab, by day and by night, on a wide screen and on a phone."""

import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from labeling_app.people import list_people
from labeling_app.session import COOKIE
from labeling_app.store.schema import adjudications
from rlhf.ports import choose_port
from tests.label_project import HOSTILE, Project, project

PATIENCE = 30_000  # milliseconds an expectation may take on a busy machine
TABS = ("Progress", "Agreement", "Annotators", "Disputes", "Export")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Project, str, Path]]:
    """The whole app on the small project: the project, its address, the folder for exports."""
    import uvicorn

    from labeling_app.ui.app import make_app

    folder = tmp_path_factory.mktemp("lead")
    with project(folder / "labels.db", time.time()) as made:
        port = choose_port("127.0.0.1", 0)
        app = make_app(made.desk, folder / "runs")
        server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.02)
        yield made, f"http://127.0.0.1:{port}", folder / "runs"
        server.should_exit = True
        thread.join(30)


class Visitor:
    """A lead's browser on the page."""

    def __init__(self, browser: Any, made: Project, url: str, name: str = "Lea", **options: Any) -> None:
        from playwright.sync_api import expect

        expect.set_options(timeout=PATIENCE)
        self.expect = expect
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
        self.context.add_cookies([{"name": COOKIE, "value": made.cookie(name), "url": url}])
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.errors: list[str] = []
        self.asked_for: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.asked_for.append(request.url))
        self.page.goto(f"{url}/admin/")
        self.url = url

    def sees(self, words: str | re.Pattern[str]) -> None:
        """Waits until it is on screen."""
        self.expect(self.page.get_by_text(words).locator("visible=true").first).to_be_visible()

    def goes_to(self, tab: str) -> None:
        """Opens a tab, which may be behind the three dots."""
        self.expect(self.page.get_by_role("tab", name="Progress", exact=True)).to_be_visible()
        wanted = self.page.get_by_role("tab", name=tab, exact=True)
        if not wanted.is_visible():
            self.page.locator(".overflow-menu > button").click()
            wanted = self.page.locator(".overflow-dropdown").get_by_text(tab, exact=True)
        wanted.click()

    def cell(self, row: int, column: int, table: str) -> Any:
        return self.page.get_by_role("grid", name=table).locator(f"[data-testid=cell-{row}-{column}]")

    def button(self, name: str) -> Any:
        return self.page.get_by_role("button", name=name, exact=True)

    def leaves(self) -> None:
        """Closes the window; nothing may have gone wrong in it, or out of it."""
        assert self.page.evaluate("window.hacked") is None
        assert self.errors == []
        outside = [url for url in self.asked_for if not url.startswith((self.url, "data:", "blob:"))]
        assert outside == []
        self.context.close()


def test_a_lead_reads_decides_and_exports(browser: Any, served: tuple[Project, str, Path]) -> None:
    made, url, exports = served
    lea = Visitor(browser, made, url)
    page, expect = lea.page, lea.expect
    lea.sees("of 5 tasks")
    lea.sees("4 labels to go")
    expect(lea.cell(0, 0, "In people's hands")).to_have_text(HOSTILE)
    expect(page.locator("lead-masthead bdi")).to_have_text("Lea")

    lea.goes_to("Agreement")
    lea.sees("So far agreement cannot be told from chance: collect more labels on the same tasks.")
    expect(lea.cell(0, 1, "Kappa of every two people")).to_have_text(HOSTILE)

    lea.goes_to("Annotators")
    expect(lea.cell(1, 0, "Annotators")).to_have_text(HOSTILE)
    page.get_by_label("Who", exact=True).click()
    page.get_by_role("option", name=HOSTILE).click()
    expect(page.get_by_label("State", exact=True)).to_have_value("Simulated, or without a password: cannot log in.")
    expect(lea.button("Let work again")).to_be_disabled()
    lea.button("Pause").click()
    lea.sees(re.compile("Please say why"))
    page.get_by_label("Reason", exact=True).fill("call me ${window.hacked=4}")
    lea.button("Pause").click()
    expect(page.get_by_label("State", exact=True)).to_have_value("Paused: call me ${window.hacked=4}")
    expect(lea.cell(1, 8, "Annotators")).to_have_text("paused")
    paused = {row["name"]: row["paused"] for row in made.desk.store.read(list_people)}
    assert paused[HOSTILE] == "call me ${window.hacked=4}"
    lea.button("Make a link").click()
    link = page.get_by_label("Invitation link, shown once")
    expect(link).to_have_value(re.compile(rf"{url}/join/\S{{43}}"))
    lea.context.grant_permissions(["clipboard-read", "clipboard-write"])
    lea.button("Copy").click()
    expect(page.get_by_label("Invitation link, shown once")).to_have_value(
        page.evaluate("navigator.clipboard.readText()")
    )

    lea.goes_to("Export")
    lea.sees("of 10 that came in")
    expect(lea.cell(2, 1, "Labels in and out")).to_have_text("10")
    lea.button("Write the export").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="preferences.train.jsonl").click()
    (run,) = exports.iterdir()
    assert Path(download.value.path()).read_bytes() == (run / "preferences.train.jsonl").read_bytes()
    assert json.loads((run / "run.json").read_text())["finished"]
    lea.leaves()


def test_disputes_are_settled_by_keyboard_alone(browser: Any, served: tuple[Project, str, Path]) -> None:
    made, url, _ = served
    lea = Visitor(browser, made, url)
    page, expect = lea.page, lea.expect
    lea.goes_to("Disputes")
    entry = page.locator("dispute-desk .entry").filter(has_text="prompt of k-0")
    entry.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Task k-0")).to_be_focused()
    expect(page.get_by_role("article", name="Response C")).to_be_visible()
    expect(page.locator("dispute-desk bdi").filter(has_text=HOSTILE).first).to_be_visible()
    settle = lea.button("Settle it")
    expect(settle).to_have_attribute("aria-disabled", "true")
    order = {}
    for letter, place in (("A", "2nd"), ("B", "1st"), ("C", "2nd")):
        group = page.get_by_role("group", name=f"Place of response {letter}")
        group.get_by_role("radio", name=place).focus()
        page.keyboard.press("Space")
        order[page.get_by_role("article", name=f"Response {letter}").locator(".prose").inner_text()] = place
    lea.sees("B, then A and C tied")
    page.get_by_label("Why?").fill("so it is")
    settle.focus()
    page.keyboard.press("Enter")
    lea.sees("Settled: B, then A and C tied.")
    expect(lea.button("Next dispute")).to_be_focused()
    row = made.desk.store.read(lambda c: c.execute(adjudications.select()).one())
    places = {"1st": 1, "2nd": 2}
    assert row.ranks == {f"k-0-{text}": places[place] for text, place in order.items()}
    assert row.reason == "so it is"

    page.keyboard.press("Enter")  # the next one is a pair, with a reason that tries to run
    expect(page.get_by_role("heading", name="Task p-1")).to_be_focused()
    expect(page.locator("dispute-desk .more strong")).to_have_text("plain")
    expect(page.locator("dispute-desk .more")).to_contain_text("<script>window.hacked=3</script>")
    expect(page.locator("dispute-desk script")).to_have_count(0)
    page.get_by_role("radio", name="A tie").focus()
    page.keyboard.press("Space")
    page.keyboard.press("Enter")  # from a radio too, as in any form
    lea.sees("Settled: A tie.")
    page.get_by_role("button", name=re.compile("^Settled")).press("Enter")
    expect(page.locator("dispute-desk .entry")).to_have_count(2)
    page.locator("dispute-desk .entry").filter(has_text="prompt of p-1").press("Enter")
    lea.button("Let the votes decide again").press("Enter")
    lea.sees("The votes decide again.")
    lea.leaves()


def test_a_lost_connection_is_said_and_mended(browser: Any, served: tuple[Project, str, Path]) -> None:
    made, url, _ = served
    lea = Visitor(browser, made, url)
    lea.goes_to("Disputes")
    lea.sees("prompt of p-1")
    lea.context.set_offline(True)
    lea.page.locator("dispute-desk .entry").filter(has_text="prompt of p-1").click()
    lea.expect(lea.page.get_by_role("alert").filter(has_text="No connection.")).to_be_visible()
    lea.context.set_offline(False)
    lea.button("Try again").click()
    lea.expect(lea.page.get_by_role("heading", name="Task p-1")).to_be_focused()
    lea.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_scrolls_sideways(browser: Any, served: tuple[Project, str, Path], scheme: str) -> None:
    made, url, _ = served
    lea = Visitor(browser, made, url, viewport={"width": 360, "height": 740}, color_scheme=scheme)
    lea.sees("of 5 tasks")
    for tab in TABS:
        if tab != "Progress":
            lea.goes_to(tab)
        lea.expect(lea.page.get_by_role("tab", name=tab, exact=True)).to_have_attribute("aria-selected", "true")
        lea.expect(lea.page.locator("h2:visible, dispute-desk h2:visible").first).to_be_visible()
        assert lea.page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0, tab
    ink, paper = lea.page.locator(".gradio-container").evaluate(
        "element => [getComputedStyle(element).color, getComputedStyle(element).backgroundColor]"
    )
    lightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
    assert (lightness[0] < lightness[1]) == (scheme == "light")
    lea.leaves()


def test_an_annotator_finds_the_door_closed(browser: Any, served: tuple[Project, str, Path]) -> None:
    made, url, _ = served
    ana = Visitor(browser, made, url, name="Ana")
    assert ana.page.goto(f"{url}/admin/").status == 403
    assert ana.page.locator("dispute-desk, lead-masthead, .gradio-container").count() == 0
    ana.context.close()
