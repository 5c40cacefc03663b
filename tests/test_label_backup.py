"""Backup and restore: the same rows in either kind of database, one moment of a busy store, all or nothing."""

import os
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, insert, inspect, select, text
from sqlalchemy.exc import IntegrityError

from labeling_app.handout import Rules, next_turn
from labeling_app.store import Store, migrate
from labeling_app.store import backup as module
from labeling_app.store.backup import backup, restore
from labeling_app.store.database import parse_url
from labeling_app.store.schema import adjudications, answers, invitations, log, metadata, people, settings, tasks
from labeling_app.submit import save_draft, skip
from rlhf.errors import UserError
from tests.label_cases import add_people, check_store, count, load, send
from tests.postgres import PostgresServer

HOSTILE = "\0 \ud800 \u202e ${x} 'quoted' \U0001f600"


def fill(connection: Connection) -> None:
    """Something in every table, in every column."""
    load(connection, 6, overlap=2, extra_vote=True, priority=0.1)
    load(connection, 2, "practice", "practice")
    a, b = add_people(connection, 2)
    connection.execute(people.update().where(people.c.id == b).values(paused=HOSTILE, password_hash="x", epoch=3))
    for number in range(5):
        turn = next_turn(connection, a, Rules(), number / 3)
        assert turn is not None
        if number == 4:
            skip(connection, a, turn.lease_id, "skip", HOSTILE, None, 0.1 + 0.2)
        else:
            send(connection, a, turn, now=number / 3, id=f"id-{number}")
    turn = next_turn(connection, b, Rules(), 9.0)
    assert turn is not None
    save_draft(connection, b, turn.lease_id, 1e12 / 7, {"reason": HOSTILE}, 100.0, 9.5)
    row = {"secret_sha256": "s", "role": "admin", "created_at": 1.0, "expires_at": 2.0, "created_by": a, "used_by": b}
    connection.execute(insert(invitations).values(row))
    connection.execute(text("INSERT INTO attempts VALUES ('key', 3, 1.5)"))
    connection.execute(insert(settings).values(name="key", value=[HOSTILE, None, {"a": 1e300}]))
    task = connection.execute(select(tasks.c.id).limit(1)).scalar_one()
    connection.execute(insert(adjudications).values(task_id=task, person_id=b, ranks={"x": 1}, reason=HOSTILE, at=0.3))


def all_rows(connection: Connection) -> dict[str, list[tuple]]:
    """Everything, as the database holds it."""
    found = {}
    for table in metadata.sorted_tables:
        bare = module._bare(table)
        found[table.name] = sorted((tuple(row) for row in connection.execute(select(bare))), key=str)
    return found


def rows_of(url: str) -> dict[str, list[tuple]]:
    store = Store(url)
    try:
        return store.read(all_rows)
    finally:
        store.close()


@pytest.mark.parametrize("path_of_kinds", [("sqlite", "postgresql", "sqlite"), ("postgresql", "sqlite", "postgresql")])
def test_all_goes_from_one_kind_to_the_other_and_back(
    path_of_kinds: tuple[str, ...], tmp_path: Path, postgres_server: PostgresServer
) -> None:
    def new(number: int, kind: str) -> str:
        return str(tmp_path / f"store-{number}.db") if kind == "sqlite" else postgres_server.create_database()

    urls = [new(*item) for item in enumerate(path_of_kinds)]
    store = Store(urls[0])
    store.write(fill)
    rows = store.read(all_rows)
    store.close()
    assert all(rows.values()), [name for name, found in rows.items() if not found]
    for number, (source, target) in enumerate(pairwise(urls)):
        path = tmp_path / f"backup-{number}.db"
        assert backup(source, path) == restore(path, target) == 4
        assert rows_of(target) == rows_of(str(path)) == rows
    # What comes next is numbered after what came along, and the log still only grows.
    store = Store(urls[-1])
    store.write(lambda connection: add_people(connection, 1))
    store.write(lambda connection: load(connection, 1, "more"))
    store.read(check_store)
    for table in (people, tasks, log):
        ids = store.read(lambda connection, t=table: connection.execute(select(t.c.id)).scalars().all())
        assert len(set(ids)) == len(ids) > 1
    with pytest.raises(IntegrityError, match="the log only grows"):
        store.write(lambda connection: connection.execute(text("DELETE FROM log")) and None)
    store.close()


