"""The JSON that the ranking widget talks: one request a turn, each one job of the store's writer.

Every request is checked for its person inside the same job that does the work, so that a paused
annotator or a session that ended cannot slip in between. See docs/labeling.md for the routes.
"""

import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import Connection, update
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from labeling_app.answer import Refused
from labeling_app.form import Form
from labeling_app.handout import Rules, Turn, next_turn, open_turn
from labeling_app.people import Person, person_of
from labeling_app.progress import history, progress
from labeling_app.render import plain, render
from labeling_app.session import COOKIE, Session, Sessions
from labeling_app.store import Store, StoreError
from labeling_app.store.schema import people
from labeling_app.submit import Conflict, save_draft, skip, submit

T = TypeVar("T")

MAX_BODY = 1_000_000  # bytes of one request
_LONG = 20_000  # characters that take long enough to render to be worth a thread


class Denied(Exception):
    """A request that is not allowed: `status`, and a sentence for the one who sent it."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass
class Desk:
    """What the routes share."""

    store: Store
    sessions: Sessions
    form: Callable[[], Form]
    rules: Rules
    clock: Callable[[], float] = field(default=time.time)

    def session(self, request: Request) -> Session:
        """The session of a request. Raises Denied (401) where there is none."""
        session = self.sessions.read(request.cookies.get(COOKIE), self.clock())
        if session is None:
            raise Denied(401, "Please log in again.")
        return session

    def person(self, connection: Connection, session: Session) -> Person:
        """Who it is. Raises Denied where the session is over, or the person paused."""
        person = person_of(connection, session)
        if person is None:
            raise Denied(401, "Please log in again.")
        if person.paused is not None:
            raise Denied(403, f"Your work is paused: {person.paused}")
        return person

    async def body(self, request: Request, session: Session) -> dict[str, Any]:
        """The JSON object of a changing request. Raises Denied for a wrong token, too much or what is no object."""
        if not self.sessions.check_csrf(request.headers.get("x-csrf-token", ""), session):
            raise Denied(403, "This page is out of date. Please reload it.")
        chunks, size = [], 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > MAX_BODY:
                raise Denied(413, f"At most {MAX_BODY:,} bytes can be sent at once.")
            chunks.append(chunk)
        try:
            sent = json.loads(b"".join(chunks))
        except (ValueError, RecursionError):
            sent = None
        if not isinstance(sent, dict):
            raise Denied(400, "The request did not arrive whole. Please send it again.")
        return sent


def api_routes(desk: Desk) -> list[Route]:
    """The routes under /api for annotators."""

    async def me(request: Request) -> Response:
        session = desk.session(request)
        person = await run_in_threadpool(desk.store.read, lambda connection: person_of(connection, session))
        if person is None:
            raise Denied(401, "Please log in again.")
        answer = json_response(
            {
                "name": person.name,
                "role": person.role,
                "csrf": desk.sessions.csrf(session),
                "paused": person.paused,
                "guidelines_read": person.guidelines_sha256 == desk.form().guidelines_sha256,
            }
        )
        desk.sessions.renew(answer, request, session, desk.clock())
        return answer

    async def form(request: Request) -> Response:
        desk.session(request)
        asked = desk.form()
        shown = asked.to_dict()
        shown["guidelines_html"] = render(shown.pop("guidelines"))
        return json_response(shown | {"guidelines_sha256": asked.guidelines_sha256})

    async def guidelines(request: Request) -> Response:
        session = desk.session(request)
        sha256 = text_field(await desk.body(request, session), "sha256", 64)
        if sha256 != desk.form().guidelines_sha256:
            raise Denied(409, "The guidelines have just changed. Please read them again.")

        def job(connection: Connection) -> None:
            person = desk.person(connection, session)
            connection.execute(update(people).where(people.c.id == person.id).values(guidelines_sha256=sha256))

        await desk.store.write_async(job)
        return json_response({"saved": True})

    async def next_(request: Request) -> Response:
        session = desk.session(request)
        await desk.body(request, session)

        def job(connection: Connection) -> Turn | None:
            return next_turn(connection, desk.person(connection, session).id, desk.rules, desk.clock())

        return json_response({"turn": await _shown(await desk.store.write_async(job))})

    async def submit_(request: Request) -> Response:
        session = desk.session(request)
        sent = await desk.body(request, session)
        lease, submission = text_field(sent, "lease", 32), text_field(sent, "submission", 64)
        seconds, edit = _seconds(sent.get("seconds")), sent.get("edit") is True

        def job(connection: Connection) -> tuple[Any, Turn | None]:
            person, now = desk.person(connection, session), desk.clock()
            receipt = submit(
                connection, person.id, lease, submission, sent.get("answer"), desk.form(), seconds, now, edit
            )
            return receipt, next_turn(connection, person.id, desk.rules, now)

        receipt, turn = await desk.store.write_async(job)
        known = receipt.known
        if known is not None:
            html = render(known["explanation"])
            known = {"is_right": known["is_right"], "ranks": known["ranks"], "explanation_html": html}
        return json_response({"saved": True, "known": known, "turn": await _shown(turn)})

    async def skip_(request: Request) -> Response:
        session = desk.session(request)
        sent = await desk.body(request, session)
        lease, submission = text_field(sent, "lease", 32), text_field(sent, "submission", 64)
        reason, note = text_field(sent, "reason", 500), text_field(sent, "note", 5000, optional=True)

        def job(connection: Connection) -> Turn | None:
            person, now = desk.person(connection, session), desk.clock()
            skip(connection, person.id, lease, submission, reason, note or None, now)
            return next_turn(connection, person.id, desk.rules, now)

        return json_response({"saved": True, "turn": await _shown(await desk.store.write_async(job))})

    async def draft(request: Request) -> Response:
        session = desk.session(request)
        sent = await desk.body(request, session)
        lease, version = text_field(sent, "lease", 32), _seconds(sent.get("version"))
        if version is None:
            raise Denied(400, "A draft needs its version.")

        def job(connection: Connection) -> bool:
            person, now = desk.person(connection, session), desk.clock()
            kept = sent.get("draft")
            return save_draft(connection, person.id, lease, version, kept, desk.rules.lease_seconds, now)

        return json_response({"saved": await desk.store.write_async(job)})

    async def history_(request: Request) -> Response:
        session = desk.session(request)
        rows = await run_in_threadpool(
            desk.store.read, lambda connection: history(connection, desk.person(connection, session).id)
        )
        return json_response({"answers": [row | {"prompt": plain(row["prompt"])} for row in rows]})

    async def open_(request: Request) -> Response:
        session = desk.session(request)
        lease = text_field(await desk.body(request, session), "lease", 32)
        turn = await run_in_threadpool(
            desk.store.read, lambda connection: open_turn(connection, desk.person(connection, session).id, lease)
        )
        if turn is None:
            raise Denied(404, "There is no such answer of yours.")
        return json_response({"turn": await _shown(turn)})

    async def progress_(request: Request) -> Response:
        session = desk.session(request)
        since = _seconds(_number(request.query_params.get("since"))) or 0.0
        return json_response(
            await run_in_threadpool(
                desk.store.read, lambda connection: progress(connection, desk.person(connection, session).id, since)
            )
        )

    found = {"me": me, "form": form, "history": history_, "progress": progress_}
    changing = {
        "guidelines": guidelines,
        "next": next_,
        "submit": submit_,
        "skip": skip_,
        "draft": draft,
        "open": open_,
    }
    return [
        *(Route(f"/api/{name}", answering(route), methods=["GET"]) for name, route in found.items()),
        *(Route(f"/api/{name}", answering(route), methods=["POST"]) for name, route in changing.items()),
    ]


def answering(route: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """A route whose refusals are answers: a status and one sentence."""

    async def answer(request: Request) -> Response:
        try:
            return await route(request)
        except Denied as error:
            return json_response({"error": str(error)}, error.status)
        except Conflict as error:
            return json_response({"error": str(error)}, 409)
        except Refused as error:
            return json_response({"error": str(error)}, 400)
        except StoreError:
            return json_response({"error": "This could not be stored just now. It will be sent again."}, 503)

    return answer


async def _shown(turn: Turn | None) -> dict[str, Any] | None:
    """A turn as the browser gets it: no ids but the lease's, no kind but practice or task, texts made harmless."""
    if turn is None:
        return None
    texts = [message["content"] for message in turn.messages] + turn.responses
    html = await run_in_threadpool(_rendered, texts) if max(map(len, texts)) > _LONG else _rendered(texts)
    num = len(turn.messages)
    return {
        "lease": turn.lease_id,
        "kind": "practice" if turn.kind == "practice" else "task",
        "expires_at": turn.expires_at,
        "conversation": [
            {"role": message["role"], "html": text} for message, text in zip(turn.messages, html[:num], strict=True)
        ],
        "responses": [
            {"html": text, "length": len(response)} for response, text in zip(turn.responses, html[num:], strict=True)
        ],
        "draft": turn.draft,
        "is_answered": turn.is_answered,
    }


def _rendered(texts: list[str]) -> list[str]:
    return [render(text) for text in texts]


def json_response(content: Any, status: int = 200) -> Response:
    """An answer that no cache keeps."""
    # ASCII: a lone surrogate, which UTF-8 cannot hold, travels as its escape.
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"))
    return Response(text, status, {"Cache-Control": "no-store"}, "application/json")


def text_field(sent: dict[str, Any], key: str, longest: int, optional: bool = False) -> str:
    """A field of what was sent; empty where it is absent and may be. Raises Denied (400) for anything else."""
    value = sent.get(key)
    if value is None and optional:
        return ""
    if not isinstance(value, str) or not (value or optional) or len(value) > longest:
        raise Denied(400, f"`{key}` should be text of at most {longest:,} characters.")
    return value


def _seconds(value: Any) -> float | None:
    """A finite number from 0 on, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value < 1e15 else None


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None
