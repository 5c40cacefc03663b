"""A stand-in for the labeling server: a bare page with `<ranking-desk>` and the JSON API in memory, with switches.

The real routes have tests of their own; this one can fail in every way, at the right moment.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles

STATIC = Path(__file__).parents[1] / "labeling_app" / "ui" / "static"
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Ranking</title><link rel="icon" href="data:,"><style>body { margin: 0 }</style>
<script type="module" src="/static/ranking.js"></script>
</head>
<body><ranking-desk api="/KEY/api"></ranking-desk></body>
</html>"""

FORM: dict[str, Any] = {
    "title": "Which answer is better?",
    "guidelines_html": "<p>Put the best <strong>first</strong>.</p><p>Ties are fine.</p>",
    "guidelines_sha256": "a" * 64,
    "strength": True,
    "both_bad": True,
    "flags": [{"id": "wrong_facts", "label": "Says something false"}, {"id": "harmful", "label": "Harmful or unsafe"}],
    "attributes": [],
    "reason": "optional",
    "better_answer": True,
    "skip_reasons": ["I do not know the subject", "It upsets me"],
}


def task(lease: str, *responses: str, prompt: str = "", kind: str = "task", **more: Any) -> dict[str, Any]:
    """A turn; texts are HTML, as the server has sanitised it."""
    responses = responses or (f"<p>First of {lease}</p>", f"<p>Second of {lease}</p>")
    return {
        "lease": lease,
        "kind": kind,
        "expires_at": time.time() + 1800,
        "conversation": [{"role": "user", "html": prompt or f"<p>Question of {lease}</p>"}],
        "responses": [{"html": html, "length": len(html)} for html in responses],
        "draft": None,
        "is_answered": False,
    } | more