def test_a_backup_is_one_sound_file(store: Store, store_url: str, tmp_path: Path) -> None:
    store.write(fill)
    folder = tmp_path / "backups"
    folder.mkdir()
    backup(store_url, folder / "labels.db")
    assert [path.name for path in folder.iterdir()] == ["labels.db"]
    with sqlite3.connect(f"file:{folder / 'labels.db'}?mode=ro", uri=True) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("SELECT count(*) FROM answers").fetchone() == (4,)
    connection.close()


def test_a_backup_of_a_busy_store_is_one_moment_of_it(store_url: str, tmp_path: Path) -> None:
    """Six people work while three backups are taken: in each, counts and log agree with the answers."""
    store = Store(store_url)
    store.write(lambda connection: load(connection, 400, overlap=2, extra_vote=True))
    crowd = store.write(lambda connection: add_people(connection, 6))
    stop = threading.Event()
    done: list[str] = []

    def work(person: int) -> None:
        dice = Random(person)

        def job(connection: Connection) -> str | None:
            turn = next_turn(connection, person, Rules(), 0.0)
            if turn is not None:
                send(connection, person, turn, dice.choice("ab"), id=turn.lease_id)
            return turn and turn.lease_id

        while not stop.is_set() and (lease := store.write(job)) is not None:
            done.append(lease)

    with ThreadPoolExecutor(6) as pool:
        working = [pool.submit(work, person) for person in crowd]
        taken = []
        while len(taken) < 3:
            known = set(done)
            path = tmp_path / f"backup-{len(taken)}.db"
            num = backup(store_url, path)
            taken.append((path, num, known))
        stop.set()
        for future in working:
            future.result()
    store.close()
    assert taken[-1][1] > 0
    for path, num, known in taken:
        copy = Store(str(path))
        copy.read(check_store)
        ids = set(copy.read(lambda connection: connection.execute(select(answers.c.lease_id)).scalars().all()))
        copy.close()
        assert len(ids) == num
        assert known <= ids  # what was acknowledged before the backup began is in it


