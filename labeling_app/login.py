"""Logging in and out, and joining by invitation: plain pages that need no JavaScript.

Another site must not log people in as somebody else (their work would land in a stranger's account).
Browsers say where a form was sent from, in `Sec-Fetch-Site` or, on plain http, in `Origin`: that is
checked, and there is no token to expire while a page is open. Who sends neither is no browser.
"""

import asyncio
import functools
import hashlib
import math
import re
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from sqlalchemy import Connection
from starlette.concurrency import run_in_threadpool

from labeling_app.answer import Refused
from labeling_app.passwords import MAX_PASSWORD, check_password, hash_password, needs_rehash, verify_password
from labeling_app.people import (
    Person,
    accept_invitation,
    check_free,
    find,
    open_invitation,
    person_of,
    rehash,
    tidy_name,
)
from labeling_app.session import COOKIE, Session, Sessions
from labeling_app.store import Store, StoreError
from labeling_app.throttle import admit, count_failure, forgive

T = TypeVar("T")

MAX_FORM = 16_384  # bytes
MAX_WAITING = 200  # passwords that wait to be hashed
# A thread of their own, as they come one by one: waiting for it takes no other request's thread.
_HASHING = ThreadPoolExecutor(1, "label-password")
_TEMPLATES = Path(__file__).parent / "templates"


class Stopped(Refused):
    """A form that is not taken: the sentence for the page, its status, and how many seconds to wait."""

    def __init__(self, status: int, sentence: str, wait: float = 0.0) -> None:
        super().__init__(sentence)
        self.status = status
        self.headers = {"Retry-After": str(math.ceil(wait))} if wait else {}


def login_router(store: Store, sessions: Sessions, clock: Callable[[], float] = time.time) -> APIRouter:
    """GET and POST of /login and /join/{secret}, and POST /logout."""
    door = _Door(store, sessions, clock)
    router = APIRouter(include_in_schema=False)
    for path, method, route in (
        ("/login", "GET", door.show_login),
        ("/login", "POST", door.log_in),
        ("/logout", "POST", door.log_out),
        ("/join/{secret}", "GET", door.show_join),
        ("/join/{secret}", "POST", door.join),
    ):
        router.add_api_route(path, route, methods=[method], response_model=None)
    return router


def current_person(store: Store, sessions: Sessions, cookie: str | None, now: float) -> Person | None:
    """Whose cookie it is, if their session still holds: one read, and none where the cookie is not ours."""
    session = sessions.read(cookie, now)
    return None if session is None else store.read(lambda connection: person_of(connection, session))


class _Door:
    def __init__(self, store: Store, sessions: Sessions, clock: Callable[[], float]) -> None:
        self.store, self.sessions, self.clock = store, sessions, clock
        self._num_waiting = 0

    async def show_login(self, request: Request) -> Response:
        next_path = local_path(request.query_params.get("next"))
        cookie = request.cookies.get(COOKIE)
        if await run_in_threadpool(current_person, self.store, self.sessions, cookie, self.clock()) is not None:
            return _redirect(next_path)
        return _page("login.html", next=next_path)

    async def log_in(self, request: Request) -> Response:
        shown: dict[str, Any] = {}
        return await _answered("login.html", shown, self._log_in(request, shown))

    async def _log_in(self, request: Request, shown: dict[str, Any]) -> Response:
        sent = await _form(request)
        name, password = tidy_name(sent.get("name", "")), sent.get("password", "")
        shown |= {"name": name, "next": local_path(sent.get("next"))}
        if not name or not password:
            raise Refused("Please give your name and your password.")
        self._check_busy()
        now, address = self.clock(), self.sessions.address(request)
        wait = await self.store.write_async(lambda connection: admit(connection, name, address, now))
        if wait > 0:
            raise Stopped(429, f"Too many tries. Please wait {_in_words(wait)}, then try again.", wait)
        row = await run_in_threadpool(self.store.read, lambda connection: find(connection, name))
        password_hash = None if row is None else row.password_hash
        if len(password) > MAX_PASSWORD or not await self._hashing(verify_password, password_hash, password):
            await self.store.write_async(lambda connection: count_failure(connection, address, now))
            raise Stopped(401, "This name and password do not belong together.")
        assert row is not None and password_hash is not None
        new_hash = await self._hashing(hash_password, password) if needs_rehash(password_hash) else None

        def job(connection: Connection) -> None:
            forgive(connection, name, address)
            if new_hash is not None:
                rehash(connection, row.id, password_hash, new_hash)

        await self.store.write_async(job)
        return self._come_in(request, self.sessions.start(row.id, row.epoch, now), shown["next"])

    async def show_join(self, request: Request, secret: str) -> Response:
        async def form() -> Response:
            job = functools.partial(open_invitation, secret=secret, now=self.clock())
            try:
                await run_in_threadpool(self.store.read, job)
            except Refused as error:
                raise Stopped(404, str(error)) from None
            return _page("join.html", secret=secret)

        return await _answered("join.html", {}, form())

    async def join(self, request: Request, secret: str) -> Response:
        shown: dict[str, Any] = {}
        return await _answered("join.html", shown, self._join(request, secret, shown))

    async def _join(self, request: Request, secret: str, shown: dict[str, Any]) -> Response:
        sent = await _form(request)
        name, password = tidy_name(sent.get("name", "")), sent.get("password", "")
        shown["name"] = name
        now = self.clock()

        def look(connection: Connection) -> None:
            open_invitation(connection, secret, now)
            shown["secret"] = secret  # the page has a form as long as the invitation holds
            check_free(connection, name)

        await run_in_threadpool(self.store.read, look)  # before anything costly is done for a stranger
        check_password(password, name)
        self._check_busy()
        password_hash = await self._hashing(hash_password, password)

        def job(connection: Connection) -> Session:
            person_id = accept_invitation(connection, secret, name, password_hash, now)
            return self.sessions.start(person_id, 0, now)

        return self._come_in(request, await self.store.write_async(job), "/")

    async def log_out(self, request: Request) -> Response:
        session = self.sessions.read(request.cookies.get(COOKIE), self.clock())
        return await _answered("login.html", {"next": "/"}, self._log_out(request, session))

    async def _log_out(self, request: Request, session: Session | None) -> Response:
        sent = await _form(request)
        token = request.headers.get("x-csrf-token") or sent.get("csrf")
        if session is not None and not self.sessions.check_csrf(token, session):
            raise Stopped(403, "This page is out of date. Please reload it, then log out.")
        response = _redirect("/login")
        self.sessions.clear_cookie(response, request)
        return response

    def _come_in(self, request: Request, session: Session, next_path: str) -> Response:
        response = _redirect(next_path)
        self.sessions.set_cookie(response, request, session)
        return response

    def _check_busy(self) -> None:
        if self._num_waiting >= MAX_WAITING:
            raise Stopped(503, "Very many people are logging in just now. Please try again in a few seconds.", 5)

    async def _hashing(self, function: Callable[..., T], *args: Any) -> T:
        """Run a slow function of a password off the event loop, after those that came before."""
        self._num_waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(_HASHING, function, *args)
        finally:
            self._num_waiting -= 1