class Stub:
    """The server's state, and what goes wrong: set the switches from a test."""

    def __init__(self) -> None:
        self.name = "Ada"
        self.form = dict(FORM)
        self.tasks = [task("t1"), task("t2"), task("t3")]
        self.known: dict[str, dict[str, Any]] = {}  # of practice tasks, by lease
        self.guidelines_read = True
        self.paused: str | None = None
        self.is_out = False  # the session has ended
        self.csrf = "token"
        self.failures: dict[str, list[int]] = {}  # by route: statuses of the next requests, which do nothing
        self.lost_replies: dict[str, int] = {}  # by route: how many are done, and answered with 503
        self.headers: dict[str, str] = {}  # of failures
        self.answers: dict[str, dict[str, Any]] = {}  # by lease: what stands
        self.stored: list[dict[str, Any]] = []  # every submission that was stored, in order
        self.skipped: list[dict[str, Any]] = []
        self.drafts: dict[str, dict[str, Any]] = {}
        self.requests: list[tuple[str, Any]] = []  # route and body, of all that came
        self.hold = threading.Event()  # cleared: submits wait
        self.hold.set()
        self.num_held = 0
        self._acknowledged: dict[str, dict[str, Any]] = {}
        self._lock = threading.Condition()

    def count(self, route: str) -> int:
        """How many requests came for a route."""
        return sum(name == route for name, _ in self.requests)

    def has_come(self, route: str, num: int = 1) -> bool:
        """Waits until so many requests came for a route."""
        with self._lock:
            return self._lock.wait_for(lambda: self.count(route) >= num, 15)

    def has_held(self, num: int) -> bool:
        """Waits until so many submits wait for `hold`."""
        with self._lock:
            return self._lock.wait_for(lambda: self.num_held >= num, 15)

    def has_drafted(self, words: str) -> bool:
        """Waits until a draft with those words is here."""
        with self._lock:
            return self._lock.wait_for(lambda: words in str(self.drafts), 15)

    def take(self, route: str, body: Any, token: str | None) -> tuple[int, dict[str, Any]]:
        """Status and content for a request."""
        if route in ("submit", "skip") and not self.hold.is_set():
            with self._lock:
                self.num_held += 1
                self._lock.notify_all()
            self.hold.wait(30)
        with self._lock:
            self.requests.append((route, body))
            self._lock.notify_all()
            if self.failures.get(route):
                status = self.failures[route].pop(0)
                return status, {"error": f"The switch says {status}."}
            if self.is_out:
                return 401, {"error": "Please log in again."}
            if route not in ("me", "form") and self.paused is not None:
                return 403, {"error": f"Your work is paused: {self.paused}"}
            if body is not None and token != self.csrf:
                return 403, {"error": "This page is out of date. Please reload it."}
            status, content = getattr(self, f"_{route}")(body)
            self._lock.notify_all()
            if self.lost_replies.get(route):
                self.lost_replies[route] -= 1
                return 503, {"error": "The reply was lost."}
            return status, content

    def _me(self, body: Any) -> tuple[int, dict[str, Any]]:
        read = {"guidelines_read": self.guidelines_read, "paused": self.paused}
        return 200, {"name": self.name, "role": "annotator", "csrf": self.csrf} | read

    def _form(self, body: Any) -> tuple[int, dict[str, Any]]:
        return 200, self.form

    def _guidelines(self, body: Any) -> tuple[int, dict[str, Any]]:
        if body["sha256"] != self.form["guidelines_sha256"]:
            return 409, {"error": "The guidelines have just changed. Please read them again."}
        self.guidelines_read = True
        return 200, {"saved": True}

    def _turn(self) -> dict[str, Any] | None:
        gone = {item["lease"] for item in self.skipped} | set(self.answers)
        left = [turn for turn in self.tasks if turn["lease"] not in gone]
        return left[0] | {"draft": self.drafts.get(left[0]["lease"], left[0]["draft"])} if left else None

    def _next(self, body: Any) -> tuple[int, dict[str, Any]]:
        return 200, {"turn": self._turn()}

    def _submit(self, body: Any) -> tuple[int, dict[str, Any]]:
        lease = body["lease"]
        if body["submission"] not in self._acknowledged:
            if lease in self.answers and not body["edit"]:
                return 409, {"error": "You have answered this task already."}
            self.stored.append(body)
            self.answers[lease] = body["answer"]
            self.drafts.pop(lease, None)
            self._acknowledged[body["submission"]] = body
        return 200, {"saved": True, "known": self.known.get(lease), "turn": self._turn()}

    def _skip(self, body: Any) -> tuple[int, dict[str, Any]]:
        if body["submission"] not in self._acknowledged:
            self._acknowledged[body["submission"]] = body
            self.skipped.append(body)
        return 200, {"saved": True, "turn": self._turn()}

    def _draft(self, body: Any) -> tuple[int, dict[str, Any]]:
        self.drafts[body["lease"]] = body["draft"]
        return 200, {"saved": True}

    def _history(self, body: Any) -> tuple[int, dict[str, Any]]:
        rows = []
        for at, (lease, answer) in enumerate(self.answers.items()):
            if lease not in self.known:
                row = {"lease": lease, "at": 1_700_000_000.0 + at, "ranks": answer["ranks"]}
                row |= {"both_bad": answer["both_bad"], "prompt": f"Question of {lease} <b>&amp;"}
                rows.insert(0, row | {"revision": sum(item["lease"] == lease for item in self.stored)})
        return 200, {"answers": rows}

    def _open(self, body: Any) -> tuple[int, dict[str, Any]]:
        turn = next((turn for turn in self.tasks if turn["lease"] == body["lease"]), None)
        if turn is None or body["lease"] not in self.answers:
            return 404, {"error": "There is no such answer of yours."}
        draft = self.drafts.get(body["lease"], self.answers[body["lease"]])
        return 200, {"turn": turn | {"draft": draft, "is_answered": True}}

    def _progress(self, body: Any) -> tuple[int, dict[str, Any]]:
        done = len([lease for lease in self.answers if lease not in self.known])
        kinds = [turn["kind"] for turn in self.tasks if turn["lease"] not in self.answers]
        left = {"left": kinds.count("task"), "practice_left": kinds.count("practice")}
        return 200, {"done": done, "today": done, "pace_seconds": 42.0 if done else None} | left


def make_app(stubs: dict[str, Stub]) -> FastAPI:
    """The app: each stub under its own path, so that a page of an earlier test never talks to a later one's."""
    app = FastAPI()
    app.mount("/static", StaticFiles(directory=STATIC))

    @app.get("/{key}", response_class=HTMLResponse)
    def page(key: str) -> str:
        return PAGE.replace("KEY", key)

    @app.get("/{key}/login", response_class=HTMLResponse)
    def login(key: str) -> str:
        return "<title>Log in</title><h1>Log in</h1>"

    @app.post("/{key}/logout")
    def logout(key: str) -> dict[str, bool]:
        stubs[key].is_out = True
        return {"saved": True}

    @app.api_route("/{key}/api/{route}", methods=["GET", "POST"])
    async def api(key: str, route: str, request: Request) -> Response:
        from starlette.concurrency import run_in_threadpool

        body = await request.json() if request.method == "POST" else None
        status, content = await run_in_threadpool(stubs[key].take, route, body, request.headers.get("x-csrf-token"))
        return JSONResponse(content, status, stubs[key].headers if status >= 400 else {})

    return app


@contextmanager
def serving(stubs: dict[str, Stub]) -> Iterator[str]:
    """The address of the stubs while they run: each one's page is at its key."""
    server = uvicorn.Server(uvicorn.Config(make_app(stubs), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("the stub server did not start")
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
