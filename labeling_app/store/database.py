"""One write path: jobs are grouped into one durable transaction, and nobody hears of success before its commit."""

import asyncio
import contextlib
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from labeling_app.store.migrate import upgrade
from rlhf.errors import UserError

T = TypeVar("T")
Job = Callable[[Connection], T]

# A group is what came in while the last one was committed; more at once would only hold up the first.
_MAX_GROUP = 64
# How long a write waits for another process that writes, in seconds.
PATIENCE = 15.0
# Any number that no other program locks in this PostgreSQL database; all writers take it.
_WRITE_LOCK = 7203150


class StoreError(Exception):
    """The database could not do it now. Nothing of it is stored, and the same may be sent again.

    Where the connection broke during the commit itself nobody can know; a submission sent again is
    stored once in either case.
    """


class Store:
    """A label database: SQLite in WAL mode by path or URL, or PostgreSQL by URL.

    Writes run one after another on a thread of their own: the jobs that wait are run in one
    transaction, each behind a savepoint, so that a hundred submits share one sync to disk. A
    second process on the same database waits its turn (SQLite's write lock, PostgreSQL's advisory
    lock), so a job may read, decide and write as if it were alone.

    Args:
        url: `labels.db`, `sqlite:///labels.db` or `postgresql://user@host/name`.

    Raises UserError where the database cannot be opened, is another program's or a newer rlhf's.
    """

    def __init__(self, url: str) -> None:
        self.url = parse_url(url)
        self._engine = open_engine(self.url)
        try:
            with write_transaction(self._engine) as connection:
                upgrade(connection, shown(self.url))
            if self.url.drivername == "sqlite":
                _use_wal(self._engine)
        except SQLAlchemyError as error:
            self._engine.dispose()
            raise UserError(f"{shown(self.url)}: cannot be opened ({first_line(error)}); {_mend(self.url)}") from None
        except UserError:
            self._engine.dispose()
            raise
        self._queue: queue.SimpleQueue[tuple[Job, Future] | None] = queue.SimpleQueue()
        self._closing = threading.Lock()
        self._is_closed = False
        self._thread = threading.Thread(target=self._write_jobs, name="label-writer", daemon=True)
        self._thread.start()

    def write(self, job: Job[T]) -> T:
        """Run `job(connection)`, and return its result once that is on disk.

        What the job raises is raised here, and nothing of it is stored.
        Raises StoreError where the database did not take it.
        """
        return self._put(job).result()

    async def write_async(self, job: Job[T]) -> T:
        """`write`, without holding up the event loop. Cancelled before its turn, the job is not run."""
        return await asyncio.wrap_future(self._put(job))

    def read(self, job: Job[T]) -> T:
        """Run `job(connection)`, which cannot write, on one snapshot of the database.

        Raises StoreError where the database does not answer.
        """
        try:
            with read_transaction(self._engine) as connection:
                return job(connection)
        except (OperationalError, PoolTimeout) as error:
            raise StoreError(f"not read: {first_line(error)}") from error

    def close(self) -> None:
        """Finish what was asked for, and let go of the database."""
        with self._closing:
            if not self._is_closed:
                self._is_closed = True
                self._queue.put(None)
        self._thread.join()
        self._engine.dispose()

    def _put(self, job: Job[T]) -> "Future[T]":
        future: Future[T] = Future()
        with self._closing:  # nothing comes after the end, where nobody would answer it
            if self._is_closed:
                raise StoreError("the label store is closed")
            self._queue.put((job, future))
        return future

    def _write_jobs(self) -> None:
        while (first := self._queue.get()) is not None:
            group = [first]
            is_last = False
            while len(group) < _MAX_GROUP and not self._queue.empty() and not is_last:
                another = self._queue.get()
                if another is None:
                    is_last = True
                else:
                    group.append(another)
            _commit(self._engine, group)
            if is_last:
                return


def _commit(engine: Engine, group: list[tuple[Job, Future]]) -> None:
    """Run the jobs in one transaction; their futures hear of it after the commit, and of nothing if that fails."""
    outcomes: list[tuple[Future, bool, Any]] = []
    try:
        with write_transaction(engine) as connection:
            for job, future in group:
                if future.set_running_or_notify_cancel():  # else who asked has gone; from here on they cannot
                    outcomes.append((future, *_run(connection, job)))
    except BaseException as error:
        failure = StoreError(f"not stored: {first_line(error)}")
        failure.__cause__ = error
        outcomes = [(future, False, failure) for _, future in group]
    for future, has_succeeded, outcome in outcomes:
        with contextlib.suppress(InvalidStateError):  # cancelled before its turn came
            future.set_result(outcome) if has_succeeded else future.set_exception(outcome)


def _run(connection: Connection, job: Job) -> tuple[bool, Any]:
    """One job behind its own savepoint: whether it succeeded, and its result or what it raised.

    Raises what it raised where the transaction itself is gone (SQLite ends it when a disk is full,
    PostgreSQL when the server goes): then the work of the jobs before is gone too.
    """
    connection.exec_driver_sql("SAVEPOINT job")
    try:
        result = job(connection)
        connection.exec_driver_sql("RELEASE SAVEPOINT job")
    except BaseException as error:
        try:
            connection.exec_driver_sql("ROLLBACK TO SAVEPOINT job")
            connection.exec_driver_sql("RELEASE SAVEPOINT job")
        except SQLAlchemyError:
            raise error from None
        if isinstance(error, OperationalError):
            return False, StoreError(f"not stored: {first_line(error)}")
        return False, error
    return True, result


