"""The gate before Gradio's pages: Gradio asks `auth_dependency` on most of its routes, we ask on every one."""

from collections.abc import Callable, Mapping
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse

from labeling_app.login import current_person
from labeling_app.people import Person
from labeling_app.routes import Desk
from labeling_app.session import COOKIE


class Gate:
    """ASGI middleware that lets only those people past who may see what lies under a path.

    Args:
        app: what is behind the gate.
        desk: what the routes share.
        rules: path to who may see what is at it and under it.
    """

    def __init__(self, app: Any, desk: Desk, rules: Mapping[str, Callable[[Person], bool]]) -> None:
        self.app, self.desk, self.rules = app, desk, rules

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass the request on, or refuse it."""
        may = next((may for path, may in self.rules.items() if _is_under(scope, path)), None)
        if may is not None:
            cookie = HTTPConnection(scope).cookies.get(COOKIE)
            person = await run_in_threadpool(
                current_person, self.desk.store, self.desk.sessions, cookie, self.desk.clock()
            )
            if person is None or not may(person):
                status, sentence = (401, "Please log in.") if person is None else (403, "This page is for the lead.")
                await JSONResponse({"error": sentence}, status)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _is_under(scope: Any, path: str) -> bool:
    return scope["type"] in ("http", "websocket") and f"{scope['path']}/".startswith(f"{path}/")
