"""The web app: our routes and pages, and Gradio's two pages beside them, in one FastAPI."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, RedirectResponse, Response
from sqlalchemy import text

from labeling_app.admin_routes import admin_routes
from labeling_app.login import login_router
from labeling_app.people import Person, person_of
from labeling_app.routes import Desk, api_routes
from labeling_app.session import COOKIE
from labeling_app.ui.gate import Gate
from labeling_app.ui.manners import Manners
from labeling_app.ui.static_files import KINDS, find


def make_app(desk: Desk, exports: Path | None = None) -> FastAPI:
    """Everything under one roof: /login, /join, /rank, /admin, /api, /static, /health.

    Args:
        desk: what the routes share.
        exports: the folder for the export runs that the lead's page makes.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    import gradio as gr

    from labeling_app.ui import admin, rank
    from labeling_app.ui.look import theme

    app = FastAPI(title="rlhf label", docs_url=None, redoc_url=None, openapi_url=None)
    app.router.routes.extend([*api_routes(desk), *admin_routes(desk, exports)])
    app.include_router(login_router(desk.store, desk.sessions, desk.clock))
    app.add_api_route("/health", _health(desk), methods=["GET"])
    app.add_api_route("/favicon.ico", lambda: Response(status_code=204), methods=["GET"], response_model=None)
    app.add_api_route("/", _home(desk), methods=["GET"], response_model=None)
    app.add_api_route("/static/{version}/{name}", _static, methods=["GET"], response_model=None)
    rules = {"/rank": lambda person: True, "/admin": lambda person: person.may_lead}
    app.add_middleware(Gate, desk=desk, rules=rules)
    app.add_middleware(Manners)  # outside the gate: what is refused is refused politely

    look: dict[str, Any] = {"theme": theme(), "footer_links": [], "ssr_mode": False, "run_history": False}
    works, leads = (_allow(desk, may) for may in rules.values())
    gr.mount_gradio_app(app, rank.rank_page(), "/rank", auth_dependency=works, head=rank.HEAD, css=rank.CSS, **look)
    page = admin.admin_page(desk, exports)
    gr.mount_gradio_app(app, page, "/admin", auth_dependency=leads, head=admin.HEAD, css=admin.CSS, **look)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    return app


def _health(desk: Desk) -> Any:
    def health() -> dict[str, str]:
        """That the server runs and its database answers."""
        desk.store.read(lambda connection: connection.execute(text("SELECT 1")).scalar())
        return {"status": "ok"}

    return health


def _home(desk: Desk) -> Any:
    def home(request: Request) -> Response:
        person = _person(desk, request)
        return RedirectResponse("/login" if person is None else "/admin" if person.may_lead else "/rank", 303)

    return home


def _static(version: str, name: str) -> Response:
    path = find(name)
    if path is None:
        raise HTTPException(404)
    headers = {"Cache-Control": "public, max-age=31536000, immutable"}  # the address holds the version
    return FileResponse(path, media_type=KINDS[path.suffix], headers=headers)


def _person(desk: Desk, request: Request) -> Person | None:
    session = desk.sessions.read(request.cookies.get(COOKIE), desk.clock())
    return None if session is None else desk.store.read(lambda connection: person_of(connection, session))


def _allow(desk: Desk, may: Callable[[Person], bool]) -> Any:
    """Gradio's auth_dependency: the name of who may see the page, or an HTTP error."""

    def allow(request: Request) -> str:
        person = _person(desk, request)
        if person is None:
            raise HTTPException(401, "Please log in.")
        if not may(person):
            raise HTTPException(403, "This page is for the project's lead.")
        return person.name

    return allow