def test_the_writer_need_not_wait_for_a_backup(
    store: Store, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "_copy_pages" if store.url.drivername == "sqlite" else "_copy_into_store"
    copy = getattr(module, name)

    def copy_while_somebody_writes(connection: Connection, target: Any) -> None:
        assert connection.execute(select(settings.c.name)).scalars().all() == ["before"]
        store.write(lambda c: c.execute(insert(settings).values(name="during", value=1)) and None)
        copy(connection, target)

    store.write(lambda c: c.execute(insert(settings).values(name="before", value=1)) and None)
    monkeypatch.setattr(module, name, copy_while_somebody_writes)
    backup(store_url, tmp_path / "backup.db")
    monkeypatch.undo()
    assert [row[0] for row in rows_of(str(tmp_path / "backup.db"))["settings"]] == ["before"]


def test_only_an_empty_store_is_filled(store: Store, store_url: str, tmp_path: Path) -> None:
    store.write(fill)
    backup(store_url, tmp_path / "backup.db")
    before = store.read(all_rows)
    with pytest.raises(UserError, match=r"is not empty \(there are \w+\); name a new file or an empty database"):
        restore(tmp_path / "backup.db", store_url)
    assert store.read(all_rows) == before


def test_a_restore_that_fails_leaves_nothing(store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Store(str(tmp_path / "source.db"))
    source.write(fill)
    source.close()
    copy_rows = module._copy_rows

    def fails(source: Connection, target: Connection, where: str) -> int:
        copy_rows(source, target, where)
        target.execute(text("SELECT 1 FROM nowhere"))
        return 0

    monkeypatch.setattr(module, "_copy_rows", fails)
    with pytest.raises(Exception, match="nowhere"):
        restore(tmp_path / "source.db", store_url)
    monkeypatch.undo()
    assert not any(rows_of(store_url).values())
    assert restore(tmp_path / "source.db", store_url) == 4  # a store in use is as good as a backup


def test_a_backup_of_an_older_rlhf_is_restored_into_a_newer_one(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.test_label_store import newer

    store = Store(str(tmp_path / "old.db"))
    store.write(fill)
    store.close()
    before = (tmp_path / "old.db").read_bytes()
    newer(tmp_path, monkeypatch)
    restore(tmp_path / "old.db", store_url)
    store = Store(store_url)
    assert store.read(lambda connection: "more" in inspect(connection).get_table_names())
    assert store.read(lambda connection: count(connection, answers)) == 4
    store.close()
    assert (tmp_path / "old.db").read_bytes() == before


def test_a_newer_rlhf_backs_up_what_an_older_one_made_or_says_what_to_do(
    store: Store, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.test_label_store import newer

    store.write(fill)
    newer(tmp_path, monkeypatch)
    if store.url.drivername == "sqlite":
        assert backup(store_url, tmp_path / "backup.db") == 4
        with sqlite3.connect(tmp_path / "backup.db") as connection:
            assert connection.execute(f"SELECT * FROM {migrate.VERSION_TABLE}").fetchall() == [("0001",)]
        connection.close()
    else:
        older = r"has tables of an older rlhf \(version 0001, this one knows 0002\); start `rlhf label`"
        with pytest.raises(UserError, match=older):
            backup(store_url, tmp_path / "backup.db")
        assert not (tmp_path / "backup.db").exists()


# --- what goes wrong ----------------------------------------------------------------------------


def test_a_backup_overwrites_nothing(store: Store, store_url: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes.txt: is there already; name a new file for the backup"):
        backup(store_url, tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    if store.url.drivername == "sqlite":
        with pytest.raises(UserError, match="is there already"):
            backup(store_url, store_url)
    with pytest.raises(UserError, match=r"absent/b.db: .*absent is no folder; make it, or name another file"):
        backup(store_url, tmp_path / "absent" / "b.db")


def test_what_is_no_store_has_no_backup(store_url: str, tmp_path: Path) -> None:
    path = tmp_path / "backup.db"
    if store_url.startswith("postgresql"):
        with pytest.raises(UserError, match="is an empty database, no label store"):
            backup(store_url, path)
    else:
        with pytest.raises(UserError, match=r"labels.db: no such label store; there is nothing to back up"):
            backup(store_url, path)
        assert not Path(store_url).exists()
    engine = create_engine(parse_url(store_url))
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE bookmarks (id integer)"))
    engine.dispose()
    with pytest.raises(UserError, match=r"is no label store, it has other tables \(bookmarks\)"):
        backup(store_url, path)
    assert not path.exists()


def test_a_file_that_is_no_backup_is_not_restored(tmp_path: Path, store_url: str) -> None:
    path = tmp_path / "notes.txt"
    with pytest.raises(UserError, match=r"notes.txt: no such file; name one that `rlhf label backup` wrote"):
        restore(path, store_url)
    path.write_text("not a database " * 100)
    with pytest.raises(UserError, match=r"notes.txt: cannot be restored \(file is not a database\); is it a whole"):
        restore(path, store_url)
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"notes.txt: is an empty database, no label store"):
        restore(path, store_url)
    store = Store(store_url)
    assert not any(store.read(all_rows).values())
    store.close()


def test_a_damaged_backup_is_not_restored(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "labels.db"))
    store.write(lambda connection: load(connection, 300))
    store.close()
    backup(str(tmp_path / "labels.db"), tmp_path / "backup.db")
    content = bytearray((tmp_path / "backup.db").read_bytes())
    where = content.index(b"prompt of set-200") // 4096 * 4096
    content[where : where + 100] = os.urandom(100)  # the head of a page
    (tmp_path / "backup.db").write_bytes(content)
    with pytest.raises(UserError, match=r"backup.db: cannot be restored \(.*(malformed|not sound)"):
        restore(tmp_path / "backup.db", str(tmp_path / "new.db"))
    assert not (tmp_path / "new.db").exists()


def test_a_full_disk_leaves_no_backup(full_disk: Path, store: Store, store_url: str) -> None:
    store.write(lambda connection: load(connection, 3000))
    with pytest.raises(UserError, match=r"backup.db: no backup was written \(.*full\); can .* be read, and is there"):
        backup(store_url, full_disk / "backup.db")
    assert list(full_disk.iterdir()) == []
    # No more does a restore that has no space: the next one finds an empty store.
    backup(store_url, full_disk.parent / "backup.db")
    with pytest.raises(UserError, match=r"nothing was restored \(not stored: .*full\); mend that and run again"):
        restore(full_disk.parent / "backup.db", str(full_disk / "labels.db"))


def test_an_unreachable_server_has_no_backup(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(UserError, match=r"b.db: no backup was written .*can postgresql://me:\*\*\*@127.0.0.1:1/x be"):
        backup("postgresql://me:secret@127.0.0.1:1/x", tmp_path / "b.db")
    assert list(tmp_path.iterdir()) == []
