"""Servers as real processes: started, watched, killed, and never left behind."""

import http.client
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from rlhf.ports import choose_port

MEGABYTE = 1e6


class Server:
    """A web server in a session of its own, on 127.0.0.1, and what all of its processes take of memory.

    Args:
        command: what starts it; `{port}` stands for the port.
        folder: where it runs, and where its log goes.
        health: a path that answers under 400 once it is ready.
        environment: added to this process's own.
    """

    def __init__(
        self, command: Sequence[str], folder: Path, health: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self.port = choose_port("127.0.0.1", 0)
        self.command = [part.replace("{port}", str(self.port)) for part in command]
        self.folder, self.health = folder, health
        self.environment = {**os.environ, **(environment or {})}
        self.log = folder / "server.log"
        self.peak_pss = self.peak_rss = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._watching = threading.Event()
        self._watcher: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.start()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watching.set()
        if self._watcher is not None:
            self._watcher.join()
        self.stop()

    def start(self, patience: float = 180.0) -> float:
        """Start it, wait until it is ready, and return the seconds that took. Raises RuntimeError with its log."""
        begin = time.perf_counter()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        while not self._is_ready():
            if self._process.poll() is not None or time.perf_counter() - begin > patience:
                tail = self.log.read_text(errors="replace")[-2000:]
                self.kill()
                raise RuntimeError(f"{self.command[0]} did not start:\n{tail}")
            time.sleep(0.05)
        return time.perf_counter() - begin

    def kill(self) -> None:
        """SIGKILL to every process of it at once."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def stop(self) -> None:
        """Ask it to end, and kill what has not after ten seconds."""
        if self._process is not None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
        self.kill()

    def memory(self) -> tuple[float, float]:
        """PSS and RSS of all of its processes, in megabytes (10^6 bytes)."""
        pss = rss = 0.0
        for pid in self._pids():
            with suppress(OSError, ValueError):
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        pss += int(line.split()[1]) * 1024 / MEGABYTE
                    elif line.startswith("Rss:"):
                        rss += int(line.split()[1]) * 1024 / MEGABYTE
        return pss, rss

    def cpu_seconds(self) -> float:
        """CPU time of its processes that still run."""
        ticks = 0
        for pid in self._pids():
            with suppress(OSError, ValueError):
                ticks += sum(map(int, _stat(pid)[11:13]))
        return ticks / os.sysconf("SC_CLK_TCK")

    def _watch(self) -> None:
        while not self._watching.wait(0.5):
            pss, rss = self.memory()
            self.peak_pss, self.peak_rss = max(self.peak_pss, pss), max(self.peak_rss, rss)

    def _pids(self) -> list[int]:
        """The processes of its session: a worker that lost its parent is still one of them."""
        if self._process is None:
            return []
        found = []
        for path in Path("/proc").iterdir():
            with suppress(OSError, ValueError):
                if path.name.isdigit() and int(_stat(int(path.name))[3]) == self._process.pid:
                    found.append(int(path.name))
        return found

    def _signal(self, number: signal.Signals) -> None:
        for pid in self._pids():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _is_ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", self.health)
            return connection.getresponse().status < 400
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def _stat(pid: int) -> list[str]:
    """/proc/PID/stat from its third field on: the name before may hold spaces."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
