"""The store: its tables, who opens it, group commit; what was acknowledged survives kill -9. On both databases."""

import asyncio
import json
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, insert, inspect, select, text
from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError

from labeling_app.store import Store, StoreError, database, migrate
from labeling_app.store.database import open_engine, parse_url, shown, write_transaction
from labeling_app.store.schema import answers, leases, log, metadata, settings, submissions
from rlhf.errors import UserError
from tests.label_cases import add_people, check_store, count, load
from tests.postgres import PostgresServer

ROOT = Path(__file__).parents[1]


def note(name: str) -> Any:
    """A job that stores a name and returns it."""

    def job(connection: Connection) -> str:
        connection.execute(insert(settings).values(name=name, value=name))
        return name

    return job


def run(*statements: Any) -> Any:
    """A job that only runs statements."""

    def job(connection: Connection) -> None:
        for statement in statements:
            connection.execute(text(statement) if isinstance(statement, str) else statement)

    return job


def names(connection: Connection) -> list[str]:
    return sorted(connection.execute(select(settings.c.name)).scalars())


# --- tables -------------------------------------------------------------------------------------


def described(connection: Connection) -> dict[str, Any]:
    """All that a database tells of its tables, but the order of what has none."""
    found = inspect(connection)

    def where(index: Any) -> list[str]:
        return [f"{key} {value}" for key, value in index.get("dialect_options", {}).items()]

    return {
        table: {
            "columns": [(c["name"], str(c["type"]), c["nullable"], c["default"]) for c in found.get_columns(table)],
            "primary key": found.get_pk_constraint(table)["constrained_columns"],
            "foreign keys": sorted(str(sorted(key.items(), key=str)) for key in found.get_foreign_keys(table)),
            "unique": sorted(str(key["column_names"]) for key in found.get_unique_constraints(table)),
            "checks": sorted(check["sqltext"] for check in found.get_check_constraints(table)),
            "indexes": sorted(
                str((i["name"], i["column_names"], i.get("expressions"), i["unique"], where(i)))
                for i in found.get_indexes(table)
            ),
        }
        for table in sorted(found.get_table_names())
        if table != migrate.VERSION_TABLE
    }


def test_migrations_make_exactly_the_tables_of_the_schema(store: Store, tmp_path: Path, request) -> None:
    def compared(connection: Connection) -> Any:
        context = MigrationContext.configure(connection, opts={"version_table": migrate.VERSION_TABLE})
        return compare_metadata(context, metadata), described(connection)

    differences, tables = store.read(compared)
    assert differences == []
    if store.url.drivername == "sqlite":
        url = f"sqlite:///{tmp_path / 'plain.db'}"
    else:
        url = request.getfixturevalue("postgres_server").create_database().replace("postgresql", "postgresql+psycopg")
    engine = create_engine(url)
    with engine.begin() as connection:
        metadata.create_all(connection)
        assert described(connection) == tables
    engine.dispose()


def test_the_newest_version_is_the_last_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(migrate.FOLDER))
    assert ScriptDirectory.from_config(config).get_heads() == [migrate.NEWEST]


def test_opened_again_it_is_as_it_was(store_url: str) -> None:
    for name in ("first", "second"):
        store = Store(store_url)
        store.write(note(name))
        store.close()
    store = Store(store_url)
    assert store.read(names) == ["first", "second"]
    store.close()


def test_processes_that_open_a_new_store_at_once_make_it_once(store_url: str) -> None:
    """Threads with engines of their own, which share nothing but the database, as processes do."""
    ready = threading.Barrier(6)

    def open_it(number: int) -> None:
        ready.wait()
        store = Store(store_url)
        store.write(note(str(number)))
        store.close()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(open_it, range(6)))
    store = Store(store_url)
    assert store.read(names) == list("012345")
    store.close()


NEXT_MIGRATION = """
from alembic import op
import sqlalchemy as sa
revision = "0002"
down_revision = "0001"
def upgrade():
    op.create_table("more", sa.Column("id", sa.Integer, primary_key=True))
    op.add_column("people", sa.Column("shoe_size", sa.Integer))
"""


