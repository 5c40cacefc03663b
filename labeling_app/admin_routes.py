"""The JSON that the lead's dispute desk talks, and the files of an export: for admins only."""

import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from labeling_app.adjudicate import Case, Dispute, adjudicate, disputes, open_case, withdraw
from labeling_app.form import Form
from labeling_app.people import Person, person_of
from labeling_app.render import plain, render
from labeling_app.routes import Denied, Desk, answering, json_response, text_field
from labeling_app.session import Session

T = TypeVar("T")

LEADS_ONLY = "This page is for the project's lead."
NUM_LISTED = 50  # disputes in one answer
EXPORT = "export-"  # what the folders of export runs that the page makes begin with
_RUN = re.compile(rf"{EXPORT}[0-9]{{8}}-[0-9]{{6}}")
_FILE = re.compile(r"[a-z_][a-z_.]{0,60}\.jsonl|run\.json")


def lead(connection: Connection, session: Session) -> Person:
    """Who leads. Raises Denied for a session that is over (401) and for everybody else (403)."""
    person = person_of(connection, session)
    if person is None:
        raise Denied(401, "Please log in again.")
    if not person.may_lead:
        raise Denied(403, LEADS_ONLY)
    return person


def admin_routes(desk: Desk, exports: Path | None = None) -> list[Route]:
    """The routes under /api/admin; `exports` is the folder that holds the export runs."""

    async def read(request: Request, job: Callable[[Connection], T]) -> T:
        """`job` for the lead: who asks is looked up on the same snapshot."""
        session = desk.session(request)

        def as_lead(connection: Connection) -> T:
            lead(connection, session)
            return job(connection)

        return await run_in_threadpool(desk.store.read, as_lead)

    async def list_(request: Request) -> Response:
        settled = request.query_params.get("settled") == "true"
        found = await read(request, disputes)
        rows = [dispute for dispute in found if dispute.is_settled == settled]
        num_settled = sum(dispute.is_settled for dispute in found)
        return json_response(
            {
                "disputes": [_row(dispute) for dispute in rows[:NUM_LISTED]],
                "num_open": len(found) - num_settled,
                "num_settled": num_settled,
            }
        )

    async def open_(request: Request) -> Response:
        task_id: int = request.path_params["task"]
        case = await read(request, lambda connection: open_case(connection, task_id))
        if case is None:
            raise Denied(404, "There is no such task to settle.")
        return json_response(await run_in_threadpool(_shown, case, desk.form()))

    async def change(request: Request, job: Callable[[Connection, int, dict[str, Any]], None]) -> Response:
        session = desk.session(request)
        # Before the body is read: nobody else can make the server hold a megabyte for them.
        await run_in_threadpool(desk.store.read, lambda connection: lead(connection, session))
        sent = await desk.body(request, session)
        await desk.store.write_async(lambda connection: job(connection, lead(connection, session).id, sent))
        return json_response({"saved": True})

    async def settle(request: Request) -> Response:
        task_id: int = request.path_params["task"]

        def job(connection: Connection, person_id: int, sent: dict[str, Any]) -> None:
            reason = text_field(sent, "reason", 5000, optional=True)
            adjudicate(connection, person_id, task_id, sent.get("ranks"), reason, desk.clock())

        return await change(request, job)

    async def withdraw_(request: Request) -> Response:
        task_id: int = request.path_params["task"]
        return await change(request, lambda connection, by, _: withdraw(connection, by, task_id, desk.clock()))

    async def file(request: Request) -> Response:
        await read(request, lambda _: None)
        path = find_file(exports, request.path_params["run"], request.path_params["name"])
        if path is None:
            raise Denied(404, "There is no such file.")
        headers = {"Cache-Control": "no-store"}
        return FileResponse(path, media_type="application/octet-stream", filename=path.name, headers=headers)

    one = "/api/admin/disputes/{task:int}"
    return [
        Route("/api/admin/disputes", answering(list_), methods=["GET"]),
        Route(one, answering(open_), methods=["GET"]),
        Route(one, answering(settle), methods=["POST"]),
        Route(f"{one}/withdraw", answering(withdraw_), methods=["POST"]),
        Route("/api/admin/exports/{run}/{name}", answering(file), methods=["GET"]),
    ]


def find_file(exports: Path | None, run: str, name: str) -> Path | None:
    """A file of an export run that the page made; None for anything else in that folder, or beside it."""
    if exports is None or not _RUN.fullmatch(run) or not _FILE.fullmatch(name):
        return None
    path = exports / run / name
    inside = path.is_file() and path.resolve().parent == exports.resolve() / run
    return path if inside else None


def _row(dispute: Dispute) -> dict[str, Any]:
    shown = asdict(dispute) | {"prompt": plain(dispute.prompt)}
    return shown | {key: plain(shown[key]) for key in ("task", "set_name")}


def _shown(case: Case, form: Form) -> dict[str, Any]:
    """A case as the browser gets it: texts made harmless, flags by their labels, no response ids."""
    flags = {choice.id: choice.label for choice in form.flags}
    attributes = {choice.id: choice.label for choice in form.attributes}
    opinions = [
        asdict(opinion)
        | {
            "flags": [[plain(flags.get(flag, flag)) for flag in row] for row in opinion.flags],
            "ratings": [{attributes.get(id, id): mark for id, mark in row.items()} for row in opinion.ratings],
            "reason_html": render(opinion.reason) if opinion.reason else None,
            "better_answer_html": render(opinion.better_answer) if opinion.better_answer else None,
        }
        for opinion in case.opinions
    ]
    for opinion in opinions:
        del opinion["reason"], opinion["better_answer"]
    return {
        "task_id": case.task_id,
        "task": plain(case.task),
        "set_name": plain(case.set_name),
        "conversation": [{"role": message["role"], "html": render(message["content"])} for message in case.messages],
        "responses": [{"html": render(text), "length": len(text)} for text in case.responses],
        "opinions": opinions,
        "ruling": case.ruling and asdict(case.ruling) | {"reason": case.ruling.reason or ""},
    }
