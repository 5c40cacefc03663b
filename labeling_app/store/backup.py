"""Backup and restore while the app runs. A backup of either kind of database is one SQLite file, a store itself."""

import contextlib
import os
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

from sqlalchemy import Column, Connection, MetaData, Table, Text, func, insert, select, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError

from labeling_app.store import migrate
from labeling_app.store.database import (
    Store,
    StoreError,
    check_there,
    first_line,
    open_engine,
    parse_url,
    read_transaction,
    shown,
)
from labeling_app.store.migrate import version_of
from labeling_app.store.schema import Json, metadata
from rlhf.errors import UserError

_FAILURES = (SQLAlchemyError, StoreError, sqlite3.Error, OSError)
_ROWS = 1000  # at a time, so that a large table does not fill the memory


def backup(url: str, path: str | Path) -> int:
    """Write all that a store holds at one moment to the new file `path`, whole or not at all; how many answers.

    Nobody waits for it. Of SQLite it is SQLite's own copy, of PostgreSQL the rows in an empty store
    of our own: either is a single SQLite file that `restore`, `Store` and sqlite3 can open.

    Raises UserError where there is no store at `url`, and where `path` is there already or cannot be written.
    """
    path, source = Path(path), parse_url(url)
    if path.exists():
        raise UserError(f"{path}: is there already; name a new file for the backup")
    if not path.parent.is_dir():
        raise UserError(f"{path}: {path.parent} is no folder; make it, or name another file")
    check_there(source, "there is nothing to back up")
    partial = path.with_name(f".{path.name}.partial")
    try:
        _remove(partial)
        num_answers = _take(source, partial)
        _sync(partial)
        partial.replace(path)
        _sync(path.parent)
    except _FAILURES as error:
        raise UserError(
            f"{path}: no backup was written ({first_line(error)}); "
            f"can {shown(source)} be read, and is there space for the file?"
        ) from error
    finally:
        _remove(partial)
    return num_answers


def restore(path: str | Path, url: str) -> int:
    """Put all of a backup into an empty store, made where there is none yet; how many answers. All or nothing.

    The store may be of the other kind than the one that was backed up, and the backup an older rlhf's.
    Raises UserError where `path` is no backup, and where the store holds anything.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; name one that `rlhf label backup` wrote")
    with tempfile.TemporaryDirectory(prefix="rlhf-restore-") as folder:
        copy = Path(folder) / "backup.db"
        try:
            _take(URL.create("sqlite", database=str(path)), copy)  # checked, and it may be a store that is in use
        except _FAILURES as error:
            raise UserError(
                f"{path}: cannot be restored ({first_line(error)}); is it a whole backup, is there space in {folder}?"
            ) from error
        source = Store(str(copy))
        try:
            return source.read(lambda connection: _copy_into_store(connection, url))
        except StoreError as error:
            raise UserError(f"{url}: nothing was restored ({error}); mend that and run again") from error
        finally:
            source.close()


def _take(source: URL, path: Path) -> int:
    """All that `source` holds at one moment as one checked file; how many answers."""
    engine = open_engine(source)
    try:
        with read_transaction(engine) as connection:
            version = version_of(connection, shown(source))
            if version is None:
                raise UserError(f"{shown(source)}: is an empty database, no label store")
            if engine.name == "sqlite":
                _copy_pages(connection, path)
            elif version == migrate.NEWEST:
                _copy_into_store(connection, str(path))
            else:
                raise UserError(
                    f"{shown(source)}: has tables of an older rlhf (version {version}, this one knows {migrate.NEWEST})"
                    "; start `rlhf label` on it once, which brings them up to date, or use the older rlhf"
                )
    finally:
        engine.dispose()
    return _close_file(path)


def _copy_pages(connection: Connection, path: Path) -> None:
    live: Any = connection.connection.driver_connection
    with contextlib.closing(sqlite3.connect(path)) as copy:
        live.backup(copy)  # in one step, so that it is what this transaction sees


def _copy_into_store(source: Connection, url: str) -> int:
    """All rows of all tables into an empty store, in one transaction; how many answers."""
    store = Store(url)
    try:
        return store.write(lambda target: _copy_rows(source, target, shown(store.url)))
    finally:
        store.close()


def _copy_rows(source: Connection, target: Connection, where: str) -> int:
    num_rows = {}
    for table in metadata.sorted_tables:  # those first that others refer to
        if target.execute(select(table).limit(1)).first() is not None:
            raise UserError(f"{where}: is not empty (there are {table.name}); name a new file or an empty database")
        bare = _bare(table)
        rows = source.execute(select(bare), execution_options={"yield_per": _ROWS}).mappings()
        for part in rows.partitions():
            target.execute(insert(bare), [dict(row) for row in part])
        num_rows[table.name] = target.execute(select(func.count()).select_from(bare)).scalar_one()
        assert num_rows[table.name] == source.execute(select(func.count()).select_from(bare)).scalar_one()
        number = table.autoincrement_column
        if target.dialect.name == "postgresql" and number is not None and num_rows[table.name]:
            # Rows that come later are numbered after these.
            sequence = f"pg_get_serial_sequence('{table.name}', '{number.name}')"
            target.execute(text(f"SELECT setval({sequence}, (SELECT max({number.name}) FROM {table.name}))"))
    return num_rows["answers"]


def _bare(table: Table) -> Table:
    """A table whose JSON is text: it goes over as it stands, character for character."""
    columns = [Column(c.name, Text() if isinstance(c.type, Json) else c.type) for c in table.columns]
    return Table(table.name, MetaData(), *columns)


def _close_file(path: Path) -> int:
    """Make one file of it, with nothing beside it, and check it; how many answers it holds."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
        found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if found != "ok" or connection.execute("PRAGMA foreign_key_check").fetchone() is not None:
            raise sqlite3.DatabaseError(f"the copy is not sound: {found}")
        return connection.execute("SELECT count(*) FROM answers").fetchone()[0]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    for end in ("", "-journal", "-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)
