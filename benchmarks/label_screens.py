"""The labeling app's screens, as people see them, into docs/images: `python benchmarks/label_screens.py`.

A server of its own on a store with a few tasks, people and labels; chromium at 1280 and 360 pixels, light and dark.
"""

import argparse
import re
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from label_screens_store import fill
from playwright.sync_api import sync_playwright

from labeling_app.label import Config, LabelConfig

CHROMIUM = "/usr/bin/chromium"
WIDTHS = {"desktop": (1280, 860), "phone": (360, 780)}
TABS = ("Progress", "Agreement", "Annotators", "Disputes", "Export")
PATIENCE = 60_000  # milliseconds


def main() -> None:
    """Serve, look, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "images")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        for scheme in ("light", "dark"):
            for name, (width, height) in WIDTHS.items():
                with tempfile.TemporaryDirectory() as scratch:
                    settings = LabelConfig(str(Path(scratch) / "labels.db"), port=0, exports=scratch)
                    people = fill(settings.store)
                    look = {"viewport": {"width": width, "height": height}, "color_scheme": scheme}
                    context = browser.new_context(**look, reduced_motion="reduce")
                    with serving(Config(settings)) as url:
                        Photographer(context, url, out, f"{name}-{scheme}").walk(people)
                    context.close()
        browser.close()


def serving(config: Config) -> Any:
    """The app in a thread of this process; yields its address."""
    import contextlib
    import threading

    import uvicorn

    from labeling_app.label import app_of, opened
    from rlhf.ports import choose_port, url_of

    @contextlib.contextmanager
    def serve() -> Any:
        settings = replace(config.label, port=choose_port("127.0.0.1", 0))
        with opened(settings) as store:
            server = uvicorn.Server(uvicorn.Config(app_of(store, settings), port=settings.port, log_level="warning"))
            thread = threading.Thread(target=server.run, daemon=True)
            thread.start()
            while not server.started:
                time.sleep(0.05)
            try:
                yield url_of("127.0.0.1", settings.port)
            finally:
                server.should_exit = True
                thread.join()

    return serve()


class Photographer:
    """One person's walk through the app at one width and in one light."""

    def __init__(self, context: Any, url: str, out: Path, look: str) -> None:
        self.page, self.url, self.out, self.look = context.new_page(), url, out, look
        self.page.set_default_timeout(PATIENCE)

    def walk(self, people: dict[str, str]) -> None:
        """Log in as the annotator, then as the lead, and take every screen."""
        self.page.goto(f"{self.url}/login")
        self.shoot("login")
        self.log_in("Ana", people["Ana"])
        self.page.get_by_role("button", name="I have read them").wait_for()
        self.shoot("guidelines")
        self.page.get_by_role("button", name="I have read them").click()
        submit = self.page.get_by_role("button", name=re.compile("^Submit"))
        submit.wait_for()
        self.page.keyboard.press("2")
        self.shoot("rank-pair")
        self.page.keyboard.press("Enter")
        self.page.get_by_text("Your order").or_(
            self.page.get_by_role("button", name=re.compile("^Place"))
        ).first.wait_for()
        for key in "cab":
            self.page.keyboard.press(key)
        self.shoot("rank-several")
        self.page.request.post(f"{self.url}/logout")
        self.page.context.clear_cookies()
        self.log_in("Lea", people["Lea"])
        size = self.page.viewport_size
        for tab in TABS:
            self.page.set_viewport_size({"width": 1280, "height": size["height"]})  # where all tabs are in sight
            self.page.get_by_role("tab", name=tab).click()
            self.page.set_viewport_size(size)
            self.page.wait_for_load_state("networkidle")
            self.shoot(f"lead-{tab.lower()}")

    def log_in(self, name: str, password: str) -> None:
        """By name and password."""
        self.page.goto(f"{self.url}/login")
        self.page.get_by_label("Name").fill(name)
        self.page.get_by_label("Password").fill(password)
        self.page.get_by_role("button", name="Log in").click()
        self.page.wait_for_url(re.compile("/(rank|admin)"))

    def shoot(self, name: str) -> None:
        """One picture of the window."""
        self.page.screenshot(path=self.out / f"{name}-{self.look}.png", animations="disabled")
        print(self.out / f"{name}-{self.look}.png", flush=True)


if __name__ == "__main__":
    main()
