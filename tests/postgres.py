"""A PostgreSQL server of our own for tests: made on first use, one for each test process, gone at its end.

Needs Debian's `postgresql` package (the programs only; its service is left alone).
"""

import itertools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from labeling_app.store import Store

# The server and its folder go with us, however we go: its keeper waits for the end of a pipe that we hold.
_KEEPER = 'trap "" INT TERM; "$@" & read word; kill -QUIT $!; wait $!; test "$word" = keep || rm -rf "$PWD"'


class PostgresServer:
    """A cluster in a folder under /tmp that is reached by a unix socket there, and by nobody else."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        # Not under pytest's folder: that is closed to the user whom the server needs (it refuses root).
        self.folder = Path(tempfile.mkdtemp(prefix="rlhf-postgres-"))
        self._as_user = {}
        if os.geteuid() == 0:
            shutil.chown(self.folder, "postgres", "postgres")
            self._as_user = {"user": "postgres", "group": "postgres", "extra_groups": []}
        self._numbers = itertools.count()
        self._run("initdb", "-D", "data", "-U", "label", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": self.folder,
            "max_connections": 200,
            "shared_buffers": "32MB",
            "fsync": "off",  # tests kill processes, not machines
        }
        options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        with (self.folder / "log").open("ab") as log:
            self._keeper = subprocess.Popen(
                ["sh", "-c", _KEEPER, "keeper", str(self._programs / "postgres"), "-D", "data", *options],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
                **self._as_user,
            )
        deadline = time.monotonic() + 60
        while self._ask("SELECT 1").returncode != 0:
            if time.monotonic() > deadline or self._keeper.poll() is not None:
                raise RuntimeError((self.folder / "log").read_text())
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop it at once, as a crash would: what was committed has to be found by recovery."""
        self._keeper.communicate(b"keep\n", timeout=60)

    def create_database(self) -> str:
        """The URL of a new empty database."""
        name = f"labels{next(self._numbers)}"
        done = self._ask(f"CREATE DATABASE {name}")
        assert done.returncode == 0, done.stderr
        return f"postgresql://label@/{name}?host={self.folder}"

    def drop_database(self, url: str) -> None:
        """Remove it, and throw out who still uses it."""
        done = self._ask(f"DROP DATABASE {url.split('/')[3].split('?')[0]} WITH (FORCE)")
        assert done.returncode == 0, done.stderr

    def _ask(self, statement: str) -> subprocess.CompletedProcess:
        command = ["psql", "-h", str(self.folder), "-U", "label", "-d", "postgres", "-qtc", statement]
        return self._run(*command, check=False)

    def _run(self, program: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess:
        return subprocess.run(
            [str(self._programs / program), *arguments],
            capture_output=True,
            text=True,
            check=check,
            cwd=self.folder,
            **self._as_user,
        )


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The server of this test process; skips where PostgreSQL or psycopg is not installed."""
    pytest.importorskip("psycopg", reason="PostgreSQL is not tested: psycopg is absent; pip install -e '.[dev]'")
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    found = str(installed[-1]) if installed else shutil.which("initdb")
    if found is None:
        pytest.skip("PostgreSQL is not tested: it is not installed; apt-get install postgresql")
    server = PostgresServer(Path(found).parent)
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(server.folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of either kind."""
    if request.param == "sqlite":
        yield str(tmp_path / "labels.db")
        return
    server = request.getfixturevalue("postgres_server")
    url = server.create_database()
    yield url
    server.drop_database(url)


@pytest.fixture
def store(store_url: str) -> "Iterator[Store]":
    """A store of either kind, empty but for its tables."""
    from labeling_app.store import Store

    store = Store(store_url)
    yield store
    store.close()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def shared_store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Store]":
    """A store of either kind for all tests of a file: they use it through `connection`, which leaves nothing in it."""
    from labeling_app.store import Store

    if request.param == "sqlite":
        store = Store(str(tmp_path_factory.mktemp("store") / "labels.db"))
    else:
        store = Store(request.getfixturevalue("postgres_server").create_database())
    yield store
    store.close()


@pytest.fixture
def connection(shared_store: "Store") -> "Iterator[Connection]":
    """An empty store of either kind, inside of a transaction that is never committed: quick."""
    from labeling_app.store.database import write_transaction

    with write_transaction(shared_store._engine) as connection:
        yield connection
        connection.rollback()