def newer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, migration: str = NEXT_MIGRATION) -> None:
    """Make this program one that knows a second version."""
    folder = tmp_path / "100% new" / "migrations"  # alembic's configuration takes % for a reference
    shutil.copytree(migrate.FOLDER, folder)
    (folder / "versions" / "0002_more.py").write_text(migration)
    monkeypatch.setattr(migrate, "FOLDER", folder)
    monkeypatch.setattr(migrate, "NEWEST", "0002")


def test_an_older_store_is_brought_up_to_date_with_what_it_holds(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(store_url)
    store.write(note("kept"))
    store.close()
    newer(tmp_path, monkeypatch)
    store = Store(store_url)
    assert store.read(names) == ["kept"]
    assert store.read(lambda connection: "more" in inspect(connection).get_table_names())
    store.close()


def test_a_migration_that_fails_changes_nothing(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(store_url)
    before = store.read(described)
    store.close()
    with monkeypatch.context() as patch:
        newer(tmp_path, patch, f"{NEXT_MIGRATION}    op.execute('SELECT 1 FROM nowhere')\n")
        with pytest.raises(UserError, match=r"cannot be opened .*nowhere"):
            Store(store_url)
    store = Store(store_url)
    assert store.read(described) == before
    store.close()


def test_a_store_of_a_newer_version_is_refused_and_left_alone(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        newer(tmp_path, patch)
        store = Store(store_url)
        store.write(note("theirs"))
        before = store.read(described)
        store.close()
    with pytest.raises(UserError, match=r"newer rlhf \(its tables have version 0002, this one knows 0001\); upgrade"):
        Store(store_url)
    newer(tmp_path / "again", monkeypatch)
    store = Store(store_url)
    assert store.read(described) == before
    assert store.read(names) == ["theirs"]
    store.close()


def test_another_programs_database_is_refused_and_left_alone(store_url: str) -> None:
    engine = create_engine(parse_url(store_url))
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE bookmarks (id integer, url text)"))
        connection.execute(text("INSERT INTO bookmarks VALUES (1, 'here')"))
    before = Path(store_url).read_bytes() if Path(store_url).is_file() else None
    with pytest.raises(UserError, match=r"is no label store, it has other tables \(bookmarks\); name another file"):
        Store(store_url)
    with engine.connect() as connection:
        assert inspect(connection).get_table_names() == ["bookmarks"]
    engine.dispose()
    if before is not None:
        assert Path(store_url).read_bytes() == before
        assert [path.name for path in Path(store_url).parent.iterdir()] == ["labels.db"]


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database " * 100)
    with pytest.raises(UserError, match=r"notes.txt: cannot be opened \(file is not a database\); name a file that"):
        Store(str(path))
    assert path.read_text() == "not a database " * 100


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("absent/labels.db", "store: absent is no folder; make it, or name another file"),
        ("sqlite://", "store: labels in memory would be lost; name a file"),
        (":memory:", "store: labels in memory would be lost; name a file"),
        ("mysql://host/name", "store: mysql is not supported; use a path, sqlite:///FILE or postgresql://USER@HOST"),
        ("postgresql://host:port/name", "is no database URL; use a path, sqlite:///FILE or postgresql://USER@HOST"),
        ("postgresql://me:secret@127.0.0.1:1/x", r"postgresql://me:\*\*\*@127.0.0.1:1/x: cannot be opened .*refused"),
    ],
)
def test_what_cannot_be_a_store_is_refused(url: str, message: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    if "cannot be opened" in message:
        pytest.importorskip("psycopg")
    with pytest.raises(UserError, match=message) as error:
        Store(url)
    assert "secret" not in str(error.value)


def test_without_its_driver_postgresql_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(UserError, match=r"PostgreSQL needs psycopg; pip install 'rlhf\[postgres\]'"):
        Store("postgresql://me@127.0.0.1:1/x")


def test_a_path_is_a_path_whatever_is_in_it(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "50% a?b=c #1.db"))
    store.close()
    assert [path.name for path in tmp_path.iterdir()] == ["50% a?b=c #1.db"]


def test_how_urls_are_shown() -> None:
    assert shown(parse_url("labels.db")) == shown(parse_url("sqlite:///labels.db")) == "labels.db"
    assert shown(parse_url("postgres://me:secret@host/name")) == "postgresql://me:***@host/name"


# --- the log ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE log SET action = 'other' WHERE id = 1",
        "DELETE FROM log WHERE id = 1",
        "DELETE FROM log",
        "INSERT OR REPLACE INTO log (id, at, action, body) VALUES (1, 0, 'other', '{}')",
        "TRUNCATE log",
        "TRUNCATE people, log CASCADE",
    ],
)
def test_the_log_only_grows(store: Store, statement: str) -> None:
    if statement.startswith("TRUNCATE" if store.url.drivername == "sqlite" else "INSERT OR"):
        pytest.skip("this database has no such statement")

    def entries(connection: Connection) -> list[Any]:
        return [tuple(row) for row in connection.execute(select(log).order_by(log.c.id))]

    for action in ("one", "two"):
        store.write(run(insert(log).values(at=1.0, action=action, body={})))
    before = store.read(entries)
    with pytest.raises(IntegrityError, match="the log only grows"):
        store.write(run(statement))
    assert store.read(entries) == before
    assert [row[3] for row in before] == ["one", "two"]