def _in_words(seconds: float) -> str:
    if seconds < 100:
        return f"{math.ceil(seconds)} second{'s' * (math.ceil(seconds) != 1)}"
    return f"{math.ceil(seconds / 60)} minutes"


# Requests and pages -----------------------------------------------------------------------------


def local_path(path: str | None) -> str:
    """`path` where it is one of this site's own pages, else `/`: a login must not send people elsewhere.

    Browsers read `\\` as `/` and skip tabs and line ends, so only one slash and then plain visible ASCII will do.
    """
    if not path or len(path) > 2000 or not re.fullmatch(r"/(?![/\\])[!-\[\]-~]*", path):
        return "/"
    is_door = re.match(r"/(login|logout|join)(?![\w-])", path)
    return "/" if is_door else path


def is_own_form(request: Request) -> bool:
    """Whether a form was sent from a page of ours, as its browser says; what is no browser says nothing.

    The order is that of Go's `http.CrossOriginProtection`: `Sec-Fetch-Site` needs no knowledge of
    our own address, which a proxy may hide.
    """
    fetched = request.headers.get("sec-fetch-site")
    if fetched is not None:
        return fetched in ("same-origin", "none")
    origin = request.headers.get("origin")
    return origin is None or origin.partition("://")[2].lower() == request.headers.get("host", "").lower() != ""


async def _form(request: Request) -> dict[str, str]:
    """The fields of a posted form. Raises Stopped for another site's, for too much and for what is none."""
    if not is_own_form(request):
        raise Stopped(403, "This form was sent from another site. Please send it from this page.")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM:
            raise Stopped(413, "This is too long to be a name and a password.")
    try:
        return dict(parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=10))
    except ValueError:
        raise Stopped(400, "The form did not arrive whole. Please send it again.") from None


async def _answered(template: str, shown: dict[str, Any], answer: Awaitable[Response]) -> Response:
    """The answer, or the same page again with a sentence that says what was wrong."""
    try:
        return await answer
    except Refused as error:
        status, headers = (error.status, error.headers) if isinstance(error, Stopped) else (400, {})
        return _page(template, status, headers, error=str(error), **shown)
    except StoreError:
        return _page(template, 503, {"Retry-After": "5"}, error="This did not work. Please try again.", **shown)


def _redirect(path: str) -> RedirectResponse:
    return RedirectResponse(path, 303, {"Cache-Control": "no-store", "Referrer-Policy": "same-origin"})


def _page(template: str, status: int = 200, headers: dict[str, str] | None = None, **shown: Any) -> HTMLResponse:
    environment, style, protection = _pages()
    html = environment.get_template(template).render(shown, style=style)
    return HTMLResponse(html, status, protection | (headers or {}))


@functools.cache
def _pages() -> tuple[Any, str, dict[str, str]]:
    """The templates, their style, and the headers that let nothing else be run, framed, kept or told on."""
    from jinja2 import Environment, FileSystemLoader
    from markupsafe import Markup

    environment = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True)
    style = (_TEMPLATES / "style.css").read_text(encoding="utf-8")
    digest = b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; img-src 'self'; form-action 'self'; base-uri 'none'"
    headers = {
        "Content-Security-Policy": f"{policy}; frame-ancestors 'none'",
        "X-Frame-Options": "DENY",
        "X-Content-Type-Options": "nosniff",
        # Not `no-referrer`: with that, browsers send a form with `Origin: null`.
        "Referrer-Policy": "same-origin",
        "Cache-Control": "no-store",
    }
    return environment, Markup(style), headers
