"""`rlhf label`: open the labeling app on a file of tasks, or on a store that has some already."""

import contextlib
import ctypes
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Connection, func, select

from labeling_app.blind import comparison_tasks, leaks_sentence
from labeling_app.form import Form, read_form
from labeling_app.handout import Rules
from labeling_app.loading import KnownTask, SetRules, load_tasks
from labeling_app.store import Store
from labeling_app.store.schema import people, tasks
from rlhf.config import packaged
from rlhf.errors import UserError
from rlhf.ports import choose_port, url_of
from rlhf.records import Task, read_jsonl

_INVITATION_DAYS = 7.0


@dataclass(frozen=True)
class LabelConfig:
    """What is asked, of how many people, and where the app is."""

    store: str = field(
        default="labels.db", metadata={"help": "the label database: a SQLite file, or postgresql://USER@HOST/NAME"}
    )
    tasks: list[str] = field(
        default_factory=list, metadata={"help": "JSONL files of tasks to add (`sample` writes them); each is a set"}
    )
    practice: str | None = field(
        default=None, metadata={"help": "JSONL of tasks with `ranks` and `explanation`: what everybody begins with"}
    )
    gold: str | None = field(
        default=None, metadata={"help": "JSONL of tasks with `ranks`, mixed in unseen to measure annotators"}
    )
    comparison: str | None = field(
        default=None, metadata={"help": "folder of a finished compare run, whose policies are judged blind"}
    )
    form: str = field(default="configs/forms/ranking.yaml", metadata={"help": "what is asked: guidelines, flags, ..."})
    overlap: int = field(default=1, metadata={"help": "annotators a task"})
    extra_vote: bool = field(default=False, metadata={"help": "one more annotator where those disagree"})
    order: str = field(default="random", metadata={"help": "order of the tasks: random, or file"})
    priority: float = field(default=0.0, metadata={"help": "of these tasks; sets with a higher one come first"})
    gold_share: float = field(default=0.0, metadata={"help": "how often a gold task is next, 0 to 0.5"})
    repeat_share: float = field(default=0.0, metadata={"help": "how often one's own earlier task is next, 0 to 0.5"})
    exports: str = field(default="runs", metadata={"help": "folder in which the lead's page makes export runs"})
    lease_minutes: float = field(default=30.0, metadata={"help": "how long a task stays with somebody who is away"})
    seed: int = field(default=0, metadata={"help": "of the order on screen and the mixing"})
    host: str = field(default="127.0.0.1", metadata={"help": "address to listen on; 0.0.0.0 lets other machines in"})
    port: int = field(default=7861, metadata={"help": "port to listen on; 0 = any free one"})
    trust_proxy: bool = field(
        default=False, metadata={"help": "take the client's address and https from a proxy's X-Forwarded headers"}
    )

    def __post_init__(self) -> None:
        for name in ("gold_share", "repeat_share"):
            if not 0 <= getattr(self, name) <= 0.5:
                raise ValueError(f"{name} is {getattr(self, name)}, should be from 0 to 0.5")
        if self.lease_minutes <= 0:
            raise ValueError(f"lease_minutes is {self.lease_minutes}, should be over 0")
        if self.gold_share and not self.gold:
            raise ValueError("gold_share is set, but no file of gold tasks; name one with --gold")


class Config(NamedTuple):
    """The config of `rlhf label`."""

    label: LabelConfig


def run(config: Config) -> None:
    """Serve the app until Ctrl-C; prints its address, and on a new store the link that makes the first admin.

    Raises UserError for files that hold no tasks, tasks that changed since they were loaded, a store
    that cannot be opened and a port in use.
    """
    settings = config.label
    with opened(settings) as store:
        port = choose_port(settings.host, settings.port)
        address = url_of(settings.host, port)
        print(_counted(store), flush=True)
        app = app_of(store, settings)
        if (secret := _first_admin(store)) is not None:
            print(f"make the first admin's account at {address}/join/{secret}")
        print(f"annotators log in at {address} (Ctrl-C stops it; labels are in {settings.store})", flush=True)
        _serve(app, settings.host, port)