# --- the write path -----------------------------------------------------------------------------


class Held:
    """Holds up the writer, so that what is asked for meanwhile becomes one group."""

    def __init__(self, store: Store) -> None:
        self._store, self._go, self._begun = store, threading.Event(), threading.Event()
        self._pool = ThreadPoolExecutor(80)

    def __enter__(self) -> "Held":
        self._first = self._pool.submit(self._store.write, self._wait)
        assert self._begun.wait(10)
        return self

    def _wait(self, _: Connection) -> None:
        self._begun.set()
        assert self._go.wait(10)

    def write(self, job: Any) -> Any:
        """A future of the pool; jobs come to the store in this order."""
        size = self._store._queue.qsize()
        future = self._pool.submit(self._store.write, job)
        while self._store._queue.qsize() == size and not future.done():
            threading.Event().wait(0.001)
        return future

    def __exit__(self, *_: object) -> None:
        self._go.set()
        self._pool.shutdown()


def test_jobs_that_wait_share_one_transaction(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = []
    commit = database._commit
    monkeypatch.setattr(database, "_commit", lambda engine, group: (groups.append(len(group)), commit(engine, group)))
    with Held(store) as held:
        written = [held.write(note(f"{number:02}")) for number in range(70)]
    assert [future.result() for future in written] == [f"{number:02}" for number in range(70)]
    assert groups == [1, 64, 6]
    assert store.read(names) == [f"{number:02}" for number in range(70)]


def test_a_job_that_fails_leaves_nothing_and_its_neighbours_alone(store: Store) -> None:
    def fails(connection: Connection) -> None:
        note("fails")(connection)
        raise LookupError("on purpose")

    def twice(connection: Connection) -> None:
        note("twice")(connection)
        note("twice")(connection)

    def wrong(connection: Connection) -> None:
        note("wrong")(connection)
        connection.execute(text("SELECT 1 FROM nowhere"))

    def swallows(connection: Connection) -> None:
        """PostgreSQL refuses all that follows such an error, SQLite goes on."""
        twice_or_not = True
        try:
            twice(connection)
        except IntegrityError:
            twice_or_not = False
        assert not twice_or_not

    def exits(connection: Connection) -> None:
        note("exits")(connection)
        raise SystemExit(3)

    with Held(store) as held:
        jobs = [note("before"), fails, note("between"), twice, wrong, exits, swallows, note("after")]
        written = [held.write(job) for job in jobs]
    is_sqlite = store.url.drivername == "sqlite"
    assert [written[at].result() for at in (0, 2, 7)] == ["before", "between", "after"]
    with pytest.raises(LookupError, match="on purpose"):
        written[1].result()
    with pytest.raises(IntegrityError):
        written[3].result()
    # SQLite has one kind of error for a wrong statement and for a disk that fails: that may be tried again.
    with pytest.raises(StoreError if is_sqlite else ProgrammingError, match="nowhere"):
        written[4].result()
    with pytest.raises(SystemExit):
        written[5].result()
    kept = ["twice"] if is_sqlite else []
    assert (written[6].exception() is None) == bool(kept)
    assert store.read(names) == sorted(["before", "between", "after", *kept])


def test_when_the_transaction_is_gone_nobody_is_told_that_it_is_stored(store: Store) -> None:
    """SQLite may end a transaction by itself (disk full), PostgreSQL may throw a connection out."""

    def breaks(connection: Connection) -> None:
        if connection.dialect.name == "sqlite":
            connection.connection.driver_connection.execute("ROLLBACK")
        else:
            connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    with Held(store) as held:
        written = [held.write(job) for job in (note("before"), breaks, note("after"))]
    for future in written:
        with pytest.raises(StoreError, match="not stored: "):
            future.result()
    assert store.read(names) == []
    assert store.write(note("again")) == "again"
    assert store.read(names) == ["again"]


def test_a_result_comes_after_the_commit(store: Store, store_url: str) -> None:
    """What a second process reads right after: a result before the commit would not be there."""
    other = Store(store_url)
    for number in range(20):
        store.write(note(f"{number:02}"))
        assert other.read(names) == [f"{number:02}" for number in range(number + 1)]
    other.close()


def test_whoever_gives_up_before_their_turn_has_written_nothing(store: Store) -> None:
    async def ask() -> None:
        task = asyncio.ensure_future(store.write_async(note("given up")))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        released.set()
        assert await store.write_async(note("kept")) == "kept"

    released = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        begun = threading.Event()
        first = pool.submit(store.write, lambda _: (begun.set(), released.wait(10)))
        assert begun.wait(10)
        asyncio.run(ask())
        first.result()
    assert store.read(names) == ["kept"]


def test_whoever_gives_up_during_their_turn_has_written_all_of_it(store: Store) -> None:
    begun, go = threading.Event(), threading.Event()

    def slow(connection: Connection) -> None:
        begun.set()
        assert go.wait(10)
        note("whole")(connection)

    async def ask() -> None:
        task = asyncio.ensure_future(store.write_async(slow))
        await asyncio.to_thread(begun.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go.set()

    asyncio.run(ask())
    store.write(note("next"))
    assert store.read(names) == ["next", "whole"]


def test_the_event_loop_hears_what_a_job_raised(store: Store) -> None:
    def fails(_: Connection) -> None:
        raise LookupError("on purpose")

    with pytest.raises(LookupError, match="on purpose"):
        asyncio.run(store.write_async(fails))


def test_a_read_sees_one_moment_and_cannot_write(store: Store) -> None:
    def look(connection: Connection) -> tuple[list[str], list[str]]:
        before = names(connection)
        store.write(note("meanwhile"))
        return before, names(connection)

    store.write(note("first"))
    assert store.read(look) == (["first"], ["first"])
    assert store.read(names) == ["first", "meanwhile"]
    with pytest.raises((SQLAlchemyError, StoreError), match="read"):
        store.read(note("by a reader"))
    assert store.write(note("last")) == "last"
    assert store.read(names) == ["first", "last", "meanwhile"]


def test_close_finishes_what_was_asked_for_and_then_takes_no_more(store: Store, store_url: str) -> None:
    with Held(store) as held:
        written = [held.write(note(f"{number}")) for number in range(9)]
        closing = [held._pool.submit(store.close) for _ in range(2)]
    for future in [*written, *closing]:
        future.result()
    with pytest.raises(StoreError, match="the label store is closed"):
        store.write(note("late"))
    store.close()
    again = Store(store_url)
    assert again.read(names) == [str(number) for number in range(9)]
    again.close()


def test_while_it_closes_each_write_is_stored_or_refused(store: Store, store_url: str) -> None:
    done: list[str] = []
    begun = threading.Barrier(5)

    def writer(who: int) -> None:
        begun.wait()
        for number in range(10_000):
            try:
                done.append(store.write(note(f"{who}-{number}")))
            except StoreError:
                return

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(writer, who) for who in range(4)]
        begun.wait()
        while len(done) < 40:
            threading.Event().wait(0.001)
        store.close()
        for future in futures:
            future.result(timeout=10)
    again = Store(store_url)
    assert again.read(names) == sorted(done)
    again.close()


# --- what goes wrong ----------------------------------------------------------------------------


def test_a_lock_held_by_another_beyond_patience_stores_nothing(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(store_url)
    other = open_engine(parse_url(store_url))
    monkeypatch.setattr(database, "PATIENCE", 0.2)
    with write_transaction(other), pytest.raises(StoreError, match=r"not stored: .*(locked|lock timeout)"):
        store.write(note("too late"))
    assert store.write(note("in time")) == "in time"
    assert store.read(names) == ["in time"]
    with write_transaction(other), pytest.raises(UserError, match=r"cannot be opened \(.*(locked|lock timeout)"):
        Store(store_url)
    store.close()
    other.dispose()


def test_two_processes_take_turns(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read, decide, write: no number is lost between two stores that share nothing but the database."""

    def add_one(connection: Connection) -> None:
        value = connection.execute(select(settings.c.value).where(settings.c.name == "n")).scalar_one()
        connection.execute(settings.update().values(value=value + 1))

    stores = [Store(store_url) for _ in range(3)]
    stores[0].write(run(insert(settings).values(name="n", value=0)))
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda number: stores[number % 3].write(add_one), range(300)))
    assert stores[0].read(lambda connection: connection.execute(select(settings.c.value)).scalar_one()) == 300
    for store in stores:
        store.close()


def test_a_restarted_server_is_found_again(postgres_server: PostgresServer) -> None:
    url = postgres_server.create_database()
    store = Store(url)
    store.write(note("before"))
    store.read(names)
    postgres_server.stop()
    with pytest.raises(StoreError, match="not stored: "):
        store.write(note("down"))
    with pytest.raises(StoreError, match="not read: "):
        store.read(names)
    postgres_server.start()
    assert store.write(note("after")) == "after"
    assert store.read(names) == ["after", "before"]
    store.close()
    postgres_server.drop_database(url)


def test_a_server_that_may_forget_commits_is_told_not_to(postgres_server: PostgresServer) -> None:
    url = postgres_server.create_database()
    store = Store(url)

    def setting(connection: Connection) -> tuple[str, str]:
        asked = ("synchronous_commit", "transaction_isolation")
        return tuple(connection.execute(text(f"SHOW {name}")).scalar_one() for name in asked)

    database_name = url.split("/")[3].split("?")[0]
    for value, kept in (("off", "on"), ("local", "local")):
        change = f"ALTER DATABASE {database_name} SET synchronous_commit = {value}"
        serializable = f"ALTER DATABASE {database_name} SET default_transaction_isolation = serializable"
        store.write(run(change, serializable))
        store.close()
        store = Store(url)
        assert store.write(setting) == (kept, "read committed")
        assert store.read(setting)[1] == "repeatable read"
    store.close()
    postgres_server.drop_database(url)


def test_sqlite_syncs_each_commit(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "labels.db"))

    def asked(connection: Connection) -> list[Any]:
        names = ("journal_mode", "synchronous", "fullfsync", "foreign_keys")
        return [connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in names]

    assert store.write(asked) == store.read(asked) == ["wal", 2, 1, 1]  # 2 is FULL
    store.close()


def test_a_full_disk_refuses_and_loses_nothing(full_disk: Path) -> None:
    store = Store(str(full_disk / "labels.db"))
    stored = []
    with pytest.raises(StoreError, match="not stored: database or disk is full"):
        for number in range(1000):
            store.write(run(insert(settings).values(name=f"{number:03}", value="x" * 9000)))
            stored.append(f"{number:03}")
    assert stored
    assert store.read(names) == stored
    with pytest.raises(StoreError, match="full"):
        store.write(run(insert(settings).values(name="large", value="x" * 3_000_000)))
    store.close()
    for path in full_disk.iterdir():  # where there was no space to tidy up, some of it is in labels.db-wal
        shutil.copyfile(path, full_disk.parent / path.name)
    store = Store(str(full_disk.parent / "labels.db"))
    assert store.read(names) == stored
    assert store.write(note("more")) == "more"
    store.close()


def test_when_the_disk_is_full_in_the_middle_of_a_group_none_of_it_is_acknowledged_but_what_is_there(
    tmp_path: Path,
) -> None:
    """SQLite refuses a page: whoever is told `stored` is stored, whoever is not is not, whatever it rolls back."""
    store = Store(str(tmp_path / "labels.db"))

    def narrow(connection: Connection) -> None:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages + 3}")

    def large(connection: Connection) -> None:
        connection.execute(insert(settings).values(name="large", value="x" * 100_000))

    with Held(store) as held:
        written = {"a": held.write(note("a")), "narrow": held.write(narrow)}
        written |= {"large": held.write(large), "b": held.write(note("b"))}
    with pytest.raises(StoreError, match="full"):
        written["large"].result()
    assert store.read(names) == [name for name in "ab" if written[name].exception() is None]
    store.close()


# --- kill -9 ------------------------------------------------------------------------------------


def killed_after(url: str, people: list[int], unanswered: dict[str, dict], num: int) -> tuple[set[str], bool]:
    """Let a process label and SIGKILL it after `num` acknowledgements: those, and whether it had finished."""
    command = [sys.executable, "-m", "tests.label_child", url, ",".join(map(str, people))]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.writelines(json.dumps(sent) + "\n" for sent in unanswered.values())
    child.stdin.close()
    acknowledged, done = set(), False
    for line in child.stdout:  # to its end: what was acknowledged before the kill may still be in the pipe
        verb, _, rest = line.strip().partition(" ")
        if verb == "try" and rest.endswith("}"):
            sent = json.loads(rest)
            unanswered[sent["submission"]] = sent
        elif verb == "ack" and len(rest) == 32:
            acknowledged.add(rest)
            unanswered.pop(rest)
            if len(acknowledged) == num:
                child.send_signal(signal.SIGKILL)
        done |= verb == "done"
    assert child.wait() == (0 if done else -signal.SIGKILL)
    return acknowledged, done


def test_what_was_acknowledged_survives_kill_9(store_url: str) -> None:
    """Several times, with several people at once; what was in flight is sent again by the next process."""
    store = Store(store_url)
    store.write(lambda connection: load(connection, 45, overlap=2, extra_vote=True))
    store.write(lambda connection: load(connection, 10, "gold", "gold"))
    people = store.write(lambda connection: add_people(connection, 5))
    store.close()
    dice = random.Random(store_url[:4])
    acknowledged: set[str] = set()
    unanswered: dict[str, dict] = {}
    kills, done = 0, False
    while not done:
        some, done = killed_after(store_url, people, unanswered, dice.randint(5, 30) if kills < 3 else 10**9)
        acknowledged |= some
        kills += not done
        store = Store(store_url)
        store.read(check_store)
        stored = store.read(lambda connection: list(connection.execute(select(submissions.c.id)).scalars()))
        assert acknowledged <= set(stored) <= acknowledged | set(unanswered)
        store.close()
    assert kills == 3
    assert not unanswered

    store = Store(store_url)
    rows = store.read(lambda connection: connection.execute(select(submissions.c.lease_id)).scalars().all())
    assert Counter(rows) == Counter(store.read(lambda c: c.execute(select(answers.c.lease_id)).scalars().all()))
    assert len(acknowledged) == len(rows) == store.read(lambda connection: count(connection, leases))
    # Everybody agrees, so that each task has its overlap of votes, and nobody was asked for a third.
    votes = store.read(lambda c: c.execute(select(answers.c.task_id).where(answers.c.kind == "task")).scalars().all())
    assert sorted(Counter(votes).values()) == [2] * 45
    store.close()