def parse_url(url: str) -> URL:
    """A database URL; a plain path is a SQLite file. Raises UserError for other kinds."""
    if "://" not in url:
        parsed = URL.create("sqlite", database=url)
    else:
        try:
            parsed = make_url(url)
        except (ArgumentError, ValueError):
            raise UserError(
                f"store: {url!r} is no database URL; use a path, sqlite:///FILE or postgresql://USER@HOST/NAME"
            ) from None
    kind = parsed.get_backend_name()
    if kind == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise UserError("store: labels in memory would be lost; name a file")
        return parsed.set(drivername="sqlite")
    if kind in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    raise UserError(f"store: {kind} is not supported; use a path, sqlite:///FILE or postgresql://USER@HOST/NAME")


def check_there(url: URL, mend: str) -> None:
    """Raise UserError, with how to mend it, for a file that is not there: a mistyped name makes no new, empty store."""
    if url.drivername == "sqlite" and not Path(str(url.database)).is_file():
        raise UserError(f"{shown(url)}: no such label store; {mend}")


@contextlib.contextmanager
def open_store(url: str, mend: str = "`rlhf label --tasks FILE` makes one") -> Iterator[Store]:
    """A store that is there already. Raises UserError as `Store` and `check_there`."""
    check_there(parse_url(url), mend)
    store = Store(url)
    try:
        yield store
    finally:
        store.close()


def shown(url: URL) -> str:
    """How messages name a database: its file, or its URL without the password."""
    return str(url.database) if url.drivername == "sqlite" else url.set(drivername="postgresql").render_as_string()


def open_engine(url: URL) -> Engine:
    """SQLAlchemy's engine for a database. Raises UserError where its folder or its driver is absent."""
    if url.drivername == "sqlite":
        folder = Path(str(url.database)).parent
        if not folder.is_dir():
            raise UserError(f"store: {folder} is no folder; make it, or name another file")
        # Readers are threads of the web server; each may wait for the file, none holds it long.
        engine = create_engine(url, connect_args={"check_same_thread": False})
        event.listen(engine, "connect", _sqlite_settings)
        return engine
    # A server that went away is noticed in a minute, not in the two hours that are TCP's own.
    alive = {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
    try:
        return create_engine(url, pool_pre_ping=True, pool_size=10, connect_args=alive)
    except ModuleNotFoundError:
        raise UserError("store: PostgreSQL needs psycopg; pip install 'rlhf[postgres]'") from None


def _sqlite_settings(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # BEGIN is ours: Python's own would begin too late
    connection.execute("PRAGMA synchronous=FULL")  # a commit is on disk when it returns,
    connection.execute("PRAGMA fullfsync=ON")  # on macOS too
    connection.execute("PRAGMA foreign_keys=ON")


def _use_wal(engine: Engine) -> None:
    """Let readers and the writer not wait for one another, and a commit be one sync. The file remembers it."""
    deadline = time.monotonic() + PATIENCE
    with engine.connect() as connection:
        while True:
            try:
                mode = connection.exec_driver_sql("PRAGMA journal_mode=WAL").scalar()
                break
            except OperationalError as error:  # it does not wait by itself for another who opens the file too
                if not _is_locked(error.orig) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
    if mode != "wal":
        raise UserError(f"{shown(engine.url)}: its disk cannot hold a database in WAL mode; put it on a local disk")


@contextlib.contextmanager
def write_transaction(engine: Engine) -> Iterator[Connection]:
    """A transaction that is alone: what it reads cannot change before it writes."""
    with engine.begin() as connection:
        if engine.name == "sqlite":
            _begin_immediate(connection)
        else:
            # Each statement sees what others committed before the lock was ours; the lock goes back where this
            # process is cut off from the server; and no server setting makes a commit less durable than one disk.
            connection.exec_driver_sql(
                "SET TRANSACTION ISOLATION LEVEL READ COMMITTED;"
                f"SET LOCAL lock_timeout = {PATIENCE * 1000:.0f};"
                "SET LOCAL idle_in_transaction_session_timeout = '60s';"
                "SELECT set_config('synchronous_commit', 'on', true)"
                " WHERE current_setting('synchronous_commit') = 'off';"
                f"SELECT pg_advisory_xact_lock({_WRITE_LOCK})"
            )
        yield connection


@contextlib.contextmanager
def read_transaction(engine: Engine) -> Iterator[Connection]:
    """A transaction that sees one state of the database, and cannot write."""
    with engine.begin() as connection:
        if engine.name == "sqlite":
            connection.exec_driver_sql(f"PRAGMA busy_timeout={PATIENCE * 1000:.0f}")
            connection.exec_driver_sql("PRAGMA query_only=1")
            connection.exec_driver_sql("BEGIN")
        else:
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        yield connection


def _begin_immediate(connection: Connection) -> None:
    """Take SQLite's write lock.

    SQLite's own wait looks for it ten times a second, which beside a busy process is seldom when it is free.
    """
    connection.exec_driver_sql("PRAGMA busy_timeout=0")
    connection.exec_driver_sql("PRAGMA query_only=0")
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            return
        except OperationalError as error:
            if not _is_locked(error.orig) or time.monotonic() > deadline:
                raise
            time.sleep(0.001)


def _is_locked(error: BaseException | None) -> bool:
    return isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY


def first_line(error: BaseException) -> str:
    """What a database said, without the statement and its values."""
    error = getattr(error, "orig", None) or error
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _mend(url: URL) -> str:
    if url.drivername == "sqlite":
        return "name a file that this program made, in a folder that it may write to"
    return "is the server running, and may this user come in?"