@contextlib.contextmanager
def opened(settings: LabelConfig) -> Iterator[Store]:
    """The store with the config's tasks in it, closed on the way out."""
    form_file(settings.form)  # what is wrong with it is said before anything is made
    load = _loading(settings)
    store = Store(settings.store)
    try:
        store.write(load)
        del load  # holds all tasks, which are in the store now
        _give_back_memory()
        yield store
    finally:
        store.close()


def _loading(settings: LabelConfig) -> Callable[[Connection], None]:
    """What loads the config's files, which are read by now. Raises UserError for what is wrong with them."""
    rules = SetRules(settings.overlap, settings.extra_vote, settings.priority, settings.order)
    files: list[tuple[str, str, list[Any]]] = [(path, "task", read_jsonl(path, Task)) for path in settings.tasks]
    for path, kind in ((settings.practice, "practice"), (settings.gold, "gold")):
        if path is not None:
            files.append((path, kind, read_jsonl(path, KnownTask)))
    compared, leaks = comparison_tasks(settings.comparison) if settings.comparison else ([], [])
    if (sentence := leaks_sentence(leaks)) is not None:
        print(sentence, flush=True)

    def load(connection: Connection) -> None:
        for path, kind, rows in files:
            load_tasks(connection, path, rows, kind, rules, time.time())
        if settings.comparison:
            blind = replace(rules, kind="comparison")
            load_tasks(connection, settings.comparison, compared, "task", blind, time.time())

    return load


def _give_back_memory() -> None:
    """Hand what is free back to the system, which glibc would keep: as much as the largest file took."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def form_file(path: str) -> "FormFile":
    """The form's file; a name such as configs/forms/ranking.yaml is the packaged one where there is no such file."""
    return FormFile(Path(path) if Path(path).is_file() else packaged(path))


class FormFile:
    """The form as its file has it now: looked at once a second, so that a lead may edit while people work.

    A file that does not hold a form any more leaves the last one in force. Raises UserError where
    there is none to begin with.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._form = read_form(path)
        self._stamp = path.stat().st_mtime_ns
        self._looked = time.monotonic()

    def __call__(self) -> Form:
        """The form."""
        if time.monotonic() - self._looked > 1:
            self._looked = time.monotonic()
            with contextlib.suppress(UserError, OSError):
                stamp = self.path.stat().st_mtime_ns
                if stamp != self._stamp:
                    self._form, self._stamp = read_form(self.path), stamp
        return self._form


def app_of(store: Store, settings: LabelConfig) -> Any:
    """The web app on a store."""
    from labeling_app.routes import Desk
    from labeling_app.session import Sessions, signing_key
    from labeling_app.ui.app import make_app

    rules = Rules(
        lease_seconds=settings.lease_minutes * 60,
        gold_share=settings.gold_share,
        repeat_share=settings.repeat_share,
        seed=settings.seed,
    )
    sessions = Sessions(store.write(signing_key), settings.trust_proxy)
    return make_app(Desk(store, sessions, form_file(settings.form), rules), Path(settings.exports))


def _serve(app: Any, host: str, port: int) -> None:
    import uvicorn

    uvicorn.run(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        proxy_headers=False,  # Sessions reads what a trusted proxy says
        server_header=False,
        timeout_graceful_shutdown=5,
    )


def _first_admin(store: Store) -> str | None:
    """The secret of an invitation, where there is no admin yet."""
    from labeling_app.people import invite

    def job(connection: Connection) -> str | None:
        if connection.execute(select(people.c.id).where(people.c.role == "admin")).first():
            return None
        return invite(connection, "admin", None, time.time(), _INVITATION_DAYS)

    return store.write(job)


def _counted(store: Store) -> str:
    def job(connection: Connection) -> dict[str, int]:
        rows = connection.execute(select(tasks.c.kind, func.count()).group_by(tasks.c.kind))
        return dict(rows.tuples().all())

    counts = store.read(job)
    if not counts.get("task"):
        raise UserError("tasks: the store holds none yet; name a file of them with --tasks (`rlhf sample` writes one)")
    extra = [f"{counts[kind]:,} {kind}" for kind in ("practice", "gold") if counts.get(kind)]
    return f"{counts['task']:,} tasks" + (f" ({', '.join(extra)} beside them)" if extra else "")
