"""Behind every event of the lead's page: whoever calls it is looked up anew, because Gradio's endpoints are open."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from sqlalchemy import Connection

from labeling_app.admin_routes import lead
from labeling_app.answer import Refused
from labeling_app.judged import Judged
from labeling_app.people import Person
from labeling_app.routes import Denied, Desk
from labeling_app.session import Session
from labeling_app.store import StoreError
from labeling_app.ui.tabs.pieces import refusal
from rlhf.errors import UserError

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Call:
    """One event of the page: who leads, when it is, and where the browser found the app."""

    person: Person
    session: Session
    now: float
    origin: str


class Lead:
    """What the tabs share: the desk, the last quality report, the folder for exports; and how handlers are wired."""

    def __init__(self, desk: Desk, exports: Path | None) -> None:
        self.desk = desk
        self.exports = exports
        self.judged = Judged(desk.store)

    def read(self, job: Callable[[Connection], Any]) -> Any:
        """`job` on one snapshot of the store."""
        return self.desk.store.read(job)

    def write(self, call: Call, job: Callable[[Connection], Any]) -> Any:
        """`job` as one write of the store, if the caller still leads then."""

        def as_lead(connection: Connection) -> Any:
            lead(connection, call.session)
            return job(connection)

        return self.desk.store.write(as_lead)

    def on(
        self,
        events: Sequence[Any],
        work: Callable[..., Any],
        inputs: Sequence[Any] | None = None,
        outputs: Sequence[Any] | None = None,
        **options: Any,
    ) -> Any:
        """Let `work(call, *inputs)` answer events, for leads only."""
        rules: dict[str, Any] = {"concurrency_limit": None, "api_visibility": "private", "show_progress": "hidden"}
        return gr.on(events, self.checked(work), list(inputs or []), list(outputs or []), **rules | options)

    def checked(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """`work` behind the check of who calls; what it refuses is shown as a sentence."""

        def handle(request: gr.Request, *values: Any) -> Any:
            try:
                return work(self._call(request), *values)
            except (Denied, Refused, UserError) as error:
                raise refusal(error) from None
            except StoreError:
                raise refusal(Refused("This could not be stored just now. Please try again.")) from None
            except Exception:
                # Its message might hold anything, and the page would show it as markup.
                _LOG.exception("the lead's page: %s failed", work.__name__)
                raise refusal(Refused("Something went wrong; the server's log says what.")) from None

        handle.__name__ = work.__name__
        return handle

    def _call(self, request: gr.Request) -> Call:
        session = self.desk.session(request)  # type: ignore[arg-type]  # all that it reads are the cookies
        person = self.read(lambda connection: lead(connection, session))
        # A browser sends its own address with each POST; one that sends none sees the path alone.
        return Call(person, session, self.desk.clock(), dict(request.headers).get("origin", ""))
