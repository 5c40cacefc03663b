"""The ranking widget in a real browser, against tests/label_stub.py: fixtures and what tests do in its window."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.label_stub import Stub, serving

PATIENCE = 15_000  # milliseconds an expectation may take on a busy machine


@pytest.fixture(scope="module")
def stubs() -> dict[str, Stub]:
    return {}


@pytest.fixture(scope="module")
def url(stubs: dict[str, Stub]) -> Iterator[str]:
    with serving(stubs) as url:
        yield url


@pytest.fixture
def stub(stubs: dict[str, Stub]) -> Stub:
    """A server of its own for the test, the newest of them."""
    return stubs.setdefault(f"desk{len(stubs)}", Stub())


@pytest.fixture
def visit(browser: Any, url: str, stubs: dict[str, Stub], stub: Stub) -> Iterator[Callable[..., "Visitor"]]:
    """Opens the page, in a browser of its own that remembers nothing; `options` are playwright's."""
    contexts = []

    def open(**options: Any) -> "Visitor":
        options.setdefault("viewport", {"width": 1280, "height": 860})
        contexts.append(browser.new_context(**options))
        return Visitor(contexts[-1], f"{url}/desk{len(stubs) - 1}")

    yield open
    for context in contexts:
        context.close()


class Visitor:
    """A browser window on the desk."""

    def __init__(self, context: Any, url: str) -> None:
        from playwright.sync_api import expect

        expect.set_options(timeout=PATIENCE)
        self.expect, self.context, self.url = expect, context, url
        self.errors: list[str] = []
        self.page = self.open()

    def open(self) -> Any:
        """One more tab of the same browser."""
        page = self.context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(self.url)
        return page

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def button(self, name: str, exact: bool = True) -> Any:
        return self.page.get_by_role("button", name=name, exact=exact)

    def radio(self, name: str) -> Any:
        return self.page.get_by_role("radio", name=name, exact=True)

    def card(self, letter: str) -> Any:
        return self.page.get_by_role("region", name=f"Response {letter}", exact=True)

    def shows(self, lease: str) -> None:
        """Waits until a task of tests.label_stub.task is on screen."""
        self.expect(self.page.locator(".conversation")).to_contain_text(f"Question of {lease}")

    def said(self, words: str) -> None:
        """Waits until a screen reader has been told."""
        self.expect(self.page.locator(".voice")).to_contain_text(words)

    def notice(self, words: str) -> None:
        self.expect(self.page.locator(".notice")).to_contain_text(words)

    def no_notice(self) -> None:
        self.expect(self.page.locator(".notice")).to_be_empty()

    def stop_clock(self) -> None:
        """From here on the page's time goes by only with `page.clock.run_for`."""
        self.page.clock.install()
        self.page.clock.pause_at(time.time() + 3600)

    def focused(self) -> str:
        """What has the focus: tag and text."""
        return self.page.evaluate(
            """() => {
                const element = document.querySelector("ranking-desk").shadowRoot.activeElement;
                return element ? `${element.tagName}: ${element.innerText.trim()}` : "nothing";
            }"""
        )

    def sideways(self) -> int:
        """By how many pixels the page is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")

    def kept(self, kind: str) -> int:
        """How many things of a kind (outbox, draft) this browser keeps."""
        return self.page.evaluate("kind => Object.keys(localStorage).filter(k => k.includes(`/${kind}/`)).length", kind)
